"""Reads a known stretch of the log, which is over at some time: waits for a Kafka that is away, but not for ever.

For an operator's commands, also for a replay, which goes on where it stood when the same command is run again. Workers
and relay wait for as long as it takes.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.fetched import FetchedRecord

POLL_MS = 200
SILENCE_LIMIT_S = 60.0


class SilentError(KafkaError):  # type: ignore[misc]  # aiokafka is untyped
    """Kafka gives nothing of what it is known to hold, or takes nothing; the message is one line and says what."""

    def __str__(self) -> str:
        return str(self.args[0])  # without the name of the class, which aiokafka puts before it


class Polled(NamedTuple):
    """By partition: the records of one poll, and the position behind them."""

    records: dict[TopicPartition, list[FetchedRecord]]
    positions: dict[TopicPartition, int]


class Polls:
    """Polls of a consumer that is to read what is there. Only time spent polling counts as silence."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._positions: dict[TopicPartition, int] = {}
        self._silent_s = 0.0

    async def next(self, partitions: Collection[TopicPartition], **options: Any) -> Polled:
        """The next records of these partitions. Raises KafkaError; SilentError where none has moved on for a minute."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(SILENCE_LIMIT_S - self._silent_s):
                records = await self._consumer.getmany(*partitions, timeout_ms=POLL_MS, **options)
                # aiokafka waits for one that it has to ask the broker for until the broker is back.
                positions = {tp: await self._consumer.position(tp) for tp in partitions}
        except TimeoutError:
            raise SilentError(f"nothing more could be read for {SILENCE_LIMIT_S:g} s") from None
        moved = positions != self._positions
        self._positions = positions
        self._silent_s = 0.0 if moved else self._silent_s + loop.time() - began
        return Polled(records, positions)

    async def between(
        self, tp: TopicPartition, start: int, end: int, **options: Any
    ) -> AsyncIterator[list[FetchedRecord]]:
        """The records from one offset to before another of an assigned partition, poll by poll. Raises as ``next``."""
        self._consumer.seek(tp, start)
        position = start
        while position < end:
            polled = await self.next([tp], **options)
            position = polled.positions[tp]
            if records := [record for record in polled.records.get(tp, ()) if record.offset < end]:
                yield records
