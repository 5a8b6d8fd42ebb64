"""How far the input log reaches, looked up once a second for all who ask."""

import asyncio
import time

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.health import health
from streams.kafka import KafkaConnection, started

LOOK_EVERY_S = 1.0
LOOK_TIMEOUT_S = 10.0
STALE_AFTER_S = 5.0
_LOOP = "log ends"

log = structlog.get_logger(__name__)


class LogEnds:
    """The end of each partition of a topic, as last seen."""

    def __init__(self, kafka: KafkaConnection, topic: str, partitions: int) -> None:
        self._kafka = kafka
        self._partitions = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._ends: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._seen_at = float("-inf")

    def of(self, partition: int) -> int | None:
        """The next offset to be written, about a second old; None where Kafka has not said for five."""
        return self._ends.get(partition) if time.monotonic() - self._seen_at < STALE_AFTER_S else None

    def reaches(self, partition: int, end: int) -> None:
        """Somebody knows better: the log reaches at least to here."""
        self._reached[partition] = max(end, self._reached.get(partition, 0))
        self._ends[partition] = max(end, self._ends.get(partition, 0))

    async def run(self) -> None:
        """Keep looking until cancelled; while Kafka is away, try again."""
        try:
            await self._run()
        finally:
            health.end(_LOOP)

    async def _run(self) -> None:
        while True:
            health.beat(_LOOP)
            consumer = self._kafka.consumer(enable_auto_commit=False, isolation_level="read_uncommitted")
            try:
                async with started(consumer):
                    await self._look(consumer)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("where the log ends is not known at the moment", error=repr(error))
                await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            # What is sent meanwhile may lie behind what is seen; what was sent before does not, and a log may end
            # earlier than it did (truncated, or made anew).
            self._reached.clear()
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                ends = await consumer.end_offsets(self._partitions)
            self._ends = {tp.partition: max(end, self._reached.get(tp.partition, 0)) for tp, end in ends.items()}
            self._seen_at = time.monotonic()
            health.beat(_LOOP)
            await asyncio.sleep(LOOK_EVERY_S)
