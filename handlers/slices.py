"""One batch's records of a micro-batch on their way through the fold, and what the fold must know of the items."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from handlers import completion, fold
from handlers.records import LifecycleRecord, Registers, TakenRecord
from schemas.published import LISTED_IDS
from store.items import Lines
from store.rows import Batch, ItemRow, TakenResult, UsualResult


@dataclass(slots=True)
class Slice:
    """A batch's records of one micro-batch, in log order."""

    partition: int
    records: list[TakenRecord]


@dataclass(slots=True)
class Listing:
    """The first failed and missing items of a batch, kept up with the results of a slice as they are folded.

    As PostgreSQL has them before it, and more of them than an event lists by as many as the slice has items: so many it
    may take away, and those an event lists are still the first.
    """

    failed: list[str]
    missing: list[str]

    def note(self, item_id: str, registers: Registers) -> None:
        """A result of this item was folded."""
        row = registers.items.get(item_id)
        _keep(self.failed, item_id, row is not None and row.status == "failed")
        _keep(self.missing, item_id, item_id in registers.manifest and not registers.has_answered(item_id))

    @property
    def first(self) -> tuple[list[str], list[str]]:
        """What an event lists now."""
        return self.failed[:LISTED_IDS], self.missing[:LISTED_IDS]


def _keep(ids: list[str], item_id: str, belongs: bool) -> None:
    at = bisect_left(ids, item_id)
    is_there = at < len(ids) and ids[at] == item_id
    if belongs and not is_there:
        ids.insert(at, item_id)
    elif is_there and not belongs:
        del ids[at]


class Work:
    """A slice in a round: its records up to the one that finalizes the batch are folded, the rest is the next round's.

    But for results that revise a batch which had ended before the round: with a ``listing`` all are folded in one.

    ``lead`` are the lifecycle records it begins with, ``tail`` is what follows, ``results`` the results in it;
    they have ``sums`` where ``tail`` holds nothing else and none of them displaces a terminal one. ``is_new`` is a
    batch without a row, ``stored`` are the items whose register has one, known once it ``is_loaded``.
    """

    __slots__ = (
        *("batch", "dirty", "finalized", "is_loaded", "is_new", "is_summed", "lead", "listing", "only_results"),
        *("registers", "rest", "results", "stored", "sums", "tail"),
    )

    def __init__(
        self, batch: Batch, records: list[TakenRecord], registers: Registers, stored: set[str], *, is_new: bool
    ) -> None:
        self.batch = batch
        self.is_new = is_new
        of_results = (index for index, record in enumerate(records) if not isinstance(record, LifecycleRecord))
        leading = next(of_results, len(records))
        self.lead = cast(list[LifecycleRecord], records[:leading])
        self.tail = records[leading:] if leading else records
        # A RedrivenRow has two places, one among the results and one where it decides: sums know only one.
        self.only_results = set(map(type, self.tail)) <= {ItemRow, UsualResult}
        if self.only_results:
            self.results = cast(list[TakenResult], self.tail)
        else:
            self.results = [record for record in self.tail if not isinstance(record, LifecycleRecord)]
        self.registers = registers
        self.stored = stored
        self.is_loaded = is_new  # it has nothing to be loaded
        self.sums: fold.Sums | None = None
        self.is_summed = False
        self.listing: Listing | None = None
        self.rest: list[TakenRecord] = []
        self.dirty = False
        self.finalized = False

    @staticmethod
    def begin(batch: Batch, records: list[TakenRecord], *, is_new: bool) -> "Work":
        """The first round."""
        return Work(batch, records, Registers(), set(), is_new=is_new)

    def behind_finalization(self) -> "Work":
        """The next round, for what is left. What was loaded or written is still known."""
        known = self.registers
        registers = Registers(known.items, known.late, known.manifest)
        is_new = self.is_new and not self.dirty
        work = Work(self.batch, self.rest, registers, self.stored | known.changed, is_new=is_new)
        work.is_loaded = self.is_loaded and not work.reopens()
        return work

    def may_revise(self) -> bool:
        """Whether several of these results may each make a revision of a batch that has ended."""
        return not self.lead and len(self.results) > 1 and completion.takes_late_results(self.batch)

    def lifecycle(self) -> Iterable[LifecycleRecord]:
        """All lifecycle records."""
        return (record for record in self.lead + self.tail if isinstance(record, LifecycleRecord))

    def loaded(self, registers: dict[str, ItemRow], late: dict[str, ItemRow]) -> None:
        """Take in what its items have."""
        self.registers.items, self.registers.late = registers, late
        self.stored = set(registers)
        self.is_loaded = True
        if self.stored or self.sums is None:
            self.is_summed = False

    def fast_sums(self) -> fold.Sums | None:
        """The sums, where they will do.

        Where registers were not read they hold only if no item has a row: each is copied as new, so its key would tell.
        """
        if fold.is_settled(self.batch):
            return None
        sums = self._sums()
        return sums if sums is not None and fold.is_fast(self.batch, self.results, sums) else None

    def _sums(self) -> fold.Sums | None:
        if not self.is_summed:
            held = self.registers.items if self.is_loaded else None
            self.sums = fold.sum_up(self.results, held) if self.only_results and self.results else None
            self.is_summed = True
        return self.sums

    def needs_registers(self, optimistic: bool) -> bool:
        """Whether the items' registers must be read before the fold."""
        if self.is_loaded:
            return False
        if fold.is_settled(self.batch) or (self.tail and (not optimistic or self._sums() is None)):
            return True
        # There is no lifecycle record behind the leading ones.
        return self.batch.has_rows and any("item_ids" in record.body for record in self.lead)

    def reopens(self) -> bool:
        """Whether a finalized batch's failed and late items matter, whoever they are: ``batch.reopened`` chooses."""
        return self.batch.outcome is not None and any(
            record.type == "batch.reopened" and "item_ids" not in record.body for record in self.lifecycle()
        )

    def item_lines(self) -> Lines:
        """The items that these records speak of."""
        if self.sums is not None and not self.lead:  # of each item one result is kept
            return Lines.of_results(self.sums.kept)
        return Lines.of(self.item_ids())

    def item_ids(self) -> set[str]:
        """The items that these records speak of."""
        ids = {result.item_id for result in self.results}
        for record in self.lifecycle():
            ids.update(record.body.get("item_ids", ()))
        return ids
