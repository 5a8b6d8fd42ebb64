"""What the HTTP API shows of one batch beside ``store.reads``: an item, its failures, its history, all its results."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Select, Text, and_, any_, bindparam, case, cast, column, func, select, true, values
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.published import AlertType
from store import diagnosis
from store.diagnosis import DeadLetter
from store.reads import ItemStatus
from store.tables import batches, expected_items, item_results, late_results, outbox, positions, summaries

RESULTS_PAGE = 200
"""Rows of a download read at one time: with its output, message and stack trace each may be some 90 KiB."""
MAX_HISTORY = 200
"""Events of each kind in a history, at most."""

# What the ids of events about a batch begin with, before its own (see who makes them, in handlers and the relay).
_REFUSED = "relay.record_refused/"
_EVENTS = ("batch.finalized", "batch.summarized", "batch.retry_requested", *get_args(AlertType))
_KINDS = (*_EVENTS, *(_REFUSED + kind for kind in _EVENTS))


@dataclass(frozen=True, slots=True)
class ItemDetail:
    """All that is known of an item; ``status`` is None where it is expected and has not answered.

    ``offset`` is that of the record that decided, on the batch's home ``partition``; ``late_status`` what a result said
    that came after the batch was finalized.
    """

    item_id: str
    expected: bool
    status: str | None
    attempt: int | None
    generation: int | None
    effect: str | None
    duration_ms: float | None
    message: str | None
    error_code: str | None
    error_message: str | None
    stack_trace: str | None
    output: Any
    metrics: dict[str, float] | None
    worker: str | None
    occurred_at: datetime | None
    received_at: datetime | None
    partition: int
    offset: int | None
    late_status: str | None
    late_offset: int | None


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """Something that went out about a batch; ``kind`` is the outbox's channel.

    Of a request ``value`` is left out, and ``items`` says how many it asks for.
    """

    at: datetime | None
    kind: str
    value: dict[str, Any]
    items: int
    partition: int | None
    offset: int | None


_RESULT = (
    item_results.c.item_id,
    item_results.c.status,
    item_results.c.attempt,
    item_results.c.effect,
    item_results.c.duration_ms,
    item_results.c.message,
    item_results.c.error_code,
    item_results.c.error_message,
    item_results.c.stack_trace,
    item_results.c.output,
    item_results.c.metrics,
    item_results.c.worker,
    item_results.c.occurred_at,
    item_results.c.received_at,
    item_results.c.version.label("offset"),
)
RESULT_COLUMNS = tuple(column.name for column in _RESULT if column.name != "stack_trace")
"""The columns of a download, in their order; a stack trace is one more, where it is asked for."""


async def item(connection: AsyncConnection, batch_id: str, item_id: str) -> ItemDetail | None:
    """An item of a batch; None where it neither is expected nor has answered."""
    result, late, expected = item_results.c, late_results.c, expected_items.c
    query = (
        select(
            expected.item_id.is_not(None).label("expected"),
            result.status,
            result.attempt,
            result.generation,
            result.effect,
            result.duration_ms,
            result.message,
            result.error_code,
            result.error_message,
            result.stack_trace,
            result.output,
            result.metrics,
            result.worker,
            result.occurred_at,
            result.received_at,
            batches.c.partition,
            result.version.label("offset"),
            late.status.label("late_status"),
            late.version.label("late_offset"),
        )
        .select_from(batches)
        .outerjoin(item_results, and_(result.batch_id == batch_id, result.item_id == item_id))
        .outerjoin(late_results, and_(late.batch_id == batch_id, late.item_id == item_id))
        .outerjoin(expected_items, and_(expected.batch_id == batch_id, expected.item_id == item_id))
        .where(batches.c.batch_id == batch_id)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None or (row.status is None and not row.expected and row.late_status is None):
        return None
    return ItemDetail(item_id=item_id, **row._mapping)


async def results(
    engine: AsyncEngine, batch_id: str, *, status: ItemStatus | None = None, stack_traces: bool = False
) -> AsyncIterator[Sequence[Any]]:
    """All results of a batch by item id, a page of rows at a time, each page read as it is then.

    No transaction is open between pages: a slow reader must not keep the database from cleaning up.
    """
    item = item_results.c
    shown = [column for column in _RESULT if stack_traces or column.name in RESULT_COLUMNS]
    query = select(*shown).where(item.batch_id == batch_id).order_by(item.item_id).limit(RESULTS_PAGE)
    if status is not None:
        query = query.where(item.status == status)
    after = ""
    while True:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            rows = (await connection.execute(query.where(item.item_id > after))).all()
        if rows:
            yield rows
        if len(rows) < RESULTS_PAGE:
            return
        after = rows[-1].item_id


async def job_metrics(connection: AsyncConnection, batch_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Batch id to the sums of its items' metrics, where there is a summary."""
    found = await connection.execute(
        select(summaries.c.batch_id, summaries.c.summary["metrics"]).where(
            summaries.c.batch_id.in_(batch_ids), summaries.c.summary.is_not(None)
        )
    )
    return {row[0]: row[1] or {} for row in found}


