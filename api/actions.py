"""What people do to a batch: seal, cancel, abort, finalize, reopen, retry. Each is a record on the stream."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse, Response

from api.access import OPERATOR, Caller, Operator
from api.batches import known
from api.context import Context, Here
from api.idempotency import Answer, IdempotencyKey, new_id, once
from api.models import Batch, RequestBody, Text
from api.presenting import shown
from api.problems import Problem, documented, invalid
from api.publishing import check_distinct, location_of
from api.submitting import applied, check_item_count, checked, may_exist, submit
from schemas.events import MAX_MANIFEST_CHUNK, BatchId, Count, ItemError, ItemId, Time
from store import reads, statistics
from store.connection import driver
from store.reads import BatchStatus
from streams.manifests import opening

router = APIRouter(tags=["actions"], dependencies=[Depends(OPERATOR)])

RetriedStatus = Literal["failed", "missing", "partial"]
MAX_RETRIED = 1_000_000
RETRY_PAGE = 10_000


class Reason(RequestBody):
    """Why, for people."""

    reason: str | None = None


class Seal(RequestBody):
    """No more items come; the total is needed where there is no manifest."""

    total_items: Count | None = None


class Abort(RequestBody):
    """A critical error stopped the job."""

    error: ItemError


class Reopen(RequestBody):
    """Ask for items anew: these, or the failed and the missing."""

    item_ids: list[ItemId] | None = Field(default=None, min_length=1, max_length=MAX_MANIFEST_CHUNK)
    deadline_at: Time | None = None
    reason: str | None = None


class Retry(RequestBody):
    """A new batch of some of this one's items."""

    status: list[RetriedStatus] = Field(
        default=["failed", "missing"], min_length=1, max_length=3, description="Items of which status."
    )
    item_ids: list[ItemId] | None = Field(default=None, min_length=1, description="These items instead.")
    error: Text | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="The failed with this error instead, as `/failures` names it.",
    )
    batch_id: BatchId | None = Field(default=None, description="The new batch's id.")
    deadline_at: Time | None = None


class Acted(BaseModel):
    """What was asked for, and what the batch is now."""

    batch_id: str
    action: str
    items: int = Field(description="How many items it concerned, as far as was known.")
    applied: bool = Field(description="Whether a worker has read it already; if not, `batch` is as it was before.")
    partition: int
    offset: int = Field(description="Of the record, on that partition of the events topic.")
    batch: Batch | None


class Retried(BaseModel):
    """The new batch."""

    batch_id: str
    retry_of: str
    items: int
    applied: bool


_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": Acted, "description": "It is in the log, but no worker has read it yet."},
    **documented(400, 401, 403, 404, 408, 409, 413, 422, 429, 503),
}


@router.post("/batches/{batch_id}/seal", response_model=Acted, responses=_RESPONSES)
async def seal(batch_id: str, here: Here, caller: Operator, body: Seal | None = None) -> Response:
    """No more items come: the batch can become complete."""
    fields = body.given() if body else {}
    found = await _open(here, batch_id)
    check_item_count(here, fields.get("total_items") or 0, "total_items")
    items = fields.get("total_items") or (found.total if found else None) or 0
    return await _act(here, caller, "seal", items, {"type": "batch.sealed", "batch_id": batch_id, **fields})


@router.post("/batches/{batch_id}/cancel", response_model=Acted, responses=_RESPONSES)
async def cancel(batch_id: str, here: Here, caller: Operator, body: Reason | None = None) -> Response:
    """End it on purpose: its outcome is `cancelled`, and whoever has not answered stays missing."""
    found = await _open(here, batch_id)
    event = {"type": "batch.cancelled", "batch_id": batch_id, **(body.given() if body else {})}
    return await _act(here, caller, "cancel", _missing(found), event)


@router.post("/batches/{batch_id}/abort", response_model=Acted, responses=_RESPONSES)
async def abort(batch_id: str, body: Abort, here: Here, caller: Operator) -> Response:
    """End it because of a critical error: its outcome is `failed`, and whoever has not answered stays missing."""
    found = await _open(here, batch_id)
    event = {"type": "batch.aborted", "batch_id": batch_id, **body.given()}
    return await _act(here, caller, "abort", _missing(found), event)


@router.post("/batches/{batch_id}/finalize", response_model=Acted, responses=_RESPONSES)
async def finalize(batch_id: str, here: Here, caller: Operator, body: Reason | None = None) -> Response:
    """End it as it stands; of one that has ended, compute the summary again."""
    found = await may_exist(here, batch_id)
    _check_kept(found)
    event = {"type": "batch.finalize_requested", "batch_id": batch_id, **(body.given() if body else {})}
    return await _act(here, caller, "finalize", 0 if found and found.outcome else _missing(found), event)


@router.post("/batches/{batch_id}/reopen", response_model=Acted, responses=_RESPONSES)
async def reopen(batch_id: str, here: Here, caller: Operator, body: Reopen | None = None) -> Response:
    """Ask for items of a finalized batch anew; it ends in another revision."""
    fields = body.given() if body else {}
    check_distinct(fields.get("item_ids") or [])
    ids = fields.get("item_ids")
    async with here.reading() as connection:
        found = await known(connection, here, batch_id)
        strange = await reads.strange_items(connection, found, ids or [])
    if found.outcome is None:
        raise Problem(409, "the batch is not finalized")
    _check_kept(found)
    if strange:
        raise invalid("item_ids", f'"{strange[0]}" is no item of the batch')
    items = len(ids) if ids is not None else found.failed + found.missing
    if items == 0:
        raise Problem(409, "no item failed and none is missing: there is nothing to ask for anew")
    # With the revision it acts on, a repetition changes nothing.
    event = {"type": "batch.reopened", "batch_id": batch_id, "revision": found.revision, **fields}
    return await _act(here, caller, "reopen", items, event)


