"""What the runbooks promise: after each disaster the state is right again, and no output topic has gained a record."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from store.tables import metadata
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import Product, running
from tests.harness.tables import comparable_tables
from tests.harness.topics import add_partitions, create_topic, delete_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 2


def message(event: dict[str, Any]) -> Message:
    return Message(event["batch_id"].encode(), json.dumps(event).encode(), event["batch_id"])


def history(names: str) -> list[Message]:
    """Batches of several endings, a retry (upstream is asked for its items), and a record that nobody can read."""
    log: list[Message] = []
    for number in range(6):
        batch_id = f"{names}-{number}"
        opened: dict[str, Any] = {"type": "batch.opened", "batch_id": batch_id, "item_ids": ["1", "2"]}
        if number == 5:
            opened |= {"retry_of": f"{names}-0", "request_retry": True}
        log.append(message(opened))
        statuses = ("failed", "succeeded") if number % 2 else ("succeeded", "succeeded")
        log += [
            message({"batch_id": batch_id, "item_id": str(item), "status": status})
            for item, status in enumerate(statuses, 1)
        ]
    log.append(message({"type": "batch.reopened", "batch_id": f"{names}-1"}))
    log.append(message({"batch_id": f"{names}-1", "item_id": "1", "status": "succeeded", "attempt": 2}))
    log.append(Message(b"?", b"no json", "?"))
    return log


async def said(settings: Settings) -> dict[str, list[tuple[int, int, bytes | None]]]:
    """Everything on the output topics, by place."""
    topics = Topics(settings.topic_prefix)
    names = (topics.finalized, topics.summaries, topics.alerts, topics.requests, topics.dead_letters)
    return {
        name: [(each.partition, each.offset, each.value) for each in await drain(settings.bootstrap_servers, name)]
        for name in names
    }


async def backup(settings: Settings) -> dict[str, bytes]:
    connection = await settings.database().connect("test")
    try:
        tables: dict[str, bytes] = {}
        async with connection.transaction(isolation="repeatable_read"):
            for name in metadata.tables:
                copy = io.BytesIO()
                await connection.copy_from_table(name, output=copy, format="binary")
                tables[name] = copy.getvalue()
        return tables
    finally:
        await connection.close()


async def restore(settings: Settings, tables: dict[str, bytes]) -> None:
    connection = await settings.database().connect("test")
    try:
        async with connection.transaction():
            await connection.execute(f"TRUNCATE {', '.join(tables)}")
            for name, copy in tables.items():
                await connection.copy_to_table(name, source=io.BytesIO(copy), format="binary")
    finally:
        await connection.close()


async def reset_offsets_of_the_group(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, group_id=topics.consumer_group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topics.events, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)

        async def committed() -> bool:
            try:
                await consumer.commit({tp: OffsetAndMetadata(0, "") for tp in partitions})
            except KafkaError as error:
                raise AssertionError(f"the group still has members: {error!r}") from None
            return True

        await eventually(committed, 60)
    finally:
        await consumer.stop()


@asynccontextmanager
async def running_with_clock(settings: Settings) -> AsyncIterator[Product]:
    async with running(settings, workers=1) as product:
        await product.start_clock()
        yield product


async def settled_and_summarized(product: Product) -> None:
    await product.settled()

    async def summarized() -> bool:
        async with product.connection() as connection:
            waiting = await connection.fetchval("SELECT count(*) FROM summaries WHERE state <> 'ready'")
        return int(waiting) == 0

    await eventually(summarized, 60)
    await product.settled()


async def test_database_lost_or_restored_and_offsets_reset_by_hand_say_nothing_twice(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running_with_clock(settings) as product:
        await produce(settings.bootstrap_servers, topics.events, history("early"))
        await settled_and_summarized(product)
    old = await backup(settings)
    async with running_with_clock(settings) as product:
        await produce(settings.bootstrap_servers, topics.events, history("later"))
        await settled_and_summarized(product)
    state, before = await comparable_tables(settings), await said(settings)
    assert len(before[topics.requests]) == 2
    assert len(before[topics.finalized]) == 14
    assert len(before[topics.summaries]) >= 12
    assert len(before[topics.alerts]) > 0
    assert len(before[topics.dead_letters]) == 2

    await restore(settings, old)
    await reset_offsets_of_the_group(settings)
    async with running_with_clock(settings) as product:
        await settled_and_summarized(product)
    assert await said(settings) == before
    assert await comparable_tables(settings) == state

    connection = await settings.database().connect("test")
    await connection.execute(f"DROP SCHEMA {settings.database_schema} CASCADE")
    await connection.close()
    await migrate(settings.database_url, settings.database_schema)
    async with running_with_clock(settings) as product:
        await settled_and_summarized(product)
    assert await said(settings) == before
    rebuilt = await comparable_tables(settings)
    for table in state:
        assert rebuilt[table] == state[table], table
    done = await commands.rollcall(settings, "verify", "--processes", "1", timeout_s=180)
    assert done.exit_code == 0, done.stdout + done.stderr


async def test_more_deleted_than_read_is_refused_and_the_runbooks_way_out_works(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1, relay=False) as product:
        first = [message({"type": "batch.opened", "batch_id": "b", "item_ids": ["1", "2"]})]
        await produce(settings.bootstrap_servers, topics.events, first)
        await product.await_applied(1)
    lost = [message({"batch_id": "b", "item_id": "1", "status": "succeeded"})] * 3
    await produce(settings.bootstrap_servers, topics.events, lost)
    await delete_before(settings, topics.events, 4)
    product = Product(settings)
    child = await product.start_worker()
    assert await child.wait() == 2, "refused for good"
    connection = await settings.database().connect("test")
    await connection.execute(
        "UPDATE positions SET next_offset = 4, last_offset = NULL, last_timestamp = NULL, last_checksum = NULL"
        f" WHERE topic = '{topics.events}' AND partition = 0"
    )
    await connection.close()
    again = [message({"batch_id": "b", "item_id": item, "status": "succeeded"}) for item in ("1", "2")]
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, again)
        await product.settled()
    assert len(await drain(settings.bootstrap_servers, topics.finalized)) == 1
    done = await commands.rollcall(settings, "verify", "--processes", "1", timeout_s=180)
    assert "replayable_from partition 0: offset 4" in done.stdout, done.stdout + done.stderr
    assert "1 batches that began earlier cannot be verified" in done.stdout
    assert done.exit_code == 0, done.stdout


async def test_partitions_added_change_no_batchs_home(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    opened = [message({"type": "batch.opened", "batch_id": f"b{n}", "item_ids": ["1", "2"]}) for n in range(20)]
    answers = [
        message({"batch_id": f"b{n}", "item_id": item, "status": "succeeded"}) for n in range(20) for item in ("1", "2")
    ]
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, opened)
        await product.settled()
    await add_partitions(settings.bootstrap_servers, topics.events, 5)
    async with running(settings, workers=1) as product:
        places = await produce(settings.bootstrap_servers, topics.events, answers)
        assert any(partition >= PARTITIONS for partition, _ in places), "some lie on the new ones"
        await product.settled()
    finalized = await drain(settings.bootstrap_servers, topics.finalized)
    assert sorted(record.key for record in finalized) == sorted(f"b{n}".encode() for n in range(20))
    for batch in (await comparable_tables(settings))["batches"]:
        assert (batch["partition"] < PARTITIONS, batch["succeeded"]) == (True, 2)
    done = await commands.rollcall(settings, "verify", "--processes", "2", timeout_s=180)
    assert done.exit_code == 0, done.stdout + done.stderr


async def test_a_topic_created_again_is_refused_and_the_runbooks_way_out_works(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)

    def answered(batch_id: str) -> list[Message]:
        opened = message({"type": "batch.opened", "batch_id": batch_id, "item_ids": ["1"]})
        return [opened, message({"batch_id": batch_id, "item_id": "1", "status": "succeeded"})]

    still_open = message({"type": "batch.opened", "batch_id": "open", "item_ids": ["1"]})
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, [*answered("old"), still_open])
        await product.settled()
    await delete_topic(settings.bootstrap_servers, topics.events)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    await produce(settings.bootstrap_servers, topics.events, answered("new"))
    refused = await commands.rollcall(settings, "worker", timeout_s=60)
    assert (refused.exit_code, "the log ends at offset 2" in refused.stderr) == (2, True), refused.stderr
    assert "truncated, or the topic was deleted and created again" in refused.stderr
    listed = await commands.rollcall(settings, "batch", "list", "--json")
    assert {each["batch_id"]: each["status"] for each in json.loads(listed.stdout)["batches"]} == {
        "old": "completed",
        "open": "pending",
    }, "the old state can be read"

    anew = settings.model_copy(update={"database_schema": f"{settings.database_schema}_2"})
    async with running(anew, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, answered("open"))
        await product.settled()
    finalized = await drain(settings.bootstrap_servers, topics.finalized)
    assert sorted(record.key for record in finalized) == [b"new", b"old", b"open"], "each once"


async def delete_before(settings: Settings, topic: str, offset: int) -> None:
    from confluent_kafka import TopicPartition as Partition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for future in admin.delete_records([Partition(topic, 0, offset)]).values():
        assert future.result(30).low_watermark == offset
    assert await end_offsets(settings.bootstrap_servers, topic)
