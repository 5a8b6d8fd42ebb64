"""The pure fold: what one record means for its batch. Without I/O and clock.

``step`` is the meaning of a record, and intake, replay and tests all use it. ``fold_fast`` gives the same for
a slice that has ``sums`` and that ``is_fast`` has found to be harmless, in sums instead of steps; a property test holds
the two equal. Both advance the batch and the registers passed in, in place.
"""

import json
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any, NamedTuple, cast

import rollcall_native

from handlers import completion, lifecycle
from handlers.counting import count, finalize, finalize_if_complete, mark_result, note_failures, note_threshold
from handlers.records import AllBut, Disposition, Record, Registers, TakenRecord, order
from schemas.published import FinalizedBy
from store.rows import RETRYING, Batch, ItemRow, TakenResult


class Sums(NamedTuple):
    """What the results of a slice come to, where none but the last of them can decide the batch.

    ``kept`` are those that their items end with, in log order: ``new`` ones of items that had no register, ``moved``
    ones of items whose register was retrying. Of the ``displaced``, which were retrying, later results took the place.
    ``unchanged`` is how many changed nothing, and why, ``tally`` how many are kept of each status and effect, and
    ``answers`` how many of these are terminal.
    """

    kept: list[TakenResult]
    new: list[TakenResult]
    moved: Sequence[ItemRow]
    displaced: Sequence[TakenResult]
    unchanged: dict[Disposition, int]
    tally: dict[tuple[str, str | None], int]
    answers: int

    @property
    def last_answer(self) -> TakenResult | None:
        """The last of the kept that is terminal."""
        return next((result for result in reversed(self.kept) if result.status != RETRYING), None)


# Python 3.11 takes a tenth of a microsecond to find a member of an enum.
_ACCEPTED, _DUPLICATE, _SUPERSEDED = Disposition.ACCEPTED, Disposition.DUPLICATE, Disposition.SUPERSEDED

_counts_for = itemgetter(*map(ItemRow._fields.index, ("status", "effect")))


def step(batch: Batch, registers: Registers, record: Record) -> Disposition:
    """Apply one record. Raises Refused (``not_applicable``) where the state forbids it; nothing is changed then."""
    if isinstance(record, ItemRow):
        return _result(batch, registers, record)
    return lifecycle.apply(batch, registers, record)


def rows(records: Sequence[TakenRecord]) -> Sequence[Record]:
    """The same records, with a row for each usual result."""
    return (
        rollcall_native.results.rows(records, ItemRow) if rollcall_native.compiled else cast(Sequence[Record], records)
    )


def sum_up(results: Sequence[TakenResult], held: dict[str, ItemRow] | None) -> Sums | None:
    """What these results of one batch, which is not settled, come to by the registers of their items.

    ``held`` are these, None where they are not known: then each item is taken to have none. None where the order of the
    results may matter, since one displaces a terminal one; and where registers are not known, but there must be some,
    since an item's first result here is not its first attempt.
    """
    made = NotImplemented
    if rollcall_native.compiled:
        made = rollcall_native.results.sum_up(results, held, _unchanged_by, _DUPLICATE, ItemRow)
    if made is NotImplemented:
        return sum_up_in_python(_rows(results), held)
    return None if made is None else Sums(*made)


def sum_up_in_python(rows: Sequence[ItemRow], held: dict[str, ItemRow] | None) -> Sums | None:
    """The same of rows."""
    kept: dict[str, ItemRow] = {}
    displaced: list[TakenResult] = []
    unchanged: Counter[Disposition] = Counter()
    for row in rows:
        item_id = row.item_id
        met = kept.get(item_id)
        if met is None:
            if held is not None:
                met = held.get(item_id)
            elif row.attempt > 1:
                return None
        if met is not None:
            if why := _unchanged_by(met, row):
                unchanged[why] += 1
                continue
            if met.status != RETRYING:
                return None
            if kept.pop(item_id, None) is not None:  # in log order are those that stay
                displaced.append(met)
        kept[item_id] = row
    of_held = held or {}
    return Sums(
        [*kept.values()],
        [row for item_id, row in kept.items() if item_id not in of_held],
        tuple(row for item_id, row in kept.items() if item_id in of_held),
        tuple(displaced),
        dict(unchanged),
        dict(Counter(map(_counts_for, kept.values()))),
        sum(row.status != RETRYING for row in kept.values()),
    )


def is_settled(batch: Batch) -> bool:
    """Whether the batch has ended, or did before it was reopened: what a result does there depends on its register."""
    return batch.outcome is not None or batch.generation > 0


def is_fast(batch: Batch, results: Sequence[TakenResult], sums: Sums) -> bool:
    """Whether only the last of these results can decide the batch, so that sums will do."""
    if is_settled(batch):
        return False
    if not batch.sealed:
        return True
    if batch.expected is not None:
        left = batch.expected - batch.matched
    else:
        left = cast(int, batch.total_items) - batch.answered
    return sums.answers < left or (sums.answers == left and sums.last_answer is results[-1])


