"""The supervised task that owns a worker's database connection: it flushes micro-batches, one at a time, and anchors.

It depends on no further record: a flush that failed is tried again by itself, a lost race is followed by
anchoring anew, as is a position that PostgreSQL has forgotten, and one that moves without records (transaction markers)
is written too.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from tenacity import AsyncRetrying

from handlers.microbatch import Applied
from schemas.dead_letters import Reason, Refused
from schemas.topics import Topics
from store import positions
from store.connection import Connection, Database
from store.failpoints import reach
from store.positions import LostRaceError
from store.rows import Position
from streams.anchoring import Anchors, check_gap, stored_positions
from streams.applying import (
    COMMAND_TIMEOUT_S,
    Optimism,
    TooMuchError,
    apply_reading,
    connect_to_apply,
    transaction,
)
from streams.forwarding import Forwarder
from streams.health import health
from streams.kafka import KafkaConnection
from streams.metrics import worker_metrics
from streams.portion import Portion
from streams.reading import Reading, dead_letter_of
from streams.retrying import attempts
from streams.tracing import span

IDLE_TICK_S = 0.25
COMMIT_TIMEOUT_S = 5.0
POSITION_TIMEOUT_S = 5.0
"""A position that has to be looked up anew (it was out of range) is not there while Kafka is away."""
COMMIT_EVERY_S = 1.0
LOOK_EVERY_S = 10.0

log = structlog.get_logger(__name__)


class Flusher:
    """Flushes readings and anchors partitions; ``run`` is its task, and what it raises ends the worker.

    ``portion`` is how many records a reading should hold at most.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        database: Database,
        topics: Topics,
        anchors: Anchors,
        portion: Portion,
        *,
        log_id: str,
        consumer: Callable[[], AIOKafkaConsumer | None],
        is_reading: Callable[[], bool],
        is_joined: Callable[[], bool],
    ) -> None:
        self._kafka = kafka
        self._database = database
        self._topics = topics
        self._anchors = anchors
        self._portion = portion
        self._consumer = consumer
        self._is_reading = is_reading
        self._is_joined = is_joined
        self._log_id = log_id
        self._forwarder = Forwarder(kafka, topics.events, log_id)
        self._connection: Connection | None = None
        self._submitted: tuple[Reading, int] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = False
        self._wake = asyncio.Event()
        self._never = asyncio.Event()  # it is cancelled, not asked to stop
        self._optimism = Optimism()
        self._metrics = worker_metrics()
        self._applied: dict[int, int] = {}  # the stored next offset of each partition that was ever anchored
        self._looked_at = 0.0
        self._to_commit: dict[TopicPartition, int] = {}
        self._committing: asyncio.Task[None] | None = None
        self._committed_at = 0.0

    async def submit(self, reading: Reading, epoch: int) -> bool:
        """Hand over a reading once the one before it is flushed; False where anchors were forgotten meanwhile.

        False too where nothing is flushed any more.
        """
        await self._idle.wait()
        if self._ended or epoch != self._anchors.epoch:
            return False
        self._submitted = reading, epoch
        self._idle.clear()
        self._wake.set()
        await asyncio.sleep(0)  # PostgreSQL has its first statement before more is read
        return True

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def wake(self) -> None:
        """Look around now: the assignment has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Flush and anchor until cancelled. Raises LogChangedError, WrongSchemaError and what is a bug."""
        try:
            while True:
                health.beat("flush")
                await self._await_work()
                if self._submitted is not None:
                    await self._flush_submitted(*self._submitted)
                else:
                    await self._anchor()
                    await self._follow_markers()
                await self._notice_forgotten()
                self._commit_to_kafka()
        finally:
            self._ended = True
            await self._close()
            health.end("flush")

    async def _flush_submitted(self, reading: Reading, epoch: int) -> None:
        """Nothing keeps the reading behind it, nor what its records were fetched in."""
        try:
            traces = reading.micro_batch.traceparents
            with span("micro-batch", traces.values, batches=len(reading.micro_batch.slices)):
                await self._flush(reading, epoch)
        finally:
            self._submitted = None
            self._idle.set()

    async def _await_work(self) -> None:
        try:
            async with asyncio.timeout(IDLE_TICK_S):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _flush(self, reading: Reading, epoch: int) -> None:
        """Forward what is misplaced and commit the micro-batch, however long it takes; or learn that it isn't ours.

        What failed is not tried again once anchors are forgotten: it may be another worker's by now, and what keeps it
        from being done must not keep this one from what it was given instead. Where it is ours it is read again.
        """
        reach("read.after")
        started, forwarded = time.perf_counter(), len(reading.forwards)
        async for attempt in self._attempts("flush"):
            with attempt:
                if attempt.retry_state.attempt_number > 1 and epoch != self._anchors.epoch:
                    log.warning("a flush that failed is given up: partitions were assigned anew")
                    return
                try:
                    await self._forward(reading)
                    applied = await self._apply(reading)
                except LostRaceError as lost:
                    self._metrics.lost_races.inc()
                    log.warning("lost a race, reading again from the stored positions", reason=str(lost))
                    self._anchors.forget()
                    return
                except TooMuchError as error:
                    log.warning("a flush took too long, reading less at once", reason=str(error))
                    self._disconnect()
                    self._anchors.forget()
                    return
        log.debug(
            "flushed",
            dispositions={str(key): count for key, count in applied.dispositions.items()},
            dead_letters=len(applied.dead_letters),
            events=len(applied.events),
        )
        self._note_flushed(reading.micro_batch.advances.values())
        self._metrics.note_flushed(
            applied,
            records=reading.count,
            forwarded=forwarded,
            seconds=time.perf_counter() - started,
        )

    async def _forward(self, reading: Reading) -> None:
        """Must be acknowledged before the positions behind these records are committed."""
        refused = await self._forwarder.send(reading.forwards)
        reading.forwards.clear()
        for _, record in refused:
            refusal = Refused(Reason.TOO_LARGE, "came to a wrong partition and is too large to be forwarded")
            reading.micro_batch.dead_letters.append(dead_letter_of(record, refusal, self._log_id))

    async def _apply(self, reading: Reading) -> Applied:
        connection, patience = await self._connected(), self._portion.patience
        if patience > 1:
            health.wait("flush")  # for PostgreSQL, longer than a loop may take but not for ever
        applied = await apply_reading(connection, reading, self._optimism, self._portion)
        if self._portion.patience != patience:
            self._disconnect()  # its limits are too wide from now on
        return applied

    async def _anchor(self) -> None:
        """Seek the stored position of every assigned partition that has no anchor."""
        consumer = self._consumer()
        if consumer is None:
            return
        async for attempt in self._attempts("anchor"):
            with attempt:
                await self._anchor_assigned(consumer)

    async def _anchor_assigned(self, consumer: AIOKafkaConsumer) -> None:
        """Once. What is assigned is looked up here: what one attempt waits for may be another worker's by the next."""
        epoch = self._anchors.epoch
        partitions = {tp.partition for tp in consumer.assignment()} - self._anchors.by_partition.keys()
        if not partitions:
            return
        stored = await stored_positions(await self._connected(), self._kafka, self._topics, partitions)
        # No await from here on: what is sought is what is anchored.
        if epoch != self._anchors.epoch:
            self._wake.set()
            return
        try:
            for partition, position in stored.items():
                consumer.seek(TopicPartition(self._topics.events, partition), position.next_offset)
                self._anchors.by_partition[partition] = position
                self._applied[partition] = position.next_offset
        except IllegalStateError:
            self._anchors.forget()
            return
        self._looked_at = time.monotonic()
        log.info("anchored", positions={partition: position.next_offset for partition, position in stored.items()})

    async def _notice_forgotten(self) -> None:
        """Anchor anew where PostgreSQL no longer holds what it did: a crash or a failover took the last commits back.

        The compare-and-set of the next record would say so, but on a quiet partition none may ever come.
        """
        anchored, now = list(self._anchors.by_partition), time.monotonic()
        if not anchored or now - self._looked_at < LOOK_EVERY_S:
            return
        async for attempt in self._attempts("looking at the stored positions"):
            with attempt:
                connection = await self._connected()
                # That of a connection with patience is longer than a loop may take.
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    stored = await positions.load(connection, self._topics.events, anchored)
        self._looked_at = now
        behind = [each for each in anchored if each not in stored or stored[each].next_offset < self._applied[each]]
        if behind:
            log.warning("PostgreSQL has lost what it had applied, reading it again", partitions=behind)
            self._anchors.forget()

    async def _follow_markers(self) -> None:
        """Where the consumer has moved on without a record, there was none to see (markers, aborted records)."""
        consumer = self._consumer()
        if consumer is None or not self._anchors.by_partition:
            return
        epoch, advances = self._anchors.epoch, []
        for partition, position in list(self._anchors.by_partition.items()):
            # Nothing suspends between a poll's return and the parser that sets is_reading: a position that is
            # ahead while nobody is reading has no record behind it.
            if self._is_reading():
                return
            tp = TopicPartition(self._topics.events, partition)
            try:
                async with asyncio.timeout(POSITION_TIMEOUT_S):
                    next_offset = await consumer.position(tp)
                if next_offset > position.next_offset:
                    # Where records were deleted, the consumer goes to the log's start: that moves it on as well.
                    await check_gap(consumer, tp, position.next_offset)
                    advances.append((position.next_offset, position._replace(next_offset=next_offset)))
            except (KafkaError, TimeoutError):
                return
        if not advances:
            return
        stands = all(self._anchors.by_partition.get(new.partition, new).next_offset == old for old, new in advances)
        if self._is_reading() or epoch != self._anchors.epoch or not stands:
            return
        self._anchors.by_partition.update({position.partition: position for _, position in advances})
        async for attempt in self._attempts("follow markers"):
            with attempt:
                try:
                    connection = await self._connected()
                    async with transaction(connection):
                        await positions.compare_and_set(connection, self._topics.events, advances)
                except LostRaceError:
                    self._anchors.forget()
                else:
                    self._note_flushed(advances)

    def _note_flushed(self, advances: Iterable[tuple[int, Position]]) -> None:
        for _, position in advances:
            self._applied[position.partition] = position.next_offset
            self._to_commit[TopicPartition(self._topics.events, position.partition)] = position.next_offset

    def _commit_to_kafka(self) -> None:
        """Let lag tools see the positions; nothing depends on it, so it is neither awaited nor repeated."""
        now = asyncio.get_running_loop().time()
        busy = self._committing is not None and not self._committing.done()
        if self._to_commit and not busy and now - self._committed_at >= COMMIT_EVERY_S:
            self._committed_at = now
            self._committing = asyncio.create_task(self.commit_now())

    async def commit_now(self) -> None:
        """Commit the flushed positions to Kafka, as far as it takes them within a few seconds.

        Not while the group rebalances: the broker would answer only behind the JoinGroup on the same connection, refuse
        the generation before, and aiokafka would then join anew, as somebody else. With members that have died each
        rebalance takes long enough for the next such commit, and none lets their sessions time out.
        """
        consumer, offsets = self._consumer(), self._to_commit
        if consumer is None or not self._is_joined():
            return
        offsets = {tp: offset for tp, offset in offsets.items() if tp in consumer.assignment()}
        self._to_commit = {}
        if not offsets:
            return
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                reach("kafka_commit.before")
                await consumer.commit(offsets)
                reach("kafka_commit.after")
        except (TimeoutError, KafkaError) as error:
            log.debug("offsets not committed to Kafka", error=repr(error))
            # Nothing may come for a long time: without another try lag tools would show what has long been applied.
            self._to_commit = offsets | self._to_commit

    async def finish_commit(self) -> None:
        """Wait until no commit to Kafka is under way, as long as one may take."""
        if self._committing is not None:
            await asyncio.wait({self._committing})

    def _attempts(self, doing: str) -> AsyncRetrying:
        return attempts(f"{doing} failed, trying again", self._never, self._disconnect)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            connection = await connect_to_apply(self._database, "worker", self._portion.patience)
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        """Drop a connection that may be broken, without waiting for it."""
        health.beat("flush")  # waiting for a server that is away is no standstill
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def _close(self) -> None:
        if self._committing is not None:
            self._committing.cancel()
        await self._forwarder.close()
        self._disconnect()
