"""Batches published by the client, and finalized by Rollcall."""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from rollcall_client import (
    ApiError,
    ConfigurationError,
    DeliveryError,
    InvalidMessageError,
    Rollcall,
    RollcallError,
    publishing,
)
from rollcall_client.kafka import home_partition

from rollcall.embedded.kafka import EmbeddedKafka
from tests.harness.product import Product
from tests.harness.servers import Servers, running_broker
from tests.harness.topics import create_topic, drain, end_offsets
from tests.harness.waiting import eventually


def own_id(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


async def test_a_batch_with_a_total_is_finalized_with_its_counts(rc: Rollcall) -> None:
    batch = await rc.open(name="nightly import", total_items=6, metadata={"day": "monday"})
    await batch.succeeded("a", effect="created", duration_ms=1.5)
    await batch.succeeded("b", effect="updated")
    await batch.partial("c", error={"message": "no mail sent", "code": "smtp"})
    await batch.skipped("d", effect="unchanged")
    await batch.retrying("e", "not yet")
    await batch.failed("e", error=ValueError("no such user"), attempt=2)
    await batch.result("f", "failed", error="a sentence", output={"tries": [1, 2]}, metrics={"rows": 3})
    event = await rc.wait(batch.batch_id, timeout=60)
    assert batch.batch_id.startswith("nightly-import-")
    assert (event.outcome, event.status, event.revision) == ("completed_with_errors", "completed_with_errors", 1)
    counts = event.item_counts
    assert (counts.total, counts.succeeded, counts.partial, counts.failed, counts.skipped) == (6, 2, 1, 2, 1)
    assert (event.write_counts.created, event.write_counts.updated, event.write_counts.unchanged) == (1, 1, 1)
    assert event.failed_item_ids == ["e", "f"]
    assert event.metadata == {"day": "monday"}
    assert event.ce_id


async def test_an_unsealed_batch_ends_when_it_is_sealed(rc: Rollcall) -> None:
    batch = await rc.open()
    for number in range(10):
        await batch.succeeded(str(number))
    with pytest.raises(TimeoutError, match=f"{batch.batch_id} was not finalized within 1 s"):
        await rc.wait(batch.batch_id, timeout=1)
    await batch.seal(total_items=10)
    assert (await batch.wait(timeout=60)).item_counts.succeeded == 10


async def test_a_batch_opened_with_neither_has_as_many_items_as_were_published(rc: Rollcall) -> None:
    batch = await rc.open(name="counted")
    for number in range(5):
        await batch.retrying(f"{number}")
        await batch.result(f"{number}", "succeeded", attempt=2)
    await batch.failed("5")
    await batch.partial("6")
    await batch.seal()
    counts = (await batch.wait(timeout=60)).item_counts
    assert (counts.total, counts.succeeded, counts.failed, counts.partial, counts.unexpected) == (7, 5, 1, 1, 0)


async def test_very_many_items_are_not_counted(rc: Rollcall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollcall_client.batch.COUNTED_AT_MOST", 3)
    batch = await rc.open()
    for number in range(4):
        await batch.succeeded(f"{number}")
    with pytest.raises(InvalidMessageError, match="total_items"):
        await batch.seal()
    await batch.seal(total_items=4)
    assert (await batch.wait(timeout=60)).item_counts.total == 4


async def test_how_many_items_a_batch_has_that_was_submitted_before_has_to_be_said(rc: Rollcall) -> None:
    batch = await rc.open(batch_id=own_id("again"))
    await batch.succeeded("a")
    with pytest.raises(InvalidMessageError, match="total_items"):
        await batch.seal()
    await batch.seal(total_items=1)
    assert (await batch.wait(timeout=60)).item_counts.total == 1


async def test_a_long_manifest_goes_out_in_pieces_and_may_be_submitted_again(rc: Rollcall, product: Product) -> None:
    items = [f"item-{number:05d}" for number in range(25_000)]
    batch_id = own_id("manifest")
    batch = await rc.open(items=iter(items), batch_id=batch_id)
    for item_id in items[:-2]:
        await batch.succeeded(item_id)
    await rc.open(items=items, batch_id=batch_id)
    for item_id in items[-3:]:
        await batch.succeeded(item_id)
    event = await rc.wait(batch_id, timeout=60)
    assert (event.item_counts.total, event.item_counts.succeeded, event.item_counts.missing) == (25_000, 25_000, 0)
    await rc.open(items=items, batch_id=batch_id)
    await rc.flush()
    await product.settled()
    assert (await rc.wait(batch_id, timeout=60)).revision == 1
    letters = await drain(product.settings.bootstrap_servers, product.topics.dead_letters)
    assert [letter for letter in letters if letter.key == batch_id.encode()] == []


async def test_a_fresh_long_manifest_is_sealed_too(rc: Rollcall) -> None:
    items = [f"item-{number:05d}" for number in range(10_001)]
    batch = await rc.open(items=items)
    for item_id in items:
        await batch.skipped(item_id)
    assert (await rc.wait(batch.batch_id, timeout=60)).outcome == "completed"


async def test_a_hundred_thousand_results_arrive_at_their_batchs_home_in_order(rc: Rollcall, product: Product) -> None:
    batch_id = own_id("many")
    batch = await rc.open(total_items=100_000, batch_id=batch_id)
    for number in range(100_000):
        await batch.succeeded(f"{number:06d}")
    await rc.flush()
    event = await rc.wait(batch_id, timeout=120)
    assert event.item_counts.succeeded == 100_000
    records = [
        record
        for record in await drain(product.settings.bootstrap_servers, product.topics.events)
        if record.key == batch_id.encode()
    ]
    assert {record.partition for record in records} == {home_partition(batch_id, 12)}
    sent = [json.loads(record.value).get("item_id") for record in records]
    assert sent == [None, *(f"{number:06d}" for number in range(100_000))]


async def test_what_rollcall_could_not_take_is_refused_and_nothing_is_sent(rc: Rollcall) -> None:
    batch = await rc.open(total_items=1)
    with pytest.raises(InvalidMessageError, match="item id"):
        await batch.succeeded("a\nb")
    with pytest.raises(InvalidMessageError, match="output has 70002 bytes"):
        await batch.succeeded("a", output="x" * 70_000)
    with pytest.raises(InvalidMessageError, match="batch id"):
        await rc.open(batch_id="a/b")
    with pytest.raises(InvalidMessageError, match="not both"):
        await rc.open(total_items=1, items=["a"])
    await batch.succeeded("a")
    assert (await batch.wait(timeout=60)).item_counts.total == 1


async def test_a_client_says_that_another_event_loop_is_not_its_own(rc: Rollcall) -> None:
    batch = await rc.open(total_items=1)
    for call in (batch.succeeded("a"), rc.flush()):
        with pytest.raises(RollcallError, match="started in another event loop"):
            await asyncio.to_thread(asyncio.run, call)


async def test_the_client_says_what_is_missing(servers: Servers) -> None:
    with pytest.raises(RollcallError, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        await Rollcall("127.0.0.1:1").start()
    with pytest.raises(ConfigurationError, match=r"there is no topic nowhere\.events"):
        await Rollcall(servers.bootstrap_servers, topic_prefix="nowhere.").start()
    idle = Rollcall(servers.bootstrap_servers)
    with pytest.raises(RollcallError, match="not started"):
        await idle.open(total_items=1)


async def item_ids(bootstrap_servers: str, topic: str) -> set[str | None]:
    return {json.loads(record.value).get("item_id") for record in await drain(bootstrap_servers, topic)}


@asynccontextmanager
async def a_broker_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedKafka]:
    async with running_broker(EmbeddedKafka(tmp_path_factory.mktemp("kafka"))) as kafka:
        await create_topic(kafka.bootstrap_servers, "rollcall.events", partitions=3)
        yield kafka


async def test_what_a_broker_that_stays_away_did_not_take_is_named(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with a_broker_of_ones_own(tmp_path_factory) as kafka:
        impatient = Rollcall(kafka.bootstrap_servers, delivery_timeout_s=2)
        await impatient.start()
        batch = await impatient.open(total_items=2, batch_id="lost")
        await impatient.flush()
        await kafka.stop()
        await batch.succeeded("one")
        await batch.succeeded("two")
        with pytest.raises(DeliveryError, match="one of lost, two of lost") as raised:
            await asyncio.wait_for(impatient.close(), 90)
        assert raised.value.items == [("lost", "one"), ("lost", "two")]
        await impatient.close()
        with pytest.raises(RollcallError, match="closed"):
            await batch.succeeded("three")


async def test_what_waits_behind_what_is_given_up_is_given_up_with_it_not_after_a_time_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK_BYTES", 1)
    items = [f"{number}" for number in range(100)]
    async with a_broker_of_ones_own(tmp_path_factory) as kafka:
        rc = Rollcall(kafka.bootstrap_servers, delivery_timeout_s=2)
        await rc.start()
        batch = await rc.open(total_items=len(items), batch_id="lost")
        await rc.flush()
        await kafka.stop()
        for item in items:
            await batch.succeeded(item)
        with pytest.raises(DeliveryError) as raised:
            await asyncio.wait_for(rc.close(), 90)  # of two seconds each they would take 200
        assert raised.value.items == [("lost", item) for item in items]


async def test_while_the_program_holds_up_the_event_loop_nothing_is_given_up(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_batch = AIOKafkaProducer.send_batch
    held_up = False

    async def then_held_up(self: AIOKafkaProducer, *arguments: Any, **named: Any) -> Any:
        nonlocal held_up
        sent = await send_batch(self, *arguments, **named)
        if not held_up:
            held_up = True
            time.sleep(8)  # noqa: ASYNC251 - that is what it is about
        return sent

    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic)
    async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix, delivery_timeout_s=6) as rc:
        batch = await rc.open(total_items=1, batch_id="b")
        await rc.flush()
        monkeypatch.setattr(AIOKafkaProducer, "send_batch", then_held_up)
        await batch.succeeded("one")
    assert held_up
    assert await item_ids(servers.bootstrap_servers, topic) == {None, "one"}


async def test_what_is_given_up_for_one_partition_takes_nothing_of_another_with_it(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_batch = AIOKafkaProducer.send_batch
    one, other = (next(f"{n}" for n in range(100) if home_partition(f"{n}", 2) == partition) for partition in (0, 1))
    is_tried = asyncio.Event()

    async def never_to_one(self: AIOKafkaProducer, batch: Any, topic: str, *, partition: int) -> Any:
        if partition == 0:
            is_tried.set()
            await asyncio.sleep(600)
        return await send_batch(self, batch, topic, partition=partition)

    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic, partitions=2)
    monkeypatch.setattr(AIOKafkaProducer, "send_batch", never_to_one)
    rc = Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix, delivery_timeout_s=3)
    await rc.start()
    await rc.batch(one).succeeded("silent")
    await asyncio.wait_for(is_tried.wait(), 30)
    await rc.batch(other).succeeded("taken")
    with pytest.raises(DeliveryError, match="silent") as raised:
        await asyncio.wait_for(rc.close(), 60)
    assert raised.value.items == [(one, "silent")]
    assert await item_ids(servers.bootstrap_servers, topic) == {"taken"}


async def test_what_is_given_up_is_named_by_every_flush_that_waited_for_it_and_by_none_after(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with a_broker_of_ones_own(tmp_path_factory) as kafka:
        rc = Rollcall(kafka.bootstrap_servers, delivery_timeout_s=3)
        await rc.start()
        batch = await rc.open(total_items=3, batch_id="lost")
        await rc.flush()
        await kafka.stop()
        await batch.succeeded("one")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rc.flush(), 0.2)
        first = asyncio.create_task(rc.flush())
        await asyncio.sleep(0)
        await batch.succeeded("two")
        second = asyncio.create_task(rc.flush())
        ended = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 90)
        named = [each.items for each in ended if isinstance(each, DeliveryError)]
        assert named == [[("lost", "one")], [("lost", "one"), ("lost", "two")]]
        assert all(isinstance(each, DeliveryError) and each.may_pass for each in ended)
        assert not rc.undelivered
        await asyncio.wait_for(rc.flush(), 1)
        await batch.succeeded("three")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rc.flush(), 0.2)
        with pytest.raises(DeliveryError, match="three of lost"):
            await asyncio.wait_for(rc.close(), 90)


