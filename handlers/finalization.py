"""The finalized event of a batch. Pure: the same batch gives the same bytes."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import cast

from handlers import completion
from schemas.headers import cloud_event
from schemas.published import AsOf, BatchFinalized, FinalizedBy, ItemCounts, Outcome, WriteCounts
from schemas.topics import Topics
from store.rows import Batch, OutboxRow

EVENT = "batch.finalized"


def event_id(batch_id: str, revision: int) -> str:
    """The ``ce_id`` of a revision; batch ids hold no ``/``, so it is unambiguous."""
    return f"{EVENT}/{batch_id}/{revision}"


def finalized_event(
    batch: Batch,
    topics: Topics,
    *,
    failed_item_ids: Sequence[str],
    missing_item_ids: Sequence[str],
    traceparent: str | None,
) -> OutboxRow:
    """The event for a batch that has just been finalized, with the first ids of each kind."""
    finalized_at = cast(datetime, batch.finalized_at)
    event = BatchFinalized(
        batch_id=batch.batch_id,
        revision=batch.revision,
        supersedes=batch.revision - 1 if batch.revision > 1 else None,
        outcome=cast(Outcome, batch.outcome),
        finalized_by=cast(FinalizedBy, batch.finalized_by),
        item_counts=ItemCounts(
            total=cast(int, batch.total),
            succeeded=batch.succeeded,
            partial=batch.partial,
            failed=batch.failed,
            skipped=batch.skipped,
            missing=batch.missing,
            unexpected=batch.unexpected,
        ),
        write_counts=WriteCounts(created=batch.created, updated=batch.updated, unchanged=batch.unchanged),
        error_summary=completion.error_summary(batch),
        failed_item_ids=list(failed_item_ids),
        missing_item_ids=list(missing_item_ids),
        name=batch.name,
        metadata=None if batch.metadata is None else json.loads(batch.metadata),
        retry_of=batch.retry_of,
        opened_at=_time(batch.opened_at),
        first_result_at=_time(batch.first_result_at),
        finalized_at=rfc3339(finalized_at),
        duration_ms=_milliseconds_since(batch.opened_at or batch.first_result_at, finalized_at),
        as_of=AsOf(topic=topics.events, partition=batch.partition, offset=cast(int, batch.decided_offset)),
    )
    identity = event_id(batch.batch_id, batch.revision)
    headers = cloud_event(
        event_id=identity,
        event_type=f"rollcall.{EVENT}.v1",
        source=topics.source,
        time=event.finalized_at,
        subject=batch.batch_id,
        traceparent=traceparent,
    )
    return OutboxRow(
        identity, "finalized", batch.batch_id, batch.revision, event.model_dump_json(), json.dumps(headers)
    )


def rfc3339(moment: datetime) -> str:
    """A UTC time with milliseconds, the resolution of Kafka's append times."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def _milliseconds_since(start: datetime | None, end: datetime) -> int | None:
    return None if start is None else round((end - start).total_seconds() * 1000)
