"""Processes killed and stopped in the middle of 200,000 results, servers that go away: each batch is right, once."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.settings import Settings
from schemas.topics import Topics, home_partition
from tests.harness.histories import Message, make_history, mixed_sizes
from tests.harness.librdkafka import MURMUR2, produce_with_librdkafka
from tests.harness.product import Product, running
from tests.harness.servers import IN_CONTAINERS
from tests.harness.tables import (
    assert_events_are_the_models,
    assert_tables_are_the_models,
    finalized_events,
    folded_log,
)
from tests.harness.topics import create_topic
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4
RESULTS = 200_000
BATCHES = 100


def large_history(seed: int) -> list[Message]:
    """100 batches of 2,000 results, opened with their total, results shuffled across them, some failed, some twice."""
    random = Random(seed)
    ids = [f"batch-{seed}-{number}" for number in range(BATCHES)]
    per_batch = RESULTS // BATCHES

    def results() -> Iterator[Message]:
        for batch_id in ids:
            for number in range(per_batch):
                status = "failed" if random.random() < 0.02 else "succeeded"
                result = _message({"batch_id": batch_id, "item_id": f"item-{number:06}", "status": status})
                yield result
                if random.random() < 0.01:
                    yield result

    shuffled = list(results())
    random.shuffle(shuffled)
    opened = [_message({"type": "batch.opened", "batch_id": each, "total_items": per_batch}) for each in ids]
    print(f"seed {seed}: {len(shuffled)} results")
    return opened + shuffled


def _message(value: dict[str, object]) -> Message:
    batch_id = str(value["batch_id"])
    return Message(batch_id.encode(), json.dumps(value).encode(), batch_id)


@asynccontextmanager
async def reading_a_large_history(settings: Settings, seed: int) -> AsyncIterator[Product]:
    """Two workers that begin on 200,000 results already in the log."""
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    await produce_with_librdkafka(settings.bootstrap_servers, topics.events, large_history(seed), partitioner=MURMUR2)
    async with running(settings, workers=0) as product:
        for slot in range(2):
            await product.start_worker(slot)
        yield product


async def assert_all_right(settings: Settings, batches: int, partitions: int = PARTITIONS) -> None:
    model = await folded_log(settings, partitions)
    assert len(model.all_finalized()) == batches
    assert_events_are_the_models(model, await finalized_events(settings), settings, partitions)
    await assert_tables_are_the_models(model, settings, partitions)


async def test_workers_and_relay_killed_in_the_middle_lose_and_double_nothing(settings: Settings) -> None:
    async with reading_a_large_history(settings, 20261127) as product:
        await product.await_applied(RESULTS // 10)
        await product.children["worker-0"].kill()
        await product.start_worker(0)
        await product.await_applied(RESULTS // 2)
        await product.children["worker-1"].kill()
        await product.children["relay"].kill()
        await product.start_worker(1)
        await product.start_relay()
        await product.await_applied(RESULTS * 3 // 4)
        await product.children["worker-0"].kill()
        await product.start_worker(0)
        await product.settled()
    await assert_all_right(settings, BATCHES)


async def test_a_worker_stopped_past_its_session_and_continued_changes_nothing(settings: Settings) -> None:
    async with reading_a_large_history(settings, 20261128) as product:
        await product.await_applied(RESULTS // 4)
        stopped = product.children["worker-0"]
        stopped.send_signal(signal.SIGSTOP)
        await product.settled()  # the other worker takes its partitions over
        stopped.send_signal(signal.SIGCONT)
        await product.assigned(2)
        more = make_history(20261129, sizes=(0, 1, 2, 100) * 4)
        await produce_with_librdkafka(
            settings.bootstrap_servers, product.topics.events, more.messages, partitioner=MURMUR2
        )
        await product.settled()
        assert stopped.returncode is None, "it lost a race; that is no reason to end"
    await assert_all_right(settings, BATCHES + len(more.batches))


async def test_a_worker_stopped_inside_its_transaction_does_not_hold_up_the_others(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings, workers=2) as product, product.connection() as connection:
        begun = [_message({"type": "batch.opened", "batch_id": f"b{n}", "total_items": 2}) for n in range(20)]
        await produce_with_librdkafka(settings.bootstrap_servers, topics.events, begun, partitioner=MURMUR2)
        await product.settled()

        # Held up where it writes the batch, a worker has its positions locked.
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT FROM batches WHERE batch_id = 'b7' FOR UPDATE")
        one = [_message({"batch_id": "b7", "item_id": "x", "status": "succeeded"})]
        await produce_with_librdkafka(settings.bootstrap_servers, topics.events, one, partitioner=MURMUR2)

        async def is_waiting() -> bool:
            async with product.connection() as observer:
                return bool(
                    await observer.fetchval(
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE application_name = 'rollcall worker' AND wait_event_type = 'Lock'"
                    )
                )

        await eventually(is_waiting)
        for slot in range(2):
            product.children[f"worker-{slot}"].send_signal(signal.SIGSTOP)
        await transaction.rollback()
        await product.start_worker(2)
        await product.settled(45)

        for slot in range(2):
            product.children[f"worker-{slot}"].send_signal(signal.SIGCONT)
        await product.assigned(3)
        rest = [
            _message({"batch_id": f"b{n}", "item_id": item, "status": "failed"}) for n in range(20) for item in "xyz"
        ]
        await produce_with_librdkafka(settings.bootstrap_servers, topics.events, rest, partitioner=MURMUR2)
        await product.settled()
        assert [child.name for child in product.children.values() if child.returncode is not None] == []
    assert home_partition("b7", PARTITIONS) in await product.positions()
    await assert_all_right(settings, 20)


@pytest.mark.skipif(IN_CONTAINERS, reason="servers of its own, to be killed, are embedded ones")
async def test_servers_that_go_away_are_waited_for(tmp_path: Path, topic_prefix: str, database_schema: str) -> None:
    kafka, postgres = EmbeddedKafka(tmp_path / "kafka"), EmbeddedPostgres(tmp_path / "postgres")
    try:
        await asyncio.gather(kafka.start(), postgres.start())
        settings = Settings(
            bootstrap_servers=kafka.bootstrap_servers,
            database_url=postgres.database_url,
            topic_prefix=topic_prefix,
            database_schema=database_schema,
        )
        topics = Topics(topic_prefix)
        await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
        seed = 20261130
        history = make_history(seed, sizes=mixed_sizes(seed, batches=120, large=2))
        print(history)
        parts = [history.messages[at : at + len(history) // 4] for at in range(0, len(history), len(history) // 4)]
        async with running(settings, workers=2) as product:
            sending = iter(parts)

            async def send_some() -> None:
                await produce_with_librdkafka(
                    settings.bootstrap_servers, topics.events, next(sending), partitioner=MURMUR2
                )

            await send_some()
            await postgres.kill()
            await send_some()
            await asyncio.sleep(3)
            await postgres.start()
            await product.await_applied(len(history) // 4)
            await kafka.kill()
            await asyncio.sleep(3)
            await kafka.start()
            await send_some()
            await postgres.stop()
            await kafka.stop()
            await asyncio.gather(kafka.start(), postgres.start())
            for part in sending:
                await produce_with_librdkafka(settings.bootstrap_servers, topics.events, part, partitioner=MURMUR2)
            await product.settled()
            assert [child.name for child in product.children.values() if child.returncode is not None] == []
        await assert_all_right(settings, len(history.batches))
    finally:
        await asyncio.gather(kafka.stop(), postgres.stop())
