"""What the fold takes and gives: decoded records, a batch's item registers, and what a record did."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from schemas.published import AlertType
from store.rows import RETRYING, ItemRow, TakenResult


class LifecycleRecord(NamedTuple):
    """A decoded lifecycle record; ``body`` is what the message gives, as it is stored.

    Times are parsed, objects (metadata, policy, error) are text of JSON, absent fields are absent.
    """

    batch_id: str
    type: str
    version: int
    received_at: datetime
    body: Mapping[str, Any]

    @property
    def offset(self) -> int:
        """Where it lies in the log."""
        return self.version


class RedrivenRow(ItemRow):
    """A result that was put aside and read again.

    Its ``version`` is where it was first read: among its item's results that is its place. What it decides it decides
    where it lies now, at ``offset``.
    """

    offset: int = 0

    @staticmethod
    def of(row: ItemRow, version: int) -> "RedrivenRow":
        """A result read again, that was first read at this offset."""
        return RedrivenRow._make(row)._replace(version=version, offset=row.version)

    def _replace(self, offset: int | None = None, **fields: Any) -> "RedrivenRow":
        replaced = super()._replace(**fields)
        replaced.offset = self.offset if offset is None else offset
        return replaced


Record = ItemRow | LifecycleRecord
TakenRecord = TakenResult | LifecycleRecord
"""A record as it was taken from the log; ``fold.rows`` makes of it what is folded step by step."""


def order(row: ItemRow) -> tuple[int, int, bool, int]:
    """Of registers of an item the higher wins; at an equal attempt ``retrying`` never overrules a terminal status."""
    return row.generation, row.attempt, row.status != RETRYING, row.version


class Disposition(StrEnum):
    """What a record did."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    LATE = "late"
    UNEXPECTED = "unexpected"
    NO_EFFECT = "no_effect"
    SUMMARY_REQUESTED = "summary_requested"
    PRUNED = "pruned"


UNMOVED = frozenset((Disposition.NO_EFFECT, Disposition.SUMMARY_REQUESTED, Disposition.PRUNED))
"""What leaves the batch's row as it was."""


class RaisedAlert(NamedTuple):
    """An alert that a record caused."""

    alert: AlertType
    offset: int
    received_at: datetime
    message: str
    details: dict[str, Any]


class RaisedRetry(NamedTuple):
    """Items that a retry batch asks the upstream service for: those that one record put on its manifest.

    ``retry_of`` is what that record knew: a repeated opening may name another batch.
    """

    offset: int
    received_at: datetime
    retry_of: str
    item_ids: list[str]


class AllBut:
    """Of ids that were looked up, all but those few that are not on the manifest. Any other id counts as on it."""

    __slots__ = ("_few",)

    def __init__(self, few: set[str]) -> None:
        self._few = few

    def __contains__(self, item_id: str) -> bool:
        return item_id not in self._few

    def update(self, ids: Iterable[str]) -> None:
        """Put these on the manifest."""
        self._few.difference_update(ids)

    @property
    def is_all(self) -> bool:
        """Whether all that were looked up are on it."""
        return not self._few


@dataclass(slots=True)
class Registers:
    """What the fold sees of a batch's items: registers, late registers and manifest, of the ids that matter.

    ``changed``, ``changed_late``, ``adopted`` (late registers that count from now on) and ``added`` (to the manifest)
    collect what is to be written, ``alerts`` and ``retries`` what is to be said.
    """

    items: dict[str, ItemRow] = field(default_factory=dict)
    late: dict[str, ItemRow] = field(default_factory=dict)
    manifest: set[str] | AllBut = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    changed_late: set[str] = field(default_factory=set)
    adopted: set[str] = field(default_factory=set)
    added: list[str] = field(default_factory=list)
    alerts: list[RaisedAlert] = field(default_factory=list)
    retries: list[RaisedRetry] = field(default_factory=list)

    def has_answered(self, item_id: str) -> bool:
        """Whether an item has a terminal register."""
        held = self.items.get(item_id)
        return held is not None and held.status != RETRYING
