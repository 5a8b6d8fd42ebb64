"""Reading batches."""

from dataclasses import asdict

from fastapi import APIRouter

from api.context import Context, Here
from api.models import Batch, Lag
from api.problems import documented, not_found
from store import reads
from store.reads import BatchStatus

router = APIRouter(tags=["batches"])


@router.get("/batches/{batch_id}", response_model=Batch, responses=documented(404, 503))
async def get_batch(batch_id: str, here: Here) -> Batch:
    """One batch: status, counts, times, the place in the log they stand on, and whether its partition lags."""
    async with here.reading() as connection:
        found = await reads.batch(connection, here.topics.events, batch_id) if storable(batch_id) else None
    if found is None:
        raise unknown_batch(batch_id)
    return shown(found, here)


def shown(found: BatchStatus, here: Context) -> Batch:
    """A batch as the API shows it."""
    fields = asdict(found)
    partition, next_offset = fields.pop("partition"), fields.pop("next_offset")
    end = here.log_ends.of(partition)
    records = None if end is None else max(0, end - (next_offset or 0))
    return Batch(**fields, lag=Lag(records=records, lagging=None if records is None else records > 0))


def storable(text: str) -> bool:
    """Whether PostgreSQL can be asked for it; what it cannot hold is not there."""
    return "\0" not in text


def unknown_batch(batch_id: str) -> Exception:
    """404, or what to raise for it."""
    return not_found(f'there is no batch "{batch_id}"')
