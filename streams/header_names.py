"""Lets aiokafka's consumers read records whose header names are not UTF-8.

The protocol calls them strings, but clients exist that take any bytes; aiokafka 0.14 raises UnicodeDecodeError out of
every poll from then on, and so one such record would hold up its partition for ever. Where that happens, and only
there, the fetched batches are read again with aiokafka's slower parser, bad bytes shown as ``\\xff``.
"""

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy


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

    _records: Any
    _aborted_transactions: list[tuple[int, int]]
    _aborted_producers: set[int]

    def __init__(self, tp: Any, records: Any, aborted_transactions: Any, *others: Any) -> None:
        super().__init__(tp, records, aborted_transactions, *others)
        self._aborted_at_first = list(self._aborted_transactions)

    def _unpack_records(self) -> Iterator[Any]:
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


def tolerate_any() -> None:
    """Have every consumer of this process read such records."""
    fetcher.MemoryRecords = _KeptRecords
    fetcher.PartitionRecords = _PartitionRecords
