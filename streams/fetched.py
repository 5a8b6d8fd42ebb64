"""How aiokafka's consumers hand over what they fetched: as light records, also where a header's name isn't UTF-8.

A light record costs a quarter of aiokafka's of eleven fields, of which nobody here reads more than seven. Where
``rollcall_native`` is compiled it reads the batches, and leaves to aiokafka's parsers what they have to refuse.

The protocol calls header names strings, but clients exist that take any bytes; aiokafka 0.14 raises UnicodeDecodeError
out of every poll from then on, and so one such record would hold up its partition for ever. Where that happens, and
only there, the fetched batches end up with aiokafka's slower parser, bad bytes shown as ``\\xff``.
"""

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import msgspec
import rollcall_native
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy
from aiokafka.record.util import calc_crc32c
from rollcall_native import compiled

if TYPE_CHECKING or compiled:
    from rollcall_native.records import BatchRecords
    from rollcall_native.records import FetchedRecord as FetchedRecord
else:

    class FetchedRecord(msgspec.Struct, gc=False):
        """A record as every consumer of ours gives it; ``timestamp`` in milliseconds, -1 where it has none."""

        topic: str
        partition: int
        offset: int
        timestamp: int
        key: bytes | None
        value: bytes | None
        headers: Sequence[tuple[str, bytes]]

        @property
        def size(self) -> int:
            """Bytes of key and value."""
            return len(self.value or b"") + len(self.key or b"")


def fitting_in_python(records: list[FetchedRecord], most: int, room: int) -> tuple[int, int]:
    """How many of these go into so many records and bytes, the last of which may exceed them; and the bytes left.

    At least the first one does.
    """
    for number, record in enumerate(records, 1):
        room -= record.size
        if room <= 0 or number >= most:
            return number, room
    return len(records), room


fitting = rollcall_native.records.fitting if compiled else fitting_in_python


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


class _Header(NamedTuple):
    """The head of a batch of records (Kafka's documentation, "Record Batch")."""

    base_offset: int
    batch_length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    number: int

    @property
    def next_offset(self) -> int:
        """Behind the batch, also where compaction has removed its last record."""
        return self.base_offset + self.last_offset_delta + 1

    def has(self, attribute: int) -> bool:
        """Whether one of these bits is set."""
        return self.attributes & attribute != 0


# By the processor's own instruction; where there is no wheel that has it, an eighth as fast by aiokafka.
_crc32c = google_crc32c.value if google_crc32c.implementation == "c" else calc_crc32c

_HEADER = Struct(">qiibIhiqqqhii")
_CODEC, _HAS_APPEND_TIME, _IS_TRANSACTIONAL, _IS_CONTROL = 0x07, 0x08, 0x10, 0x20
_LENGTH_END, _CRC_END = 12, 21
_FORMAT = 2
_ALL = 2**31 - 1


def _batches(data: bytes) -> Iterator[tuple[_Header, memoryview]]:
    """Whole batches with their headers; the last may be cut off.

    Raises ValueError where one is damaged, or of an old format.
    """
    view, begin = memoryview(data), 0
    while begin + _LENGTH_END <= len(data):
        end = begin + _LENGTH_END + int.from_bytes(view[begin + 8 : begin + _LENGTH_END], signed=True)
        if end > len(data):
            return
        if end - begin < _HEADER.size:
            raise ValueError(f"a batch of {end - begin} bytes")
        header = _Header._make(_HEADER.unpack_from(data, begin))
        # Of a copy: the library takes nothing else.
        if header.magic != _FORMAT or _crc32c(data[begin + _CRC_END : end]) != header.crc:
            raise ValueError(f"the batch at {header.base_offset}")
        yield header, view[begin:end]
        begin = end


