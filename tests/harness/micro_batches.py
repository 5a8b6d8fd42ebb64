"""A log's records applied to a real PostgreSQL in micro-batches of any size, without Kafka."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg

from handlers.microbatch import Applied, MicroBatch, apply
from handlers.records import TakenRecord
from handlers.slices import Slice
from schemas.dead_letters import Refused
from schemas.topics import Topics
from store import positions
from store.connection import Connection
from store.rows import DeadLetterRow, Position
from streams.decoding import decode, take_usual
from streams.fetched import FetchedRecord
from streams.reading import append_time

TOPICS = Topics()
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def taken(log: Iterable[tuple[int, int, bytes]]) -> list[TakenRecord]:
    """Records as a worker takes them, of (offset, append time in ms, value)."""
    return taken_of(FetchedRecord(TOPICS.events, 0, offset, ms, None, value, ()) for offset, ms, value in log)


def taken_of(fetched: Iterable[FetchedRecord]) -> list[TakenRecord]:
    """Records as a worker takes them."""
    records: list[TakenRecord] = []
    lists: defaultdict[str, list[TakenRecord] | None] = defaultdict(lambda: records)
    for record in fetched:
        if not take_usual([record], 0, 1, lists, append_time):
            records += [decode(record.value, record.offset, append_time(record.timestamp))]
    return records


def micro_batch(records: Sequence[TakenRecord], begin: int, end: int) -> MicroBatch:
    slices: dict[str, Slice] = {}
    for record in records[begin:end]:
        slices.setdefault(record.batch_id, Slice(0, [])).records.append(record)

    def dead_letter(partition: int, offset: int, refusal: Refused) -> DeadLetterRow:
        return DeadLetterRow(
            TOPICS.events,
            partition,
            offset,
            EPOCH,
            refusal.reason.value,
            refusal.message,
            refusal.batch_id,
            None,
            None,
            "[]",
        )

    position = Position(0, end, end - 1, 0, 0, {})
    return MicroBatch(TOPICS, {0: (begin, position)}, slices, [], {}, dead_letter)


async def applied(connection: Connection, part: MicroBatch, *, optimistic: bool) -> tuple[Applied, bool]:
    """As the flusher does it: optimism, and once more without where it was wrong (then the second is True)."""
    try:
        async with connection.transaction():
            return await apply(connection, part, optimistic=optimistic), False
    except asyncpg.UniqueViolationError:
        assert optimistic
    async with connection.transaction():
        return await apply(connection, part, optimistic=False), True


async def emptied(connection: Connection) -> None:
    """Begin the log anew."""
    await connection.execute(
        "TRUNCATE batches, item_results, late_results, expected_items, summaries, outbox, dead_letters, positions"
    )
    await positions.create(connection, TOPICS.events, {0: 0})


async def tables(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    queries = {
        "batches": "SELECT * FROM batches ORDER BY batch_id",
        "items": "SELECT * FROM item_results ORDER BY batch_id, item_id",
        "late": "SELECT * FROM late_results ORDER BY batch_id, item_id",
        "expected": "SELECT * FROM expected_items ORDER BY batch_id, item_id",
        "summaries": "SELECT * FROM summaries ORDER BY batch_id",
        "outbox": "SELECT id, channel, batch_id, revision, value, headers::text FROM outbox ORDER BY id",
        "dead letters": "SELECT topic, partition, record_offset, reason, batch_id FROM dead_letters ORDER BY 3",
        "positions": "SELECT topic, next_offset, last_offset, taken::text FROM positions",
    }
    return {name: [tuple(row) for row in await connection.fetch(query)] for name, query in queries.items()}