def fold_fast(batch: Batch, registers: Registers, results: Sequence[TakenResult], sums: Sums) -> dict[Disposition, int]:
    """Apply a slice for which ``is_fast`` holds. Returns how many of its results did what.

    The new registers are not put among those of the batch: they are not read again.
    """
    for (status, effect), number in sums.tally.items():
        setattr(batch, status, getattr(batch, status) + number)
        if effect is not None and status != RETRYING:
            setattr(batch, effect, getattr(batch, effect) + number)
    batch.retrying -= len(sums.moved)
    batch.duplicates += sum(sums.unchanged.values())
    for row in sums.moved:
        registers.items[row.item_id] = row
        registers.changed.add(row.item_id)
    taken = accepted = len(sums.kept) + len(sums.displaced)
    if batch.expected is not None:
        on_it = _on_manifest(sums.kept, registers)
        all_answer = sums.answers == len(sums.kept)
        batch.matched += len(on_it) if all_answer else sum(result.status != RETRYING for result in on_it)
        accepted = len(on_it) + len(_on_manifest(sums.displaced, registers))
    last = _mark(batch, results[0], sums)
    if batch.failed and not (batch.failure_seen and (batch.threshold_exceeded or batch.policy is None)):
        note_failures(batch, registers, _rows([result for result in sums.kept if result.status == "failed"]))
    if last is not None:
        finalize_if_complete(batch, last)
    return {**sums.unchanged, _ACCEPTED: accepted, Disposition.UNEXPECTED: taken - accepted}


def _on_manifest(results: Sequence[TakenResult], registers: Registers) -> Sequence[TakenResult]:
    manifest = registers.manifest
    if isinstance(manifest, AllBut) and manifest.is_all:
        return results
    return [result for result in results if result.item_id in manifest]


def _mark(batch: Batch, first: TakenResult, sums: Sums) -> ItemRow | None:
    """Note when and where results came; returns the last that is kept, which decides where one does.

    The first counts where the batch had none: then no item has a register.
    """
    if not sums.kept:
        return None
    last = sums.kept[-1]
    marking = [first] if batch.first_result_at is None else []
    if last.status == RETRYING and (last_answer := sums.last_answer) is not None:
        marking.append(last_answer)
    marks = _rows([*marking, last])
    for row in marks:
        mark_result(batch, row)
    return marks[-1]


def _rows(results: Sequence[TakenResult]) -> Sequence[ItemRow]:
    return cast(Sequence[ItemRow], rows(results))


def _result(batch: Batch, registers: Registers, row: ItemRow) -> Disposition:
    if batch.pruned_at is not None:
        return Disposition.PRUNED  # whatever registers are still there: when they go is not the log's to say
    held = registers.items.get(row.item_id)
    if held is not None and held.generation != row.generation:
        row = row._replace(generation=held.generation)
    if held is not None and (unchanged := _unchanged_by(held, row)):
        batch.duplicates += 1
        return unchanged
    if batch.outcome is None:
        _take(batch, registers, held, row)
        finalize_if_complete(batch, row)
        is_expected = batch.expected is None or row.item_id in registers.manifest
        return _ACCEPTED if is_expected else Disposition.UNEXPECTED
    if completion.takes_late_results(batch):
        return _revise(batch, registers, held, row)
    return _late(batch, registers, row)


def _take(batch: Batch, registers: Registers, held: ItemRow | None, row: ItemRow) -> None:
    """Let a result be its item's register."""
    on_manifest = row.item_id in registers.manifest
    if held is not None:
        count(batch, held, on_manifest, -1)
    count(batch, row, on_manifest, +1)
    registers.items[row.item_id] = row
    registers.changed.add(row.item_id)
    mark_result(batch, row)
    if row.status == "failed":
        note_failures(batch, registers, [row])


def _revise(batch: Batch, registers: Registers, held: ItemRow | None, row: ItemRow) -> Disposition:
    """A changing result after finalization that counts: a new revision where an expected item's status changed."""
    if batch.expected is not None:
        is_expected = row.item_id in registers.manifest
    else:
        is_expected = held is not None or batch.total_items is None or batch.missing > 0
    _take(batch, registers, held, row)
    note_threshold(batch, registers, row)
    if is_expected and (held is None or held.status != row.status):
        finalize(batch, cast(FinalizedBy, batch.finalized_by), row)
    return Disposition.LATE


def _late(batch: Batch, registers: Registers, row: ItemRow) -> Disposition:
    """A changing result after finalization: kept aside, one register an item, never counted."""
    held = registers.late.get(row.item_id)
    if held is not None and (unchanged := _unchanged_by(held, row)):
        batch.duplicates += 1
        return unchanged
    if held is None:
        batch.late += 1
    registers.late[row.item_id] = row
    registers.changed_late.add(row.item_id)
    return Disposition.LATE


def _unchanged_by(held: ItemRow, row: ItemRow) -> Disposition | None:
    """Why a result changes nothing of the register it meets; None where it does."""
    if _same_content(held, row):
        return _DUPLICATE
    return _SUPERSEDED if order(row) < order(held) else None


def _same_content(held: ItemRow, row: ItemRow) -> bool:
    """Whether two results say the same: all fields but generation, version and append time."""
    if held[2:4] != row[2:4] or held[7:13] != row[7:13] or held[15:] != row[15:]:
        return False
    return _same_json(held.output, row.output) and _same_json(held.metrics, row.metrics)


def _same_json(one: str | None, other: str | None) -> bool:
    """Whether two JSON texts are of equal values: the order of keys and how a number is written make no difference."""
    if one == other or one is None or other is None:
        return one == other
    return bool(_parsed(one) == _parsed(other))


def _parsed(text: str) -> Any:
    # Numbers as pairs: Python takes true for 1.
    return json.loads(text, parse_int=_number, parse_float=_number)


def _number(text: str) -> tuple[str, Decimal]:
    return "number", Decimal(text)
