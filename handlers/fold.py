"""The pure fold: what one record means for its batch. Without I/O and clock.

``step`` is the meaning of a record, and intake, replay and tests all use it. ``fold_fast`` gives the same for
a slice that ``is_fast`` has found to be harmless, in sums instead of steps; a property test holds the two equal.
Both advance the batch and the registers passed in, in place.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple, cast

from handlers import completion
from schemas.dead_letters import Reason, Refused
from schemas.published import FinalizedBy
from store.rows import RETRYING, Batch, ItemRow


class LifecycleRecord(NamedTuple):
    """A decoded lifecycle record; ``body`` is the validated message without its absent fields."""

    batch_id: str
    type: str
    version: int
    received_at: datetime
    body: Mapping[str, Any]


Record = ItemRow | LifecycleRecord


class Disposition(StrEnum):
    """What a record did."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    LATE = "late"
    UNEXPECTED = "unexpected"
    NO_EFFECT = "no_effect"


@dataclass(slots=True)
class Registers:
    """What the fold sees of a batch's items: registers, late registers and manifest, of the ids that matter.

    ``changed``, ``changed_late`` and ``added`` collect what is to be written.
    """

    items: dict[str, ItemRow] = field(default_factory=dict)
    late: dict[str, ItemRow] = field(default_factory=dict)
    manifest: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    changed_late: set[str] = field(default_factory=set)
    added: list[str] = field(default_factory=list)


def step(batch: Batch, registers: Registers, record: Record) -> Disposition:
    """Apply one record. Raises Refused (``not_applicable``) where the state forbids it; nothing is changed then."""
    if isinstance(record, ItemRow):
        return _result(batch, registers, record)
    return _LIFECYCLE[record.type](batch, registers, record)


def is_fast(batch: Batch, results: Sequence[ItemRow]) -> bool:
    """Whether only the last of these results can decide the batch, given that none of the items has a register.

    So their counts are sums. ``is_plain`` must hold of them too.
    """
    if batch.outcome is not None or batch.generation > 0:
        return False
    if not batch.sealed:
        return True
    if batch.expected is not None:
        return batch.matched + len(results) <= batch.expected
    return batch.answered + len(results) <= cast(int, batch.total_items)


def is_plain(results: Sequence[ItemRow]) -> bool:
    """Whether these are terminal first-attempt results of distinct items."""
    return (
        len({row.item_id for row in results}) == len(results)
        and all(row.attempt == 1 for row in results)
        and all(row.status != RETRYING for row in results)
    )


def fold_fast(batch: Batch, manifest: set[str], results: Sequence[ItemRow]) -> Counter[Disposition]:
    """Apply a slice for which ``is_fast`` and ``is_plain`` hold and none of whose items has a register."""
    for status, count in Counter([row.status for row in results]).items():
        setattr(batch, status, getattr(batch, status) + count)
    for effect, count in Counter([row.effect for row in results]).items():
        if effect is not None:
            setattr(batch, effect, getattr(batch, effect) + count)
    expected = len(results)
    if batch.expected is not None:
        expected = sum(row.item_id in manifest for row in results)
        batch.matched += expected
    first, last = results[0], results[-1]
    _mark_result(batch, first)
    _mark_result(batch, last)
    batch.last_answer_at = last.received_at
    _finalize_if_complete(batch, last)
    return Counter({Disposition.ACCEPTED: expected, Disposition.UNEXPECTED: len(results) - expected})


def _result(batch: Batch, registers: Registers, row: ItemRow) -> Disposition:
    held = registers.items.get(row.item_id)
    if held is not None and held.generation != row.generation:
        row = row._replace(generation=held.generation)
    if held is not None and (unchanged := _unchanged_by(held, row)):
        batch.duplicates += 1
        return unchanged
    if batch.outcome is not None:
        return _late(batch, registers, row)
    on_manifest = row.item_id in registers.manifest
    if held is not None:
        _count(batch, held, on_manifest, -1)
    _count(batch, row, on_manifest, +1)
    registers.items[row.item_id] = row
    registers.changed.add(row.item_id)
    _mark_result(batch, row)
    if row.status != RETRYING:
        batch.last_answer_at = row.received_at
    _finalize_if_complete(batch, row)
    return Disposition.ACCEPTED if on_manifest or batch.expected is None else Disposition.UNEXPECTED


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
        return Disposition.DUPLICATE
    return Disposition.SUPERSEDED if _order(row) < _order(held) else None


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


def _order(row: ItemRow) -> tuple[int, int, bool, int]:
    """The higher wins; at an equal attempt ``retrying`` never overrules a terminal status."""
    return row.generation, row.attempt, row.status != RETRYING, row.version


