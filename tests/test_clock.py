"""The clock tells passed deadlines on the stream: at home, to the microsecond, not too often, one clock at a time."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics, home_partition
from store import batches, deadlines
from store.connection import Connection
from store.rows import Batch
from streams import clock
from tests.harness.product import running
from tests.harness.tables import table_rows
from tests.harness.topics import Record, create_topic, drain, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4
NOW = datetime.now(UTC)
PAST = NOW - timedelta(hours=1, microseconds=1)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    """A migrated schema and an input topic."""
    await migrate(settings.database_url, settings.database_schema)
    await create_topic(settings.bootstrap_servers, Topics(settings.topic_prefix).events, partitions=PARTITIONS)
    opened = await settings.database().connect("test")
    yield opened
    await opened.close()


@asynccontextmanager
async def clock_of(settings: Settings) -> AsyncIterator[asyncio.Event]:
    """A clock in this process; yields the event that says that it leads."""
    stop, leads = asyncio.Event(), asyncio.Event()
    topics = Topics(settings.topic_prefix)
    running_clock = asyncio.create_task(
        clock.run(settings.kafka_connection(), settings.database(), topics, PARTITIONS, clock.Limits(), stop, leads.set)
    )
    try:
        yield leads
    finally:
        stop.set()
        await asyncio.wait_for(running_clock, 30)


def batch(batch_id: str, deadline_at: datetime | None, **fields: Any) -> Batch:
    return Batch(batch_id, home_partition(batch_id, PARTITIONS), opened_at=PAST, deadline_at=deadline_at, **fields)


def finalized(batch_id: str, deadline_at: datetime) -> Batch:
    ended = {"state": "finalized", "outcome": "completed", "finalized_by": "all_items_in", "finalized_at": PAST}
    return batch(batch_id, deadline_at, revision=1, decided_offset=1, **ended)


async def told(settings: Settings) -> Sequence[Record]:
    return await drain(settings.bootstrap_servers, Topics(settings.topic_prefix).events)


async def until_told(settings: Settings, count: int) -> Sequence[Record]:
    async def enough() -> Sequence[Record]:
        found = await told(settings)
        assert len(found) >= count, f"{len(found)} of {count} told"
        return found

    return await eventually(enough, interval_s=0.2)


async def test_a_passed_deadline_is_told_at_the_batchs_home_to_the_microsecond(
    settings: Settings, connection: Connection
) -> None:
    due = [batch(f"due-{number}", PAST, generation=number) for number in range(8)]
    await batches.write(
        connection,
        [*due, batch("ahead", NOW + timedelta(days=1)), batch("none", None), finalized("finalized", PAST)],
    )
    async with clock_of(settings):
        records = await until_told(settings, len(due))
    for record in records:
        said = json.loads(record.value)
        assert record.key.decode() == said["batch_id"]
        assert record.partition == home_partition(said["batch_id"], PARTITIONS)
        assert said["type"] == "batch.expired"
        assert datetime.fromisoformat(said["deadline_at"]) == PAST
        assert said["batch_id"] == f"due-{said['generation']}"
    assert len(records) == len(due)


async def test_what_was_told_is_told_again_only_where_the_deadline_is_another(
    settings: Settings, connection: Connection
) -> None:
    await batches.write(connection, [batch("first", PAST), batch("second", PAST)])
    async with clock_of(settings):
        await until_told(settings, 2)
        # The clock has to look again, at all of them, before it can tell this.
        await batches.write(connection, [batch("first", PAST + timedelta(microseconds=1)), batch("third", PAST)])
        records = await until_told(settings, 4)
    assert sorted(record.key for record in records) == [b"first", b"first", b"second", b"third"]


async def test_more_passed_deadlines_than_are_told_at_once_are_all_told_once(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "AT_ONCE", 10)
    monkeypatch.setattr(clock, "TOLD_TOGETHER", 7)
    many = [batch(f"due-{number:04}", PAST + timedelta(seconds=number % 3)) for number in range(100)]
    await batches.write(connection, many)

    async def all_are_told() -> list[str]:
        ids = [record.key.decode() for record in await told(settings)]
        # As workers do that read what was told.
        await batches.write(connection, [finalized(each, PAST) for each in ids])
        assert len(ids) >= len(many)
        return ids

    async with clock_of(settings):
        ids = await eventually(all_are_told, interval_s=0.2)
    assert sorted(ids) == [each.batch_id for each in many]


async def test_a_partition_that_nobody_reads_holds_up_no_other_ones_deadlines(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "AT_ONCE", 20)
    ids = [f"batch-{number}" for number in range(400)]
    stuck = [batch(each, PAST) for each in ids if home_partition(each, PARTITIONS) == 0]
    others = [batch(each, PAST + timedelta(seconds=1)) for each in ids if home_partition(each, PARTITIONS) != 0][:15]
    assert len(stuck) > 2 * clock.AT_ONCE
    await batches.write(connection, [*stuck, *others])
    async with clock_of(settings):
        records = await until_told(settings, clock.AT_ONCE + len(others))
    assert sorted(record.key.decode() for record in records if record.partition != 0) == sorted(
        each.batch_id for each in others
    )
    assert sum(record.partition == 0 for record in records) == clock.AT_ONCE


async def test_a_partition_that_takes_nothing_keeps_no_other_ones_deadlines_from_being_told(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = AIOKafkaProducer.send

    async def not_to_the_first(*args: Any, partition: int, **named: Any) -> Any:
        if partition == 0:
            raise KafkaTimeoutError
        return await send(*args, partition=partition, **named)

    monkeypatch.setattr(AIOKafkaProducer, "send", not_to_the_first)
    due = [batch(f"batch-{number}", PAST) for number in range(40)]
    others = [each.batch_id for each in due if each.partition != 0]
    assert len(others) < len(due)
    await batches.write(connection, due)
    async with clock_of(settings):
        records = await until_told(settings, len(others))
    assert {record.key.decode() for record in records} == set(others)


async def test_of_two_clocks_one_tells_and_the_other_takes_over(settings: Settings, connection: Connection) -> None:
    await batches.write(connection, [batch("first", PAST)])
    async with AsyncExitStack() as outer, AsyncExitStack() as inner:
        first_leads = await inner.enter_async_context(clock_of(settings))
        await asyncio.wait_for(first_leads.wait(), 30)
        second_leads = await outer.enter_async_context(clock_of(settings))
        await until_told(settings, 1)
        assert not second_leads.is_set()
        await inner.aclose()
        await asyncio.wait_for(second_leads.wait(), 30)
        # What the first has told, the second does not know: it tells it once more.
        records = await until_told(settings, 2)
    assert [record.key for record in records] == [b"first", b"first"]


async def test_the_search_for_passed_deadlines_uses_its_index(connection: Connection) -> None:
    await batches.write(connection, [batch(f"{number:05}", PAST) for number in range(3_000)])
    await batches.write(connection, [finalized(f"f{number:05}", PAST) for number in range(3_000)])
    await connection.execute("ANALYZE batches")
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE passed(int, timestamptz, int) AS {deadlines._PASSED}")
    plan = await connection.fetch(f"EXPLAIN EXECUTE passed({PARTITIONS}, now(), 1000)")
    text = "\n".join(row[0] for row in plan)
    assert "batches_deadlines" in text
    assert "Sort" not in text


@dataclass(frozen=True)
class Message:
    """What ``produce`` takes."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