async def test_after_a_flush_that_was_cut_off_the_end_of_the_block_waits_for_its_messages(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with a_broker_of_ones_own(tmp_path_factory) as kafka:
        async with Rollcall(kafka.bootstrap_servers) as rc:
            batch = await rc.open(total_items=1, batch_id="b")
            await rc.flush()
            await kafka.stop()
            await batch.succeeded("one")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(rc.flush(), 0.2)
            starting = asyncio.create_task(kafka.start())
        await starting
        assert await item_ids(kafka.bootstrap_servers, "rollcall.events") == {None, "one"}


@pytest.mark.parametrize("error", [DeliveryError([("b", "a")], "away", may_pass=False, unnamed=2), ApiError("no", 503)])
def test_errors_reach_the_process_that_a_pools_worker_raises_them_for(error: RollcallError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert (str(there), vars(there)) == (str(error), vars(error))


async def test_a_message_too_large_for_its_topic_is_named_and_others_go(servers: Servers, topic_prefix: str) -> None:
    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic, configs={"max.message.bytes": "20000"})
    rc = Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix)
    await rc.start()
    batch = await rc.open(total_items=201, batch_id="b")
    for number in range(200):
        await batch.succeeded(f"{number}", message="x" * 500)
    await batch.succeeded("large", output="y" * 30_000)
    with pytest.raises(DeliveryError, match="large of b") as raised:
        await rc.close()
    assert raised.value.items == [("b", "large")]
    assert not raised.value.may_pass
    assert await item_ids(servers.bootstrap_servers, topic) == {None, *map(str, range(200))}


