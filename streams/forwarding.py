"""Sends records that were read on a wrong partition to their batch's home, before their position is committed.

The home drops a forward at or below the highest original offset it has taken from that source partition. That is right
only if forwards of one source reach a home in order and without a gap, and so they do: per home, one produce batch
is sent only after the one before it is acknowledged, a failed one is sent again before anything behind it, and every
worker begins at the stored position, before which everything was acknowledged.
"""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidTimestampError

from schemas.headers import FORWARDED, FORWARDED_LOG, FORWARDED_OFFSET, FORWARDED_PARTITION, FORWARDED_TIMESTAMP
from streams.fetched import FetchedRecord
from streams.health import health
from streams.kafka import START_TIMEOUT_S, TOO_LARGE, KafkaConnection, stop
from streams.portion import Portion

SEND_TIMEOUT_S = 30.0
REPORT_EVERY_S = 60.0
MAX_AT_ONCE = 5_000
MAX_PLAIN_BYTES = 8 * 1024 * 1024
"""Of what is sent as it is. A topic's limit is meant for what is compressed, so far larger records may lie in it."""

log = structlog.get_logger(__name__)


class Forward(NamedTuple):
    """A misplaced record and the partition it belongs on."""

    home: int
    record: FetchedRecord


@dataclass(slots=True)
class _Queue:
    """What is to be sent to one home, in order; ``refused`` are those too large.

    A forward keeps the record's time, which counts where the topic takes its producers' (``CreateTime``), unless the
    topic refuses it by now as too old (``message.timestamp.before.max.ms``).
    """

    home: int
    forwards: list[Forward]
    refused: list[Forward] = field(default_factory=list)
    keeps_time: bool = True


class Forwarder:
    """An idempotent producer of its own, started when there is something to forward."""

    def __init__(self, kafka: KafkaConnection, topic: str, log_id: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._log_id = log_id.encode()
        self._producer: AIOKafkaProducer | None = None
        self._portion = Portion(MAX_AT_ONCE)
        self._is_plain = True  # compressing costs more than all the rest, so not before it is needed
        self._unreported = 0
        self._reported_at = float("-inf")

    async def send(self, forwards: list[Forward]) -> list[Forward]:
        """Send all of them; returns when the broker has acknowledged each, with those it refused as too large.

        Raises KafkaError or TimeoutError: then ``forwards`` are those left, of which some may be in the log; sending
        them again is harmless.
        """
        ordered = sorted(forwards, key=attrgetter("home"))
        if not ordered:
            return []
        queues = [_Queue(home, list(group)) for home, group in groupby(ordered, attrgetter("home"))]
        while waiting := [queue for queue in queues if queue.forwards]:
            health.beat("flush")
            producer = await self._started()
            is_plain = self._is_plain
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    sending = (self._send_queue(producer, queue, is_plain=is_plain) for queue in waiting)
                    acknowledged = await asyncio.gather(*sending)
            except BaseException:
                # A slow broker may not take all of them in time, however often it is tried.
                forwards[:] = [forward for queue in queues for forward in (*queue.refused, *queue.forwards)]
                # What it still holds must not arrive behind what is sent again: a new producer, a new sequence.
                await self.close()
                raise
            if not all(acknowledged):
                # aiokafka counts what was refused, the broker does not: whatever this producer sent there next would be
                # out of order to it.
                await self.close()
        self._report(len(ordered))
        return [forward for queue in queues for forward in queue.refused]

    async def close(self) -> None:
        """Stop the producer; a later send starts a new one."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            compression = None if self._is_plain else "gzip"
            producer = self._kafka.producer(
                max_request_size=2 * 1024 * 1024, max_batch_size=512 * 1024, compression_type=compression
            )
            try:
                # An idempotent producer waits until the broker has given it an id.
                async with asyncio.timeout(START_TIMEOUT_S):
                    await producer.start()
            except BaseException:
                await stop(producer)
                raise
            self._producer = producer
        return self._producer

    async def _send_queue(self, producer: AIOKafkaProducer, queue: "_Queue", *, is_plain: bool) -> bool:
        """Send what waits for a home, one produce batch after the other; False where the broker refused one.

        What is too large together is sent in halves, until it is one record that is, and that one compressed, as its
        producer may have sent it. From then on they grow again, but slowly: it may be the topic that takes so little.
        """
        while queue.forwards:
            batch, count = _filled(producer.create_batch(), queue, self._portion.count, self._log_id)
            if is_plain and batch.size() > MAX_PLAIN_BYTES:
                self._is_plain = False
                return False
            try:
                await (await producer.send_batch(batch, self._topic, partition=queue.home))
            except TOO_LARGE:
                if count == 1 and is_plain:
                    self._is_plain = False
                elif count == 1:
                    queue.refused.append(queue.forwards.pop(0))
                self._portion.too_much(count)
                return False
            except InvalidTimestampError:
                if not queue.keeps_time:
                    raise  # this host's clock
                queue.keeps_time = False
                return False
            del queue.forwards[:count]
            self._portion.fitted()
        return True

    def _report(self, count: int) -> None:
        self._unreported += count
        if time.monotonic() - self._reported_at >= REPORT_EVERY_S:
            log.warning(
                "records came to a wrong partition and were forwarded; let producers choose it as Java's does "
                "(librdkafka: partitioner=murmur2_random) and key records by batch_id",
                records=self._unreported,
            )
            self._unreported, self._reported_at = 0, time.monotonic()


def _filled(batch: Any, queue: _Queue, at_once: int, log_id: bytes) -> tuple[Any, int]:
    """A produce batch closed over as many forwards as fit, at least one and ``at_once`` at most, and their number."""
    count = 0
    for forward in queue.forwards[:at_once]:
        record = forward.record
        original = [
            (FORWARDED_PARTITION, b"%d" % record.partition),
            (FORWARDED_OFFSET, b"%d" % record.offset),
            (FORWARDED_TIMESTAMP, b"%d" % record.timestamp),
            (FORWARDED_LOG, log_id),
        ]
        headers = [header for header in record.headers if header[0] not in FORWARDED] + original
        timestamp = record.timestamp if queue.keeps_time else None  # none: now
        taken = batch.append(key=record.key, value=record.value, timestamp=timestamp, headers=headers)
        if taken is None:
            break
        count += 1
    batch.close()
    return batch, count
