"""The summary of a finalized batch. Pure: the same batch and statistics give the same bytes."""

import sys
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import cast

from handlers import completion
from handlers.alerts import alert_event
from handlers.finalization import duration_ms, item_counts, rfc3339, write_counts
from schemas.headers import cloud_event, headers_text
from schemas.published import (
    BatchSummarized,
    DurationStatistics,
    ErrorGroup,
    ItemCounts,
    Outcome,
    WorkerStatistics,
    WriteCounts,
)
from schemas.topics import Topics
from store.rows import Batch, OutboxRow
from store.statistics import Durations, ErrorCount, Statistics, WorkerShare
from store.summaries import PendingSummary

EVENT = "batch.summarized"
ATTEMPTS = 5
"""After so many failed ones a summary is given up."""


def summarized(batch: Batch, statistics: Statistics) -> BatchSummarized:
    """The summary of a finalized batch."""
    took_ms, answered = duration_ms(batch), batch.answered
    return BatchSummarized(
        batch_id=batch.batch_id,
        revision=batch.revision,
        outcome=cast(Outcome, batch.outcome),
        item_counts=ItemCounts(**item_counts(batch)),
        write_counts=WriteCounts(**write_counts(batch)),
        duration_ms=took_ms,
        item_duration_ms=_durations(statistics.durations),
        success_rate=round((batch.succeeded + batch.partial) / answered, 6) if answered else None,
        failure_rate=round(completion.failure_rate(batch), 6) if answered else None,
        items_per_second=round(answered * 1000 / took_ms, 3) if took_ms else None,
        metrics={name: _number(total) for name, total in statistics.metrics},
        workers=[_worker(share) for share in statistics.workers],
        error_groups=_error_groups(statistics.errors),
    )


def summarized_event(topics: Topics, asked: PendingSummary, batch: Batch, value: str) -> OutboxRow:
    """The event for a summary (JSON); one that was asked for again has an id of its own, so that it goes out too."""
    identity = f"{EVENT}/{_asked(asked, batch)}"
    headers = cloud_event(
        event_id=identity,
        event_type=f"rollcall.{EVENT}.v1",
        source=topics.source,
        time=rfc3339(asked.requested_at),
        subject=batch.batch_id,
        traceparent=None,
    )
    # Without its revision: that of an outbox row is the revision which a finalized event tells of.
    return OutboxRow(identity, "summaries", batch.batch_id, None, value, headers_text(headers))


def given_up_event(topics: Topics, asked: PendingSummary, batch: Batch, problem: str) -> OutboxRow:
    """The alert for a summary that failed for the last time."""
    return alert_event(
        topics,
        "batch.summary_failed",
        batch.batch_id,
        f"{batch.batch_id}: its summary could not be computed, the batch itself is {batch.outcome or 'open again'}",
        {"revision": batch.revision, "attempts": asked.attempts + 1, "problem": problem},
        event_id=f"batch.summary_failed/{_asked(asked, batch)}",
        time=asked.requested_at,
    )


def next_attempt_in(failed: int, first: timedelta) -> timedelta | None:
    """How long to wait after that many failed attempts: ``first``, then four times as long each; None: give up."""
    return first * 4 ** (failed - 1) if failed < ATTEMPTS else None


def _asked(asked: PendingSummary, batch: Batch) -> str:
    identity = f"{batch.batch_id}/{batch.revision}"
    return identity if asked.requested_offset == batch.decided_offset else f"{identity}/{asked.requested_offset}"


def _durations(durations: Durations | None) -> DurationStatistics | None:
    if durations is None:
        return None
    return DurationStatistics(
        min=_rounded(durations.min),
        mean=_rounded(durations.total / durations.timed),
        p50=_rounded(durations.p50),
        p95=_rounded(durations.p95),
        p99=_rounded(durations.p99),
        max=_rounded(durations.max),
    )


def _worker(share: WorkerShare) -> WorkerStatistics:
    return WorkerStatistics(
        worker=share.worker,
        items=share.items,
        failed=share.failed,
        duration_ms=_rounded(share.duration_ms),
        mean_duration_ms=_rounded(share.duration_ms / share.timed) if share.timed else None,
    )


def _error_groups(errors: Sequence[ErrorCount]) -> list[ErrorGroup]:
    return [ErrorGroup(error=each.error, count=each.items, item_ids=each.item_ids) for each in errors]


def _rounded(value: float | Decimal) -> float:
    """Milliseconds to the microsecond."""
    return round(_number(value), 3)


def _number(value: float | Decimal) -> float:
    """The nearest number that JSON can hold: sums may leave a double's range."""
    return min(max(float(value), -sys.float_info.max), sys.float_info.max)
