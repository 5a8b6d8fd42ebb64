"""The relay: from the outbox to Kafka, once (docs/delivery-guarantees.md, 6).

One leader publishes. Its transactional producer fences any predecessor and settles what that had open; only then
is what is on the topics compared with the outbox, up to the high watermark, so nothing a predecessor has sent is
missed; only then does it publish. Whatever leaves doubt about a transaction's outcome begins this again.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Generic, NoReturn, TypeAlias

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from schemas.topics import Topics, key_hash
from store import leadership, outbox, positions
from store.connection import BY_KEY, SERVING, Connection, Database
from store.failpoints import reach
from streams.channels import Acknowledged, Channel, DeadLetters, Events, Outgoing, Row
from streams.health import health
from streams.kafka import TOO_LARGE, KafkaConnection, high_watermarks, started
from streams.kafka import stop as stop_client
from streams.leading import Duty, lead
from streams.metrics import relay_metrics
from streams.portion import Portion
from streams.retrying import attempts
from streams.topics import UnusableTopicError, ensure_some
from streams.tracing import span

ROUND_BYTES = 4 * 1024 * 1024
"""A round of about so many bytes of values, whatever its rows are: it bounds the relay's memory."""
SINGLY = 20
TRANSACTION_TIMEOUT_S = 10.0
MAX_PATIENCE = 4
"""Times the usual; for longer aiokafka waits for no answer, and a connection that is dead is to be given up."""
COMMAND_TIMEOUT_S = 15.0
POSITION_TIMEOUT_S = 10.0
REPORT_EVERY_S = 10.0
PRODUCE_BATCH_BYTES = 64 * 1024
HASHED_BYTES = 1024
"""Of a key: more than any batch id has. A foreign one may have a megabyte, which takes seconds."""
MAX_SENT_BYTES = 64 * 1024 * 1024
"""Of one record; a broker breaks the connection off at 100 MiB (``socket.request.max.bytes``), and would for ever."""
MAX_COMPRESSED_BYTES = 8 * 1024 * 1024
"""Of one record; that takes up to a second, in which nothing else in this process happens."""

_Place: TypeAlias = tuple[TopicPartition, int]

log = structlog.get_logger(__name__)