async def outbox_events(
    connection: AsyncConnection, batch_id: str, letters: Sequence[DeadLetter]
) -> Sequence[HistoryEvent]:
    """What went out about a batch and these dead letters of its, as far as the outbox still has it, in order.

    ``partition`` and ``offset`` are those on its topic.
    """
    known = await connection.scalars(_of_batch(batch_id))
    places = [f"{_REFUSED}{each.topic}-{each.partition}@{each.offset}" for each in letters]
    ids = [*known, *(f"{kind}/{batch_id}" for kind in _KINDS), *places]
    event = outbox.c
    is_request = event.channel == "requests"
    found = await connection.execute(
        select(
            event.published_at,
            event.channel,
            # Of a request, which may be as large as a record, only how many items it asks for.
            case((is_request, None), else_=event.value),
            case((is_request, func.json_array_length(cast(event.value, JSON)["item_ids"])), else_=0),
            event.published_partition,
            event.published_offset,
        )
        .where(event.id == any_(bindparam("ids", ids, ARRAY(event.id.type))), event.value.is_not(None))
        .order_by(event.seq)
        .limit(MAX_HISTORY)
    )
    return [
        HistoryEvent(at, kind, json.loads(value) if value else {}, items, partition, offset)
        for at, kind, value, items, partition, offset in found
    ]


def _of_batch(batch_id: str) -> Select[Any]:
    """The ids that begin with a kind and a batch's id, the first ones of each kind: a stretch of the key each.

    There is no index by batch, and none is needed: batch ids hold no ``/``, and ``0`` is what comes behind it.
    """
    spans = values(column("first", Text), column("behind", Text), name="spans").data(
        [(f"{kind}/{batch_id}/", f"{kind}/{batch_id}0") for kind in _KINDS]
    )
    of_kind = select(outbox.c.id).where(outbox.c.id >= spans.c.first, outbox.c.id < spans.c.behind)
    stretch = of_kind.order_by(outbox.c.id).limit(MAX_HISTORY).lateral("stretch")
    return select(stretch.c.id).select_from(spans.join(stretch, true()))


async def next_offset(connection: AsyncConnection, topic: str, partition: int) -> int:
    """Everything before it is applied."""
    position = positions.c
    found = await connection.scalar(
        select(position.next_offset).where(position.topic == topic, position.partition == partition)
    )
    return found or 0


async def refusal(connection: AsyncConnection, topic: str, partition: int, offsets: Sequence[int]) -> str | None:
    """Why the first of these records was refused that was; None where all were taken, as far as they are applied."""
    letter = await diagnosis.dead_letter_at(connection, topic, partition, offsets)
    return None if letter is None else letter.message
