"""The messages Rollcall publishes. Field order is the order on the wire; values are bounded in size."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["completed", "completed_with_errors", "failed", "cancelled", "expired"]
FinalizedBy = Literal["all_items_in", "deadline", "cancelled", "aborted", "forced"]

LISTED_IDS = 100
"""How many failed and missing ids an event names at most, each."""

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class _Published(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ItemCounts(_Published):
    """Items of a batch; ``total = succeeded + partial + failed + skipped - unexpected + missing``."""

    total: int
    succeeded: int
    partial: int
    failed: int
    skipped: int
    missing: int
    unexpected: int


class WriteCounts(_Published):
    """What the items' work did, by their ``effect``."""

    created: int
    updated: int
    unchanged: int


class AsOf(_Published):
    """The record that decided."""

    topic: str
    partition: int
    offset: int


class BatchFinalized(_Published):
    """``rollcall.batch.finalized.v1`` on ``rollcall.finalized``. Times are append times of records."""

    batch_id: str
    revision: int
    supersedes: int | None
    outcome: Outcome
    finalized_by: FinalizedBy
    item_counts: ItemCounts
    write_counts: WriteCounts
    error_summary: str | None
    failed_item_ids: list[str]
    missing_item_ids: list[str]
    name: str | None
    metadata: dict[str, Any] | None
    retry_of: str | None
    opened_at: Time | None
    first_result_at: Time | None
    finalized_at: Time
    duration_ms: int | None
    as_of: AsOf


class DurationStatistics(_Published):
    """Milliseconds."""

    min: float
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class ErrorGroup(_Published):
    """Failed items with one error code, or one message without its variable parts, and the first of their ids."""

    error: str
    count: int
    item_ids: list[str]


class WorkerStatistics(_Published):
    """One worker's share; ``duration_ms`` is the sum of its items', the mean is of those that have one."""

    worker: str
    items: int
    failed: int
    duration_ms: float
    mean_duration_ms: float | None


class BatchSummarized(_Published):
    """``rollcall.batch.summarized.v1`` on ``rollcall.summaries``: statistics of a finalized batch's answered items.

    Rates are shares of the answered items, 0 to 1 (a ``partial`` one is a success); ``metrics`` are sums. Listed are
    the first 100 metrics by name, the 100 busiest workers, the 20 largest error groups with their first 10 items.
    """

    batch_id: str
    revision: int
    outcome: Outcome
    item_counts: ItemCounts
    write_counts: WriteCounts
    duration_ms: int | None
    item_duration_ms: DurationStatistics | None
    success_rate: float | None
    failure_rate: float | None
    items_per_second: float | None
    metrics: dict[str, float]
    workers: list[WorkerStatistics]
    error_groups: list[ErrorGroup]


AlertType = Literal[
    "batch.never_opened",
    "batch.first_failure",
    "batch.failure_threshold_exceeded",
    "batch.failure_rate_exceeded",
    "batch.slow_detected",
    "batch.stall_detected",
    "batch.summary_failed",
    "relay.record_refused",
]


class Alert(_Published):
    """``rollcall.<alert>.v1`` on ``rollcall.alerts``."""

    alert: AlertType
    batch_id: str | None
    message: str
    details: dict[str, Any]


class RetryRequested(_Published):
    """``rollcall.batch.retry_requested.v1`` on ``rollcall.requests``."""

    batch_id: str
    retry_of: str
    item_ids: list[str]


class JobRunRequested(_Published):
    """``rollcall.job.run_requested.v1`` on ``rollcall.requests``."""

    job: str
    params: dict[str, Any]
    run_id: str


PUBLISHED: dict[str, type[BaseModel]] = {
    "batch.finalized": BatchFinalized,
    "batch.summarized": BatchSummarized,
    "alert": Alert,
    "batch.retry_requested": RetryRequested,
    "job.run_requested": JobRunRequested,
}
"""Every message out, by its event's name."""
