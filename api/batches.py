"""Reading batches: one, the newest, and what is told of one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy.ext.asyncio import AsyncConnection

from api.access import VIEWER
from api.context import Context, Here
from api.models import Batch, BatchPage, Text
from api.presenting import shown
from api.problems import documented, invalid, not_found
from store import reads
from store.reads import BatchStatus, BatchStatusName

router = APIRouter(tags=["batches"], dependencies=[Depends(VIEWER)])

Limit = Annotated[int, Query(ge=1, le=1_000, description="How many at most.")]


@router.get("/batches", responses=documented(401, 403, 422, 429, 503))
async def list_batches(
    here: Here,
    status: Annotated[BatchStatusName | None, Query(description="Only those of this status.")] = None,
    name: Annotated[Text | None, Query(description="Only those of this name.")] = None,
    metadata: Annotated[
        list[Text],
        Query(
            description="Only those whose metadata have this `key`, or this `key:value`; all of them, where repeated."
        ),
    ] = [],  # noqa: B006 (FastAPI copies it)
    opened_since: Annotated[
        datetime | None, Query(description="Only those known since then; RFC 3339 with a zone.")
    ] = None,
    batch_id: Annotated[
        Text | None, Query(description="Only the one of this id: for ids that a path cannot hold, as `..`.")
    ] = None,
    cursor: Annotated[Text | None, Query(description="`next` of the page before.")] = None,
    limit: Limit = 50,
) -> BatchPage:
    """The newest batches first."""
    if opened_since is not None and opened_since.tzinfo is None:
        raise invalid("opened_since", "the zone is missing")
    try:
        opened_since = opened_since and opened_since.astimezone(UTC)
    except OverflowError:
        raise invalid("opened_since", "no year from 1 to 9999 has it, as UTC") from None
    async with here.snapshot() as connection:
        if batch_id is not None:
            one = await reads.batch(connection, here.topics.events, batch_id)
            return BatchPage(batches=[] if one is None else [shown(one, here.log_ends)], next=None)
        try:
            page = await reads.batches(
                connection,
                here.topics.events,
                status=status,
                name=name,
                metadata=_pairs(metadata),
                opened_since=opened_since,
                after=cursor,
                limit=limit,
            )
        except LookupError:
            raise invalid("cursor", "there is no such batch (any more)") from None
    return BatchPage(batches=[shown(each, here.log_ends) for each in page.rows], next=page.next)


@router.get("/batches/{batch_id}", responses=documented(401, 403, 404, 429, 503))
async def get_batch(batch_id: str, here: Here) -> Batch:
    """One batch: status, counts, times, the place in the log they stand on, and whether its partition lags."""
    async with here.reading() as connection:
        return shown(await known(connection, here, batch_id), here.log_ends)


async def known(connection: AsyncConnection, here: Context, batch_id: str) -> BatchStatus:
    """A batch. Raises 404."""
    # What PostgreSQL cannot hold is not there.
    found = None if "\0" in batch_id else await reads.batch(connection, here.topics.events, batch_id)
    if found is None:
        raise not_found(f'there is no batch "{batch_id}"')
    return found


def _pairs(metadata: Sequence[str]) -> list[tuple[str, str | None]]:
    split = [each.partition(":") for each in metadata]
    return [(key, value if colon else None) for key, colon, value in split]
