"""A batch as the API shows it, in answers and in event streams alike."""

from dataclasses import fields as fields_of
from typing import Any

from api.models import Batch, Lag, LogPlace
from store.reads import BatchStatus
from streams.log_ends import LogEnds

_SHOWN = [field.name for field in fields_of(BatchStatus) if field.name not in ("partition", "next_offset", "as_of")]


def shown(found: BatchStatus, log_ends: LogEnds) -> Batch:
    """A batch with how far its partition is behind."""
    # Not asdict(), which copies metadata member by member.
    fields = {name: getattr(found, name) for name in _SHOWN}
    place = found.as_of
    as_of = None if place is None else LogPlace(topic=place.topic, partition=place.partition, offset=place.offset)
    end = log_ends.of(found.partition)
    records = None if end is None else max(0, end - (found.next_offset or 0))
    lag = Lag(records=records, lagging=None if records is None else records > 0, next_offset=found.next_offset)
    return Batch(**fields | {"error": _without_stack_trace(found.error)}, as_of=as_of, lag=lag)


def _without_stack_trace(error: dict[str, Any] | None) -> dict[str, Any] | None:
    # For nobody: an event is encoded once for all who listen, viewers among them.
    return None if error is None else {name: value for name, value in error.items() if name != "stack_trace"}
