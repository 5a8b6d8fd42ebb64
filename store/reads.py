"""What people ask: one batch, the newest batches, a batch's items, and who has not answered.

SQLAlchemy selects, read-only, for the command line and the HTTP API. Lists come in pages: the key of a page's last row
is where the next one begins (keyset pagination), so a page costs the same wherever it lies. No query reads more of
``item_results`` than one batch's stretch of its key.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    MetaData,
    Numeric,
    Row,
    Select,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    exists,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from store.tables import expected_items, item_results, positions

BatchStatusName = Literal[
    "pending", "processing", "completed", "completed_with_errors", "failed", "cancelled", "expired"
]
ItemStatus = Literal["succeeded", "partial", "failed", "skipped", "retrying"]

T = TypeVar("T")

_Id = Text(collation="C")
_Time = DateTime(timezone=True)

# Of its own metadata: a view is no table to create, or to compare with the migrations.
batch_status = Table(
    "batch_status",
    MetaData(),
    Column("batch_id", _Id),
    Column("status", Text),
    Column("state", Text),
    Column("outcome", Text),
    Column("finalized_by", Text),
    Column("revision", Integer),
    Column("generation", Integer),
    Column("name", Text),
    Column("metadata", JSON),
    Column("sealed", Boolean),
    Column("total", Integer),
    Column("answered", Integer),
    Column("succeeded", Integer),
    Column("partial", Integer),
    Column("failed", Integer),
    Column("skipped", Integer),
    Column("retrying", Integer),
    Column("missing", Integer),
    Column("unexpected", Integer),
    Column("created", Integer),
    Column("updated", Integer),
    Column("unchanged", Integer),
    Column("duplicates", BigInteger),
    Column("late", Integer),
    Column("progress_percent", Numeric(asdecimal=False)),
    Column("error_summary", Text),
    Column("deadline_at", _Time),
    Column("retry_of", _Id),
    Column("opened_at", _Time),
    Column("first_result_at", _Time),
    Column("last_result_at", _Time),
    Column("completed_at", _Time),
    Column("finalized_at", _Time),
    Column("published_at", _Time),
    Column("partition", Integer),
    Column("decided_offset", BigInteger),
    Column("policy", JSON),
    Column("reopened_at", _Time),
    Column("reason", Text),
    Column("error", JSON),
    Column("summary_state", Text),
    Column("pruned_at", _Time),
)


@dataclass(frozen=True, slots=True)
class AsOf:
    """A place in the log."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch as the view ``batch_status`` has it.

    ``total`` is None where nobody has said yet; ``progress_percent`` then too. ``as_of`` is the record that decided a
    finalized batch, as in its event; of an open batch the last record of its partition that is applied (None: none).
    Everything of its ``partition`` before ``next_offset`` is applied (None: nothing). Of a batch with ``pruned_at`` the
    items are not kept any more; its numbers are what they were.
    """

    batch_id: str
    status: str
    state: str
    outcome: str | None
    finalized_by: str | None
    revision: int
    generation: int
    name: str | None
    metadata: dict[str, Any] | None
    sealed: bool
    total: int | None
    answered: int
    succeeded: int
    partial: int
    failed: int
    skipped: int
    retrying: int
    missing: int
    unexpected: int
    created: int
    updated: int
    unchanged: int
    duplicates: int
    late: int
    progress_percent: float | None
    error_summary: str | None
    deadline_at: datetime | None
    retry_of: str | None
    opened_at: datetime | None
    first_result_at: datetime | None
    last_result_at: datetime | None
    completed_at: datetime | None
    finalized_at: datetime | None
    published_at: datetime | None
    policy: dict[str, Any] | None
    reopened_at: datetime | None
    reason: str | None
    error: dict[str, Any] | None
    summary_state: str | None
    pruned_at: datetime | None
    partition: int
    next_offset: int | None
    as_of: AsOf | None


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What is known of one item; ``duration_ms`` in milliseconds, the offset that of the deciding record."""

    item_id: str
    status: str
    attempt: int
    effect: str | None
    duration_ms: float | None
    message: str | None
    error_code: str | None
    error_message: str | None
    worker: str | None
    received_at: datetime
    partition: int
    offset: int
    stack_trace: str | None = None
    """Only where asked for."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Rows, and the key after which the next page begins; None: this was the last one."""

    rows: Sequence[T]
    next: str | None


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection on which everything read is of one moment, and nothing can be written."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection


async def batch(connection: AsyncConnection, events_topic: str, batch_id: str) -> BatchStatus | None:
    """One batch, None where there is none of that id."""
    found = await connection.execute(_one_batch(events_topic), {"wanted": batch_id})
    row = found.one_or_none()
    return None if row is None else status_of(row, events_topic)


