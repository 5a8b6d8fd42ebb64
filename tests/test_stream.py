"""The stream end to end: results in over Kafka, one finalized event out, on real servers and processes."""

import json
import uuid
from collections import Counter
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaProducer

from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness.histories import Shape, make_history, mixed_sizes
from tests.harness.librdkafka import produce_with_librdkafka
from tests.harness.product import running
from tests.harness.tables import (
    assert_events_are_the_models,
    assert_tables_are_the_models,
    finalized_events,
    folded,
    folded_log,
    forwarded_from,
    table_rows,
)
from tests.harness.topics import create_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4


async def test_each_batch_is_finalized_once_with_the_right_counts(settings: Settings) -> None:
    seed = 20261122
    finished = make_history(seed, sizes=mixed_sizes(seed, batches=200, large=2))
    others = make_history(seed + 1, sizes=(0, 1, 2, 100) * 10, shapes=tuple(Shape), prefix="other")
    print(finished, others)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings, workers=2) as product:
        await produce(settings.bootstrap_servers, topics.events, [*finished, *others])
        await product.settled()
    log = await drain(settings.bootstrap_servers, topics.events)
    model = folded(log, PARTITIONS)
    assert model.all_finalized().keys() >= {batch.batch_id for batch in finished.batches}
    assert model.all_open()
    assert model.refusals
    events = await finalized_events(settings)
    assert_events_are_the_models(model, events, settings, PARTITIONS)
    await assert_tables_are_the_models(model, settings, PARTITIONS)

    traces = {(each.partition, each.offset): dict(each.headers).get("traceparent") for each in log}
    for [event] in events.values():
        as_of = json.loads(event.value)["as_of"]
        assert dict(event.headers).get("traceparent") == traces[as_of["partition"], as_of["offset"]]
    print(Counter(json.loads(event.value)["outcome"] for [event] in events.values()))


async def test_records_on_wrong_partitions_count_at_their_batchs_home(settings: Settings) -> None:
    seed = 20261123
    history = make_history(seed, sizes=mixed_sizes(seed, batches=100, large=1))
    print(history)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings, workers=2) as product:
        await produce_with_librdkafka(settings.bootstrap_servers, topics.events, history.messages)
        await product.settled()
    log = await drain(settings.bootstrap_servers, topics.events)
    forwards = [record for record in log if forwarded_from(record) is not None]
    assert len(forwards) > len(history) / 2, "librdkafka's own partitioner is another one"
    assert len(log) == len(history) + len(forwards), "nobody was killed, so each was forwarded once"
    model = folded(log, PARTITIONS)
    assert len(model.all_finalized()) == len(history.batches)
    assert_events_are_the_models(model, await finalized_events(settings), settings, PARTITIONS)
    await assert_tables_are_the_models(model, settings, PARTITIONS)


async def test_forwards_repeated_after_a_kill_do_not_count_twice(settings: Settings) -> None:
    seed = 20261124
    history = make_history(seed, sizes=(1, 2, 100) * 10)
    print(history)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings, workers=2) as product:
        # With the positions locked, a worker forwards and then can't commit: killed there, it must forward again.
        async with product.connection() as connection:
            await eventually(lambda: _has_positions(settings))
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("SELECT FROM positions WHERE topic = $1 FOR UPDATE", topics.events)
            await produce_with_librdkafka(settings.bootstrap_servers, topics.events, history.messages)

            async def forwarded() -> bool:
                ends = await end_offsets(settings.bootstrap_servers, topics.events)
                assert sum(ends.values()) > len(history), "nothing is forwarded yet"
                return True

            await eventually(forwarded)
            for slot in range(2):
                await product.children[f"worker-{slot}"].kill()
            await transaction.rollback()
        for slot in range(2):
            await product.start_worker(slot)
        await product.settled()
    log = await drain(settings.bootstrap_servers, topics.events)
    copies = Counter(origin for record in log if (origin := forwarded_from(record)) is not None)
    assert max(copies.values()) > 1, "none was forwarded twice: this test has tested nothing"
    model = folded(log, PARTITIONS)
    assert len(model.all_finalized()) == len(history.batches)
    assert_events_are_the_models(model, await finalized_events(settings), settings, PARTITIONS)
    await assert_tables_are_the_models(model, settings, PARTITIONS)


@dataclass(frozen=True)
class _Message:
    key: bytes
    value: bytes


def _batch(batch_id: str) -> list[_Message]:
    values = [
        {"type": "batch.opened", "batch_id": batch_id, "total_items": 2},
        {"batch_id": batch_id, "item_id": "a", "status": "succeeded"},
        {"batch_id": batch_id, "item_id": "b", "status": "failed"},
    ]
    return [_Message(batch_id.encode(), json.dumps(value).encode()) for value in values]


async def test_an_aborted_upstream_transaction_leaves_no_trace(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=f"{settings.topic_prefix}{uuid.uuid4()}"
    )
    await producer.start()

    async def send(batch_id: str) -> None:
        for message in _batch(batch_id):
            await producer.send_and_wait(topics.events, message.value, key=message.key)

    try:
        async with running(settings) as product:
            for number in range(8):
                await producer.begin_transaction()
                await send(f"aborted-{number}")
                await producer.abort_transaction()
                await producer.begin_transaction()
                await send(f"committed-{number}")
                await producer.commit_transaction()
            await product.settled()  # the stored positions are behind the last markers, too
            assert {row["batch_id"] for row in await table_rows(settings, "batches")} == {
                f"committed-{number}" for number in range(8)
            }

            # A log that ends with what was aborted: no record comes that could move the position over it.
            await producer.begin_transaction()
            await send("aborted-last")
            await producer.abort_transaction()
            await product.settled()
    finally:
        await producer.stop()
    model = await folded_log(settings, PARTITIONS)
    assert len(model.all_finalized()) == 8
    assert_events_are_the_models(model, await finalized_events(settings), settings, PARTITIONS)
    await assert_tables_are_the_models(model, settings, PARTITIONS)


async def _has_positions(settings: Settings) -> bool:
    return len(await table_rows(settings, "positions", "partition")) >= PARTITIONS