class _KeptRecords(MemoryRecords):  # type: ignore[misc]  # as above
    """Fetched batches that remember their bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # as above
    """One partition's fetched records, beginning again with a slower parser where a faster one gives up."""

    _records_iterator: Iterator[FetchedRecord]

    _tp: TopicPartition
    _records: Any
    _isolation_level: int
    _aborted_transactions: list[tuple[int, int]]
    _aborted_producers: set[int]

    def __init__(self, tp: Any, records: Any, aborted_transactions: Any, *others: Any) -> None:
        self.problem: Exception | None = None
        self._unpacking: BatchRecords | None = None
        self._resume_at = 0
        super().__init__(tp, records, aborted_transactions, *others)
        self._aborted_at_first = list(self._aborted_transactions)

    def __iter__(self) -> Iterator[FetchedRecord]:
        return self._records_iterator  # without a detour by __next__ for each

    def take(self, most: int | None) -> list[FetchedRecord]:
        """The next records, at most so many. Where one cannot be read, those before it; ``problem`` says why."""
        taken: list[FetchedRecord] = []
        try:
            for record in self._records_iterator:
                taken.append(record)
                if self._unpacking is not None:
                    # The rest of its batch without a step for each.
                    taken += self._unpacking.take(_ALL if most is None else most - len(taken))
                if most is not None and len(taken) >= most:
                    break
        except KafkaError as error:
            self.problem = error.with_traceback(None)  # whose frames hold what was fetched
        except Exception as error:
            self.problem = error
        return taken

    @property
    def next_fetch_offset(self) -> int:
        """Behind what was given out or passed over."""
        return self._next_fetch_offset if self._unpacking is None else self._unpacking.next_offset

    @next_fetch_offset.setter
    def next_fetch_offset(self, offset: int) -> None:
        self._unpacking, self._next_fetch_offset = None, offset

    def _consumer_record(self, tp: Any, record: Any) -> FetchedRecord:
        timestamp = -1 if record.timestamp is None else record.timestamp  # of the oldest format
        if not -(2**63) <= timestamp < 2**63:  # not all parsers keep sums within 64 bits
            timestamp = (timestamp + 2**63) % 2**64 - 2**63
        return FetchedRecord(tp.topic, tp.partition, record.offset, timestamp, record.key, record.value, record.headers)

    def _unpack_records(self) -> Iterator[FetchedRecord]:
        data = self._records.data
        try:
            yield from self._unpack_natively(data) if compiled else super()._unpack_records()
            return
        except ValueError:  # also UnicodeDecodeError, of headers
            pass
        if compiled:
            try:
                yield from self._unpack_again(MemoryRecords(data))
                return
            except UnicodeDecodeError:
                pass
        yield from self._unpack_again(_LenientRecords(data))

    def _unpack_again(self, records: Any) -> Iterator[FetchedRecord]:
        """From the beginning, as what is aborted is found by walking; what has been given out is passed over."""
        resume_at = self._resume_at = max(self._resume_at, self.next_fetch_offset)
        self._records = records
        self._aborted_transactions, self._aborted_producers = list(self._aborted_at_first), set()
        for record in super()._unpack_records():
            if record.offset >= resume_at:
                yield record

    def _unpack_natively(self, data: bytes) -> Iterator[FetchedRecord]:
        """Raises ValueError for whatever aiokafka's parsers have to read, or to refuse."""
        for header, part in _batches(data):
            if self._isolation_level == fetcher.READ_COMMITTED:
                self._consume_aborted_up_to(header.base_offset)
                if header.has(_IS_CONTROL) and self._contains_abort_marker(DefaultRecordBatch(part)):
                    self._aborted_producers.discard(header.producer_id)
            is_aborted = header.has(_IS_TRANSACTIONAL) and header.producer_id in self._aborted_producers
            if not header.has(_IS_CONTROL) and not is_aborted:
                self._unpacking = self._records_of(header, part)
                yield from self._unpacking
            self.next_fetch_offset = header.next_offset

    def _records_of(self, header: _Header, part: memoryview) -> "BatchRecords":
        buffer: bytes | bytearray | memoryview = part
        position = _HEADER.size
        if header.has(_CODEC):
            batch = _DefaultRecordBatchPy(part)
            batch._maybe_uncompress()
            buffer, position = batch._buffer, batch._pos
        return BatchRecords(
            self._tp.topic,
            self._tp.partition,
            buffer,
            position,
            header.number,
            header.base_offset,
            header.first_timestamp,
            header.max_timestamp if header.has(_HAS_APPEND_TIME) else None,
            self.next_fetch_offset,
        )


class _FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # as above
    """What was fetched of a partition, given out as lists."""

    _partition_records: _PartitionRecords | None

    def getall(self, max_records: int | None = None) -> list[FetchedRecord]:
        if not self.check_assignment(self._topic_partition) or self._partition_records is None:
            return []
        taken = self._partition_records.take(max_records)
        self._update_position()
        if self._partition_records.problem is not None:
            self.__class__ = _Unreadable
        elif max_records is None or len(taken) < max_records:
            self._partition_records = None
        return taken


class _Unreadable(_FetchResult):
    """What was fetched of a partition whose next record cannot be read.

    aiokafka's fetcher takes what is not of its class of results for an error: it gives out what it has of other
    partitions, and raises in a poll that has given out nothing before it. Raised by ``getall`` it cost what was.
    """

    def check_raise(self) -> None:
        assert self._partition_records is not None
        problem, self._partition_records = self._partition_records.problem, None
        assert problem is not None
        try:
            raise problem
        finally:
            del problem  # it would be in a cycle with this frame


async def poll(consumer: Any, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[FetchedRecord]]:
    """As ``getmany``; but where it would give nothing while a record cannot be read, it raises that."""
    fetched: dict[TopicPartition, list[FetchedRecord]]
    fetched = await consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)
    if not fetched and any(type(each) is _Unreadable for each in consumer._fetcher._records.values()):
        fetched = await consumer.getmany(timeout_ms=0, max_records=max_records)
    return fetched


def has_more(consumer: Any, tp: TopicPartition) -> bool:
    """Whether some of what was fetched of a partition is not given out; to be asked right behind a poll."""
    return tp in consumer._fetcher._records


def hand_over() -> None:
    """Have every consumer of this process give such records."""
    fetcher.MemoryRecords = _KeptRecords
    fetcher.PartitionRecords = _PartitionRecords
    fetcher.FetchResult = _FetchResult
