"""What each lifecycle record means for its batch. Pure; part of the fold (``handlers.fold.step``).

Each function raises Refused (``not_applicable``) where the state forbids the record, before it has changed anything.
On a finalized batch all but ``batch.reopened``, ``batch.corrected``, ``batch.pruned`` and ``batch.finalize_requested``
change nothing: they lost a race. Of one whose items were pruned nothing changes any more.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from handlers.counting import count, finalize, finalize_if_complete, mark_result, note_failures, note_threshold
from handlers.records import Disposition, LifecycleRecord, RaisedRetry, Registers, order
from schemas.dead_letters import Reason, Refused
from schemas.published import FinalizedBy
from store.rows import RETRYING, Batch, ItemRow


def apply(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """Apply a lifecycle record. Raises Refused."""
    if batch.outcome is not None:
        on_finalized = _ON_FINALIZED.get(record.type)
        return Disposition.NO_EFFECT if on_finalized is None else on_finalized(batch, registers, record)
    disposition = _ON_OPEN[record.type](batch, registers, record)
    if disposition is not Disposition.NO_EFFECT:
        note_threshold(batch, registers, record)
    return disposition


def _opened(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """A repetition replaces name, metadata, policy and deadline, by nothing where it gives none, and a total it gives.

    It adds to the manifest and never unseals, so that a redelivered ``batch.opened`` can't undo the ``batch.sealed``
    that came between.
    """
    total, ids = record.body.get("total_items"), record.body.get("item_ids")
    _check_total_or_manifest(batch, total, ids)
    sealed = record.body.get("sealed", total is not None or ids is not None)
    if sealed:
        _check_sealable(batch, total, ids)
    batch.opened_at = batch.opened_at or record.received_at
    for name in ("name", "metadata", "policy", "deadline_at"):
        setattr(batch, name, record.body.get(name))
    batch.retry_of = record.body.get("retry_of", batch.retry_of)
    retry_was_requested = batch.request_retry
    batch.request_retry = record.body.get("request_retry", batch.request_retry)
    batch.total_items = batch.total_items if total is None else total
    batch.sealed = batch.sealed or sealed
    added = [] if ids is None else _add_to_manifest(batch, registers, ids)
    if added or (batch.request_retry and not retry_was_requested and ids is None):
        _ask_for(batch, registers, record, added)
    finalize_if_complete(batch, record)
    return Disposition.ACCEPTED


def _items_expected(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    ids = record.body["item_ids"]
    if batch.sealed:
        raise Refused(Reason.NOT_APPLICABLE, "batch.items_expected: the batch is sealed, nothing can be added")
    _check_total_or_manifest(batch, None, ids)
    if added := _add_to_manifest(batch, registers, ids):
        _ask_for(batch, registers, record, added)
    return Disposition.ACCEPTED


def _sealed(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    total = record.body.get("total_items")
    _check_total_or_manifest(batch, total, None)
    _check_sealable(batch, total, None)
    batch.total_items = batch.total_items if total is None else total
    batch.sealed = True
    finalize_if_complete(batch, record)
    return Disposition.ACCEPTED


def _cancelled(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    batch.reason = record.body.get("reason")
    finalize(batch, "cancelled", record)
    return Disposition.ACCEPTED


def _aborted(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    batch.reason = None
    batch.error = record.body["error"]
    finalize(batch, "aborted", record)
    return Disposition.ACCEPTED


def _expired(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """Only the present deadline of the present generation counts: the clock may have asked about an older one."""
    if (record.body["deadline_at"], record.body["generation"]) != (batch.deadline_at, batch.generation):
        return Disposition.NO_EFFECT
    finalize(batch, "deadline", record)
    return Disposition.ACCEPTED


def _finalize_requested(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    if not _is_known(batch):
        raise Refused(Reason.NOT_APPLICABLE, "batch.finalize_requested: nothing is known of this batch")
    batch.reason = record.body.get("reason")
    finalize(batch, "forced", record)
    return Disposition.ACCEPTED


def _summary_requested(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    _check_kept(batch, record)
    return Disposition.SUMMARY_REQUESTED


def _changes_nothing(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    return Disposition.NO_EFFECT


def _reopened(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """A new generation: the chosen items are unanswered again, and late results of theirs count."""
    if record.body.get("revision", batch.revision) != batch.revision:
        return Disposition.NO_EFFECT
    _check_kept(batch, record)
    some_missing = batch.missing > 0
    ids: Iterable[str] | None = record.body.get("item_ids")
    if ids is None:
        known = sorted(registers.items.keys() | registers.late.keys())
        chosen = [item_id for item_id in known if _is_open_end(batch, registers, item_id)]
    else:
        chosen = [
            item_id for item_id in ids if item_id in registers.items or _may_be_missing(batch, registers, item_id)
        ]
    if not chosen and not (ids is None and some_missing):
        return Disposition.NO_EFFECT
    batch.generation += 1
    batch.state = "pending" if batch.first_result_at is None else "processing"
    batch.outcome = batch.finalized_by = batch.finalized_at = batch.completed_at = batch.decided_offset = None
    batch.reopened_at = record.received_at
    batch.deadline_at = record.body.get("deadline_at")
    batch.reason = record.body.get("reason")
    batch.error = None
    late = sorted(_late_that_stand(registers, chosen), key=lambda row: row.version)
    for item_id in chosen:
        if item_id in registers.items:
            _ask_again(batch, registers, registers.items[item_id], record)
    _adopt(batch, registers, late)
    note_failures(batch, registers, [row for row in late if row.status == "failed"], record)
    finalize_if_complete(batch, record)
    return Disposition.ACCEPTED


def _number_corrected(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """It is open after all: its next finalization goes by a number that was not published."""
    if not _is_known(batch):
        raise Refused(Reason.NOT_APPLICABLE, "batch.corrected: nothing is known of this batch")
    if batch.revision >= record.body["revision"]:
        return Disposition.NO_EFFECT
    batch.revision = record.body["revision"]
    return Disposition.ACCEPTED


def _outcome_corrected(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """It ended otherwise than was published: it goes out as it is, under the next number."""
    if batch.revision > record.body["revision"]:
        return Disposition.NO_EFFECT
    _check_kept(batch, record)
    batch.revision = record.body["revision"]
    finalize(batch, cast(FinalizedBy, batch.finalized_by), record)
    return Disposition.ACCEPTED


def _pruned(batch: Batch, registers: Registers, record: LifecycleRecord) -> Disposition:
    """From here on its items count for nothing, whether their rows are there yet or not."""
    if batch.pruned_at is not None or batch.revision != record.body["revision"]:
        return Disposition.NO_EFFECT
    batch.pruned_at = record.received_at
    return Disposition.ACCEPTED


def _check_kept(batch: Batch, record: LifecycleRecord) -> None:
    if batch.pruned_at is not None:
        raise Refused(Reason.NOT_APPLICABLE, f"{record.type}: the batch's items were pruned, it stays as it is")


def _is_known(batch: Batch) -> bool:
    return (
        batch.opened_at is not None or batch.first_result_at is not None or batch.sealed or batch.expected is not None
    )


def _is_open_end(batch: Batch, registers: Registers, item_id: str) -> bool:
    """Whether an item is one that reopening chooses by itself: failed, or unanswered where any are missing."""
    held = registers.items.get(item_id)
    if held is not None and held.status == "failed":
        return True
    return not registers.has_answered(item_id) and _may_be_missing(batch, registers, item_id)


def _may_be_missing(batch: Batch, registers: Registers, item_id: str) -> bool:
    """Whether an item without an answer can be one of the missing: where there is a manifest, it says which are."""
    return batch.missing > 0 and (batch.expected is None or item_id in registers.manifest)


def _ask_again(batch: Batch, registers: Registers, held: ItemRow, record: LifecycleRecord) -> None:
    """Put a register below every answer of the next generation: attempt 0, not terminal."""
    on_manifest = held.item_id in registers.manifest
    count(batch, held, on_manifest, -1)
    asked: ItemRow = ItemRow(
        held.batch_id,
        held.item_id,
        RETRYING,
        0,
        held.generation + 1,
        record.version,
        record.received_at,
        *_NOTHING_SAID,
    )
    count(batch, asked, on_manifest, +1)
    registers.items[held.item_id] = asked
    registers.changed.add(held.item_id)


def _late_that_stand(registers: Registers, chosen: Iterable[str]) -> Iterator[ItemRow]:
    """Late registers of these items, but for those that what has counted since overrules."""
    for item_id in chosen:
        if (late := registers.late.get(item_id)) is not None:
            held = registers.items.get(item_id)
            if held is None or order(late) > order(held):
                yield late


def _adopt(batch: Batch, registers: Registers, late: Iterable[ItemRow]) -> None:
    """Let late registers be those of their items, in the order in which they came."""
    for row in late:
        held = registers.items.get(row.item_id)
        on_manifest = row.item_id in registers.manifest
        if held is not None:
            count(batch, held, on_manifest, -1)
            row = row._replace(generation=held.generation)
        count(batch, row, on_manifest, +1)
        mark_result(batch, row)
        registers.items[row.item_id] = row
        registers.changed.add(row.item_id)
        del registers.late[row.item_id]
        registers.changed_late.discard(row.item_id)
        registers.adopted.add(row.item_id)
        batch.late -= 1


_NOTHING_SAID = (None,) * (len(ItemRow._fields) - 7)

_ON_OPEN: dict[str, Callable[[Batch, Registers, LifecycleRecord], Disposition]] = {
    "batch.opened": _opened,
    "batch.items_expected": _items_expected,
    "batch.sealed": _sealed,
    "batch.cancelled": _cancelled,
    "batch.aborted": _aborted,
    "batch.expired": _expired,
    "batch.finalize_requested": _finalize_requested,
    "batch.reopened": _changes_nothing,
    "batch.corrected": _number_corrected,
    "batch.pruned": _changes_nothing,
}

_ON_FINALIZED: dict[str, Callable[[Batch, Registers, LifecycleRecord], Disposition]] = {
    "batch.finalize_requested": _summary_requested,
    "batch.reopened": _reopened,
    "batch.corrected": _outcome_corrected,
    "batch.pruned": _pruned,
}


def _check_total_or_manifest(batch: Batch, total: int | None, ids: Sequence[str] | None) -> None:
    if ids is not None and batch.total_items is not None:
        raise Refused(Reason.NOT_APPLICABLE, "item ids for a batch that was given a total")
    if total is not None and batch.expected is not None:
        raise Refused(Reason.NOT_APPLICABLE, "a total for a batch that was given a manifest")


def _check_sealable(batch: Batch, total: int | None, ids: Sequence[str] | None) -> None:
    if total is None and ids is None and batch.total_items is None and batch.expected is None:
        raise Refused(Reason.NOT_APPLICABLE, "sealed without a total or a manifest: say how many items, or which")


def _add_to_manifest(batch: Batch, registers: Registers, ids: Sequence[str]) -> list[str]:
    """Put ids on the manifest; returns those that were not on it."""
    new = [item_id for item_id in ids if item_id not in registers.manifest]
    registers.manifest.update(new)
    registers.added.extend(new)
    batch.expected = (batch.expected or 0) + len(new)
    batch.matched += sum(registers.has_answered(item_id) for item_id in new)
    return new


def _ask_for(batch: Batch, registers: Registers, record: LifecycleRecord, item_ids: list[str]) -> None:
    """Ask the upstream service for these items, where the batch was opened to retry another's."""
    if batch.request_retry and batch.retry_of is not None:
        registers.retries.append(RaisedRetry(record.offset, record.received_at, batch.retry_of, item_ids))
