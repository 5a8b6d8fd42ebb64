"""Commands that read the log to a known end: a Kafka that gives nothing more ends them, with a line that says so."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from rollcall.reaching import ServerError, naming
from rollcall.settings import Settings
from schemas.topics import Topics
from streams import polling
from streams.explaining import Story
from streams.kafka import started
from streams.polling import Polls, SilentError
from streams.reading import Homes
from tests.harness.histories import Message
from tests.harness.topics import create_topic, produce

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMIT_S = 2.0


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "SILENCE_LIMIT_S", LIMIT_S)


def opened(batch_id: str) -> Message:
    value = json.dumps({"type": "batch.opened", "batch_id": batch_id, "total_items": 1}).encode()
    return Message(batch_id.encode(), value, batch_id)


@asynccontextmanager
async def reading(settings: Settings, partition: int) -> AsyncIterator[tuple[AIOKafkaConsumer, TopicPartition]]:
    """A consumer of that partition of a topic that has one, number 0, without a record."""
    tp = TopicPartition(f"{settings.topic_prefix}read", partition)
    await create_topic(settings.bootstrap_servers, tp.topic, partitions=1)
    async with started(settings.kafka_connection().consumer(auto_offset_reset="earliest")) as consumer:
        consumer.assign([tp])
        yield consumer, tp


async def test_what_the_log_holds_is_told_and_the_silence_behind_it_ends_in_one_line(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    await produce(settings.bootstrap_servers, topics.events, [opened("b"), opened("b")])
    told: list[int] = []

    async def tell() -> None:
        # An end that Kafka never gives: to the reader the same as one that has gone away before it.
        with naming(settings):
            async for each in Story(topics, Homes(1), "b").tell(settings.kafka_connection(), 0, 3):
                told.append(each.offset)  # noqa: PERF401 (what is told before the end counts)

    with pytest.raises(ServerError) as failed:
        await asyncio.wait_for(tell(), 30)
    assert told == [0, 1]
    assert str(failed.value) == (
        f"Kafka at {settings.bootstrap_servers} (ROLLCALL_BOOTSTRAP_SERVERS) does not answer:"
        " nothing more could be read for 2 s"
    )


async def test_a_position_that_no_broker_tells_is_not_waited_for_for_ever(settings: Settings) -> None:
    async with reading(settings, partition=7) as (consumer, leaderless):
        with pytest.raises(SilentError):
            async with asyncio.timeout(30):
                await Polls(consumer).next([leaderless])


async def test_a_log_that_moves_on_and_a_reader_that_takes_its_time_are_no_silence(settings: Settings) -> None:
    async with reading(settings, partition=0) as (consumer, tp):
        consumer.seek(tp, 0)
        polls = Polls(consumer)
        await polls.next([tp])
        await polls.next([tp])
        await asyncio.sleep(1.5 * LIMIT_S)  # the reader's own time
        await polls.next([tp])
        began = time.monotonic()
        for wanted in range(1, 7):
            await polls.next([tp])
            await polls.next([tp])
            await produce(settings.bootstrap_servers, tp.topic, [opened("b")])
            while (await polls.next([tp])).positions[tp] < wanted:
                pass
        assert time.monotonic() - began > LIMIT_S, "was silent for longer than the limit, but not in one piece"
