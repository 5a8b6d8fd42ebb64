"""Alerts that only time can raise: each once a batch and generation, and never for results that are merely unread."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics, home_partition
from store import batches, overdue, positions
from store.connection import BY_KEY, Connection
from store.overdue import Allowed
from store.rows import Batch, Position
from streams.watching import Watcher
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.topics import create_topic, delete_topic, end_offsets, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 2
NOW = datetime.now(UTC)
# Times in this file are such that the minutes a test may take make no difference.
S = 100.0
ALLOWED = Allowed(slow_after_s=120 * S, stalled_after_s=300 * S, never_opened_after_s=60 * S)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    """A schema that has read nothing yet of an empty topic."""
    await migrate(settings.database_url, settings.database_schema)
    topic = Topics(settings.topic_prefix).events
    await create_topic(settings.bootstrap_servers, topic, partitions=PARTITIONS)
    opened = await settings.database().connect("test", command_timeout=60.0, **BY_KEY)
    await positions.create(opened, topic, dict.fromkeys(range(PARTITIONS), 0))
    yield opened
    await opened.close()


@asynccontextmanager
async def watching(settings: Settings, allowed: Allowed = ALLOWED) -> AsyncIterator[Watcher]:
    stop = asyncio.Event()
    topics = Topics(settings.topic_prefix)
    watcher = Watcher(settings.kafka_connection(), settings.database(), topics, allowed, poll_s=0.05)
    task = asyncio.create_task(watcher.run(stop))
    try:
        yield watcher
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds * S)


def batch(batch_id: str, opened: float | None = None, result: float | None = None, **fields: Any) -> Batch:
    """An open batch, opened and with its first and last result so many times S seconds ago."""
    plain = Batch(batch_id, home_partition(batch_id, PARTITIONS), total_items=10, sealed=opened is not None)
    if opened is not None:
        plain = replace(plain, opened_at=ago(opened))
    if result is not None:
        at = ago(result)
        plain = replace(plain, state="processing", succeeded=3, first_result_at=at, last_result_at=at)
    return replace(plain, **fields)


async def alerts(connection: Connection) -> dict[str, Any]:
    found = await connection.fetch("SELECT id, value FROM outbox WHERE channel = 'alerts' ORDER BY id")
    return {each["id"]: json.loads(each["value"]) for each in found}


async def until_raised(connection: Connection, wanted: set[str]) -> dict[str, Any]:
    async def all_there() -> dict[str, Any]:
        found = await alerts(connection)
        assert found.keys() >= wanted, f"missing {wanted - found.keys()}"
        return found

    return await eventually(all_there)


async def looks(connection: Connection, sentinel: str) -> None:
    """Wait until the watcher has looked at everything once more: a slow batch that it must see, of each partition."""
    ids = {home_partition(f"{sentinel}{number}", PARTITIONS): f"{sentinel}{number}" for number in range(50)}
    await batches.write(connection, sorted((batch(each, 130) for each in ids.values()), key=lambda one: one.batch_id))
    await until_raised(connection, {f"batch.slow_detected/{each}/0" for each in ids.values()})


async def test_each_alert_comes_at_its_time_unless_the_policy_says_otherwise(
    settings: Settings, connection: Connection
) -> None:
    policy = '{"slow_after_s":1000,"stalled_after_s":150.5}'
    patient = '{"slow_after_s":1e300,"stalled_after_s":1e9}'
    ended = {"state": "finalized", "outcome": "completed", "finalized_by": "forced", "finalized_at": NOW}
    known = [
        batch("young", 110, 20),
        batch("slow", 130, 20),
        batch("silent", 400),
        batch("stalled", 500, 310),
        batch("unopened", None, 70),
        batch("old and unopened", None, 310),
        batch("hasty", 20, 2, policy=policy),
        batch("patient", 1e6, 1e6, policy=patient),
        batch("reopened lately", 900, 800, reopened_at=ago(10), generation=2),
        batch("reopened", 900, 800, reopened_at=ago(150), generation=2),
        batch("finalized", 900, 800, decided_offset=1, revision=1, **ended),
        Batch("announced only", 0),
    ]
    await batches.write(connection, sorted(known, key=lambda each: each.batch_id))
    async with watching(settings):
        await until_raised(connection, {"batch.slow_detected/slow/0"})
        await looks(connection, "zz")
        found = {name: said for name, said in (await alerts(connection)).items() if "/zz" not in name}
    assert set(found) == {
        *("batch.slow_detected/slow/0", "batch.slow_detected/silent/0", "batch.stall_detected/silent/0"),
        *("batch.slow_detected/stalled/0", "batch.stall_detected/stalled/0", "batch.never_opened/unopened/0"),
        *(f"batch.{each}/old and unopened/0" for each in ("slow_detected", "stall_detected", "never_opened")),
        *("batch.slow_detected/hasty/0", "batch.stall_detected/hasty/0", "batch.slow_detected/reopened/2"),
    }
    said = found["batch.slow_detected/slow/0"]
    assert (said["alert"], said["batch_id"]) == ("batch.slow_detected", "slow")
    assert said["message"] == "slow: open for more than 12000 s, 3 of 10 items answered"
    assert (said["details"]["limit_s"], said["details"]["answered"]) == (12_000.0, 3)


async def test_an_alert_comes_once_and_for_a_new_generation_again(settings: Settings, connection: Connection) -> None:
    slow = batch("slow", 130)
    await batches.write(connection, [slow])
    async with watching(settings):
        await until_raised(connection, {"batch.slow_detected/slow/0"})
        # As if the relay had published it, or a leader before this one had raised it.
        await connection.execute("UPDATE outbox SET published_at = now()")
        await looks(connection, "zy")
        await batches.write(connection, [replace(slow, generation=1, reopened_at=ago(125))])
        found = await until_raised(connection, {"batch.slow_detected/slow/1"})
    assert [each for each in found if "/slow/" in each] == ["batch.slow_detected/slow/0", "batch.slow_detected/slow/1"]


async def test_more_alerts_than_a_page_are_all_raised(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.watching.PAGE", 10)
    many = [batch(f"b{number:03}", None, 500) for number in range(25)]
    await batches.write(connection, many)
    wanted = {
        f"batch.{alert}/{each.batch_id}/0"
        for alert in ("slow_detected", "stall_detected", "never_opened")
        for each in many
    }
    async with watching(settings):
        found = await until_raised(connection, wanted)
    assert set(found) == wanted


async def test_a_batch_is_not_slow_or_stalled_before_its_partition_is_read(
    settings: Settings, connection: Connection
) -> None:
    topic = Topics(settings.topic_prefix).events
    homes = {home_partition(f"b{number}", PARTITIONS): f"b{number}" for number in range(20)}
    unread, read = homes[0], homes[1]
    await produce(settings.bootstrap_servers, topic, [Message(b"k", b"{}", "")], partition=0)
    await batches.write(connection, [batch(each, None, 500) for each in sorted(homes.values())])
    async with watching(settings):
        await until_raised(connection, {f"batch.{each}/{read}/0" for each in ("slow_detected", "stall_detected")})
        await batches.write(connection, [batch(f"{read}!", 500, partition=1)])
        await until_raised(connection, {f"batch.slow_detected/{read}!/0"})
        assert not [each for each in await alerts(connection) if f"/{unread}/" in each]
        # Read to its end: from that moment on its time counts.
        await positions.compare_and_set(connection, topic, [(0, Position(0, 1, 0, 0, 0, {}))])
        await until_raised(connection, {f"batch.{each}/{unread}/0" for each in ("slow_detected", "stall_detected")})


async def test_a_partition_whose_end_nobody_says_keeps_no_alert_of_the_others_back(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.watching.END_TIMEOUT_S", 1.0)
    topic = Topics(settings.topic_prefix).events
    # Kafka knows of no leader for it, as where the only broker that has it is away.
    await positions.create(connection, topic, {PARTITIONS: 0})
    homes = {home_partition(f"b{number}", PARTITIONS): f"b{number}" for number in range(20)}
    without_leader = batch("b-without-leader", 500, partition=PARTITIONS)
    await batches.write(connection, [without_leader, *(batch(each, 130) for each in sorted(homes.values()))])
    async with watching(settings):
        await until_raised(connection, {f"batch.slow_detected/{each}/0" for each in homes.values()})
        await looks(connection, "zy")
    assert not [each for each in await alerts(connection) if without_leader.batch_id in each]


async def test_an_end_that_the_log_has_lost_is_not_waited_for(settings: Settings, connection: Connection) -> None:
    topic = Topics(settings.topic_prefix).events
    await produce(settings.bootstrap_servers, topic, [Message(b"k", b"{}", "")], partition=0)
    unread = next(f"b{number}" for number in range(20) if home_partition(f"b{number}", PARTITIONS) == 0)
    await batches.write(connection, [batch(unread, 500)])
    async with watching(settings) as watcher:
        await eventually(lambda: [end.offset for partition, end in watcher._ends.items() if partition == 0] == [1])
        await delete_topic(settings.bootstrap_servers, topic)
        await create_topic(settings.bootstrap_servers, topic, partitions=PARTITIONS)
        await until_raised(connection, {f"batch.slow_detected/{unread}/0"})


async def test_with_a_stopped_worker_and_a_full_topic_none_fires(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    limits = Allowed(slow_after_s=0.0, stalled_after_s=0.0, never_opened_after_s=0.0)

    def opened(batch_id: str, total: int) -> Message:
        value = {"type": "batch.opened", "batch_id": batch_id, "total_items": total}
        return Message(batch_id.encode(), json.dumps(value).encode(), batch_id)

    def results(batch_id: str, numbers: Sequence[int]) -> list[Message]:
        values = ({"batch_id": batch_id, "item_id": str(number), "status": "succeeded"} for number in numbers)
        return [Message(batch_id.encode(), json.dumps(each).encode(), batch_id) for each in values]

    ids = [f"b{number}" for number in range(20)]
    async with running(settings, relay=False) as product, product.connection() as connection:
        await produce(settings.bootstrap_servers, topics.events, [opened(each, 10) for each in ids])
        await product.await_applied(len(ids))
        product.children["worker-0"].send_signal(signal.SIGSTOP)
        rest = [message for each in ids for message in [*results(each, range(10)), *results(f"{each}-unknown", [0])]]
        await produce(settings.bootstrap_servers, topics.events, rest)
        ends = {tp.partition: end for tp, end in (await end_offsets(settings.bootstrap_servers, topics.events)).items()}
        assert ends.keys() == (await product.positions()).keys()
        async with watching(settings, limits) as watcher:
            # Every partition's end is seen, and none is reached.
            await eventually(lambda: {each: end.offset for each, end in watcher._ends.items()} == ends)
            assert await alerts(connection) == {}
            product.children["worker-0"].send_signal(signal.SIGCONT)
            # Read, all is in: only those remain that nobody opened.
            wanted = {f"batch.never_opened/{each}-unknown/0" for each in ids}
            found = await until_raised(connection, wanted)
    assert not [each for each in found if "-unknown" not in each]


async def test_the_search_for_overdue_batches_reads_open_ones_only(connection: Connection) -> None:
    ended = {"state": "finalized", "outcome": "completed", "finalized_by": "forced", "finalized_at": NOW}
    closed = [batch(f"{number:05}", 900, 800, decided_offset=1, revision=1, **ended) for number in range(3_000)]
    await batches.write(connection, closed)
    await batches.write(connection, [batch(f"open{number}", 900) for number in range(9)])
    await connection.execute("ANALYZE batches")
    types = "int4[], timestamptz[], float8, float8, float8, text, int8"
    await connection.execute(f"PREPARE overdue({types}) AS {overdue._OVERDUE}")
    plan = await connection.fetch("EXPLAIN EXECUTE overdue('{0}', ARRAY[now()], 1, 1, 1, '', 1000)")
    text = "\n".join(each[0] for each in plan)
    assert "Index Scan using batches_open" in text, text
    assert "outbox_pkey" in text, text
