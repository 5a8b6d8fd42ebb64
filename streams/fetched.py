"""How aiokafka's consumers hand over what they fetched: as light records, also where a header's name isn't UTF-8.

A struct costs a quarter of aiokafka's record of eleven fields, of which nobody here reads more than seven.

The protocol calls header names strings, but clients exist that take any bytes; aiokafka 0.14 raises UnicodeDecodeError
out of every poll from then on, and so one such record would hold up its partition for ever. Where that happens, and
only there, the fetched batches are read again with aiokafka's slower parser, bad bytes shown as ``\\xff``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy
from msgspec import Struct


class FetchedRecord(Struct, gc=False):
    """A record as every consumer of ours gives it; ``timestamp`` in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class _LenientBytes(bytes):
    """Bytes whose slices decode whatever they hold."""

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return _LenientBytes(part) if isinstance(part, bytes) else part

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka is untyped
    _buffer: Any

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _LenientBytes(self._buffer)


class _LenientRecords(_MemoryRecordsPy):  # type: ignore[misc]  # as above
    def next_batch(self) -> Any:
        part = self._next_slice
        batch = super().next_batch()
        return _LenientBatch(part) if isinstance(batch, DefaultRecordBatch) else batch


class _KeptRecords(MemoryRecords):  # type: ignore[misc]  # as above
    """Fetched batches that remember their bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # as above
    """One partition's fetched records, beginning again with the lenient parser where the fast one gives up."""

    _records_iterator: Iterator[FetchedRecord]

    _records: Any
    _aborted_transactions: list[tuple[int, int]]
    _aborted_producers: set[int]

    def __init__(self, tp: Any, records: Any, aborted_transactions: Any, *others: Any) -> None:
        super().__init__(tp, records, aborted_transactions, *others)
        self._aborted_at_first = list(self._aborted_transactions)

    def __iter__(self) -> Iterator[FetchedRecord]:
        return self._records_iterator  # without a detour by __next__ for each

    def _consumer_record(self, tp: Any, record: Any) -> FetchedRecord:
        return FetchedRecord(
            tp.topic, tp.partition, record.offset, record.timestamp, record.key, record.value, record.headers
        )

    def _unpack_records(self) -> Iterator[FetchedRecord]:
        try:
            yield from super()._unpack_records()
        except UnicodeDecodeError:
            resume_at = self.next_fetch_offset
        else:
            return
        # From the beginning, as what is aborted is found by walking; what has been given out is passed over.
        self._records = _LenientRecords(self._records.data)
        self._aborted_transactions, self._aborted_producers = list(self._aborted_at_first), set()
        for record in super()._unpack_records():
            if record.offset >= resume_at:
                yield record


def has_more(consumer: Any, tp: TopicPartition) -> bool:
    """Whether some of what was fetched of a partition is not given out; to be asked right behind a poll."""
    return tp in consumer._fetcher._records


def hand_over() -> None:
    """Have every consumer of this process give such records."""
    fetcher.MemoryRecords = _KeptRecords
    fetcher.PartitionRecords = _PartitionRecords
