"""Listening for finalized events: groups, where they begin, what a body that raises does, and waiting for one."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from confluent_kafka.admin import AclOperation, ResourceType  # type: ignore[attr-defined]  # there, but not marked
from rollcall_client import ConfigurationError, FinalizedEvent, Rollcall, RollcallError
from rollcall_client.errors import UnreachableError
from rollcall_client.kafka import Kafka, home_partition
from rollcall_client.listening import Start, is_there, records

from tests.harness.events import Event
from tests.harness.product import Product
from tests.harness.servers import Servers, running_broker
from tests.harness.strict_kafka import StrictKafka
from tests.harness.topics import add_partitions, create_topic, end_offsets, produce
from tests.harness.waiting import eventually


async def finish(rc: Rollcall, name: str, count: int) -> list[str]:
    """Batches of one item, finalized."""
    ids = [f"{name}-{number}-{uuid.uuid4().hex[:6]}" for number in range(count)]
    for batch_id in ids:
        batch = await rc.open(total_items=1, batch_id=batch_id)
        await batch.succeeded("one")
    for batch_id in ids:
        await rc.wait(batch_id, timeout=60)
    return ids


async def take(events: AsyncIterator[FinalizedEvent], wanted: list[str]) -> list[FinalizedEvent]:
    """Read until all of these were seen; the events of these, in their order of coming."""
    found: list[FinalizedEvent] = []
    async with asyncio.timeout(60):
        async for event in events:
            if event.batch_id in wanted:
                found.append(event)
            if {each.batch_id for each in found} == set(wanted):
                break
    return found


async def test_a_group_goes_on_where_it_was_and_others_begin_at_the_start(rc: Rollcall) -> None:
    first = await finish(rc, "first", 3)
    group = f"g-{uuid.uuid4().hex[:6]}"
    async with aclosing(rc.finalized(group=group)) as events:
        assert sorted(event.batch_id for event in await take(events, first)) == sorted(first)
    second = await finish(rc, "second", 3)
    async with aclosing(rc.finalized(group=group)) as events:
        again = await take(events, second)
    # The last one's body left the loop, so that one comes again.
    assert {event.batch_id for event in again} == set(second)
    async with aclosing(rc.finalized()) as events:
        everything = await take(events, first + second)
    assert len({event.ce_id for event in everything}) == len(everything) == 6


async def test_a_body_that_raises_gets_its_event_again_and_those_before_it_not(rc: Rollcall) -> None:
    group = f"g-{uuid.uuid4().hex[:6]}"
    since = await finish(rc, "warm", 1)
    async with aclosing(rc.finalized(group=group)) as events:
        await take(events, since)
    ids = await finish(rc, "raises", 4)
    handled: list[str] = []

    async def handle_until(poison: str | None) -> None:
        async for event in rc.finalized(group=group):
            if event.batch_id == poison:
                raise RuntimeError("the body's own")
            handled.append(event.batch_id)
            if set(ids) <= set(handled):
                return

    with pytest.raises(RuntimeError, match="the body's own"):
        await asyncio.wait_for(handle_until(ids[2]), 60)
    before = list(handled)
    assert ids[2] not in before
    await asyncio.wait_for(handle_until(None), 60)
    assert ids[2] in handled
    assert set(handled) >= set(ids)
    for batch_id in before:
        if batch_id in ids:
            assert handled.count(batch_id) == 1, "its body was through"


async def test_a_new_group_can_begin_at_the_end_or_at_a_time(rc: Rollcall) -> None:
    old = await finish(rc, "old", 2)
    [last_old] = [await rc.wait(batch_id, timeout=60) for batch_id in old[-1:]]
    assert last_old.finalized_at is not None
    await asyncio.sleep(0.05)  # so that a time lies between, to the millisecond that Kafka keeps
    middle = await finish(rc, "middle", 1)
    [event] = [await rc.wait(batch_id, timeout=60) for batch_id in middle]
    assert event.finalized_at is not None
    async with aclosing(rc.finalized(group=f"g-{uuid.uuid4().hex[:6]}", start=event.finalized_at)) as events:
        seen = [(await asyncio.wait_for(anext(events), 60)).batch_id]
    assert seen == middle
    latest = rc.finalized(start="latest")
    async with aclosing(latest) as events:
        pending = asyncio.create_task(anext(events))
        while not pending.done():
            newest = await finish(rc, "newest", 1)
            await asyncio.wait({pending}, timeout=1)
    assert pending.result().batch_id not in old + middle
    assert newest
    with pytest.raises(ConfigurationError, match="zone"):
        await anext(rc.finalized(group="g", start=datetime(2026, 1, 1)))
    with pytest.raises(ConfigurationError, match="earliest"):
        await anext(rc.finalized(group="g", start="now"))  # type: ignore[arg-type]


async def test_waiting_finds_what_was_published_before_without_having_opened_it(rc: Rollcall, product: Product) -> None:
    [old] = await finish(rc, "before", 1)
    settings = product.settings
    async with Rollcall(settings.bootstrap_servers, topic_prefix=settings.topic_prefix) as other:
        event = await other.wait(old, timeout=60)
        assert (event.batch_id, event.outcome) == (old, "completed")
        assert event.finalized_at is not None
        assert (await other.wait(old, timeout=60, since=event.finalized_at)).ce_id == event.ce_id
        with pytest.raises(TimeoutError):
            await other.wait(old, revision=2, timeout=2)
        with pytest.raises(ConfigurationError, match="zone"):
            await other.wait(old, since=datetime.now())


async def test_waiting_for_a_summary_in_vain_says_so(rc: Rollcall) -> None:
    batch = await rc.open()
    with pytest.raises(TimeoutError, match=f"{batch.batch_id} was not summarized within 0.5 s"):
        await rc.summary(batch.batch_id, timeout=0.5)
    with pytest.raises(TimeoutError, match=f"{batch.batch_id} was not finalized as revision 2 within 0.5 s"):
        await rc.wait(batch.batch_id, revision=2, timeout=0.5)


async def test_a_rebalance_repeats_nothing_that_was_done_and_passes_nothing_over(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, group, topic, each = servers.bootstrap_servers, f"g-{uuid.uuid4().hex[:6]}", f"{topic_prefix}finalized", 60
    await create_topic(here, topic, partitions=2)
    for partition in range(2):
        await produce(here, topic, [Event(None, b"%d" % number) for number in range(each)], partition=partition)
    commits: dict[TopicPartition, list[int]] = defaultdict(list)
    commit = AIOKafkaConsumer.commit

    async def noted(self: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        for partition, offset in offsets.items():
            commits[partition].append(offset)
        await commit(self, offsets)

    monkeypatch.setattr(AIOKafkaConsumer, "commit", noted)
    kafka = Kafka(here, topic_prefix)
    had_their_turn: list[tuple[int, int]] = []

    async def another_comes_and_goes() -> None:
        async with AIOKafkaConsumer(topic, bootstrap_servers=here, group_id=group, enable_auto_commit=False) as other:
            await eventually(lambda: len(other.assignment()) == 1)

    async with aclosing(records(kafka, topic, group=group, start="earliest", max_body_s=600)) as stream:
        async with asyncio.timeout(120):
            async for record in stream:
                if len(had_their_turn) in (20, 50):  # in the midst of what was fetched together
                    await another_comes_and_goes()
                had_their_turn.append((record.partition, record.offset))
                if len(set(had_their_turn)) == 2 * each:
                    break
    for partition in range(2):
        assert [offset for where, offset in had_their_turn if where == partition] == list(range(each))
    for offsets in commits.values():
        assert offsets == sorted(offsets), "none goes back"


def values_of(stream: AsyncIterator[ConsumerRecord[bytes, bytes]], count: int) -> asyncio.Task[set[bytes | None]]:
    async def read() -> set[bytes | None]:
        return {(await anext(stream)).value for _ in range(count)}

    return asyncio.create_task(read())


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_of_a_partition_that_is_added_meanwhile_all_is_read(
    servers: Servers, topic_prefix: str, group: str | None, start: Start
) -> None:
    here, topic = servers.bootstrap_servers, f"{topic_prefix}finalized"
    await create_topic(here, topic, partitions=1)
    await produce(here, topic, [Event(None, b"old")])
    expected = {b"first", b"added", b"last"} | ({b"old"} if start == "earliest" else set())
    kafka = Kafka(here, topic_prefix, {"metadata_max_age_ms": 3_000})
    group = group and f"{topic_prefix}{group}"
    async with aclosing(records(kafka, topic, group=group, start=start, max_body_s=600)) as stream:
        begun = values_of(stream, len(expected) - 2)
        while not begun.done():  # nothing says when it has begun at the end
            await produce(here, topic, [Event(None, b"first")], partition=0)
            await asyncio.wait({begun}, timeout=1)
        await add_partitions(here, topic, 2)
        await produce(here, topic, [Event(None, b"added")], partition=1)
        await produce(here, topic, [Event(None, b"last")], partition=0)
        found = begun.result()
        async with asyncio.timeout(60):
            while not found >= expected:
                found |= await values_of(stream, 1)
    assert found == expected


async def test_a_group_that_was_away_reads_all_of_a_partition_that_was_added_meanwhile(
    servers: Servers, topic_prefix: str
) -> None:
    here, topic = servers.bootstrap_servers, f"{topic_prefix}finalized"
    await create_topic(here, topic, partitions=1)
    listening = partial(
        records, Kafka(here, topic_prefix), topic, group=f"{topic_prefix}g", start="latest", max_body_s=600
    )
    async with aclosing(listening()) as stream:
        begun = values_of(stream, 1)
        while not begun.done():
            await produce(here, topic, [Event(None, b"first")], partition=0)
            await asyncio.wait({begun}, timeout=1)
    await add_partitions(here, topic, 2)
    await produce(here, topic, [Event(None, b"added")], partition=1)
    async with aclosing(listening()) as stream, asyncio.timeout(60):
        found: set[bytes | None] = set()
        while b"added" not in found:
            found |= await values_of(stream, 1)


async def test_what_kafka_refuses_while_it_is_read_is_an_error_of_this_package(tmp_path: Path) -> None:
    async with running_broker(StrictKafka(tmp_path / "kafka")) as kafka:
        for name in ("events", "finalized"):
            await create_topic(kafka.bootstrap_servers, f"rollcall.{name}")
        # It may be seen, but not be read.
        kafka.grant(ResourceType.TOPIC, "rollcall.finalized", AclOperation.DESCRIBE)
        async with Rollcall(kafka.bootstrap_servers) as rc:
            with pytest.raises(RollcallError, match=r"Kafka at .* says: .*TopicAuthorization"):
                await rc.wait("b", timeout=60)
            for group in (None, "g"):
                with pytest.raises(RollcallError, match=r"Kafka at .* says: .*TopicAuthorization"):
                    await anext(rc.finalized(group=group))


async def test_waiting_does_not_read_what_is_older_than_the_batch(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = servers.bootstrap_servers
    await create_topic(here, f"{topic_prefix}events")
    # Times as the producer gives them, so that a long history can be made up.
    await create_topic(here, f"{topic_prefix}finalized", configs={"message.timestamp.type": "CreateTime"})
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    read = 0
    getmany = AIOKafkaConsumer.getmany

    async def counted(self: AIOKafkaConsumer, *arguments: Any, **options: Any) -> Any:
        nonlocal read
        fetched = await getmany(self, *arguments, **options)
        read += sum(len(records) for records in fetched.values())
        return fetched

    def event(batch_id: str) -> bytes:
        said = {"batch_id": batch_id, "revision": 1, "outcome": "completed", "finalized_by": "all_items_in"}
        return json.dumps({**said, "item_counts": {"total": 0}}).encode()

    async with (
        AIOKafkaProducer(bootstrap_servers=here, linger_ms=5) as producer,
        Rollcall(here, topic_prefix=topic_prefix) as rc,
    ):
        batch = await rc.open(total_items=0)
        for number in range(3_000):
            old_ms = now_ms - 86_400_000 + number * 1_000
            await producer.send(
                f"{topic_prefix}finalized", event(f"old-{number}"), key=f"old-{number}".encode(), timestamp_ms=old_ms
            )
        await producer.flush()
        await producer.send_and_wait(
            f"{topic_prefix}finalized", event(batch.batch_id), key=batch.batch_id.encode(), timestamp_ms=now_ms
        )
        monkeypatch.setattr(AIOKafkaConsumer, "getmany", counted)
        assert (await batch.wait(timeout=60)).batch_id == batch.batch_id
        own, read = read, 0
        since = datetime.fromtimestamp(now_ms / 1000, UTC)
        async with Rollcall(here, topic_prefix=topic_prefix) as other:
            await other.wait(batch.batch_id, since=since, timeout=60)
            told, read = read, 0
            await other.wait(batch.batch_id, timeout=60)
    assert (own, told) == (1, 1)
    assert read == 3_001, "nobody says from when: the whole partition"


async def test_what_is_no_finalized_event_is_passed_over(rc: Rollcall, product: Product) -> None:
    settings = product.settings
    topic = product.topics.finalized
    batch_id = f"foreign-{uuid.uuid4().hex[:6]}"
    partition = home_partition(batch_id, len(await end_offsets(settings.bootstrap_servers, topic)))
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        await producer.send_and_wait(topic, b"not json", key=batch_id.encode(), partition=partition)
        await producer.send_and_wait(topic, None, key=batch_id.encode(), partition=partition)
    batch = await rc.open(total_items=1, batch_id=batch_id)
    await batch.succeeded("one")
    assert (await rc.wait(batch_id, timeout=60)).outcome == "completed"


async def test_looking_for_a_batch_ends_where_kafka_falls_silent(
    rc: Rollcall, product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await rc.open(total_items=1)
    await rc.flush()
    topic = product.topics.events
    assert await is_there(rc.kafka, topic, batch.batch_id)
    assert not await is_there(rc.kafka, topic, f"{batch.batch_id}-unknown")

    async def nothing(self: AIOKafkaConsumer, *partitions: TopicPartition, **options: object) -> dict[object, object]:
        await asyncio.sleep(0.01)
        return {}

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", nothing)
    monkeypatch.setattr("rollcall_client.listening.STARTING_S", 10.0)
    with pytest.raises(UnreachableError, match="does not answer within 10 s"):
        await asyncio.wait_for(is_there(rc.kafka, topic, batch.batch_id), 60)
