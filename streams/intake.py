"""The subscriber: reads ``rollcall.events`` as a consumer group and hands micro-batches to the flusher.

FastStream asks ``_polled`` in its own poll's place and calls ``_handle`` with the raw records of one poll
(``streams.fetched``; by a parser and decoder of our own: its own cost more than everything else together), which takes
them and what else has been fetched by then. While one micro-batch is flushed, the next is read and decoded, in pieces:
PostgreSQL is not to wait for its next statement.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import ConsumerStoppedError, IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from schemas.topics import Topics
from store.connection import Database
from store.failpoints import reach
from streams.anchoring import Anchors, check_gap
from streams.coverage import keep_all_read
from streams.fetched import fitting, has_more, poll
from streams.flushing import POSITION_TIMEOUT_S, Flusher
from streams.health import NotReadyError, health
from streams.kafka import REQUEST_TIMEOUT_MS, KafkaConnection
from streams.kafka import stop as stop_client
from streams.metrics import worker_metrics
from streams.portion import Portion
from streams.reading import Homes, Reading, Records, new_reading, take
from streams.retrying import end

MAX_MICRO_BATCH_BYTES = 4 * 1024 * 1024
"""A micro-batch has about so many bytes of keys and values at most, and holds what they were fetched in (of a partition
a fetch or two; of what is compressed, such batches of the producer's): that bounds a worker's memory."""
POLLED_AT_ONCE = 1024
"""Records: what a poll returns is parsed in one go."""
MAX_PARTITION_FETCH_BYTES = 1024 * 1024
SESSION_TIMEOUT_MS = 10_000
HEARTBEAT_INTERVAL_MS = 500
"""Members learn of a rebalance by their next heartbeat."""
REBALANCE_TIMEOUT_MS = 5_000
"""A rebalance waits that long for a member that has died and is not yet given up, and nobody reads meanwhile."""
DRAIN_TIMEOUT_S = 7.0
POLL_FAILURE_LIMIT_S = 60.0
"""Polls that have only failed for so long fail for ever: aiokafka keeps a failed heartbeat and raises it at each."""

Parts = list[tuple[int, Records]]
"""A poll's records by partition."""

log = structlog.get_logger(__name__)


class Intake(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """One worker's reading side. ``homes`` knows the partition count stored at the first start.

    ``slot`` names a place in the installation that a restarted worker takes up again without a rebalance; no two
    workers may share one.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        database: Database,
        topics: Topics,
        homes: Homes,
        *,
        slot: str | None,
        max_records: int,
        batch_timeout_ms: int,
        failure_rate_limit: float = 0.5,
    ) -> None:
        self._failure_rate_limit = failure_rate_limit
        self._portion = Portion(max_records)
        self._batch_timeout_ms = batch_timeout_ms
        self._kafka = kafka
        self._topics = topics
        self._homes = homes
        self._anchors = Anchors()
        self._reading = False
        self._joined = False
        self._stopping = False
        self._failing_since: float | None = None
        self._poll_failure: Exception | None = None
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flusher = Flusher(
            kafka,
            database,
            topics,
            self._anchors,
            self._portion,
            log_id=homes.log_id,
            consumer=lambda: self._subscriber.consumer,
            is_reading=lambda: self._reading,
            is_joined=lambda: self._joined,
        )
        self._broker = KafkaBroker(
            kafka.bootstrap_servers.split(","),
            security=kafka.faststream_security(),
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            client_id=f"rollcall-worker-{slot}" if slot else "rollcall-worker",
            consumer_only=True,
            allow_auto_create_topics=False,
            apply_types=False,
            logger=None,
            graceful_timeout=DRAIN_TIMEOUT_S,
        )
        self._subscriber = self._broker.subscriber(
            topics.events,
            batch=True,
            group_id=topics.consumer_group,
            group_instance_id=f"{topics.consumer_group}-{slot}" if slot else None,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.MANUAL,
            max_partition_fetch_bytes=MAX_PARTITION_FETCH_BYTES,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            listener=self,
            parser=self._parse,
            decoder=_raw_parts,
        )
        self._subscriber(self._handle)
        # FastStream's own sleeps after each empty poll, and makes one tuple of all partitions' records.
        self._subscriber.get_msg = self._polled  # type: ignore[assignment, method-assign]

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Read until ``stop`` is set, then drain; ``ready`` is called when the subscription has begun.

        Raises LogChangedError, WrongSchemaError, and whatever else ends a worker for good.
        """
        flushing = asyncio.create_task(self._flusher.run(), name="flusher")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        # It waits for a first assignment, for as long as Kafka is away or the group settles: each request for it has a
        # time-out and is made anew, so a limit of ours would only end workers that an outage keeps waiting.
        starting = asyncio.create_task(self._broker.start(), name="start")
        covering = asyncio.create_task(keep_all_read(self._kafka, self._topics, self._consumer, stop), name="coverage")
        try:
            ends: set[asyncio.Future[Any]] = {flushing, covering, stopped, self._failed}
            await asyncio.wait({starting, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                ready()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            self._stopping = True
            if not flushing.done() and not self._failed.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_TIMEOUT_S):
                        await self._flusher.drain()
                        await self._flusher.commit_now()
            for ended in (flushing, covering, self._failed):
                if ended.done():
                    ended.result()
        finally:
            self._stopping = True
            health.end("read")
            await end(starting, stopped, flushing, covering)
            await stop_client(self._broker)

    async def check_assigned(self) -> None:
        """Raise NotReadyError until this worker has joined the group and may work on what it was given there."""
        if not self._joined:
            raise NotReadyError("has not joined the group of the workers yet")
        waiting = {tp.partition for tp in self._consumer().assignment()} - self._anchors.by_partition.keys()
        if waiting:
            raise NotReadyError(f"not anchored yet: partitions {', '.join(map(str, sorted(waiting)))}")

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Forget; the flush in flight may well commit, which the compare-and-set makes harmless."""
        self._joined = False
        self._anchors.forget()
        health.wait("read")  # the poll that is under way may go on to wait for the group, too
        await self._flusher.finish_commit()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Forget (aiokafka has just put every position back to the committed one), and have them anchored."""
        self._anchors.forget()  # first: aiokafka would only log what the rest may raise
        self._joined = True
        self._flusher.wake()
        worker_metrics().note_assigned(tp.partition for tp in assigned)

    async def _polled(self, consumer: Any) -> Parts:
        """The poll that FastStream waits for. Raises what one in between failed with."""
        failure, self._poll_failure = self._poll_failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it would be in a cycle with this frame
        return await self._poll(consumer, timeout_ms=self._batch_timeout_ms, most=self._portion.count)

    async def _poll(self, consumer: Any, *, timeout_ms: int, most: int) -> Parts:
        """One poll. Where it fails on one partition (a corrupt record), it has taken nothing of others.

        FastStream repeats it after Kafka's failures, without a word, until they have lasted too long; after any other
        its loop would end. While Kafka is away a poll does not fail, it only waits.
        """
        # Until the group has settled a poll waits, however long Kafka is away.
        (health.beat if self._joined else health.wait)("read")
        reach("read.before")
        try:
            fetched = await poll(consumer, timeout_ms=timeout_ms, max_records=min(most, POLLED_AT_ONCE))
        except BaseException as error:
            self._anchors.forget()
            if isinstance(error, KafkaError):
                self._note_poll_failed(error)
            elif isinstance(error, Exception) and not isinstance(error, ConsumerStoppedError):
                self._fail(error)
            raise
        self._failing_since = None
        return [(tp.partition, records) for tp, records in fetched.items()]

    def _note_poll_failed(self, error: KafkaError) -> None:
        log.warning("a poll failed, trying again", error=repr(error))
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since >= POLL_FAILURE_LIMIT_S:
            self._fail(KafkaError(f"every poll failed for {POLL_FAILURE_LIMIT_S:g} s: {error!r}"))

    async def _parse(self, parts: Parts) -> KafkaMessage:
        """Marks that a poll has returned; see ``Flusher._follow_markers``. Nothing may suspend before it."""
        self._reading = True
        _, records = parts[0]
        return KafkaMessage(
            raw_message=tuple(records), body=parts, consumer=self._consumer(), message_id="-", correlation_id="-"
        )

    async def _handle(self, parts: Parts) -> None:
        """Take one poll's records; what goes wrong for good ends the worker (FastStream would swallow it)."""
        try:
            if self._stopping:
                self._anchors.forget()  # the consumer has moved on behind records that nobody takes
            else:
                await self._take(parts)
        except Exception as error:
            self._anchors.forget()
            if isinstance(error, KafkaError | TimeoutError):
                log.warning("reading failed, anchoring anew", error=repr(error))
            else:
                self._fail(error)
        finally:
            self._reading = False

    async def _take(self, parts: Parts) -> None:
        """Take one poll's records, and then whatever has been fetched, in micro-batches as large as they may be."""
        epoch = self._anchors.epoch
        reading, room = self._new_reading(), MAX_MICRO_BATCH_BYTES
        begun: set[int] = set()
        while parts:
            going_on, begun = begun, self._begun(parts)
            ends = await self._ends(parts)
            while parts:
                some, parts, room = _cut(parts, self._portion.count - reading.count, room)
                for partition, part in some:
                    await self._take_partition(reading, partition, part, ends, epoch, going_on)
                if epoch != self._anchors.epoch:
                    return
                if room <= 0 or reading.count >= self._portion.count:
                    if not await self._hand_over(reading, epoch):
                        return
                    reading, room = self._new_reading(), MAX_MICRO_BATCH_BYTES
            if self._stopping:
                break
            await asyncio.sleep(0)
            if epoch != self._anchors.epoch:
                return
            try:
                # The portion may have become smaller than what was taken.
                most = max(1, self._portion.count - reading.count)
                parts = await self._poll(self._consumer(), timeout_ms=0, most=most)
            except (KafkaError, ConsumerStoppedError) as error:
                # What was taken before it is ours as before. FastStream is to wait before it polls again.
                # Its frames hold the reading.
                self._poll_failure, epoch = error.with_traceback(None), self._anchors.epoch
                break
            if epoch != self._anchors.epoch:
                self._anchors.forget()  # what was polled may lie behind the positions sought meanwhile
                return
        await self._hand_over(reading, epoch)

    def _begun(self, parts: Parts) -> set[int]:
        """The anchored partitions of the poll just made of whose records fetched together some are to follow."""
        consumer, anchored = self._consumer(), self._anchors.by_partition
        return {
            partition for partition, _ in parts if partition in anchored and has_more(consumer, self._tp(partition))
        }

    def _new_reading(self) -> Reading:
        return new_reading(self._topics, self._homes, self._failure_rate_limit)

    async def _hand_over(self, reading: Reading, epoch: int) -> bool:
        """Have a reading flushed; False where it is not ours any more."""
        if not reading.micro_batch.advances:
            return True
        health.wait("read")
        return await self._flusher.submit(reading, epoch)

    async def _take_partition(
        self,
        reading: Reading,
        partition: int,
        part: Records,
        ends: dict[int, tuple[int, int]],
        epoch: int,
        going_on: set[int],
    ) -> None:
        """``going_on`` are partitions whose records were fetched together with those taken before."""
        expected = self._anchors.by_partition.get(partition)
        if expected is None or partition not in ends or epoch != self._anchors.epoch:
            return  # not anchored (yet): read again from the stored position
        first, last = part[0].offset, part[-1].offset
        last_polled, polled_to = ends[partition]
        if first < expected.next_offset or polled_to <= last_polled:
            # Read before a seek took hold, or the log is another one: anchoring finds out.
            self._anchors.forget()
            return
        if first > expected.next_offset and partition not in going_on:
            # Markers and aborted records leave holes too, within what was fetched together no others.
            await check_gap(self._consumer(), self._tp(partition), expected.next_offset)
            if epoch != self._anchors.epoch:
                return
        next_offset = polled_to if last == last_polled else last + 1
        position = await take(reading, part, expected, next_offset, self._homes)
        if epoch == self._anchors.epoch:
            self._anchors.by_partition[partition] = position

    async def _ends(self, parts: Parts) -> dict[int, tuple[int, int]]:
        """The last offset polled and the consumer's position, of the partitions that are still ours."""
        consumer = self._consumer()
        ends: dict[int, tuple[int, int]] = {}
        for partition, part in parts:
            if partition in self._anchors.by_partition:
                with contextlib.suppress(IllegalStateError):
                    async with asyncio.timeout(POSITION_TIMEOUT_S):
                        position = await consumer.position(self._tp(partition))
                    ends[partition] = (part[-1].offset, position)
        return ends

    def _fail(self, error: Exception) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topics.events, partition)

    def _consumer(self) -> Any:
        consumer: Any = self._subscriber.consumer
        if consumer is None:
            raise KafkaError("the consumer is stopped")
        return consumer


async def _raw_parts(message: Any) -> Any:
    """The decoder: hands the records over as they are."""
    return message.body


def _cut(parts: Parts, most: int, room: int) -> tuple[Parts, Parts, int]:
    """What of a poll goes into so many records and bytes (the last one may exceed them); the rest; the bytes left."""
    for number, (partition, part) in enumerate(parts):
        count, room = fitting(part, most, room)
        most -= count
        if room <= 0 or most <= 0:
            rest = [(partition, part[count:])] if count < len(part) else []
            return [*parts[:number], (partition, part[:count])], [*rest, *parts[number + 1 :]], room
    return parts, [], room