@router.post(
    "/batches/{batch_id}/retry",
    status_code=201,
    response_model=Retried,
    responses={
        201: {"description": "The new batch is open.", "headers": {"Location": {"schema": {"type": "string"}}}},
        202: {"model": Retried, "description": "It is in the log, but no worker has read it yet."},
        **documented(400, 401, 403, 404, 408, 409, 413, 422, 429, 503),
    },
)
async def retry(
    batch_id: str,
    here: Here,
    caller: Operator,
    body: Retry | None = None,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Open a new batch of the failed and the missing, and ask the upstream service for them."""
    body = body or Retry()
    check_distinct(body.item_ids or [])
    if body.error is not None and body.model_fields_set & {"status", "item_ids"}:
        raise invalid("error", "give either error, status or item_ids")
    async with here.reading() as connection:
        found = await known(connection, here, batch_id)
    new_batch_id = body.batch_id or new_id(caller, idempotency_key, f"{batch_id[:150]}-retry-")

    async def act(again: bool) -> Answer:
        if not body.item_ids:
            _check_kept(found)
        ids = body.item_ids or [item_id async for page in _chosen(here, batch_id, body) for item_id in page]
        if not ids:
            raise Problem(409, _nothing_to_retry(found, body))
        check_item_count(here, len(ids), "item_ids")
        async with here.reading() as connection:
            existing = await reads.batch(connection, here.topics.events, new_batch_id)
        if existing is not None and not again:
            raise Problem(409, f'there is a batch "{new_batch_id}" already')
        opened = {
            "type": "batch.opened",
            "batch_id": new_batch_id,
            "retry_of": batch_id,
            "request_retry": True,
            **{name: value for name in ("name", "metadata", "policy") if (value := getattr(found, name)) is not None},
            **({"deadline_at": body.deadline_at} if body.deadline_at else {}),
        }
        events = [checked(event) for event in opening(opened, ids)]
        places = await submit(here, caller, "retry", new_batch_id, len(ids), events)
        done = await applied(here, places)
        answer = Retried(batch_id=new_batch_id, retry_of=batch_id, items=len(ids), applied=done)
        return Answer(201 if done else 202, answer.model_dump(), location_of(new_batch_id))

    request = {"route": "retry", "batch_id": batch_id, "body": body.model_dump(mode="json")}
    return (await once(here, caller, idempotency_key, request, act)).response()


async def _act(here: Context, caller: Caller, action: str, items: int, event: Mapping[str, Any]) -> Response:
    batch_id = str(event["batch_id"])
    places = await submit(here, caller, action, batch_id, items, [checked(event)])
    done = await applied(here, places)
    async with here.reading() as connection:
        found = await reads.batch(connection, here.topics.events, batch_id)
    acted = Acted(
        batch_id=batch_id,
        action=action,
        items=items,
        applied=done,
        partition=places[0].partition,
        offset=places[0].offset,
        batch=None if found is None else shown(found, here.log_ends),
    )
    return Response(acted.model_dump_json(), 200 if done else 202, media_type="application/json")


async def _open(here: Context, batch_id: str) -> BatchStatus | None:
    """A batch that is not finalized, None where it may be in what is not read yet. Raises 404 and 409."""
    found = await may_exist(here, batch_id)
    if found is not None and found.outcome is not None:
        raise Problem(409, f"the batch is finalized: {found.outcome}")
    return found


def _check_kept(found: BatchStatus | None) -> None:
    if found is not None and found.pruned_at is not None:
        raise Problem(409, "the batch's items were pruned: it stays as it is, and which of them failed is not known")


def _missing(found: BatchStatus | None) -> int:
    return found.missing if found else 0


async def _chosen(here: Context, batch_id: str, wanted: Retry) -> AsyncIterator[Sequence[str]]:
    """The ids of a batch's items that are to be retried, page by page. Raises 422 where they are too many."""
    count = 0
    statuses: list[RetriedStatus] = ["failed"] if wanted.error is not None else wanted.status
    for status in dict.fromkeys(statuses):
        after: str | None = ""
        while after is not None:
            async with here.reading() as connection:
                ids, after = await _page(connection, batch_id, status, wanted.error, after)
            yield ids
            count += len(ids)
            if count > MAX_RETRIED:
                raise invalid("status", f"more than {MAX_RETRIED} items: retry them in parts, by item_ids")


async def _page(
    connection: AsyncConnection, batch_id: str, status: RetriedStatus, error: str | None, after: str
) -> tuple[Sequence[str], str | None]:
    """Ids behind an id, and where to go on (None: nowhere)."""
    if error is not None:
        return await statistics.failed_with(await driver(connection), batch_id, error, after=after, limit=RETRY_PAGE)
    if status == "missing":
        missing = await reads.missing(connection, batch_id, after=after, limit=RETRY_PAGE)
        return missing.rows, missing.next
    page = await reads.items(connection, batch_id, status=status, after=after, limit=RETRY_PAGE)
    return [item.item_id for item in page.rows], page.next


def _nothing_to_retry(found: BatchStatus, wanted: Retry) -> str:
    if wanted.error is not None:
        return f"no failed item of the batch has the error {wanted.error}"
    if "missing" in wanted.status and found.missing:
        return f"{found.missing} items are missing, but no manifest names them: they cannot be asked for by id"
    return f"no item of the batch is {' or '.join(wanted.status)}"