async def test_what_is_refused_for_ever_and_never_flushed_is_counted_beyond_a_number(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "NAMED_AT_MOST", 3)
    await create_topic(servers.bootstrap_servers, f"{topic_prefix}events", configs={"max.message.bytes": "1000"})
    async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix) as rc:
        batch = rc.batch("b")
        for number in range(5):
            await batch.succeeded(f"{number}", output="y" * 2_000)
        with pytest.raises(DeliveryError, match=r"0 of b, 1 of b, 2 of b and 2 more$") as raised:
            await rc.flush()
        assert (len(raised.value.items), raised.value.unnamed) == (3, 2)


@pytest.mark.parametrize("chunk_bytes", [publishing.CHUNK_BYTES, 1])
async def test_behind_a_part_of_a_manifest_that_was_given_up_nothing_of_its_batch_goes_out(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(publishing, "CHUNK_BYTES", chunk_bytes)
    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic, configs={"max.message.bytes": "40000"})
    items = [f"item-{number:05d}" for number in range(10_100)]  # the first part of them is too large
    async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix) as rc:
        batch = await rc.open(items=items, batch_id="b")
        await batch.succeeded(items[0])
        other = await rc.open(total_items=1, batch_id="other")
        await other.succeeded("of another")
        await eventually(lambda: rc.undelivered)
        await batch.succeeded(items[1])
        with pytest.raises(DeliveryError) as raised:
            await rc.flush()
        assert sorted(item_id or "" for _, item_id in raised.value.items) == ["", "", "", items[0], items[1]]
        assert {batch_id for batch_id, _ in raised.value.items} == {"b"}
        assert not raised.value.may_pass
        assert await item_ids(servers.bootstrap_servers, topic) == {None, "of another"}
        await batch.succeeded(items[2])
    found = [(record.key, json.loads(record.value)) for record in await drain(servers.bootstrap_servers, topic)]
    assert [said.get("item_id") for key, said in found if key == b"b"] == [items[2]], "a flush has said so"


