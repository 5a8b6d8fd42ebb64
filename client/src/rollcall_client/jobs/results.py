"""What a run comes to: the same for every job, and by what was counted from the stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

import structlog

from rollcall_client.errors import InvalidMessageError
from rollcall_client.events import FinalizedEvent
from rollcall_client.messages import check_metrics

_log = structlog.get_logger(__name__)

JobStatus: TypeAlias = Literal["COMPLETED", "PARTIAL", "FAILED"]


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """One worker's (partition's) share; ``duration_ms`` is the sum over its items."""

    worker: str
    items: int
    failed: int
    duration_ms: float


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a run went, taken from the batch's finalized event and summary.

    ``processed`` are the answered items, ``skipped`` those skipped or left unchanged, ``partial`` those done but for a
    side effect; ``metrics`` the sums of the items' metrics (from the summary) and the run's own. ``ran`` is False where
    the batch was finalized before and nothing was done.
    """

    job: str
    batch_id: str
    status: JobStatus
    outcome: str
    processed: int
    created: int
    updated: int
    skipped: int
    failed: int
    missing: int
    partial: int
    duration_ms: int | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    failed_item_ids: list[str] = field(default_factory=list)
    missing_item_ids: list[str] = field(default_factory=list)
    workers: list[WorkerResult] = field(default_factory=list)
    revision: int = 1
    ran: bool = True

    def payload(self) -> dict[str, Any]:
        """What every job has: processed, created, updated, skipped, failed, duration_ms, metrics, status."""
        names = ("processed", "created", "updated", "skipped", "failed", "duration_ms", "metrics", "status")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(
        cls,
        job: str,
        event: FinalizedEvent,
        summary: Mapping[str, Any] | None,
        *,
        job_metrics: Mapping[str, float],
        error: str | None = None,
        ran: bool = True,
    ) -> Self:
        """From the finalized event, and the summary where there is one."""
        items, writes = event.item_counts, event.write_counts
        summed: Mapping[str, float] = (summary or {}).get("metrics") or {}
        return cls(
            job=job,
            batch_id=event.batch_id,
            status=status_of(event),
            outcome=event.outcome,
            processed=items.succeeded + items.partial + items.failed + items.skipped,
            created=writes.created,
            updated=writes.updated,
            skipped=items.skipped + writes.unchanged,
            failed=items.failed,
            missing=items.missing,
            partial=items.partial,
            duration_ms=event.duration_ms,
            metrics={**summed, **job_metrics},
            error=error or event.error_summary,
            failed_item_ids=event.failed_item_ids,
            missing_item_ids=event.missing_item_ids,
            workers=[
                WorkerResult(each["worker"], each["items"], each["failed"], each["duration_ms"])
                for each in (summary or {}).get("workers") or ()
            ],
            revision=event.revision,
            ran=ran,
        )


def numbers_in(job_metrics: Mapping[str, Any]) -> dict[str, float]:
    """A job's own metrics without those that are no number: a result isn't lost over them."""
    numbers: dict[str, float] = {}
    for name, number in job_metrics.items():
        try:
            numbers.update(check_metrics({name: number}))
        except InvalidMessageError as error:
            _log.warning("a metric of the job is left out", error=str(error))
    return numbers


def status_of(event: FinalizedEvent) -> JobStatus:
    """COMPLETED, PARTIAL or FAILED by the outcome; what was ended from outside is PARTIAL where something was done."""
    if event.outcome == "completed":
        return "COMPLETED"
    if event.outcome == "completed_with_errors":
        return "PARTIAL"
    done = event.item_counts.succeeded + event.item_counts.partial
    return "PARTIAL" if event.outcome in ("cancelled", "expired") and done else "FAILED"
