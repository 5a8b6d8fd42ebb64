"""What the database holds grows with the work and no further: whole lives of batches in many small micro-batches.

Records go through the workers' own fold and statements, summaries and trimming run beside them as in the clock, and
what left is marked as the relay marks it. `ROLLCALL_TEST_MICRO_BATCHES=36000` is an hour of ten micro-batches a second,
which passes in a few minutes; only then does autovacuum come round often enough to judge what it should keep small.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handlers.microbatch import Applied, MicroBatch
from handlers.slices import Slice
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.dead_letters import Refused
from schemas.topics import Topics, home_partition
from store import outbox, positions
from store.connection import BY_KEY, Connection
from store.outbox import PublishedDeadLetter, PublishedEvent
from store.rows import DeadLetterRow, Position
from streams.decoding import decode
from streams.summarizing import Summarizer
from streams.trimming import Trimmer
from tests.harness.micro_batches import TOPICS, applied

pytestmark = pytest.mark.asyncio(loop_scope="session")

MICRO_BATCHES = int(os.environ.get("ROLLCALL_TEST_MICRO_BATCHES", "1500"))
AN_HOUR = 36_000
PARTITIONS = 12
OPEN_AT_ONCE = 240
"""Every micro-batch tells a twelfth of them something; each is told ten times and has ended then."""
TURNS = 10
KEPT = timedelta(seconds=5)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MIB = 1024 * 1024

Event = dict[str, Any]


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    await migrate(settings.database_url, settings.database_schema)
    opened = await settings.database().connect("test", command_timeout=60.0, **BY_KEY)
    await positions.create(opened, TOPICS.events, dict.fromkeys(range(PARTITIONS), 0))
    yield opened
    await opened.close()


@asynccontextmanager
async def clock_duties(settings: Settings) -> AsyncIterator[None]:
    """Summaries and trimming, as the clock has them."""
    stop, database = asyncio.Event(), settings.database()
    trimmer = Trimmer(
        settings.kafka_connection(), database, TOPICS, events_kept=KEPT, dead_letters_kept=KEPT, every_s=1.0
    )
    summarizer = Summarizer(database, Topics(), timeout_s=60.0)
    tasks = [asyncio.create_task(duty.run(stop)) for duty in (trimmer, summarizer)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)


def told(number: int, turn: int) -> list[Event]:
    """What a batch is told at one of its turns: every item once; some try again, repeat, fail, or come late."""
    result: Event = {"item_id": f"item-{turn}", "status": "succeeded", "duration_ms": 12.5, "worker": "w1"}
    events = [result]
    if turn == 0:
        ids = [f"item-{each}" for each in range(TURNS)]
        announced: Event = {"item_ids": ids} if number % 2 else {"total_items": TURNS}
        events.insert(0, {"type": "batch.opened", "name": "import", **announced})
    if number % 7 == 0 and turn == 3:
        result |= {"status": "failed", "error": {"code": "E1", "message": "no such customer", "stack_trace": "at 1"}}
    if number % 10 == 0 and turn == 5:
        events += [result, {**result, "item_id": "item-4", "attempt": 2}]
    if number % 10 == 1 and turn == TURNS - 1:
        events.append({**result, "item_id": "item-0", "status": "failed", "attempt": 2})
    if number % 20 == 2 and turn == TURNS - 1:
        events.append({"type": "batch.reopened", "item_ids": ["item-0"]})
        events.append({**result, "item_id": "item-0", "attempt": 2})
    return events


@asynccontextmanager
async def an_hour_in_minutes(connection: Connection) -> AsyncIterator[None]:
    """Autovacuum comes round every 6 s for the 60 s of its default, as the hour passes ten times as fast or more."""
    if MICRO_BATCHES < AN_HOUR:
        yield
        return
    await connection.execute("ALTER SYSTEM SET autovacuum_naptime = '6s'")
    await connection.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await connection.execute("ALTER SYSTEM RESET autovacuum_naptime")
        await connection.execute("SELECT pg_reload_conf()")


class Log:
    """Cuts the lives of batches into micro-batches; all partitions move on with each."""

    def __init__(self) -> None:
        self._ends = dict.fromkeys(range(PARTITIONS), 0)
        self._slots = [(slot, 0) for slot in range(OPEN_AT_ONCE)]
        self._begun = OPEN_AT_ONCE

    def next(self, step: int) -> MicroBatch:
        begins = dict(self._ends)
        slices: dict[str, Slice] = {}
        for slot in range(step % 12, OPEN_AT_ONCE, 12):
            number, turn = self._slots[slot]
            batch_id = f"b{number:07}"
            part = slices[batch_id] = Slice(home_partition(batch_id, PARTITIONS), [])
            for event in told(number, turn):
                value = json.dumps({"batch_id": batch_id} | event).encode()
                moment = BEGIN + timedelta(milliseconds=100 * step)
                part.records.append(decode(value, self._took(part.partition), moment))
            self._slots[slot] = (number, turn + 1) if turn + 1 < TURNS else (self._begun, 0)
            self._begun += turn + 1 == TURNS
        dead = []
        if step % 5 == 0:
            offset = self._took(0)
            dead.append(
                DeadLetterRow(TOPICS.events, 0, offset, BEGIN, "invalid_json", "", None, b"k", b"{" * 300, "[]")
            )
        for partition in self._ends:
            if self._ends[partition] == begins[partition]:
                self._took(partition)
        ends = self._ends.items()
        advances = {each: (begins[each], Position(each, end, end - 1, step, step, {})) for each, end in ends}
        return MicroBatch(TOPICS, advances, slices, dead, {}, _nothing_is_refused)

    def _took(self, partition: int) -> int:
        self._ends[partition] += 1
        return self._ends[partition] - 1


def _nothing_is_refused(partition: int, offset: int, refusal: Refused) -> DeadLetterRow:
    raise AssertionError(f"{partition}/{offset} is refused: {refusal.message}")


async def published(connection: Connection, done: Applied, step: int) -> None:
    """Mark what a micro-batch sent, and the summaries there are, as the relay does."""
    now = datetime.now(UTC)
    waiting = await outbox.unpublished(connection, 1_000, MIB)
    events = [PublishedEvent(each.id, each.channel, each.batch_id, each.revision, now, 0, step) for each, _ in waiting]
    await outbox.mark_published(connection, events)
    await outbox.mark_dead_letters_published(
        connection, [PublishedDeadLetter(each, now, 0, step) for each in done.dead_letters]
    )


async def figures_of(connection: Connection, schema: str) -> dict[str, Any]:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    found = await connection.fetch(
        "SELECT relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del, n_live_tup, n_dead_tup, autovacuum_count,"
        " pg_table_size(relid) AS bytes, pg_indexes_size(relid) AS index_bytes"
        " FROM pg_stat_user_tables WHERE schemaname = $1 AND n_tup_ins > 0 ORDER BY relname",
        schema,
    )
    return {each["relname"]: dict(each) for each in found}


async def test_hot_rows_do_not_bloat_and_what_has_left_goes(connection: Connection, settings: Settings) -> None:
    log = Log()
    halfway: dict[str, Any] = {}
    async with an_hour_in_minutes(connection), clock_duties(settings):
        for step in range(MICRO_BATCHES):
            done, _ = await applied(connection, log.next(step), optimistic=True)
            await published(connection, done, step)
            if step == MICRO_BATCHES // 2:
                halfway = await figures_of(connection, settings.database_schema)
    figures = await figures_of(connection, settings.database_schema)
    for name, each in figures.items():
        print(name, each)
    # Twelve rows, changed thousands of times: updates in place, and pages that stay few.
    assert figures["positions"]["n_tup_upd"] == MICRO_BATCHES * PARTITIONS
    assert figures["positions"]["n_tup_hot_upd"] > 0.9 * figures["positions"]["n_tup_upd"]
    assert figures["positions"]["bytes"] < MIB // 2
    # Updates of counts are in place; those that end a batch or open it again move it in or out of an index.
    assert figures["batches"]["n_tup_hot_upd"] > 0.7 * figures["batches"]["n_tup_upd"]
    rows = await connection.fetchval("SELECT count(*) FROM batches")
    assert rows > MICRO_BATCHES
    assert figures["batches"]["bytes"] < 1_000 * rows + MIB // 2
    if MICRO_BATCHES < AN_HOUR:
        return
    # An hour's events and dead letters went through these tables, which are as large as they were after half of it.
    for name in ("outbox", "dead_letters", "positions"):
        size, before = (each[name]["bytes"] + each[name]["index_bytes"] for each in (figures, halfway))
        assert size < max(1.5 * before, MIB), (name, before, size)
        assert figures[name]["n_live_tup"] < 0.1 * figures[name]["n_tup_ins"] + PARTITIONS
    # What stays is a row a batch, and a row an item.
    for name in ("batches", "summaries", "item_results", "expected_items"):
        size, before = (each[name]["bytes"] + each[name]["index_bytes"] for each in (figures, halfway))
        assert size < 2.3 * before, (name, before, size)
        assert figures[name]["n_dead_tup"] < 0.25 * figures[name]["n_live_tup"], name
