"""Alerts and retry requests as events. Pure: the same cause gives the same bytes."""

from datetime import datetime
from typing import Any

from handlers import completion
from handlers.finalization import rfc3339
from handlers.records import RaisedAlert, RaisedRetry
from schemas.headers import cloud_event, headers_text
from schemas.published import Alert, AlertType, RetryRequested
from schemas.topics import Topics
from store.rows import Batch, OutboxRow


def alert_event(
    topics: Topics,
    alert: AlertType,
    batch_id: str | None,
    message: str,
    details: dict[str, Any],
    *,
    event_id: str,
    time: datetime,
    traceparent: str | None = None,
) -> OutboxRow:
    """An alert under the id that makes it go out once; ``time`` is that of its cause."""
    event = Alert(alert=alert, batch_id=batch_id, message=message, details=details)
    headers = cloud_event(
        event_id=event_id,
        event_type=f"rollcall.{alert}.v1",
        source=topics.source,
        time=rfc3339(time),
        subject=batch_id or event_id,
        traceparent=traceparent,
    )
    return OutboxRow(event_id, "alerts", batch_id, None, event.model_dump_json(), headers_text(headers))


def raised_event(topics: Topics, batch: Batch, raised: RaisedAlert, traceparent: str | None) -> OutboxRow:
    """An alert of the fold: each kind goes out once a batch."""
    return alert_event(
        topics,
        raised.alert,
        batch.batch_id,
        f"{batch.batch_id}: {raised.message}",
        raised.details,
        event_id=f"{raised.alert}/{batch.batch_id}",
        time=raised.received_at,
        traceparent=traceparent,
    )


def failure_rate_event(topics: Topics, batch: Batch, limit: float, traceparent: str | None) -> OutboxRow | None:
    """The alert for a batch that has just ended with more of its answers failed than ``limit`` (0 to 1); else None."""
    rate = completion.failure_rate(batch)
    if rate <= limit or batch.finalized_at is None:
        return None
    return alert_event(
        topics,
        "batch.failure_rate_exceeded",
        batch.batch_id,
        f"{batch.batch_id}: {batch.failed} of {batch.answered} answered items failed",
        {"failed": batch.failed, "answered": batch.answered, "failure_rate": rate, "limit": limit},
        event_id=f"batch.failure_rate_exceeded/{batch.batch_id}/{batch.revision}",
        time=batch.finalized_at,
        traceparent=traceparent,
    )


def retry_event(topics: Topics, batch: Batch, raised: RaisedRetry, traceparent: str | None) -> OutboxRow:
    """The request that upstream does these items again and reports them to this batch.

    One for each record that named items, so that it is no larger than that record.
    """
    event = RetryRequested(batch_id=batch.batch_id, retry_of=raised.retry_of, item_ids=raised.item_ids)
    event_id = f"batch.retry_requested/{batch.batch_id}/{raised.offset}"
    headers = cloud_event(
        event_id=event_id,
        event_type="rollcall.batch.retry_requested.v1",
        source=topics.source,
        time=rfc3339(raised.received_at),
        subject=batch.batch_id,
        traceparent=traceparent,
    )
    return OutboxRow(event_id, "requests", batch.batch_id, None, event.model_dump_json(), headers_text(headers))
