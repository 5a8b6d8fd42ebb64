"""From polled records to a micro-batch: decoding, grouping by batch, what lies astray. No I/O."""

import asyncio
import base64
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter

from handlers.microbatch import MicroBatch
from handlers.records import Record, RedrivenRow, TakenRecord
from handlers.slices import Slice
from schemas.dead_letters import Refused
from schemas.headers import (
    FORWARDED,
    FORWARDED_TIMESTAMP,
    REDRIVEN,
    REDRIVEN_TIMESTAMP,
    forwarded_from,
    number_of,
    redriven_from,
    traceparent_of,
)
from schemas.topics import Topics, home_partition
from store.rows import DeadLetterRow, ItemRow, Position
from streams.anchoring import checksum
from streams.decoding import decode, take_usual
from streams.fetched import FetchedRecord
from streams.forwarding import Forward

Records = list[FetchedRecord]

GIVE_WAY_EVERY = 128
"""Records: what they take, compiled a tenth of a millisecond, each statement of the flush in flight may wait for."""
MAX_TIMESTAMP_MS = 253_402_300_799_000
"""The last second of the year 9999."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Homes:
    """Home partitions of batch ids.

    ``log_id`` tells this log from every other, wherever its records may be copied to.
    """

    partitions: int
    log_id: str = ""

    def of(self, batch_id: str) -> int:
        """The home partition of a batch."""
        return home_partition(batch_id, self.partitions)


class _Lists(dict[str, list[TakenRecord] | None]):
    """Where a batch's records of one partition go; None where that is not their home."""

    def __init__(self, slices: dict[str, Slice], homes: Homes, partition: int) -> None:
        self._slices, self._homes, self._partition = slices, homes, partition

    def __missing__(self, batch_id: str) -> list[TakenRecord] | None:
        records = None
        if self._homes.of(batch_id) == self._partition:
            records = self._slices.setdefault(batch_id, Slice(self._partition, [])).records
        self[batch_id] = records
        return records


@dataclass(slots=True)
class Reading:
    """What one stretch of the log amounts to: a micro-batch, and the records that belong elsewhere.

    ``records`` and ``lists`` go by partition; ``count`` is the number of records.
    """

    micro_batch: MicroBatch
    records: dict[int, list[FetchedRecord]]
    forwards: list[Forward] = field(default_factory=list)
    lists: dict[int, _Lists] = field(default_factory=dict)
    count: int = 0


def new_reading(topics: Topics, homes: Homes, failure_rate_limit: float = 0.5) -> Reading:
    """An empty reading, to be filled with ``take``."""
    records: dict[int, list[FetchedRecord]] = {}

    def dead_letter(partition: int, offset: int, refusal: Refused) -> DeadLetterRow:
        record = records[partition][bisect_left(records[partition], offset, key=attrgetter("offset"))]
        return dead_letter_of(record, refusal, homes.log_id)

    micro_batch = MicroBatch(topics, {}, {}, [], {}, dead_letter, failure_rate_limit)
    return Reading(micro_batch, records)


