"""Watches for batches that are slow, stalled, or were never opened, counting only time in which all was read.

A partition is *read up to* a moment once its position has reached the end that its log had at that moment. Up to then
nothing is merely unread; behind it nobody knows, so no alert is raised for it. A stopped worker stops this clock.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from handlers.overdue import overdue_event
from schemas.topics import Topics
from store import outbox, overdue
from store.connection import BY_KEY, SERVING, Connection, Database
from store.overdue import Allowed
from streams.kafka import KafkaConnection, started
from streams.retrying import attempts, sleep

POLL_S = 5.0
# Looking takes this share of the time at most.
SHARE = 0.1
PAGE = 1_000
COMMAND_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class _End(NamedTuple):
    """Where a partition's log ended at a moment."""

    at: datetime
    offset: int


class Watcher:
    """Raises each alert once a batch and generation: its id is deterministic, the outbox takes it once."""

    def __init__(
        self, kafka: KafkaConnection, database: Database, topics: Topics, allowed: Allowed, *, poll_s: float = POLL_S
    ) -> None:
        self._kafka = kafka
        self._database = database
        self._topics = topics
        self._allowed = allowed
        self._poll_s = poll_s
        self._ends: dict[int, _End] = {}
        self._read_up_to: dict[int, datetime] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until ``stop`` is set, beginning anew after every failure that may pass."""
        async for attempt in attempts("watching for slow batches failed, beginning anew", stop):
            with attempt:
                connection = await self._database.connect(
                    "clock alerts", command_timeout=COMMAND_TIMEOUT_S, **BY_KEY, **SERVING
                )
                consumer = self._kafka.consumer(enable_auto_commit=False, isolation_level="read_uncommitted")
                self._read_up_to.clear()  # PostgreSQL may have failed over to one that lags
                try:
                    async with started(consumer):
                        while not stop.is_set():
                            await self._see_what_is_read(connection, consumer)
                            began = time.monotonic()
                            await self._raise_alerts(connection)
                            await sleep(stop, max(self._poll_s, (time.monotonic() - began) / SHARE))
                finally:
                    connection.terminate()

    async def _see_what_is_read(self, connection: Connection, consumer: AIOKafkaConsumer) -> None:
        """Move on, per partition, the moment up to which it is read; then note where its log ends now."""
        applied = await overdue.applied(connection, self._topics.events)
        for partition, offset in applied.items():
            if partition in self._ends and offset >= self._ends[partition].offset:
                self._read_up_to[partition] = self._ends.pop(partition).at
        now = datetime.now(UTC)
        ends = await _known_ends(consumer, [TopicPartition(self._topics.events, each) for each in applied])
        for tp, offset in ends.items():
            waited_for = self._ends.get(tp.partition)
            # One end is waited for at a time: a newer one would move away as fast as a busy worker follows. But one
            # before it is all there is to come: what lay behind it was lost, or the topic was made anew.
            if waited_for is None or offset < waited_for.offset:
                self._ends[tp.partition] = _End(now, offset)

    async def _raise_alerts(self, connection: Connection) -> None:
        begin = ""
        while self._read_up_to:
            due = await overdue.overdue(connection, self._read_up_to, self._allowed, begin, PAGE)
            await outbox.insert(connection, [overdue_event(self._topics, each) for each in due])
            if len(due) < PAGE:
                break
            # Its other alerts may be on the next page; these are in the outbox now, so they don't come again.
            begin = due[-1].batch_id


async def _known_ends(consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """The ends that Kafka says in time: a partition without a leader must not keep back the alerts of all others."""

    async def asked(partition: TopicPartition) -> int | Exception:
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                end: int = (await consumer.end_offsets([partition]))[partition]
                return end
        except (KafkaError, TimeoutError) as error:
            return error

    said = dict(zip(partitions, await asyncio.gather(*map(asked, partitions)), strict=True))
    unknown = {tp.partition: each for tp, each in said.items() if isinstance(each, Exception)}
    if unknown:
        why = repr(next(iter(unknown.values())))
        log.warning("where partitions end is not known at the moment", partitions=sorted(unknown), error=why)
    return {tp: each for tp, each in said.items() if isinstance(each, int)}