async def batches(
    connection: AsyncConnection,
    events_topic: str,
    *,
    status: BatchStatusName | None = None,
    name: str | None = None,
    metadata: Sequence[tuple[str, str | None]] = (),
    opened_since: datetime | None = None,
    after: str | None = None,
    limit: int = 20,
) -> Page[BatchStatus]:
    """The newest batches first, optionally of one status or one name; ``after`` is the id of a batch.

    ``metadata`` are keys that a batch's metadata has to have, each with the text its value is to be, or None: any.
    Raises LookupError where there is no batch ``after``.
    """
    view = batch_status.c
    # Of a batch that was only announced items, no time is known: it comes last.
    known_since = func.coalesce(view.opened_at, view.first_result_at, view.finalized_at)
    query = (
        select_batches(events_topic).order_by(known_since.desc().nulls_last(), view.batch_id.desc()).limit(limit + 1)
    )
    if status is not None:
        query = query.where(view.status == status)
    if name is not None:
        query = query.where(view.name == name)
    for key, value in metadata:
        # json has no `?`; of an object without the key, and of none, the value is null in SQL.
        found_value = view.metadata[key]
        query = query.where(found_value.is_not(None) if value is None else found_value.astext == value)
    if opened_since is not None:
        query = query.where(known_since >= opened_since)
    if after is None:
        rows = list(await connection.execute(query))
    else:
        found = (await connection.execute(select(known_since).where(view.batch_id == after))).one_or_none()
        if found is None:
            raise LookupError(after)
        rows, of_unknown = [], query.where(known_since.is_(None))
        if found[0] is None:
            of_unknown = of_unknown.where(view.batch_id < after)
        else:
            behind = tuple_(known_since, view.batch_id) < tuple_(found[0], after)
            rows = list(await connection.execute(query.where(behind)))
        # A question of its own: one condition for both would be a filter over the whole index, not a stretch of it.
        if len(rows) <= limit:
            rows += await connection.execute(of_unknown.limit(limit + 1 - len(rows)))
    return _page([status_of(row, events_topic) for row in rows], limit, lambda each: each.batch_id)


async def items(
    connection: AsyncConnection,
    batch_id: str,
    *,
    status: ItemStatus | None = None,
    item_id: str | None = None,
    after: str | None = None,
    limit: int = 100,
    stack_traces: bool = False,
) -> Page[ItemResult]:
    """A batch's items by id, optionally of one status, or one of them; none where there is no such batch."""
    item = item_results.c
    query = (
        select(
            item.item_id,
            item.status,
            item.attempt,
            item.effect,
            item.duration_ms,
            item.message,
            item.error_code,
            item.error_message,
            item.worker,
            item.received_at,
            _home(batch_id).label("partition"),
            item.version.label("offset"),
        )
        .where(item.batch_id == batch_id)
        .order_by(item.item_id)
        .limit(limit + 1)
    )
    if stack_traces:
        query = query.add_columns(item.stack_trace)
    if status is not None:
        # Written out, not a parameter: only so can a prepared statement use the partial index of the failed.
        query = query.where(item.status == bindparam("status", status, literal_execute=True))
    if item_id is not None:
        query = query.where(item.item_id == item_id)
    if after is not None:
        query = query.where(item.item_id > after)
    rows = (await connection.execute(query)).all()
    return _page([ItemResult(**row._mapping) for row in rows], limit, lambda each: each.item_id)


async def has_manifest(connection: AsyncConnection, batch_id: str) -> bool:
    """Whether ids were announced for a batch, so that the missing can be named."""
    expected = expected_items.c
    # The first one in the order of the key, not any: looking for any, PostgreSQL may begin to read the whole table.
    first = select(expected.item_id).where(expected.batch_id == batch_id).order_by(expected.item_id).limit(1)
    return await connection.scalar(first) is not None


async def strange_items(connection: AsyncConnection, found: BatchStatus, item_ids: Sequence[str]) -> Sequence[str]:
    """Those of these ids that are no items of a batch: without a result, and none that may be missing of it."""
    if found.missing and not await has_manifest(connection, found.batch_id):
        return []
    known: set[str] = set()
    for table in (item_results, expected_items):
        rows = await connection.scalars(
            select(table.c.item_id).where(
                table.c.batch_id == found.batch_id, table.c.item_id == any_(bindparam("ids", item_ids, ARRAY(_Id)))
            )
        )
        known.update(rows)
    return [item_id for item_id in item_ids if item_id not in known]


async def missing(
    connection: AsyncConnection, batch_id: str, *, find: str = "", after: str | None = None, limit: int = 100
) -> Page[str]:
    """Ids on a batch's manifest that have no terminal result, in order; none where there is no manifest.

    ``find`` has to be in them, in capitals or not.
    """
    expected, item = expected_items.c, item_results.c
    answered = exists().where(item.batch_id == batch_id, item.item_id == expected.item_id, item.status != "retrying")
    query = (
        select(expected.item_id)
        .where(expected.batch_id == batch_id, ~answered)
        .order_by(expected.item_id)
        .limit(limit + 1)
    )
    if find:
        # Not LIKE: of that the planner believes that hardly any match, and reads the whole table for a few.
        query = query.where(func.strpos(func.lower(expected.item_id), func.lower(find)) > 0)
    if after is not None:
        query = query.where(expected.item_id > after)
    return _page((await connection.scalars(query)).all(), limit, lambda item_id: item_id)


@lru_cache
def _one_batch(events_topic: str) -> Select[Any]:
    # Composed once: that costs more than asking.
    return select_batches(events_topic).where(batch_status.c.batch_id == bindparam("wanted"))


def select_batches(events_topic: str) -> Select[Any]:
    """All batches with how far their partition is applied; to be narrowed down."""
    applied = positions.c
    return select(batch_status, applied.next_offset).outerjoin(
        positions, and_(applied.topic == events_topic, applied.partition == batch_status.c.partition)
    )


def _home(batch_id: str) -> Any:
    return select(batch_status.c.partition).where(batch_status.c.batch_id == batch_id).scalar_subquery()


def status_of(row: Row[Any], events_topic: str) -> BatchStatus:
    """A row of ``select_batches`` as a batch."""
    fields = dict(row._mapping)
    decided, next_offset = fields.pop("decided_offset"), fields["next_offset"]
    offset = decided if decided is not None or next_offset is None else next_offset - 1
    known = offset is not None and offset >= 0
    return BatchStatus(**fields, as_of=AsOf(events_topic, fields["partition"], offset) if known else None)


def _page(rows: Sequence[T], limit: int, key: Any) -> Page[T]:
    # One more than asked for was read, to know whether there is a next page.
    return Page(rows[:limit], key(rows[limit - 1]) if len(rows) > limit else None)