async def take(reading: Reading, records: Records, expected: Position, next_offset: int, homes: Homes) -> Position:
    """Decode records of one partition into a reading; returns where the partition then stands.

    ``records`` continue at ``expected``, where those of a take before ended; ``next_offset`` is the position behind
    them. Gives way to the flush in flight
    now and then, so that PostgreSQL is not kept waiting for its next statement.
    """
    micro_batch, partition = reading.micro_batch, expected.partition
    reading.records.setdefault(partition, []).extend(records)  # should one be refused later, its bytes are needed
    reading.count += len(records)
    traceparents = micro_batch.traceparents
    taken = dict(expected.taken)
    if (lists := reading.lists.get(partition)) is None:
        lists = reading.lists[partition] = _Lists(micro_batch.slices, homes, partition)
    received_ms: int | None = None  # a record may well have -1: no time
    received_at = datetime.min
    begin = 0
    while begin < len(records):
        if begin:
            await asyncio.sleep(0)
        end = min(begin + GIVE_WAY_EVERY, len(records))
        while (begin := take_usual(records, begin, end, lists, append_time)) < end:
            record = records[begin]
            begin += 1
            offset, timestamp, value, headers = record.offset, record.timestamp, record.value, record.headers
            if timestamp != received_ms:
                received_ms, received_at = timestamp, append_time(timestamp)
            if headers:
                if (source := forwarded_from(headers, homes.log_id)) is not None:
                    if source[1] <= taken.get(source[0], -1):
                        continue  # sent again after a failure
                    taken[source[0]] = source[1]
                if (traceparent := traceparent_of(headers)) is not None:
                    traceparents[partition, offset] = traceparent
            try:
                decoded = decode(value, offset, received_at)
            except Refused as refusal:
                micro_batch.dead_letters.append(dead_letter_of(record, refusal, homes.log_id))
                continue
            if headers and (origin := redriven_from(headers, homes.log_id)) is not None:
                decoded = _at_its_place(decoded, record, origin)
            if (to := lists[decoded[0]]) is None:
                reading.forwards.append(Forward(homes.of(decoded[0]), record))
            else:
                to.append(decoded)
    last = records[-1]
    position = Position(partition, next_offset, last.offset, last.timestamp, checksum(last), taken)
    begun_at, _ = micro_batch.advances.get(partition, (expected.next_offset, expected))
    micro_batch.advances[partition] = begun_at, position
    return position


def _at_its_place(decoded: Record, record: FetchedRecord, origin: tuple[int, int]) -> Record:
    """A redriven result with the version it had, so that it never beats a newer one.

    Versions compare on one partition only, and none is later than the record that claims it.
    """
    partition, offset = origin
    if isinstance(decoded, ItemRow) and partition == record.partition and offset < record.offset:
        return RedrivenRow.of(decoded, version=offset)
    return decoded


def dead_letter_of(record: FetchedRecord, refusal: Refused, log_id: str) -> DeadLetterRow:
    """The dead letter of a record; of a forwarded or redriven one, as it was where it was first read."""
    partition, offset, timestamp, headers = record.partition, record.offset, record.timestamp, record.headers
    if (source := forwarded_from(headers, log_id)) is not None:
        partition, offset = source
        timestamp = number_of(headers, FORWARDED_TIMESTAMP) or timestamp
        headers = [header for header in headers if header[0] not in FORWARDED]
    if (origin := redriven_from(headers, log_id)) is not None:
        partition, offset = origin
        timestamp = number_of(headers, REDRIVEN_TIMESTAMP) or timestamp
        headers = [header for header in headers if header[0] not in REDRIVEN]
    return DeadLetterRow(
        record.topic,
        partition,
        offset,
        append_time(timestamp),
        refusal.reason.value,
        refusal.message,
        refusal.batch_id,
        record.key,
        record.value,
        encoded_headers(headers),
    )


@lru_cache(1_000)
def append_time(milliseconds: int) -> datetime:
    """A record's time; producers' own clocks (``CreateTime``) may say anything, so it is kept within the calendar."""
    return _EPOCH + timedelta(milliseconds=min(max(milliseconds, 0), MAX_TIMESTAMP_MS))


def encoded_headers(headers: Sequence[tuple[str, bytes | None]]) -> str:
    """Headers as JSON: [name, base64 of the value or null] each."""
    if not headers:
        return "[]"
    return json.dumps([[name, None if value is None else base64.b64encode(value).decode()] for name, value in headers])


def decoded_headers(encoded: str) -> list[tuple[str, bytes | None]]:
    """The inverse of ``encoded_headers``."""
    if encoded == "[]":
        return []
    return [(name, None if value is None else base64.b64decode(value)) for name, value in json.loads(encoded)]
