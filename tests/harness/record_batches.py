"""Batches of records as a broker gives them, and what a consumer of ours makes of them."""

from __future__ import annotations

import struct

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from streams.fetched import FetchedRecord, _KeptRecords, _PartitionRecords

TP = TopicPartition("rollcall.events", 3)
NONE = 0
BEGUN_MS = 1_700_000_000_000

Contents = list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]]
"""Key, value and headers of records."""


def batch(
    base: int,
    records: Contents,
    *,
    compression: int = NONE,
    producer: int = -1,
    attributes: int = 0,
    begun_ms: int = BEGUN_MS,
) -> bytes:
    """A batch whose first record has the offset ``base``, and each a millisecond more than the one before."""
    builder = DefaultRecordBatchBuilder(2, compression, 0, producer, 0, 0, 1 << 30)
    for index, (key, value, headers) in enumerate(records):
        builder.append(index, begun_ms + index, key, value, headers)
    built = builder.build()
    struct.pack_into(">q", built, 0, base)
    struct.pack_into(">h", built, 21, struct.unpack_from(">h", built, 21)[0] | attributes)
    return sealed(built)


def sealed(batch: bytes | bytearray) -> bytes:
    """With the checksum that it should have."""
    changed = bytearray(batch)
    struct.pack_into(">I", changed, 17, calc_crc32c(bytes(changed[21:])))
    return bytes(changed)


def records_in(data: bytes) -> list[FetchedRecord]:
    """All records of fetched batches."""
    kept = _KeptRecords(data)
    return _PartitionRecords(TP, kept, [], 0, None, None, True, fetcher.READ_COMMITTED).take(None)
