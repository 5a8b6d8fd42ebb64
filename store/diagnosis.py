"""What an explanation needs to know beside ``store.reads``: of one batch, and of how far everything is. Read-only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from store.tables import batches, dead_letters, expected_items, item_results, logs, outbox, positions, summaries


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be taken, where it was first read, and why."""

    topic: str
    partition: int
    offset: int
    appended_at: datetime
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """Dead letters of one reason, and when the last of them came."""

    reason: str
    count: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Applied:
    """How far a partition of the input log is applied: everything before ``next_offset``.

    ``taken`` maps a source partition to the highest offset forwarded from there.
    """

    next_offset: int
    taken: dict[int, int]


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """What became of an event: published, waiting, or put aside (``refused``): by the broker, or by a promotion."""

    published_at: datetime | None
    refused: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A batch's summary as published, None while there is none; ``problem`` is why the last attempt failed."""

    state: str
    attempts: int
    problem: str | None
    summary: dict[str, Any] | None


async def partition_count(connection: AsyncConnection, topic: str) -> int | None:
    """The partition count that fixes every batch's home; None before the first start."""
    return await connection.scalar(select(logs.c.partition_count).where(logs.c.topic == topic))


async def applied(connection: AsyncConnection, topic: str) -> dict[int, Applied]:
    """How far each partition of the input log is applied, as far as any has been read."""
    found = await connection.execute(
        select(positions.c.partition, positions.c.next_offset, positions.c.taken).where(positions.c.topic == topic)
    )
    return {
        row.partition: Applied(row.next_offset, {int(source): offset for source, offset in row.taken.items()})
        for row in found
    }


async def dead_letter_reasons(connection: AsyncConnection, most: int) -> Sequence[ReasonCount]:
    """Dead letters that nobody has dealt with, by reason, the most frequent first; of very many only ``most``."""
    letter = dead_letters.c
    waiting = (
        select(letter.reason, letter.appended_at)
        .where(letter.redriven_at.is_(None), letter.discarded_at.is_(None))
        .limit(most)
        .subquery()
    )
    number = func.count()
    found = await connection.execute(
        select(waiting.c.reason, number, func.max(waiting.c.appended_at))
        .group_by(waiting.c.reason)
        .order_by(number.desc(), waiting.c.reason)
    )
    return [ReasonCount(*row) for row in found]


async def last_result_offset(connection: AsyncConnection, batch_id: str) -> int | None:
    """Where on its home partition the last counted result of a batch is, or was before it was redriven."""
    return await connection.scalar(select(batches.c.last_result_offset).where(batches.c.batch_id == batch_id))


async def dead_letters_of(
    connection: AsyncConnection, batch_id: str, *, limit: int
) -> tuple[int, Sequence[DeadLetter]]:
    """How many dead letters name a batch, and the newest of them."""
    of_batch = _names(batch_id)
    letter = dead_letters.c
    count = await connection.scalar(select(func.count()).select_from(dead_letters).where(of_batch))
    found = await connection.execute(
        select(letter.topic, letter.partition, letter.record_offset, letter.appended_at, letter.reason, letter.message)
        .where(of_batch)
        .order_by(letter.seq.desc())
        .limit(limit)
    )
    return count or 0, [DeadLetter(*row) for row in found]


async def unexpected(connection: AsyncConnection, batch_id: str, *, limit: int) -> Sequence[str]:
    """Answered items that are not on a batch's manifest, by id; at most ``limit``."""
    item, expected = item_results.c, expected_items.c
    announced = exists().where(expected.batch_id == batch_id, expected.item_id == item.item_id)
    found = await connection.scalars(
        select(item.item_id)
        .where(item.batch_id == batch_id, item.status != "retrying", ~announced)
        .order_by(item.item_id)
        .limit(limit)
    )
    return found.all()


async def finalized_event(connection: AsyncConnection, batch_id: str, revision: int) -> OutboxEvent | None:
    """What became of a batch's finalized event; None where the outbox has none (any more)."""
    event = outbox.c
    found = await connection.execute(
        select(event.published_at, event.refused).where(
            event.channel == "finalized", event.batch_id == batch_id, event.revision == revision
        )
    )
    row = found.one_or_none()
    return None if row is None else OutboxEvent(*row)


async def summary(connection: AsyncConnection, batch_id: str) -> Summary | None:
    """What became of a batch's summary; None where none was ever asked for."""
    asked = summaries.c
    found = await connection.execute(
        select(asked.state, asked.attempts, asked.problem, asked.summary).where(asked.batch_id == batch_id)
    )
    row = found.one_or_none()
    return None if row is None else Summary(*row)


async def dead_letter_at(
    connection: AsyncConnection, topic: str, partition: int, offsets: Sequence[int]
) -> DeadLetter | None:
    """The first of these records that could not be taken; None where all were, as far as they are applied."""
    letter = dead_letters.c
    found = await connection.execute(
        select(letter.topic, letter.partition, letter.record_offset, letter.appended_at, letter.reason, letter.message)
        .where(letter.topic == topic, letter.partition == partition, letter.record_offset.in_(offsets))
        .order_by(letter.record_offset)
        .limit(1)
    )
    row = found.one_or_none()
    return None if row is None else DeadLetter(*row)


def _names(batch_id: str) -> Any:
    letter = dead_letters.c
    # Of a record that cannot be parsed, its key alone says whose it was meant to be.
    return or_(letter.batch_id == batch_id, and_(letter.batch_id.is_(None), letter.key == batch_id.encode()))
