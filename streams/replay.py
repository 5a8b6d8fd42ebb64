"""Folds the log again into a schema of its own: the workers' decoding, fold and statements, up to given offsets.

Nothing leaves: no relay reads that schema, and misplaced records are not forwarded but passed over. What the workers
have passed of those they have forwarded, so it lies at its home as well; hence a fold that ends at the workers' own
positions misses nothing, and gives what they have. Positions are the schema's own, so whoever dies can be followed.
"""

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from handlers.records import LifecycleRecord
from schemas.topics import Topics
from store import positions, shadows
from store.connection import Connection
from store.rows import Position
from streams.anchoring import LogChangedError, stored_positions
from streams.applying import Optimism, apply_reading, transaction
from streams.kafka import KafkaConnection, started
from streams.polling import Polled, Polls
from streams.portion import Portion
from streams.reading import Homes, Reading, new_reading, take

MAX_PARTITION_FETCH_BYTES = 1024 * 1024


class Replay:
    """Folds some partitions on one connection, whose search path is the schema to fold into.

    ``portion`` is how many records are read at once; where ``yields``, it is made smaller by what takes too long.
    ``only``: the batches to fold, all where it is None. Close it at the end.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        connection: Connection,
        topics: Topics,
        homes: Homes,
        *,
        portion: Portion,
        yields: bool,
        failure_rate_limit: float,
        only: Collection[str] | None = None,
    ) -> None:
        self._kafka = kafka
        self._connection = connection
        self._topics = topics
        self._homes = homes
        self._portion = portion
        self._yielding = portion if yields else None
        self._failure_rate_limit = failure_rate_limit
        self._only = only
        self._optimism = Optimism()
        self._positions: dict[int, Position] = {}
        self._first_offsets: dict[int, int] = {}
        self._consumer: Any = None
        self._polls: Any = None
        self._until_closed = AsyncExitStack()
        self._flushing: asyncio.Task[None] | None = None

    async def fold_to(self, ends: Mapping[int, int]) -> None:
        """Fold each of these partitions from where it stands in the schema up to, not including, this offset.

        Raises LogChangedError, LostRaceError (another replay works on the same schema), TooMuchError (where it
        yields), KafkaError and what PostgreSQL raises; going on later repeats nothing.
        """
        await self._begin(ends.keys() - self._positions.keys())
        pending = {partition for partition, end in ends.items() if self._positions[partition].next_offset < end}
        try:
            while pending:
                tps = [TopicPartition(self._topics.events, partition) for partition in sorted(pending)]
                polled = await self._polls.next(tps, max_records=self._portion.count)
                reading = new_reading(self._topics, self._homes, self._failure_rate_limit)
                for tp in tps:
                    await self._take(reading, tp, polled, ends[tp.partition])
                    if self._positions[tp.partition].next_offset >= ends[tp.partition]:
                        pending.discard(tp.partition)
                if reading.micro_batch.advances:
                    await self._submit(reading)
        except OffsetOutOfRangeError as error:
            raise LogChangedError(
                f"{self._topics.events}: the log no longer holds what is to be replayed ({error}): retention has"
                " deleted it meanwhile; begin anew in another schema"
            ) from None
        finally:
            await self._flushed()

    async def records_between(self, gaps: Mapping[int, tuple[int, int]]) -> dict[int, list[int]]:
        """Offsets of committed records at or behind the first and before the second offset, by partition."""
        found: dict[int, list[int]] = {}
        for partition, (start, end) in gaps.items():
            tp = TopicPartition(self._topics.events, partition)
            async for records in self._polls.between(tp, start, end):
                found.setdefault(partition, []).extend(record.offset for record in records)
            self._consumer.seek(tp, self._positions[partition].next_offset)
        return found

    async def close(self) -> None:
        """Stop reading. The connection is the caller's."""
        if self._flushing is not None:
            self._flushing.cancel()
        await self._until_closed.aclose()

    async def _begin(self, partitions: Collection[int]) -> None:
        if not partitions:
            return
        stored = await stored_positions(self._connection, self._kafka, self._topics, partitions)
        self._first_offsets |= await positions.first_offsets(self._connection, self._topics.events, sorted(partitions))
        if self._consumer is None:
            consumer = self._kafka.consumer(
                enable_auto_commit=False,
                isolation_level="read_committed",
                auto_offset_reset="none",
                max_partition_fetch_bytes=MAX_PARTITION_FETCH_BYTES,
            )
            self._consumer = await self._until_closed.enter_async_context(started(consumer))
            await asyncio.sleep(0)  # stopped before its tasks have begun, aiokafka 0.14 raises CancelledError
            self._polls = Polls(consumer)
        self._positions |= stored
        self._consumer.assign([TopicPartition(self._topics.events, partition) for partition in self._positions])
        for partition, position in self._positions.items():
            self._consumer.seek(TopicPartition(self._topics.events, partition), position.next_offset)

    async def _take(self, reading: Reading, tp: TopicPartition, polled: Polled, end: int) -> None:
        """Take what lies before the end; records behind it are read again should the end move on."""
        expected = self._positions[tp.partition]
        records, polled_to = polled.records.get(tp, []), polled.positions[tp]
        if polled_to > end:
            records = [record for record in records if record.offset < end]
            self._consumer.seek(tp, end)
            polled_to = end
        if records:
            position = await take(reading, records, expected, polled_to, self._homes)
        elif polled_to > expected.next_offset:
            position = expected._replace(next_offset=polled_to)
            reading.micro_batch.advances[tp.partition] = expected.next_offset, position
        else:
            return
        self._positions[tp.partition] = position

    async def _submit(self, reading: Reading) -> None:
        """Flush while the next records are read and decoded."""
        reading.forwards.clear()
        if self._only is not None:
            batch = reading.micro_batch
            batch.slices = {batch_id: part for batch_id, part in batch.slices.items() if batch_id in self._only}
            batch.dead_letters = [letter for letter in batch.dead_letters if letter.batch_id in self._only]
        await self._flushed()
        self._flushing = asyncio.create_task(self._flush(reading))

    async def _flushed(self) -> None:
        flushing, self._flushing = self._flushing, None
        if flushing is not None:
            await flushing

    async def _flush(self, reading: Reading) -> None:
        begun_midway = [
            batch_id
            for batch_id, part in reading.micro_batch.slices.items()
            if self._first_offsets.get(part.partition, 0) > 0 and not _opens(part.records[0])
        ]
        if not begun_midway:
            await apply_reading(self._connection, reading, self._optimism, self._yielding)
            return
        async with transaction(self._connection):
            unseen = await shadows.unknown_batches(self._connection, begun_midway)
            await apply_reading(self._connection, reading, self._optimism, self._yielding)
            await shadows.mark_incomplete(self._connection, unseen)


def _opens(record: object) -> bool:
    return isinstance(record, LifecycleRecord) and record.type == "batch.opened"
