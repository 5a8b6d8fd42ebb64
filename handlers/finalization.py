"""The finalized event of a batch. Pure: the same batch gives the same bytes."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import cast

import msgspec
from pydantic_core import to_json

from handlers import completion
from schemas.headers import cloud_event, headers_text
from schemas.topics import Topics
from store.rows import Batch, OutboxRow

EVENT = "batch.finalized"

_encode = msgspec.json.Encoder().encode


def event_id(batch_id: str, revision: int) -> str:
    """The ``ce_id`` of a revision; batch ids hold no ``/``, so it is unambiguous."""
    return f"{EVENT}/{batch_id}/{revision}"


def finalized_event(
    batch: Batch,
    topics: Topics,
    *,
    failed_item_ids: Sequence[str],
    missing_item_ids: Sequence[str],
    traceparent: str | None,
) -> OutboxRow:
    """The event for a batch that has just been finalized, with the first ids of each kind.

    Its fields are those of ``schemas.published.BatchFinalized``, which would take five times as long to be made and
    written; tests hold the bytes to be the same.
    """
    finalized_at = rfc3339(cast(datetime, batch.finalized_at))
    value = _encode(
        {
            "batch_id": batch.batch_id,
            "revision": batch.revision,
            "supersedes": batch.revision - 1 if batch.revision > 1 else None,
            "outcome": batch.outcome,
            "finalized_by": batch.finalized_by,
            "item_counts": item_counts(batch),
            "write_counts": write_counts(batch),
            "error_summary": completion.error_summary(batch),
            "failed_item_ids": failed_item_ids,
            "missing_item_ids": missing_item_ids,
            "name": batch.name,
            "metadata": None if batch.metadata is None else msgspec.Raw(to_json(json.loads(batch.metadata))),
            "retry_of": batch.retry_of,
            "opened_at": _time(batch.opened_at),
            "first_result_at": _time(batch.first_result_at),
            "finalized_at": finalized_at,
            "duration_ms": duration_ms(batch),
            "as_of": {"topic": topics.events, "partition": batch.partition, "offset": batch.decided_offset},
        }
    )
    identity = event_id(batch.batch_id, batch.revision)
    headers = cloud_event(
        event_id=identity,
        event_type=f"rollcall.{EVENT}.v1",
        source=topics.source,
        time=finalized_at,
        subject=batch.batch_id,
        traceparent=traceparent,
    )
    return OutboxRow(identity, "finalized", batch.batch_id, batch.revision, value.decode(), headers_text(headers))


def item_counts(batch: Batch) -> dict[str, int]:
    """How the items of a finalized batch went: the fields of ``schemas.published.ItemCounts``."""
    return {
        "total": cast(int, batch.total),
        "succeeded": batch.succeeded,
        "partial": batch.partial,
        "failed": batch.failed,
        "skipped": batch.skipped,
        "missing": batch.missing,
        "unexpected": batch.unexpected,
    }


def write_counts(batch: Batch) -> dict[str, int]:
    """What the items' work did: the fields of ``schemas.published.WriteCounts``."""
    return {"created": batch.created, "updated": batch.updated, "unchanged": batch.unchanged}


def duration_ms(batch: Batch) -> int | None:
    """Milliseconds from a finalized batch's begin to its end; None where nothing ever began."""
    begin = batch.opened_at or batch.first_result_at
    return None if begin is None else round((cast(datetime, batch.finalized_at) - begin).total_seconds() * 1000)


@lru_cache(maxsize=1_000)
def rfc3339(moment: datetime) -> str:
    """A UTC time with milliseconds, the resolution of Kafka's append times (which many records share)."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
