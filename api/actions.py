"""What people do to a batch: seal, cancel, abort, finalize, reopen, retry. Each is a record on the stream."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from api.access import OPERATOR, Caller, Operator
from api.batches import known
from api.context import Context, Here
from api.idempotency import HARMLESS, NO_KEY, Answer, IdempotencyKey, Try, again_with, once
from api.models import Batch, RequestBody, Text
from api.presenting import shown
from api.problems import documented, invalid
from api.publishing import check_distinct, location_of
from api.submitting import applied, check_item_count, checked, may_exist, submit
from schemas.events import MAX_MANIFEST_CHUNK, BatchId, Count, ItemError, ItemId, Time
from store import reads
from streams import commanding
from streams.commanding import Command, RetriedStatus
from streams.sending import Place

router = APIRouter(tags=["actions"], dependencies=[Depends(OPERATOR)])


EndedRevision = Annotated[
    Count | None,
    Field(
        description="The revision that the open batch is at, as `GET` shows it: where it is at another one, as far as"
        " is applied when the request comes, nothing is sent. So a repetition behind somebody's reopening ends nothing."
    ),
]


class End(RequestBody):
    """End it, and why, for people."""

    revision: EndedRevision = None
    reason: str | None = None


class Seal(RequestBody):
    """No more items come; the total is needed where there is no manifest."""

    total_items: Count | None = None


class Abort(RequestBody):
    """A critical error stopped the job."""

    error: ItemError
    revision: EndedRevision = None


class Reopen(RequestBody):
    """Ask for items anew: these, or the failed and the missing."""

    item_ids: list[ItemId] | None = Field(default=None, min_length=1, max_length=MAX_MANIFEST_CHUNK)
    revision: Count | None = Field(
        default=None,
        description="The revision it acts on: of a batch that is at another one nothing is reopened. So a repetition is"
        " harmless.",
    )
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
    total_items = body.total_items if body else None
    command = commanding.seal(batch_id, await may_exist(here, batch_id), total_items=total_items)
    check_item_count(here, total_items or 0, "total_items")
    return await _act(here, caller, "seal", command)


@router.post("/batches/{batch_id}/cancel", response_model=Acted, responses=_RESPONSES)
async def cancel(batch_id: str, here: Here, caller: Operator, body: End | None = None) -> Response:
    """End it on purpose: its outcome is `cancelled`, and whoever has not answered stays missing."""
    body = body or End()
    found = await may_exist(here, batch_id)
    command = commanding.cancel(batch_id, found, revision=body.revision, reason=body.reason)
    return await _act(here, caller, "cancel", command, _again(found, body.revision))


@router.post("/batches/{batch_id}/abort", response_model=Acted, responses=_RESPONSES)
async def abort(batch_id: str, body: Abort, here: Here, caller: Operator) -> Response:
    """End it because of a critical error: its outcome is `failed`, and whoever has not answered stays missing."""
    found = await may_exist(here, batch_id)
    command = commanding.abort(batch_id, found, error=body.error, revision=body.revision)
    return await _act(here, caller, "abort", command, _again(found, body.revision))


@router.post("/batches/{batch_id}/finalize", response_model=Acted, responses=_RESPONSES)
async def finalize(batch_id: str, here: Here, caller: Operator, body: End | None = None) -> Response:
    """End it as it stands; of one that has ended, compute the summary again, unless a `revision` is named."""
    body = body or End()
    found = await may_exist(here, batch_id)
    command = commanding.finalize(batch_id, found, revision=body.revision, reason=body.reason)
    again = _SUMMARY_AGAIN if command.only_summary else _again(found, body.revision)
    return await _act(here, caller, "finalize", command, again)


@router.post("/batches/{batch_id}/reopen", response_model=Acted, responses=_RESPONSES)
async def reopen(batch_id: str, here: Here, caller: Operator, body: Reopen | None = None) -> Response:
    """Ask for items of a finalized batch anew; it ends in another revision."""
    body = body or Reopen()
    ids = body.item_ids or []
    check_distinct(ids)
    async with here.reading() as connection:
        found = await known(connection, here, batch_id)
        strange = await reads.strange_items(connection, found, ids)
    command = commanding.reopen(
        found,
        item_ids=ids,
        strange=strange,
        revision=body.revision,
        deadline_at=body.deadline_at,
        reason=body.reason,
    )
    return await _act(here, caller, "reopen", command, _again(found, body.revision))


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

    async def act(this: Try) -> Answer:
        new_batch_id = body.batch_id or this.new_id(f"{batch_id[:150]}-retry-")
        statuses = [] if body.item_ids or body.error else body.status
        ids = body.item_ids or await commanding.items_to_retry(
            here.reading, batch_id, statuses=statuses, error=body.error
        )
        command = commanding.retry(
            found, ids, batch_id=new_batch_id, statuses=statuses, error=body.error, deadline_at=body.deadline_at
        )
        check_item_count(here, len(ids), "item_ids")
        if not this.may_be_sent:
            async with here.reading() as connection:
                await commanding.check_free(connection, here.topics, new_batch_id)
        again = this.again(body.batch_id, new_batch_id)
        done = await applied(here, await _sent(here, caller, "retry", command, this, again))
        answer = Retried(batch_id=new_batch_id, retry_of=batch_id, items=len(ids), applied=done)
        return Answer(201 if done else 202, answer.model_dump(), location_of(new_batch_id))

    request = {"route": "retry", "batch_id": batch_id, "body": body.model_dump(mode="json")}
    return (await once(here, caller, idempotency_key, request, act)).response()


_SUMMARY_AGAIN = "see that nobody has reopened the batch before you send it again: it would end it"


def _again(found: reads.BatchStatus | None, revision: int | None) -> str:
    """How the request can be repeated for this revision only; ``revision`` is the one that it names itself."""
    return HARMLESS if revision is not None else again_with(f'"revision": {commanding.revision_of(found)}')


async def _act(here: Context, caller: Caller, action: str, command: Command, again: str = HARMLESS) -> Response:
    places = await _sent(here, caller, action, command, again=again)
    done = await applied(here, places)
    async with here.reading() as connection:
        found = await reads.batch(connection, here.topics.events, command.batch_id)
    acted = Acted(
        batch_id=command.batch_id,
        action=action,
        items=command.items,
        applied=done,
        partition=places[0].partition,
        offset=places[0].offset,
        batch=None if found is None else shown(found, here.log_ends),
    )
    return Response(acted.model_dump_json(), 200 if done else 202, media_type="application/json")


async def _sent(
    here: Context, caller: Caller, action: str, command: Command, this: Try = NO_KEY, again: str = HARMLESS
) -> list[Place]:
    events = [checked(event) for event in command.events]
    return await submit(here, caller, action, command.batch_id, command.items, events, this=this, again=again)