@pytest.mark.parametrize("during", ["the opening", "the work"])
async def test_a_batch_whose_manifest_was_given_up_is_not_sealed_though_another_flush_was_told(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic, configs={"max.message.bytes": "40000"})
    items = [f"item-{number:05d}" for number in range(10_100)]  # the first part of them is too large
    async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix) as rc:
        if during == "the opening":
            publish = publishing.Publisher.publish

            async def told_before_the_last_part(self: publishing.Publisher, *message: Any, **options: Any) -> None:
                if b"items_expected" in message[2] or b"batch.sealed" in message[2] or b'"item-10050"' in message[2]:
                    with suppress(DeliveryError):
                        await rc.flush()
                await publish(self, *message, **options)

            monkeypatch.setattr(publishing.Publisher, "publish", told_before_the_last_part)
            with pytest.raises(DeliveryError, match=r"send again: batch b$"):
                await rc.open(items=items, batch_id="b")
        else:
            batch = await rc.open(items=items, batch_id="b", sealed=False)
            with pytest.raises(DeliveryError):
                await rc.flush()
            with pytest.raises(DeliveryError, match=r"send again: batch b$"):
                await batch.seal()
        again = await rc.open(items=items[:10], batch_id="b", sealed=False)
        await again.seal()
    found = [json.loads(record.value) for record in await drain(servers.bootstrap_servers, topic)]
    assert [said["type"] for said in found][-2:] == ["batch.opened", "batch.sealed"]
    assert sum(said["type"] == "batch.sealed" for said in found) == 1