def _count(batch: Batch, row: ItemRow, on_manifest: bool, by: int) -> None:
    setattr(batch, row.status, getattr(batch, row.status) + by)
    if row.status != RETRYING:
        if row.effect is not None:
            setattr(batch, row.effect, getattr(batch, row.effect) + by)
        if on_manifest:
            batch.matched += by


def _mark_result(batch: Batch, row: ItemRow) -> None:
    if batch.first_result_at is None:
        batch.first_result_at = row.received_at
        batch.state = "processing"
    batch.last_result_at = row.received_at
    batch.last_result_offset = row.version


def _opened(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """A repetition replaces what it gives of the total, adds to the manifest and never unseals.

    So that a redelivered ``batch.opened`` can't undo the ``batch.sealed`` that came between.
    """
    if batch.outcome is not None:
        return Disposition.NO_EFFECT
    total, ids = record.body.get("total_items"), record.body.get("item_ids")
    _check_total_or_manifest(batch, total, ids)
    sealed = record.body.get("sealed", total is not None or ids is not None)
    if sealed:
        _check_sealable(batch, total, ids)
    batch.opened_at = batch.opened_at or record.received_at
    for name in ("name", "metadata", "policy", "deadline_at"):
        setattr(batch, name, record.body.get(name))
    batch.retry_of = record.body.get("retry_of", batch.retry_of)
    batch.request_retry = record.body.get("request_retry", batch.request_retry)
    batch.total_items = batch.total_items if total is None else total
    batch.sealed = batch.sealed or sealed
    if ids is not None:
        _add_to_manifest(batch, registers, ids)
    _finalize_if_complete(batch, record)
    return Disposition.ACCEPTED


def _items_expected(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    if batch.outcome is not None:
        return Disposition.NO_EFFECT
    ids = record.body["item_ids"]
    if batch.sealed:
        raise Refused(Reason.NOT_APPLICABLE, "batch.items_expected: the batch is sealed, nothing can be added")
    _check_total_or_manifest(batch, None, ids)
    _add_to_manifest(batch, registers, ids)
    return Disposition.ACCEPTED


def _sealed(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    if batch.outcome is not None:
        return Disposition.NO_EFFECT
    total = record.body.get("total_items")
    _check_total_or_manifest(batch, total, None)
    _check_sealable(batch, total, None)
    batch.total_items = batch.total_items if total is None else total
    batch.sealed = True
    _finalize_if_complete(batch, record)
    return Disposition.ACCEPTED


def _not_understood(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    raise Refused(Reason.UNKNOWN_TYPE, f"this version does not understand {record.type} yet")


_LIFECYCLE: dict[str, Callable[[Batch, Registers, LifecycleRecord], Disposition]] = {
    "batch.opened": _opened,
    "batch.items_expected": _items_expected,
    "batch.sealed": _sealed,
    "batch.cancelled": _not_understood,
    "batch.aborted": _not_understood,
    "batch.expired": _not_understood,
    "batch.finalize_requested": _not_understood,
    "batch.reopened": _not_understood,
}


def _check_total_or_manifest(batch: Batch, total: int | None, ids: Sequence[str] | None) -> None:
    if ids is not None and batch.total_items is not None:
        raise Refused(Reason.NOT_APPLICABLE, "item ids for a batch that was given a total")
    if total is not None and batch.expected is not None:
        raise Refused(Reason.NOT_APPLICABLE, "a total for a batch that was given a manifest")


def _check_sealable(batch: Batch, total: int | None, ids: Sequence[str] | None) -> None:
    if total is None and ids is None and batch.total_items is None and batch.expected is None:
        raise Refused(Reason.NOT_APPLICABLE, "sealed without a total or a manifest: say how many items, or which")


def _add_to_manifest(batch: Batch, registers: Registers, ids: Sequence[str]) -> None:
    new = [item_id for item_id in ids if item_id not in registers.manifest]
    registers.manifest.update(new)
    registers.added.extend(new)
    batch.expected = (batch.expected or 0) + len(new)
    held = (registers.items.get(item_id) for item_id in new)
    batch.matched += sum(row is not None and row.status != RETRYING for row in held)


def _finalize_if_complete(batch: Batch, record: Record) -> None:
    if (finalized_by := completion.decide(batch)) is not None:
        _finalize(batch, finalized_by, record)


def _finalize(batch: Batch, finalized_by: FinalizedBy, record: Record) -> None:
    batch.outcome = completion.outcome(batch, finalized_by)
    batch.state = "finalized"
    batch.finalized_by = finalized_by
    batch.revision += 1
    batch.finalized_at = record.received_at
    batch.completed_at = batch.last_answer_at
    batch.decided_offset = record.version
