"""What changed since a place in the log: the marker is the stored positions themselves.

A worker moves its positions in the transaction that writes what it read. So one snapshot of positions and batches is
consistent, and "decided at or behind this place, and before that one" names each batch by its present end exactly once,
without a column, a trigger or a lock of its own on the hot path. An end that another took the place of, or that a
reopening undid, is not named.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Integer, any_, bindparam, column, select, text, true, values
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger

from store.reads import BatchStatus, batch_status, select_batches, status_of
from store.tables import batches, positions

Cursor = Mapping[int, int]
"""Partition to the next offset; one that is absent stands at 0."""


async def schema(connection: AsyncConnection) -> int:
    """Which schema the tables are in: after each promotion another one, also to a transaction begun before."""
    found: int = await connection.scalar(text("SELECT to_regnamespace(quote_ident(current_schema()))::oid::int8"))
    return found


async def cursor(connection: AsyncConnection, events_topic: str) -> dict[int, int]:
    """How far the log is applied in this snapshot."""
    found = await connection.execute(
        select(positions.c.partition, positions.c.next_offset).where(positions.c.topic == events_topic)
    )
    return {row.partition: row.next_offset for row in found}


async def finalized_between(connection: AsyncConnection, after: Cursor, until: Cursor, *, limit: int) -> Sequence[str]:
    """Batches whose present end was decided at or behind ``after`` and before ``until``; by partition and offset."""
    moved = [
        (partition, after.get(partition, 0), end) for partition, end in until.items() if end > after.get(partition, 0)
    ]
    if not moved:
        return []
    spans = values(
        column("partition", Integer), column("first", BigInteger), column("behind", BigInteger), name="spans"
    ).data(moved)
    batch = batches.c
    # One stretch of the index for each partition.
    decided = (
        select(batch.batch_id, batch.decided_offset)
        .where(
            batch.partition == spans.c.partition,
            batch.decided_offset >= spans.c.first,
            batch.decided_offset < spans.c.behind,
        )
        .order_by(batch.decided_offset)
        .limit(limit)
        .lateral("decided")
    )
    ordered = (
        select(decided.c.batch_id)
        .select_from(spans.join(decided, true()))
        .order_by(spans.c.partition, decided.c.decided_offset)
        .limit(limit)
    )
    return (await connection.scalars(ordered)).all()


async def in_order(connection: AsyncConnection, events_topic: str, batch_ids: Sequence[str]) -> Sequence[BatchStatus]:
    """These batches, which are all known."""
    found = {each.batch_id: each for each in await some(connection, events_topic, batch_ids)}
    return [found[batch_id] for batch_id in batch_ids]


async def some(connection: AsyncConnection, events_topic: str, batch_ids: Sequence[str]) -> Sequence[BatchStatus]:
    """The known ones of these batches."""
    if not batch_ids:
        return []
    # One array: of parameters a statement can have 32,767, and a thousand event streams watch more batches.
    ids = bindparam("ids", list(batch_ids), ARRAY(batch_status.c.batch_id.type))
    query = select_batches(events_topic).where(batch_status.c.batch_id == any_(ids))
    return [status_of(row, events_topic) for row in await connection.execute(query)]
