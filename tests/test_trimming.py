"""What has left goes after a while, nothing that is still needed with it, and hot rows do not bloat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from store import batches, dead_letters, outbox, positions, tables, trimming
from store.connection import BY_KEY, Connection
from store.rows import Batch, DeadLetterRow
from streams.trimming import Trimmer
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.tables import finalized_events
from tests.harness.topics import create_topic, drain, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOW = datetime.now(UTC)
TOPIC = "rollcall.events"
DAY = timedelta(days=1)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    await migrate(settings.database_url, settings.database_schema)
    opened = await settings.database().connect("test", command_timeout=60.0, **BY_KEY)
    yield opened
    await opened.close()


@asynccontextmanager
async def trimmed(
    settings: Settings, events_kept: timedelta = 7 * DAY, dead_kept: timedelta = 30 * DAY
) -> AsyncIterator[None]:
    stop, kafka, topics = asyncio.Event(), settings.kafka_connection(), Topics(settings.topic_prefix)
    kept = {"events_kept": events_kept, "dead_letters_kept": dead_kept}
    trimmer = Trimmer(kafka, settings.database(), topics, every_s=0.05, **kept)
    task = asyncio.create_task(trimmer.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def event(
    connection: Connection,
    event_id: str,
    days: float | None,
    channel: str = "finalized",
    value: str | None = "{}",
    revision: int = 1,
) -> None:
    """An event of the batch its id names, published so many days ago."""
    await connection.execute(
        "INSERT INTO outbox (id, channel, batch_id, revision, value, headers, published_at)"
        " VALUES ($1, $2, split_part($1, '/', 2), $3, $4, '{}', $5)",
        *(event_id, channel, revision, value, None if days is None else NOW - days * DAY),
    )


async def ids(connection: Connection, table: str = "outbox", column: str = "id") -> set[Any]:
    return {each[0] for each in await connection.fetch(f"SELECT {column} FROM {table}")}


async def test_old_published_events_go_and_what_is_still_needed_stays(
    connection: Connection, settings: Settings
) -> None:
    await create_topic(settings.bootstrap_servers, Topics(settings.topic_prefix).events)
    await batches.write(connection, [Batch("open", 0)])
    gone = {"f/old/1": "finalized", "s/old/1": "summaries", "a/old/0": "alerts", "r/old/5": "requests"}
    gone["f/withheld/1"] = "finalized"  # a promotion has withheld its second revision: that will never go out
    for event_id, channel in gone.items():
        await event(connection, event_id, 8, channel)
    await event(connection, "f/young/1", 6)
    await event(connection, "f/unpublished/1", None)
    await event(connection, "f/known only from the topic/1", 8, value=None)
    await event(connection, "f/revised/2", 8, revision=2)
    await event(connection, "f/revised/1", None)
    await event(connection, "a/open/0", 8, "alerts")
    await event(connection, "f/withheld/2", None, revision=2)
    await connection.execute("UPDATE outbox SET refused = $1 WHERE id = 'f/withheld/2'", outbox.WITHHELD)
    kept = await ids(connection) - gone.keys()
    async with trimmed(settings):

        async def are_gone() -> bool:
            left = await ids(connection)
            assert not left & gone.keys(), left
            return True

        await eventually(are_gone)
    assert await ids(connection) == kept


async def test_the_newest_mark_stays_however_old_it_is(connection: Connection) -> None:
    for days in (9, 8, 10):
        await event(connection, f"f/{days}/1", days)
    assert await trimming.trim_events(connection, NOW, 100) == 2
    assert await trimming.trim_events(connection, NOW, 100) == 0
    assert await ids(connection) == {"f/8/1"}
    assert await outbox.has_marks(connection, tables.outbox)


async def test_events_go_in_chunks_the_oldest_first(connection: Connection) -> None:
    for days in range(8, 18):
        await event(connection, f"f/{days}/1", days)
    assert await trimming.trim_events(connection, NOW - 7 * DAY, 4) == 4
    assert await ids(connection) == {f"f/{days}/1" for days in range(8, 14)}


async def dead_letter(connection: Connection, offset: int, days: float | None, refused: str | None = None) -> None:
    letter = DeadLetterRow(TOPIC, 0, offset, NOW, "invalid_json", "", None, b"k", b"{", "[]")
    await outbox.insert_dead_letters(connection, [letter])
    published_at = None if days is None else NOW - days * DAY
    await connection.execute(
        "UPDATE dead_letters SET published_at = $1, refused = $2 WHERE record_offset = $3",
        published_at,
        refused,
        offset,
    )


async def test_old_published_dead_letters_go_once_their_record_is_behind_the_position(
    connection: Connection, settings: Settings
) -> None:
    await positions.create(connection, TOPIC, {0: 10})
    await dead_letter(connection, 1, 31)
    await dead_letter(connection, 2, 29)
    await dead_letter(connection, 3, None)
    await dead_letter(connection, 4, None, refused="too large")
    await dead_letter(connection, 5, None, refused=outbox.WITHHELD)
    await connection.execute("UPDATE dead_letters SET appended_at = $1 WHERE record_offset = 5", NOW - 31 * DAY)
    await dead_letter(connection, 6, None, refused=outbox.WITHHELD)
    await dead_letter(connection, 7, 40)  # workers lag: it may be refused once more
    await connection.execute("UPDATE dead_letters SET redriven_at = $1 WHERE record_offset = 7", NOW - DAY)
    await dead_letter(connection, 8, 40)
    await connection.execute("UPDATE dead_letters SET redriven_at = $1 WHERE record_offset = 8", NOW - 31 * DAY)
    await dead_letter(connection, 9, 40)
    await dead_letter(connection, 10, 40)  # known from the topic: a database begun anew will read its record yet
    async with trimmed(settings):

        async def are_gone() -> bool:
            return not await ids(connection, "dead_letters", "record_offset") & {1, 5, 8, 9}

        await eventually(are_gone)
    assert await ids(connection, "dead_letters", "record_offset") == {2, 3, 4, 6, 7, 10}


async def test_a_dead_letter_that_was_trimmed_meanwhile_is_not_there_to_be_redriven(connection: Connection) -> None:
    await positions.create(connection, TOPIC, {0: 10})
    for offset in (1, 2):
        await dead_letter(connection, offset, 31)
    keys = [dead_letters.Key(TOPIC, 0, offset) for offset in (1, 2)]
    await trimming.trim_dead_letters(connection, NOW - 30 * DAY, 1)
    async with connection.transaction():
        assert await dead_letters.hold(connection, keys) == {keys[1]}


async def test_trimming_uses_its_indexes(connection: Connection) -> None:
    # Planned as the trimmer's connection does, on tables that hold something.
    for number in range(50):
        await event(connection, f"f/{number}/1", number)
        await dead_letter(connection, number, number)
    await connection.execute("ANALYZE")
    for name, query in (("outbox", trimming._EVENTS), ("dead_letters", trimming._DEAD_LETTERS)):
        await connection.execute(f"PREPARE trim_{name}(timestamptz, int8) AS {query}")
        plan = "\n".join(each[0] for each in await connection.fetch(f"EXPLAIN EXECUTE trim_{name}(now(), 1000)"))
        assert f"{name}_published" in plan, plan
        assert "Seq Scan on outbox" not in plan, plan
    withheld = (
        ("dead_letters", "(timestamptz, int8)", "(now(), 1000)", trimming._WITHHELD_DEAD_LETTERS),
        ("outbox", "(int4[], timestamptz[], int8)", "('{0}', '{2026-01-01Z}', 1000)", trimming._WITHHELD_EVENTS),
    )
    for name, types, values, query in withheld:
        await connection.execute(f"PREPARE trim_withheld_{name}{types} AS {query}")
        rows = await connection.fetch(f"EXPLAIN EXECUTE trim_withheld_{name}{values}")
        assert f"{name}_refused" in "\n".join(each[0] for each in rows), rows


async def test_a_relay_that_begins_anew_after_trimming_publishes_nothing_twice_and_keeps_little(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=2)

    def complete(first: int, count: int) -> list[Message]:
        opened = [
            {"type": "batch.opened", "batch_id": f"b{number:03}", "total_items": 0}
            for number in range(first, first + count)
        ]
        broken = [Message(b"k", b"no JSON %d" % first, "")]
        return [Message(str(each["batch_id"]).encode(), json.dumps(each).encode(), "") for each in opened] + broken

    async with running(settings) as product, product.connection() as connection:
        await produce(settings.bootstrap_servers, topics.events, complete(0, 100))
        await product.settled()
        async with trimmed(settings, timedelta(0), timedelta(0)):

            async def is_trimmed() -> bool:
                return len(await ids(connection)) == 1

            await eventually(is_trimmed)
        await product.children["relay"].kill()
        await product.start_relay()
        await produce(settings.bootstrap_servers, topics.events, complete(100, 10))
        await product.settled()
        assert len(await ids(connection)) == 11
        assert len(await ids(connection, "dead_letters", "record_offset")) == 2
    events = await finalized_events(settings)
    assert {batch_id: len(found) for batch_id, found in events.items()} == {f"b{number:03}": 1 for number in range(110)}
    assert len(await drain(settings.bootstrap_servers, topics.dead_letters)) == 2
