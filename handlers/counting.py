"""How a batch moves with the rows of its items: counts, alerts on failures, and its end. Pure."""

from collections.abc import Sequence

from msgspec.structs import replace

from handlers import completion
from handlers.records import RaisedAlert, Record, Registers
from schemas.published import FinalizedBy
from store.rows import RETRYING, Batch, ItemRow


def count(batch: Batch, row: ItemRow, on_manifest: bool, by: int) -> None:
    """Add (``by`` 1) or take out (-1) what a register counts for."""
    setattr(batch, row.status, getattr(batch, row.status) + by)
    if row.status != RETRYING:
        if row.effect is not None:
            setattr(batch, row.effect, getattr(batch, row.effect) + by)
        if on_manifest:
            batch.matched += by


def mark_result(batch: Batch, row: ItemRow) -> None:
    """Note when and where the newest counted result came."""
    if batch.first_result_at is None:
        batch.first_result_at = row.received_at
        if batch.outcome is None:
            batch.state = "processing"
    batch.last_result_at = row.received_at
    batch.last_result_offset = row.version
    if row.status != RETRYING:
        batch.last_answer_at = row.received_at


def note_failures(batch: Batch, registers: Registers, failures: Sequence[ItemRow], cause: Record | None = None) -> None:
    """Raise what the first failure, and the one that passes the tolerated number, call for; each once a batch.

    ``failures``, in log order, are the rows by which ``batch.failed`` last grew; ``cause`` is the record that let them
    count, where they did not do so by themselves.
    """
    if not failures:
        return
    if not batch.failure_seen:
        batch.failure_seen = True
        first = failures[0]
        why = first.error_message or first.message
        details = {"item_id": first.item_id, "code": first.error_code, "message": why, "attempt": first.attempt}
        message = f"the first failed item is {first.item_id}" + (f": {why}" if why else "")
        by = cause or first
        registers.alerts.append(RaisedAlert("batch.first_failure", by.offset, by.received_at, message, details))
    if batch.policy is None or batch.threshold_exceeded or not completion.exceeds_tolerance(batch):
        return
    # Of several failures counted at once, the one that a fold of single records would have found.
    at = replace(batch, failed=batch.failed - len(failures))
    for row in failures:
        at.failed += 1
        if completion.exceeds_tolerance(at):
            raise_threshold(at, registers, cause or row)
            batch.threshold_exceeded = True
            return


def note_threshold(batch: Batch, registers: Registers, record: Record) -> None:
    """Raise the alert where not a failure but a new limit or total makes the failures too many."""
    if batch.policy is not None and not batch.threshold_exceeded and completion.exceeds_tolerance(batch):
        raise_threshold(batch, registers, record)
        batch.threshold_exceeded = True


def raise_threshold(batch: Batch, registers: Registers, record: Record) -> None:
    """Say that more items failed than the policy tolerates."""
    tolerance = completion.tolerance(batch.policy)
    details = {
        "failed": batch.failed,
        "total": batch.total,
        "tolerated_failure_count": tolerance.failure_count,
        "tolerated_failure_percentage": tolerance.failure_percentage,
    }
    of_total = "" if batch.total is None else f" of {batch.total}"
    message = f"{batch.failed}{of_total} failed, which is more than tolerated"
    registers.alerts.append(
        RaisedAlert("batch.failure_threshold_exceeded", record.offset, record.received_at, message, details)
    )


def finalize_if_complete(batch: Batch, record: Record) -> None:
    """End a batch that is complete, by the record that made it so."""
    if (finalized_by := completion.decide(batch)) is not None:
        finalize(batch, finalized_by, record)


def finalize(batch: Batch, finalized_by: FinalizedBy, record: Record) -> None:
    """End a batch (again): a new revision, decided by this record."""
    batch.outcome = completion.outcome(batch, finalized_by)
    batch.state = "finalized"
    batch.finalized_by = finalized_by
    batch.revision += 1
    batch.finalized_at = record.received_at
    batch.completed_at = batch.last_answer_at
    batch.decided_offset = record.offset