def message(kind: str, batch_id: str, **fields: Any) -> Message:
    return Message(batch_id.encode(), json.dumps({"type": kind, "batch_id": batch_id, **fields}).encode())


async def test_a_batch_past_its_deadline_ends_expired_and_names_who_did_not_answer(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    # Deadlines of the past, to the nanosecond: they have passed as soon as the batches are known.
    deadline = "2026-01-02T03:04:05.123456789+02:00"
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings) as product:
        messages = [
            message("batch.opened", "manifest", item_ids=["a", "b", "c"], deadline_at=deadline),
            message("item.result", "manifest", item_id="b", status="succeeded"),
            message("batch.opened", "total", total_items=5, deadline_at=deadline),
            message("item.result", "total", item_id="b", status="succeeded"),
            message("batch.opened", "no deadline", total_items=5),
        ]
        await produce(settings.bootstrap_servers, topics.events, messages)
        await product.await_applied(len(messages))
        # Whatever is in the log before the clock speaks counts, also while the worker is too late for it.
        product.children["worker-0"].send_signal(signal.SIGSTOP)
        await product.start_clock()
        await until_told(settings, len(messages) + 2)
        late = message("item.result", "manifest", item_id="a", status="failed")
        await produce(settings.bootstrap_servers, topics.events, [late])
        product.children["worker-0"].send_signal(signal.SIGCONT)

        async def both() -> dict[str, Any]:
            found = {json.loads(r.value)["batch_id"]: json.loads(r.value) for r in await drain_finalized(settings)}
            assert found.keys() == {"manifest", "total"}
            return found

        events = await eventually(both)
        await product.settled()
        rows = await table_rows(settings, "dead_letters")
    assert {(each["outcome"], each["finalized_by"]) for each in events.values()} == {("expired", "deadline")}
    assert events["manifest"]["missing_item_ids"] == ["a", "c"]
    assert (events["total"]["missing_item_ids"], events["total"]["item_counts"]["missing"]) == ([], 4)
    assert rows == []


async def drain_finalized(settings: Settings) -> Sequence[Record]:
    return await drain(settings.bootstrap_servers, Topics(settings.topic_prefix).finalized)
