"""What happened to a batch, its summary, and who did what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from api.access import VIEWER, Admin, Caller, Role, Viewer
from api.batches import Limit, known
from api.context import Context, Here
from api.models import Summary, Text, Timeline, TimelineEvent
from api.problems import documented, not_found, unavailable
from store import access, details, diagnosis, reads
from store.access import AuditEntry
from store.details import HistoryEvent
from store.diagnosis import DeadLetter, OutboxEvent
from store.reads import BatchStatus
from streams.findings import Finding, Items
from streams.log_search import LastResult, Log
from streams.why import why

router = APIRouter(tags=["history"])

WHY_TIMEOUT_S = 45.0
WHY_TURN_TIMEOUT_S = 15.0
"""How long one waits for those who ask already."""


class Why(BaseModel):
    """Why a batch is not done, or that it is: the facts, and a sentence each, what matters most first."""

    batch_id: str
    findings: list[Finding]
    partition: int | None
    applied_to: int | None
    missing: Items
    retrying: Items
    unexpected: Items
    dead_letter_count: int
    dead_letters: list[DeadLetter]
    last_result: LastResult | None
    event: OutboxEvent | None
    log: Log | None
    log_problem: str | None


class AuditedAction(BaseModel):
    """Who did what, when, to which batch."""

    seq: int
    at: datetime
    caller: str
    key_id: str | None
    action: str
    batch_id: str | None
    items: int | None
    partition: int | None
    offset: int | None


class AuditPage(BaseModel):
    """Actions, newest first; `next` is the `cursor` of the next page, null: there is none."""

    actions: list[AuditedAction]
    next: int | None


@router.get("/batches/{batch_id}/timeline", responses=documented(401, 403, 404, 429, 503))
async def get_timeline(batch_id: str, here: Here, caller: Viewer) -> Timeline:
    """What happened to a batch, with the places in the log, as far as the database holds it.

    Who asked for it is told to admins only.
    """
    async with here.snapshot() as connection:
        found = await known(connection, here, batch_id)
        _, refused = await diagnosis.dead_letters_of(connection, batch_id, limit=details.MAX_HISTORY)
        went_out = await details.outbox_events(connection, batch_id, refused)
        actions = await access.actions(connection, batch_id=batch_id)
    events = [
        *_own(found),
        *(_gone_out(event, here) for event in went_out),
        *(_refused(event) for event in refused),
        *(_acted(action, here, caller) for action in actions),
    ]
    known_ends = {event.detail for event in events if event.what == "finalized" and event.offset is not None}
    if found.finalized_at and f"revision {found.revision}" not in {_revision(detail) for detail in known_ends}:
        events.append(_end(found))
    # The unknown time last; of one moment, in the order of the log.
    return Timeline(events=sorted(events, key=lambda each: (each.at is None, each.at, each.offset or 0)))


@router.get(
    "/batches/{batch_id}/summary", dependencies=[Depends(VIEWER)], responses=documented(401, 403, 404, 429, 503)
)
async def get_summary(batch_id: str, here: Here) -> Summary:
    """The statistics of a finalized batch; 404 while there are none."""
    async with here.snapshot() as connection:
        found = await known(connection, here, batch_id)
        summary = await diagnosis.summary(connection, batch_id)
    if summary is None or summary.summary is None:
        state = "it is not finalized" if found.outcome is None else f"its summary is {found.summary_state or 'pending'}"
        raise not_found(f'there is no summary of "{batch_id}": {state}')
    return Summary(state=summary.state, summary=summary.summary)


@router.get("/batches/{batch_id}/why", dependencies=[Depends(VIEWER)], responses=documented(401, 403, 404, 429, 503))
async def get_why(batch_id: str, here: Here) -> Why:
    """Why it isn't done: who is missing, what was refused, misplaced or not read yet, and what to do."""
    if "\0" in batch_id:
        raise not_found(f'there is no batch "{batch_id}"')
    async with _turn_to_ask(here), asyncio.timeout(WHY_TIMEOUT_S), reads.snapshot(here.engine) as connection:
        found = await why(connection, here.kafka, here.topics, batch_id, now=datetime.now(UTC), say=_kafka_away)
    if any(finding.code == "unknown" for finding in found.findings):
        raise not_found(f'there is no batch "{batch_id}"')
    facts = {field.name: getattr(found.facts, field.name) for field in fields(found.facts) if field.name != "batch"}
    return Why(findings=list(found.findings), **facts)


