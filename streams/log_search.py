"""What Kafka holds of one batch and of its home partition: who reads it, how far, and which records are where.

Reads only, within bounds of records and seconds; what could not be looked at, the answer says.
"""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic_core import from_json

from schemas.dead_letters import Refused
from schemas.headers import forwarded_from
from schemas.topics import Topics
from store.diagnosis import Applied
from store.reads import BatchStatus
from store.rows import ItemRow
from streams.decoding import decode
from streams.fetched import FetchedRecord
from streams.kafka import KafkaConnection
from streams.observing import LogRange, administering, group, log_ranges, looking, partitions_of
from streams.reading import append_time
from streams.topics import log_identity

MAX_SEARCHED = 20_000
SEARCH_TIMEOUT_S = 5.0
POLL_MS = 200


@dataclass(frozen=True, slots=True)
class LastResult:
    """The last counted result; ``item_id`` and what follows it are None where the record is gone from the log."""

    at: datetime
    partition: int
    offset: int
    item_id: str | None = None
    status: str | None = None
    worker: str | None = None


@dataclass(slots=True)
class Search:
    """Records of the batch that the log was seen to hold.

    ``unread`` are on the home partition, behind what is applied; ``forwarded`` came there from another partition and
    ``stranded`` still lie on another one, each counted by that partition. ``records`` is how many records were
    looked at, of all batches; not ``complete``: there were more.
    """

    records: int = 0
    complete: bool = True
    unread: int = 0
    forwarded: dict[int, int] = field(default_factory=dict)
    stranded: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Log:
    """What Kafka says of a batch's home partition. ``lag`` counts offsets that are not applied yet.

    ``held_back_at`` is the offset at which an open transaction of a producer stops all reading.
    """

    lag: int
    end: int
    held_back_at: int | None
    group_state: str
    worker: str | None
    search: Search


async def look(
    kafka: KafkaConnection,
    topics: Topics,
    batch_id: str,
    batch: BatchStatus | None,
    home: int,
    applied: Mapping[int, Applied],
    last_result: LastResult | None,
) -> tuple[Log, LastResult | None]:
    """What Kafka knows: how far reading is, who reads, and which records of the batch the log holds.

    Raises KafkaError, NoTopicError and TimeoutError.
    """
    async with administering(kafka) as admin:
        partitions = await partitions_of(admin, topics.events)
        readers = await group(admin, topics.consumer_group, topics.events)
    ranges = await log_ranges(kafka, topics.events, partitions)
    log_id = await log_identity(kafka, topics)
    async with looking(kafka, isolation_level="read_committed", max_partition_fetch_bytes=1024 * 1024) as consumer:
        if last_result is not None:
            last_result = await _identified(consumer, topics.events, last_result, ranges[home])
        search = Search()
        deadline = time.monotonic() + SEARCH_TIMEOUT_S
        since = None if batch is None else batch.opened_at or batch.first_result_at
        for partition, start, end in await _stretches(consumer, topics.events, home, since, ranges, applied):
            tp = TopicPartition(topics.events, partition)
            async for record in _records(consumer, tp, start, end, deadline):
                if search.records >= MAX_SEARCHED:
                    search.complete = False
                    break
                search.records += 1
                if _is_of(record, batch_id):
                    _note_found(search, record, home, applied, log_id)
            search.complete &= time.monotonic() < deadline
    next_offset = applied[home].next_offset if home in applied else ranges[home].start
    held_back = ranges[home].stable < ranges[home].end and next_offset >= ranges[home].stable
    reader = readers.holder(home)
    return (
        Log(
            lag=max(0, ranges[home].end - next_offset),
            end=ranges[home].end,
            held_back_at=ranges[home].stable if held_back else None,
            group_state=readers.state,
            worker=f"{reader.client_id} at {reader.host}" if reader else None,
            search=search,
        ),
        last_result,
    )


async def _stretches(
    consumer: AIOKafkaConsumer,
    topic: str,
    home: int,
    since: datetime | None,
    ranges: Mapping[int, LogRange],
    applied: Mapping[int, Applied],
) -> list[tuple[int, int, int]]:
    """(partition, start, end) worth searching: the home since the batch is known, of all others what is not read."""
    unread = {
        partition: max(found.start, applied[partition].next_offset if partition in applied else 0)
        for partition, found in ranges.items()
    }
    starts = dict(unread)
    if since is not None:
        tp = TopicPartition(topic, home)
        begun = (await consumer.offsets_for_times({tp: int(since.timestamp() * 1000)}))[tp]
        if begun is not None:
            starts[home] = min(starts[home], begun.offset)
    # What is unread comes first: it may be what the batch waits for.
    stretches = [(home, unread[home], ranges[home].stable)]
    stretches += [(number, unread[number], found.stable) for number, found in ranges.items() if number != home]
    stretches += [(home, starts[home], min(unread[home], ranges[home].stable))]
    return [(partition, start, end) for partition, start, end in stretches if start < end]


async def _records(
    consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int, deadline: float
) -> AsyncIterator[FetchedRecord]:
    """The records of a stretch of a partition, until the deadline (``time.monotonic()``)."""
    consumer.assign([tp])
    consumer.seek(tp, start)
    while time.monotonic() < deadline:
        for record in (await consumer.getmany(tp, timeout_ms=POLL_MS)).get(tp, ()):
            if record.offset >= end:
                return
            yield record
        # Stretches end with markers too.
        if await consumer.position(tp) >= end:
            return


async def _identified(consumer: AIOKafkaConsumer, topic: str, last: LastResult, held: LogRange) -> LastResult:
    if not held.start <= last.offset < held.stable:
        return last
    tp = TopicPartition(topic, last.partition)
    async for record in _records(consumer, tp, last.offset, last.offset + 1, time.monotonic() + SEARCH_TIMEOUT_S):
        try:
            result = decode(record.value, record.offset, append_time(record.timestamp))
        except Refused:
            break
        if isinstance(result, ItemRow):
            return replace(last, item_id=result.item_id, status=result.status, worker=result.worker)
    return last


def _is_of(record: FetchedRecord, batch_id: str) -> bool:
    """Whether a record says that it is of a batch; of one that cannot be parsed, whether its key does."""
    key_fits = bool(record.key == batch_id.encode())
    value = record.value or b""
    if not key_fits and batch_id.encode() not in value and b"\\" not in value:
        return False
    try:
        event = from_json(value)
    except ValueError:
        return key_fits
    if not isinstance(event, dict):
        return key_fits
    named = event.get("batch_id")
    return key_fits if named is None else bool(named == batch_id)


def _note_found(
    search: Search,
    record: FetchedRecord,
    home: int,
    applied: Mapping[int, Applied],
    log_id: str,
) -> None:
    if record.partition != home:
        search.stranded[record.partition] = search.stranded.get(record.partition, 0) + 1
        return
    if home not in applied or record.offset >= applied[home].next_offset:
        search.unread += 1
    if (source := forwarded_from(record.headers, log_id)) is not None:
        search.forwarded[source[0]] = search.forwarded.get(source[0], 0) + 1
