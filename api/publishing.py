"""Opening batches and sending results and manifests."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from api.access import OPERATOR, Operator
from api.context import Here
from api.idempotency import Answer, IdempotencyKey, Try, once
from api.models import RequestBody
from api.problems import Problem, documented, invalid
from api.submitting import applied, check_item_count, checked, may_exist, submit
from schemas.events import (
    Attempt,
    BatchId,
    Count,
    ItemError,
    ItemId,
    Milliseconds,
    Name,
    Number,
    Policy,
    Time,
)
from store import reads
from streams.manifests import chunks, opening

router = APIRouter(tags=["publishing"], dependencies=[Depends(OPERATOR)])

MAX_RESULTS = 1_000

Traceparent = Annotated[
    str | None, Header(max_length=128, pattern=r"^[\x20-\x7e]*$", description="W3C trace context; carried on.")
]


class NewBatch(RequestBody):
    """A batch: with a total, with a manifest, or with neither (then it is open-ended until it is sealed)."""

    batch_id: BatchId | None = Field(default=None, description="Its id; a new one where none is given.")
    total_items: Count | None = Field(default=None, description="How many items it has.")
    item_ids: list[ItemId] | None = Field(
        default=None, description="Which items it has: then missing ones are known by name. Distinct."
    )
    name: Name | None = None
    sealed: bool | None = Field(
        default=None, description="Whether no more items come; by default where a total or ids are given."
    )
    deadline_at: Time | None = None
    policy: Policy | None = None
    metadata: dict[str, Any] | None = None


class OpenedBatch(BaseModel):
    """A batch that was submitted."""

    batch_id: str
    status: Literal["pending"]
    state: Literal["pending"]
    total_items: int | None


class NewResult(RequestBody):
    """What became of one item."""

    item_id: ItemId
    status: Literal["succeeded", "partial", "failed", "skipped", "retrying"]
    attempt: Attempt | None = None
    effect: Literal["created", "updated", "unchanged"] | None = None
    duration_ms: Milliseconds | None = None
    message: str | None = None
    error: ItemError | None = None
    output: Any = None
    metrics: dict[str, Number] | None = None
    worker: Name | None = None
    occurred_at: Time | None = None


class NewResults(RequestBody):
    """Results of a batch's items."""

    results: list[NewResult] = Field(min_length=1, max_length=MAX_RESULTS)


class NewItems(RequestBody):
    """Ids to be added to a batch's manifest."""

    item_ids: list[ItemId] = Field(min_length=1)


class Submitted(BaseModel):
    """What was sent; it is in the log, and counted as soon as a worker has read it."""

    batch_id: str
    items: int
    applied: bool = Field(description="Whether a worker has read it already.")
    partition: int
    offset: int = Field(description="Of the last record, on that partition of the events topic.")


@router.post(
    "/batches",
    status_code=201,
    response_model=OpenedBatch,
    responses={
        201: {
            "description": "Opened: the next GET finds it.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
        202: {
            "model": OpenedBatch,
            "description": "It is in the log, but no worker has read it yet: they are down or behind.",
        },
        **documented(400, 401, 403, 408, 409, 413, 422, 429, 503),
    },
)
async def open_batch(
    body: NewBatch,
    here: Here,
    caller: Operator,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> JSONResponse:
    """Open a batch."""
    fields = body.given()
    ids = fields.pop("item_ids", None)
    total = body.total_items if ids is None else len(ids)
    if ids is not None and body.total_items is not None:
        raise invalid("item_ids", "give either total_items or item_ids, not both")
    if body.sealed and total is None:
        raise invalid("sealed", "a batch can be sealed only with total_items or item_ids")
    check_distinct(ids or [])
    check_item_count(here, total or 0, "total_items" if ids is None else "item_ids")
    checked({"type": "batch.opened", "batch_id": "-", **fields})  # before anything else has to hold what can't be sent

    async def act(this: Try) -> Answer:
        batch_id = fields.get("batch_id") or this.new_id()
        opened = {"type": "batch.opened", **fields, "batch_id": batch_id}
        events = [checked(event) for event in opening(opened, ids)]
        async with here.reading() as connection:
            known = await reads.batch(connection, here.topics.events, batch_id)
        if known is not None and (known.opened_at or known.outcome) and not this.may_be_sent:
            seals = events[-1]["type"] == "batch.sealed"  # otherwise what is not sealed may be all of it
            may_be_part = seals and not known.sealed and known.outcome is None
            raise Problem(409, f'there is a batch "{batch_id}" already' + (_IN_PART if may_be_part else ""))
        again = this.again(body.batch_id, batch_id)
        places = await submit(here, caller, "open", batch_id, total, events, traceparent, this, again)
        status = 201 if await applied(here, places) else 202
        answer = OpenedBatch(batch_id=batch_id, status="pending", state="pending", total_items=total)
        return Answer(status, answer.model_dump(), location_of(batch_id))

    request = {"route": "POST /batches", "body": body.model_dump(mode="json")}
    return (await once(here, caller, idempotency_key, request, act)).response()


_IN_PART = (
    ", not sealed: if that is this opening, of which a part arrived, send it again with the Idempotency-Key that it"
    " had; without one, add its item_ids with POST .../items (those that are there already do no harm) and"
    " POST .../seal"
)

_SENT = documented(400, 401, 403, 404, 408, 409, 413, 422, 429, 503)


@router.post("/batches/{batch_id}/results", status_code=202, responses=_SENT)
async def send_results(
    batch_id: str, body: NewResults, here: Here, caller: Operator, traceparent: Traceparent = None
) -> Submitted:
    """Send up to 1,000 results of a batch's items: all of them, or, where one is wrong, none."""
    await may_exist(here, batch_id)
    events = [
        checked({"batch_id": batch_id, **result.given()}, f"results.{index}.")
        for index, result in enumerate(body.results)
    ]
    last = (await submit(here, caller, "results", batch_id, len(events), events, traceparent))[-1]
    return Submitted(batch_id=batch_id, items=len(events), applied=False, partition=last.partition, offset=last.offset)


@router.post("/batches/{batch_id}/items", status_code=202, responses=_SENT)
async def add_items(
    batch_id: str, body: NewItems, here: Here, caller: Operator, traceparent: Traceparent = None
) -> Submitted:
    """Add items to the manifest of a batch that is not sealed."""
    check_distinct(body.item_ids)
    known = await may_exist(here, batch_id)
    if known is not None and known.sealed:
        raise Problem(409, "the batch is sealed: nothing can be added")
    if known is not None and known.outcome is not None:
        raise Problem(409, f"the batch is {known.status}: nothing can be added (reopen it first)")
    check_item_count(here, len(body.item_ids) + ((known.total or 0) if known else 0), "item_ids")
    events = [
        checked({"type": "batch.items_expected", "batch_id": batch_id, "item_ids": chunk})
        for chunk in chunks(body.item_ids)
    ]
    places = await submit(here, caller, "items", batch_id, len(body.item_ids), events, traceparent)
    done = await applied(here, places)
    last = places[-1]
    return Submitted(
        batch_id=batch_id, items=len(body.item_ids), applied=done, partition=last.partition, offset=last.offset
    )


def check_distinct(item_ids: list[str]) -> None:
    """Raise 422 where an id comes twice."""
    seen: set[str] = set()
    for index, item_id in enumerate(item_ids):
        if item_id in seen:
            raise invalid(f"item_ids.{index}", "the ids of a manifest must be distinct")
        seen.add(item_id)


def location_of(batch_id: str) -> str:
    """The path of a batch."""
    return f"/api/batches/{quote(batch_id, safe='')}"
