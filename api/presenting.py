"""A batch as the API shows it, in answers and in event streams alike."""

from dataclasses import asdict

from api.models import Batch, Lag
from store.reads import BatchStatus
from streams.log_ends import LogEnds


def shown(found: BatchStatus, log_ends: LogEnds) -> Batch:
    """A batch with how far its partition is behind."""
    fields = asdict(found)
    partition, next_offset = fields.pop("partition"), fields.pop("next_offset")
    end = log_ends.of(partition)
    records = None if end is None else max(0, end - (next_offset or 0))
    return Batch(**fields, lag=Lag(records=records, lagging=None if records is None else records > 0))
