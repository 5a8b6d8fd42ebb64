"""The pure fold: what one record means for its batch. Without I/O and clock.

``step`` is the meaning of a record, and intake, replay and tests all use it. ``fold_fast`` gives the same for
a slice that ``is_fast`` has found to be harmless, in sums instead of steps; a property test holds the two equal.
Both advance the batch and the registers passed in, in place.
"""

import json
from collections.abc import Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any, cast

import rollcall_native

from handlers import completion, lifecycle
from handlers.counting import count, finalize, finalize_if_complete, mark_result, note_failures, note_threshold
from handlers.records import Disposition, Record, Registers, TakenRecord, order
from schemas.published import FinalizedBy
from store.rows import RETRYING, Batch, ItemRow, TakenResult

Tally = dict[tuple[str, int, str | None], int]
"""How many results there are of each status, attempt and effect."""

# Python 3.11 takes a tenth of a microsecond to find a member of an enum.
_ACCEPTED, _DUPLICATE, _SUPERSEDED = Disposition.ACCEPTED, Disposition.DUPLICATE, Disposition.SUPERSEDED

_item_id = itemgetter(ItemRow._fields.index("item_id"))
_counts_for = itemgetter(*map(ItemRow._fields.index, ("status", "attempt", "effect")))


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


def is_fast(batch: Batch, results: Sequence[TakenResult]) -> bool:
    """Whether only the last of these results can decide the batch, given that none of the items has a register.

    So their counts are sums. They must have a ``tally`` too.
    """
    if batch.outcome is not None or batch.generation > 0:
        return False
    if not batch.sealed:
        return True
    if batch.expected is not None:
        return batch.matched + len(results) <= batch.expected
    return batch.answered + len(results) <= cast(int, batch.total_items)


def tally_in_python(results: Sequence[TakenResult]) -> Tally | None:
    """Rows by what they count for; None unless all are terminal first-attempt results of distinct items."""
    rows = cast(Sequence[ItemRow], results)
    if len(set(map(_item_id, rows))) < len(rows):
        return None
    tally: Tally = {}  # a Counter takes longer to make than a small slice to count
    for kind in map(_counts_for, rows):
        tally[kind] = tally.get(kind, 0) + 1
    if any(attempt != 1 or status == RETRYING for status, attempt, _ in tally):
        return None
    return tally


tally = rollcall_native.results.tally if rollcall_native.compiled else tally_in_python


def fold_fast(batch: Batch, registers: Registers, results: Sequence[TakenResult], tally: Tally) -> int:
    """Apply a slice for which ``is_fast`` holds and none of whose items has a register; ``tally`` is of its results.

    Returns how many of them were expected.
    """
    for (status, _, effect), number in tally.items():
        setattr(batch, status, getattr(batch, status) + number)
        if effect is not None:
            setattr(batch, effect, getattr(batch, effect) + number)
    expected = len(results)
    if batch.expected is not None:
        expected = sum(result.item_id in registers.manifest for result in results)
        batch.matched += expected
    first, last = _rows([results[0], results[-1]])
    mark_result(batch, first)
    mark_result(batch, last)
    if batch.failed and not (batch.failure_seen and (batch.threshold_exceeded or batch.policy is None)):
        note_failures(batch, registers, _rows([result for result in results if result.status == "failed"]))
    finalize_if_complete(batch, last)
    return expected


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
