"""Finalized events as this client gives them, read leniently: what a newer Rollcall adds is in ``raw``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """Items of a batch; ``total`` = succeeded + partial + failed + skipped - unexpected + missing."""

    total: int = 0
    succeeded: int = 0
    partial: int = 0
    failed: int = 0
    skipped: int = 0
    missing: int = 0
    unexpected: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Self:
        """From a message."""
        return cls(**{name: counts.get(name) or 0 for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """What the items' work did, by their ``effect``."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Self:
        """From a message."""
        return cls(**{name: counts.get(name) or 0 for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class FinalizedEvent:
    """``rollcall.batch.finalized.v1``: a batch is done. Times are append times of the records that caused them.

    ``ce_id`` is the same each time this event is delivered: what tells a repetition. ``failed_item_ids`` and
    ``missing_item_ids`` name the first hundred each, missing ones only where the batch had a manifest.
    """

    batch_id: str
    revision: int
    outcome: str
    finalized_by: str
    item_counts: ItemCounts
    write_counts: WriteCounts
    ce_id: str | None = None
    supersedes: int | None = None
    error_summary: str | None = None
    failed_item_ids: list[str] = field(default_factory=list)
    missing_item_ids: list[str] = field(default_factory=list)
    name: str | None = None
    metadata: dict[str, Any] | None = None
    retry_of: str | None = None
    opened_at: datetime | None = None
    first_result_at: datetime | None = None
    finalized_at: datetime | None = None
    duration_ms: int | None = None
    as_of: dict[str, Any] | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def status(self) -> str:
        """The outcome: the one word most people want."""
        return self.outcome

    @classmethod
    def of(cls, value: bytes, headers: Mapping[str, bytes]) -> Self:
        """From a record of ``rollcall.finalized``. Raises ValueError where it is none."""
        raw = json.loads(value)
        try:
            return cls(
                batch_id=raw["batch_id"],
                revision=raw["revision"],
                outcome=raw["outcome"],
                finalized_by=raw["finalized_by"],
                item_counts=ItemCounts.of(raw["item_counts"]),
                write_counts=WriteCounts.of(raw.get("write_counts") or {}),
                ce_id=headers["ce_id"].decode() if "ce_id" in headers else None,
                supersedes=raw.get("supersedes"),
                error_summary=raw.get("error_summary"),
                failed_item_ids=raw.get("failed_item_ids") or [],
                missing_item_ids=raw.get("missing_item_ids") or [],
                name=raw.get("name"),
                metadata=raw.get("metadata"),
                retry_of=raw.get("retry_of"),
                opened_at=_time(raw.get("opened_at")),
                first_result_at=_time(raw.get("first_result_at")),
                finalized_at=_time(raw.get("finalized_at")),
                duration_ms=raw.get("duration_ms"),
                as_of=raw.get("as_of"),
                raw=raw,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no finalized event: {error!r}") from error


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
