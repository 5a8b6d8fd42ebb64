"""Puts events on the input log: keyed by their batch, on its home partition, acknowledged by all replicas."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from schemas.topics import Topics
from store import positions
from store.connection import Connection
from streams.kafka import KafkaConnection
from streams.observing import administering, partitions_of
from streams.reading import Homes

SEND_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
MAX_RECORD_BYTES = 1024 * 1024 - 2 * 1024
"""A larger value may not fit into a message of 1 MiB, which the input topic's are at most, beside its key."""


class EventsProducer:
    """An idempotent producer of events; after a failure some may be in the log, and sending all again is harmless."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, homes: Homes) -> None:
        self._producer = producer
        self._topic = topic
        self._homes = homes

    async def append(self, events: Iterable[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Append (batch id, JSON) in this order; returns (partition, offset) of each once all are acknowledged.

        Raises KafkaError or TimeoutError.
        """
        async with asyncio.timeout(SEND_TIMEOUT_S):
            sent = [
                await self._producer.send(self._topic, value, key=batch_id.encode(), partition=self._homes.of(batch_id))
                for batch_id, value in events
            ]
            results: list[RecordMetadata | BaseException] = await asyncio.gather(*sent, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [(result.partition, result.offset) for result in results if not isinstance(result, BaseException)]


@asynccontextmanager
async def producing(kafka: KafkaConnection, topics: Topics, partitions: int) -> AsyncIterator[EventsProducer]:
    """A producer for the input log, whose batches have their homes among this many partitions. Raises KafkaError."""
    producer = kafka.producer(linger_ms=5, max_batch_size=256 * 1024, max_request_size=1024 * 1024)
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await producer.start()
    try:
        yield EventsProducer(producer, topics.events, Homes(partitions))
    finally:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await producer.stop()


async def home_partitions(connection: Connection, kafka: KafkaConnection, topics: Topics) -> int:
    """Among how many partitions batches have homes: as many as stored at the first start; before it, as there are.

    Raises NoTopicError where the input topic is not there, ForeignLogError, KafkaError and asyncpg's errors.
    """
    async with administering(kafka) as admin:
        present = await partitions_of(admin, topics.events)
    return await positions.partition_count(connection, topics.events) or len(present)