@asynccontextmanager
async def _turn_to_ask(here: Context) -> AsyncIterator[None]:
    """Who asks why reads the log, so only a few may at a time. Raises 503."""
    try:
        async with asyncio.timeout(WHY_TURN_TIMEOUT_S):
            await here.asking_why.acquire()
    except TimeoutError:
        raise unavailable("too many ask why at the moment, and the log may be slow to answer") from None
    try:
        yield
    finally:
        here.asking_why.release()


@router.get("/audit", responses=documented(401, 403, 422, 429, 503))
async def list_actions(
    here: Here,
    _: Admin,
    batch_id: Annotated[Text | None, Query(description="Only what was done to this batch.")] = None,
    cursor: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="`next` of the page before.")] = None,
    limit: Limit = 100,
) -> AuditPage:
    """Who did what over HTTP, newest first."""
    async with here.reading() as connection:
        found = await access.actions(connection, batch_id=batch_id, before=cursor, limit=limit + 1)
    page = [
        AuditedAction(
            seq=each.seq,
            at=each.at,
            caller=each.caller,
            key_id=each.key_id,
            action=each.action,
            batch_id=each.batch_id,
            items=each.items,
            partition=each.partition,
            offset=each.offset,
        )
        for each in found[:limit]
    ]
    return AuditPage(actions=page, next=page[-1].seq if len(found) > limit else None)


def _kafka_away(error: BaseException) -> str:
    return f"Kafka cannot be asked: {type(error).__name__}"


def _event(what: str, at: datetime | None, detail: str | None = None, **place: Any) -> TimelineEvent:
    nowhere: dict[str, Any] = {"topic": None, "partition": None, "offset": None, "caller": None}
    return TimelineEvent(what=what, at=at, detail=detail, **{**nowhere, **place})


def _own(found: BatchStatus) -> list[TimelineEvent]:
    """What the batch's own row knows; of most of it not where it was said."""
    moments = [
        ("opened", found.opened_at, None if found.total is None else f"{found.total} items expected"),
        ("first_result", found.first_result_at, None),
        ("last_result", found.last_result_at, f"{found.answered} answered"),
        ("reopened", found.reopened_at, found.reason if found.outcome is None else None),
        ("pruned", found.pruned_at, "its items are not kept any more"),
    ]
    return [_event(what, at, detail) for what, at, detail in moments if at is not None]


def _end(found: BatchStatus) -> TimelineEvent:
    place = {}
    if found.as_of is not None:
        place = {"topic": found.as_of.topic, "partition": found.as_of.partition, "offset": found.as_of.offset}
    return _event("finalized", found.finalized_at, _ended(found.revision, found.outcome, found.finalized_by), **place)


def _ended(revision: int, outcome: str | None, finalized_by: str | None) -> str:
    return f"revision {revision}: {outcome} ({finalized_by})"


def _revision(detail: str | None) -> str:
    return (detail or "").partition(":")[0]


def _gone_out(event: HistoryEvent, here: Context) -> TimelineEvent:
    value, topic = event.value, f"{here.topics.prefix}{event.kind}"
    if event.kind == "finalized":
        decided = value["as_of"]
        detail = _ended(value["revision"], value["outcome"], value["finalized_by"])
        return _event("finalized", datetime.fromisoformat(value["finalized_at"]), detail, **decided)
    place = {"topic": topic, "partition": event.partition, "offset": event.offset}
    if event.kind == "alerts":
        return _event("alert", event.at, f"{value['alert']}: {value['message']}", **place)
    if event.kind == "requests":
        return _event("retry_requested", event.at, f"{event.items} items asked for", **place)
    return _event("summarized", event.at, f"revision {value['revision']}", **place)


def _refused(letter: DeadLetter) -> TimelineEvent:
    place = {"topic": letter.topic, "partition": letter.partition, "offset": letter.offset}
    return _event("dead_letter", letter.appended_at, f"{letter.reason}: {letter.message}", **place)


def _acted(action: AuditEntry, here: Context, caller: Caller) -> TimelineEvent:
    detail = action.action if action.items is None else f"{action.action}, {action.items} items"
    placed = action.offset is not None
    return _event(
        "action",
        action.at,
        detail,
        topic=here.topics.events if placed else None,
        partition=action.partition,
        offset=action.offset,
        caller=action.caller if caller.may(Role.ADMIN) else None,
    )