async def test_a_batch_whose_manifest_is_given_up_while_its_seal_waits_for_room_is_not_sealed(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic, configs={"max.message.bytes": "40000"})
    publish = publishing.Publisher.publish
    async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix) as rc:
        items = [f"item-{number:05d}" for number in range(10_100)]  # the first part of them is too large
        batch = await rc.open(items=items, batch_id="b", sealed=False)

        async def waiting_for_room(self: publishing.Publisher, *message: Any, **options: Any) -> None:
            with pytest.raises(DeliveryError):
                await rc.flush()
            await publish(self, *message, **options)

        monkeypatch.setattr(publishing.Publisher, "publish", waiting_for_room)
        await batch.seal()
        monkeypatch.undo()
        with pytest.raises(DeliveryError, match=r"send again: batch b$"):
            await rc.flush()
    assert await drain(servers.bootstrap_servers, topic) == []


async def test_whatever_a_producer_raises_what_was_published_goes_out_through_another(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_topic(servers.bootstrap_servers, f"{topic_prefix}events")
    send, failures = AIOKafkaProducer.send_batch, iter([RuntimeError("unable to perform operation"), ValueError()])

    async def failing(self: AIOKafkaProducer, *arguments: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return await send(self, *arguments, **options)

    monkeypatch.setattr(AIOKafkaProducer, "send_batch", failing)
    async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix) as rc:
        await rc.batch("b").succeeded("one")
        await asyncio.wait_for(rc.flush(), 60)
    assert await item_ids(servers.bootstrap_servers, f"{topic_prefix}events") == {"one"}


async def test_a_client_that_cannot_go_on_sending_says_so_to_who_waits_for_room(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_topic(servers.bootstrap_servers, f"{topic_prefix}events")

    async def broken(*_: object) -> None:
        raise LookupError("a mistake of its own")

    monkeypatch.setattr(publishing.Publisher, "_round", broken)
    rc = Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix, buffer_bytes=1_000)
    await rc.start()

    async def publishing_on() -> None:
        while True:
            await rc.batch("b").succeeded("one")

    with pytest.raises(RollcallError, match="sends nothing any more: LookupError: a mistake"):
        await asyncio.wait_for(publishing_on(), 30)
    with pytest.raises(RollcallError, match="messages were not sent: this client sends nothing any more"):
        await rc.close()


@pytest.mark.parametrize("kind", ["rollcall_client", "rollcall_client.sync"])
async def test_a_program_that_exits_within_the_block_has_sent_what_it_published(
    servers: Servers, topic_prefix: str, kind: str
) -> None:
    await create_topic(servers.bootstrap_servers, f"{topic_prefix}events")
    program = EXITS if kind == "rollcall_client" else EXITS.replace("async with", "with").replace("await ", "")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program.format(kind=kind), servers.bootstrap_servers, topic_prefix),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, stderr) == (3, b"")
    assert await item_ids(servers.bootstrap_servers, f"{topic_prefix}events") == {str(n) for n in range(1000)}


EXITS = """
import asyncio
import sys
from {kind} import Rollcall

async def main():
    async with Rollcall(sys.argv[1], topic_prefix=sys.argv[2]) as rc:
        batch = rc.batch("b")
        for number in range(1000):
            await batch.succeeded(str(number))
        sys.exit(3)

asyncio.run(main())
"""


async def test_an_interrupted_client_does_not_wait_for_the_broker(servers: Servers, topic_prefix: str) -> None:
    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic)
    entered = asyncio.Event()

    async def forever() -> None:
        async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix) as rc:
            await rc.open(total_items=1, batch_id="b")
            await rc.flush()
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await asyncio.wait_for(entered.wait(), 30)
    task.cancel()
    await asyncio.wait({task}, timeout=30)
    assert task.cancelled()
    await eventually(lambda: end_offsets(servers.bootstrap_servers, topic))