async def run(
    kafka: KafkaConnection, database: Database, topics: Topics, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Lead when nobody else does, and publish, until ``stop`` is set. Raises WrongSchemaError and what is a bug."""

    def duties() -> list[Duty]:
        channels: list[Channel[Any]] = [Events(topics), DeadLetters(topics)]
        return [Publisher(kafka, database, channel).run(stop) for channel in channels]

    await lead("relay", database, topics, stop, ready, duties)


class _PutAsideError(KafkaError):  # type: ignore[misc]  # aiokafka is untyped
    """What the broker refused is out of the way; the rest goes out by a new producer."""


class Publisher(Generic[Row]):
    """Publishes one channel. What it marks is in Kafka, and what is in Kafka it marks before it publishes anything."""

    def __init__(self, kafka: KafkaConnection, database: Database, channel: Channel[Row]) -> None:
        self._kafka = kafka
        self._database = database
        self._channel = channel
        self._singly = 0
        self._ends: dict[TopicPartition, int] = {}
        self._portion = Portion(channel.round_rows)
        self._loop = f"publish {channel.name}"

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop`` is set, beginning anew after every failure that may pass."""
        async for attempt in attempts(f"{self._loop} failed, beginning anew", stop):
            with attempt:
                health.beat(self._loop)
                connection = await self._database.connect(
                    f"relay {self._channel.name}",
                    command_timeout=COMMAND_TIMEOUT_S * self._patience,
                    **BY_KEY,
                    **SERVING,
                )
                producer: AIOKafkaProducer | None = None
                reach("relay.start")
                try:
                    await self._ensure_outputs()
                    health.beat(self._loop)
                    producer = await self._fencing_producer(connection)
                    reach("read_back.before")
                    await self._read_back(connection)
                    reach("read_back.after")
                    while not stop.is_set():
                        health.beat(self._loop)
                        # A round that worked ends the backoff: the next failure waits little again.
                        if await self._publish_round(connection, producer):
                            attempt.retry_state.attempt_number = 1
                        else:
                            await asyncio.sleep(self._channel.poll_s)
                except _PutAsideError:
                    attempt.retry_state.attempt_number = 1  # so does one that is rid of what is refused
                    raise
                finally:
                    health.end(self._loop)
                    connection.terminate()
                    if producer is not None:
                        await stop_client(producer)

    @property
    def _patience(self) -> int:
        return min(self._portion.patience, MAX_PATIENCE)

    @property
    def _transaction_timeout_s(self) -> float:
        return TRANSACTION_TIMEOUT_S * self._patience

    async def _ensure_outputs(self) -> None:
        """Before the first step: somebody may have deleted a topic. What cannot be created here is waited for."""
        try:
            await ensure_some(self._kafka, self._channel.topics, self._channel.output_topics())
        except UnusableTopicError as error:
            log.error(str(error))
        except (KafkaError, OSError, TimeoutError) as error:
            # It is asked of any one broker, which may be the one that is away. What is missing shows at the next step.
            log.warning("output topics not looked at", error=repr(error))

    async def _fencing_producer(self, connection: Connection) -> AIOKafkaProducer:
        """The first step: from here on no predecessor can commit a transaction; an open one of its is aborted."""
        database_name = await leadership.database_name(connection)
        producer = self._kafka.producer(
            transactional_id=self._channel.topics.relay_transactional_id(self._channel.name, database_name),
            transaction_timeout_ms=int(self._transaction_timeout_s * 1000),
            max_batch_size=PRODUCE_BATCH_BYTES,
        )
        try:
            # It waits for the broker to end a predecessor's transaction.
            async with asyncio.timeout(3 * TRANSACTION_TIMEOUT_S):
                await producer.start()
        except BaseException:
            await stop_client(producer)
            raise
        return producer

    async def _read_back(self, connection: Connection) -> None:
        """The second step: mark everything that is on the topics, up to their high watermarks as of now."""
        topics = self._channel.output_topics()
        # Of a read_uncommitted reader: what is open counts too, and must be waited for.
        ends = await high_watermarks(self._kafka, topics)
        consumer = self._kafka.consumer(
            enable_auto_commit=False, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        async with started(consumer):
            pending = await self._seek_known(connection, consumer, ends)
            reported = time.monotonic()
            while pending:
                health.beat(self._loop)
                found = await consumer.getmany(*pending, timeout_ms=200, max_records=self._portion.count)
                records = [record for part in found.values() for record in part]
                read = await self._positions(consumer, pending)
                if records:
                    with self._noting_too_much(len(records)):
                        await self._channel.mark_found(connection, records)
                        await self._note_known(connection, read)  # whatever comes, this far it is not read again
                    self._portion.fitted()
                pending = {tp for tp in pending if read[tp] < ends[tp]}
                if pending and time.monotonic() - reported > REPORT_EVERY_S:
                    reported = time.monotonic()
                    log.warning(
                        "reading back waits (for a foreign open transaction?)", partitions=sorted(map(str, pending))
                    )
                    await self._check_ends(topics, pending, ends)
        await self._note_known(connection, ends)
        self._ends = ends

    async def _check_ends(
        self, topics: Sequence[str], pending: Iterable[TopicPartition], ends: Mapping[TopicPartition, int]
    ) -> None:
        """Raise KafkaError where a log does not go as far any more as is waited for: nobody else makes it longer."""
        now = await high_watermarks(self._kafka, topics)
        if shorter := [str(tp) for tp in pending if now.get(tp, 0) < ends[tp]]:
            raise KafkaError(f"{', '.join(shorter)}: was deleted or truncated while it was read back")

    async def _positions(self, consumer: Any, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Not a record's offset: logs end with markers, and hold aborted records."""
        async with asyncio.timeout(POSITION_TIMEOUT_S):
            return {tp: await consumer.position(tp) for tp in partitions}

    async def _seek_known(
        self, connection: Connection, consumer: Any, ends: dict[TopicPartition, int]
    ) -> set[TopicPartition]:
        """Position the consumer behind what is known; returns the partitions that have something to read."""
        consumer.assign(list(ends))
        starts = await consumer.beginning_offsets(list(ends))
        # What is known is so by its marks: should all of them be lost, nothing is known, whatever the positions say.
        has_marks = await outbox.has_marks(connection, self._channel.table)
        pending: set[TopicPartition] = set()
        for topic in {tp.topic for tp in ends}:
            numbers = [tp.partition for tp in ends if tp.topic == topic]
            known = await positions.load(connection, topic, numbers) if has_marks else {}
            for number in numbers:
                tp = TopicPartition(topic, number)
                start = known[number].next_offset if number in known else starts[tp]
                if start > ends[tp]:
                    log.warning("an output topic is shorter than it was; reading all of it", partition=str(tp))
                    start = starts[tp]
                    # Else a backup restored later would have it that the new log is known up to where the old one was.
                    await positions.forget_known(connection, topic, {number: start})
                consumer.seek(tp, max(start, starts[tp]))
                if start < ends[tp]:
                    pending.add(tp)
        return pending

    async def _publish_round(self, connection: Connection, producer: AIOKafkaProducer) -> int:
        """And then again and again: publish what is next in one transaction and mark it; returns how many rows."""
        started = time.perf_counter()
        at_once = min(SINGLY, self._portion.count) if self._singly else self._portion.count
        with self._noting_too_much(at_once):
            rows = await self._channel.unpublished(connection, at_once, ROUND_BYTES)
        if not rows:
            return 0
        with span(f"publish {self._channel.name}", lambda: self._channel.traceparents(rows), records=len(rows)):
            await self._publish_rows(connection, producer, rows)
        relay_metrics().note_round(self._channel.name, rows, seconds=time.perf_counter() - started)
        return len(rows)

    async def _publish_rows(self, connection: Connection, producer: AIOKafkaProducer, rows: Sequence[Row]) -> None:
        began = time.monotonic()
        health.beat(self._loop)
        with self._noting_too_much(len(rows)):
            sent, refused = await self._send(producer, rows)
        if refused:
            await self._set_aside(connection, rows, refused)
        self._singly = max(0, self._singly - len(rows))
        now = datetime.now(UTC)
        published = [Acknowledged(row, tp.partition, offset, now) for row, (tp, offset) in zip(rows, sent, strict=True)]
        reach("mark.before")
        ends: dict[TopicPartition, int] = {}
        for tp, offset in sent:
            ends[tp] = max(ends.get(tp, 0), offset + 1)
        health.beat(self._loop)
        with self._noting_too_much(len(rows)):
            async with connection.transaction():
                # Positions first, as workers do: a promotion locks the tables in that order.
                await self._note_known(connection, ends)
                await self._channel.mark_published(connection, published)
        self._portion.fitted((time.monotonic() - began) / self._transaction_timeout_s)
        reach("mark.after")
        if shorter := [str(tp) for tp, end in ends.items() if end <= self._ends.get(tp, 0)]:
            raise KafkaError(f"{', '.join(shorter)}: was deleted or truncated while we published, so all of it is read")
        self._ends |= ends

    @contextmanager
    def _noting_too_much(self, count: int) -> Iterator[None]:
        """What a slow server does not take in its time it will not take the next time either."""
        try:
            yield
        except (TimeoutError, KafkaTimeoutError):
            self._portion.too_much(count)
            raise

    async def _send(
        self, producer: AIOKafkaProducer, rows: Sequence[Row]
    ) -> tuple[list[_Place], dict[int, KafkaError]]:
        """Send rows in one transaction; returns where each is, or which the broker refuses (none is sent then).

        Whatever it raises or refuses, the producer is to be thrown away.
        """
        async with asyncio.timeout(self._transaction_timeout_s):
            await producer.begin_transaction()
            reach("send.before")
            places: dict[int, _Place] = {}
            refused: dict[int, KafkaError] = {}
            outgoing = [self._channel.outgoing(row) for row in rows]
            parts = await _by_partition(producer, outgoing)
            sending = [self._send_part(producer, tp, part, places, refused) for tp, part in parts.items()]
            await asyncio.gather(*sending)
            if refused:
                return [], refused
            reach("send.after")
            reach("relay.commit.before")
            await producer.commit_transaction()
            reach("relay.commit.after")
        return [places[index] for index in range(len(rows))], {}

    async def _send_part(
        self,
        producer: AIOKafkaProducer,
        tp: TopicPartition,
        part: Sequence[tuple[int, Outgoing]],
        places: dict[int, _Place],
        refused: dict[int, KafkaError],
    ) -> None:
        """Send one partition's records in produce batches; notes at which offset each is, or that it is refused."""
        for batch, indexes in _single_batches(part) if self._singly else _batches(producer, part):
            try:
                if batch.size() > MAX_SENT_BYTES:
                    raise MessageSizeTooLargeError("larger than any broker takes")
                acknowledged = await (await producer.send_batch(batch, tp.topic, partition=tp.partition))
            except TOO_LARGE as error:
                refused.update(dict.fromkeys(indexes, error))
                return
            places.update((index, (tp, acknowledged.offset + number)) for number, index in enumerate(indexes))

    async def _set_aside(self, connection: Connection, rows: Sequence[Row], refused: dict[int, KafkaError]) -> NoReturn:
        """Rows refused together are sent again, each alone and compressed; one refused even then is put aside.

        Raises the refusal, or _PutAsideError: the producer is of no use any more.
        """
        if not self._singly:
            self._singly = len(rows)
            raise next(iter(refused.values()))
        for index, error in refused.items():
            why = f"{type(error).__name__}: {error}"
            log.error("the broker refuses a record for good, put aside", channel=self._channel.name, why=why)
            async with connection.transaction():
                await self._channel.quarantine(connection, rows[index], why)
            relay_metrics().quarantined.labels(self._channel.name).inc()
        raise _PutAsideError(f"{len(refused)} records were put aside")

    async def _note_known(self, connection: Connection, ends: dict[TopicPartition, int]) -> None:
        for topic in sorted({tp.topic for tp in ends}):
            known = {tp.partition: offset for tp, offset in ends.items() if tp.topic == topic}
            await positions.note_known(connection, topic, known)


async def _by_partition(
    producer: AIOKafkaProducer, outgoing: Sequence[Outgoing]
) -> dict[TopicPartition, list[tuple[int, Outgoing]]]:
    """Records, each with its number, by the partition that Java's partitioner would choose for its key."""
    counts = {topic: len(await producer.partitions_for(topic)) for topic in {record.topic for record in outgoing}}
    parts: defaultdict[TopicPartition, list[tuple[int, Outgoing]]] = defaultdict(list)
    for index, record in enumerate(outgoing):
        hashed = index if record.key is None else key_hash(record.key[:HASHED_BYTES])
        parts[TopicPartition(record.topic, hashed % counts[record.topic])].append((index, record))
    return parts


def _batches(producer: AIOKafkaProducer, part: Sequence[tuple[int, Outgoing]]) -> Iterator[tuple[Any, list[int]]]:
    """Produce batches of about PRODUCE_BATCH_BYTES, with the numbers of their records."""
    batch, indexes = producer.create_batch(), list[int]()
    for index, record in part:
        fields = {"timestamp": None, "key": record.key, "value": record.value, "headers": record.headers}
        if batch.append(**fields) is None:
            batch.close()
            yield batch, indexes
            batch, indexes = producer.create_batch(), list[int]()
            batch.append(**fields)  # the first one always fits
        indexes.append(index)
    batch.close()
    yield batch, indexes


def _single_batches(part: Sequence[tuple[int, Outgoing]]) -> Iterator[tuple[Any, list[int]]]:
    """Produce batches of one record each, compressed: what it is made from may have been, and have fitted so."""
    for index, record in part:
        size = sum(len(each or b"") for each in (record.key, record.value, *(value for _, value in record.headers)))
        codec = DefaultRecordBatch.CODEC_GZIP if size <= MAX_COMPRESSED_BYTES else DefaultRecordBatch.CODEC_NONE
        batch = BatchBuilder(PRODUCE_BATCH_BYTES, codec, is_transactional=True)  # as the producer's create_batch does
        batch.append(timestamp=None, key=record.key, value=record.value, headers=record.headers)
        batch.close()
        yield batch, [index]
