"""Anchors: where this worker stands on each partition, and the check that the log is still the one it stood on.

A worker takes records of a partition only after it has sought the stored position; whatever makes that doubtful
(a rebalance, a lost race) makes it forget all anchors and begin again from what PostgreSQL holds.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.topics import Topics
from store import positions
from store.connection import Connection
from store.rows import Position
from streams.fetched import FetchedRecord
from streams.kafka import KafkaConnection, started
from streams.polling import SilentError

ANCHOR_TIMEOUT_S = 90.0
VERIFY_TIMEOUT_S = 10.0

log = structlog.get_logger(__name__)


class LogChangedError(Exception):
    """The log is not the one that was read so far: truncated, recreated, or eaten by retention before it was read."""


@dataclass(slots=True)
class Anchors:
    """Where the next record of each anchored partition is expected; ``epoch`` grows whenever all are forgotten."""

    by_partition: dict[int, Position] = field(default_factory=dict)
    epoch: int = 0

    def forget(self) -> None:
        """Take no further record before anchoring anew."""
        self.by_partition.clear()
        self.epoch += 1


def checksum(record: FetchedRecord) -> int:
    """What identifies a record's content: crc32 of its key and value."""
    return zlib.crc32(record.value or b"", zlib.crc32(record.key or b""))


async def stored_positions(
    connection: Connection, kafka: KafkaConnection, topics: Topics, partitions: Iterable[int]
) -> dict[int, Position]:
    """The positions to seek, missing ones created at the log's start, each checked against the log.

    Raises LogChangedError where going on would skip or repeat records; KafkaError, asyncpg's errors and TimeoutError.
    """
    wanted = sorted(partitions)
    consumer = kafka.consumer(
        enable_auto_commit=False, isolation_level="read_uncommitted", auto_offset_reset="earliest"
    )
    deadline = asyncio.get_running_loop().time() + ANCHOR_TIMEOUT_S
    unsaid = f"{topics.events}: it did not say in time where the log begins and ends"
    async with started(consumer):
        tps = [TopicPartition(topics.events, partition) for partition in wanted]
        async with _answering(deadline, unsaid):
            starts = {tp.partition: offset for tp, offset in (await consumer.beginning_offsets(tps)).items()}
        async with asyncio.timeout_at(deadline):
            await positions.create(connection, topics.events, starts)
            stored = await positions.load(connection, topics.events, wanted)
        async with _answering(deadline, unsaid):
            # Behind the positions: another worker may be moving them on, and what it has read must be seen to be there.
            ends = {tp.partition: offset for tp, offset in (await consumer.end_offsets(tps)).items()}
            for partition, position in stored.items():
                check_within(topics.events, position, starts[partition], ends[partition])
            await check_last_records(consumer, topics.events, stored.values(), starts)
    return stored


@asynccontextmanager
async def _answering(deadline: float, otherwise: str) -> AsyncIterator[None]:
    """Where Kafka alone is asked, up to that time of the loop. Raises SilentError: it says whose time-out it was."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise SilentError(otherwise) from None


def check_within(topic: str, position: Position, start: int, end: int) -> None:
    """Raise LogChangedError where a position is not within the log."""
    where = f"{topic}-{position.partition}"
    if position.next_offset < start:
        raise LogChangedError(
            f"{where}: the log begins at offset {start}, but only what is before {position.next_offset} was read:"
            f" {start - position.next_offset} offsets were deleted unread. Was retention shorter than the outage?"
        )
    if position.next_offset > end:
        raise LogChangedError(
            f"{where}: the log ends at offset {end}, but {position.next_offset} offsets of it were read already:"
            " it was truncated, or the topic was deleted and created again."
        )


async def check_last_records(
    consumer: AIOKafkaConsumer, topic: str, stored: Iterable[Position], starts: dict[int, int]
) -> None:
    """The last record applied must still be what it was; where retention has deleted it, that can't be known.

    Raises LogChangedError and KafkaError; SilentError where it can't be read in time.
    """
    pending: dict[TopicPartition, Position] = {}
    for position in stored:
        if position.last_offset is None:
            continue
        if position.last_offset < starts[position.partition]:
            log.info("last record gone to retention, log not verifiable", topic=topic, partition=position.partition)
            continue
        pending[TopicPartition(topic, position.partition)] = position
    if not pending:
        return
    consumer.assign(list(pending))
    for tp, position in pending.items():
        assert position.last_offset is not None
        consumer.seek(tp, position.last_offset)
    deadline = asyncio.get_running_loop().time() + VERIFY_TIMEOUT_S
    async with _answering(deadline, f"{topic}: the last records applied could not be read in time"):
        while pending:
            for tp, records in (await consumer.getmany(*pending, timeout_ms=200, max_records=len(pending))).items():
                position = pending.pop(tp)
                if records[0].offset == position.last_offset or not await _is_gone(consumer, tp, position):
                    _check_same(tp, position, records[0])
                consumer.pause(tp)
            for tp, position in list(pending.items()):
                if await consumer.position(tp) > cast(int, position.last_offset):
                    if not await _is_gone(consumer, tp, position):
                        raise _other_log(tp, position)  # a marker now stands where a record was
                    del pending[tp]


async def _is_gone(consumer: AIOKafkaConsumer, tp: TopicPartition, position: Position) -> bool:
    """Whether retention has deleted the record since the log's start was asked for: the consumer is behind it then."""
    return bool((await consumer.beginning_offsets([tp]))[tp] > cast(int, position.last_offset))


def _check_same(tp: TopicPartition, position: Position, found: FetchedRecord) -> None:
    expected = (position.last_offset, position.last_timestamp, position.last_checksum)
    if (found.offset, found.timestamp, checksum(found)) != expected:
        raise _other_log(tp, position)


def _other_log(tp: TopicPartition, position: Position) -> LogChangedError:
    return LogChangedError(
        f"{tp.topic}-{tp.partition}: the record at offset {position.last_offset} is not the one read there before:"
        " the topic was deleted and created again, or its log was replaced."
    )


async def check_gap(consumer: AIOKafkaConsumer, tp: TopicPartition, expected: int) -> None:
    """Raise LogChangedError where what is missing from ``expected`` on was deleted unread.

    Markers and aborted records leave such holes too. Raises KafkaError or TimeoutError where Kafka does not say.
    """
    async with asyncio.timeout(VERIFY_TIMEOUT_S):
        start = (await consumer.beginning_offsets([tp]))[tp]
    if start > expected:
        raise LogChangedError(
            f"{tp.topic}-{tp.partition}: the log begins at offset {start}, but only what is before"
            f" {expected} was read: {start - expected} offsets were deleted unread."
        )
