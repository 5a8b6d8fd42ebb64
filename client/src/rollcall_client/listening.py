"""Finalized events from Kafka: a stream of them for a group, or the one of a batch."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from itertools import chain
from typing import Literal, TypeAlias, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from rollcall_client.errors import ConfigurationError, UnreachableError
from rollcall_client.events import FinalizedEvent
from rollcall_client.kafka import Kafka, home_partition, partitions_of

_log = structlog.get_logger(__name__)

T = TypeVar("T")

Start: TypeAlias = Literal["earliest", "latest"] | datetime
"""Where a group begins that has committed nothing yet."""

FORWARDED_PARTITION = "rollcall_forwarded_partition"
FORWARDED_OFFSET = "rollcall_forwarded_offset"
"""Headers of what a worker sent on to its batch's home: where it was first."""
_NUMBER = re.compile(rb"[0-9]{1,18}")

POLL_MS = 500
COMMIT_EVERY_S = 0.2
MAX_BODY_S = 3600.0
DAY_S = 24 * 3600.0
STARTING_S = 60.0
LOOKING_UP_S = 2.0
STOPPING_S = 30.0
CLOCKS_DIFFER = timedelta(minutes=5)
"""Between brokers, at most: how much earlier than an event's cause its own append time can seem to be."""


async def records(
    kafka: Kafka, topic: str, *, group: str | None, start: Start, max_body_s: float
) -> AsyncGenerator[ConsumerRecord[bytes, bytes], None]:
    """Committed records of a topic as they come; each is committed for the group once the next is asked for.

    A commit may wait for ``COMMIT_EVERY_S`` or for what was fetched together, and is done when this is closed. A
    record whose turn didn't end (the caller raised, or left the loop) is not committed. One whose turn ended does not
    come again here, whatever a rebalance does. Without a group nothing is committed,
    and every caller gets all partitions. A caller that doesn't ask for more within ``max_body_s`` loses its partitions
    to the others of the group.
    """
    if isinstance(start, datetime) and start.tzinfo is None:
        raise ConfigurationError(f"start={start} has no zone: use datetime.now(UTC)")
    if start not in ("earliest", "latest") and not isinstance(start, datetime):
        raise ConfigurationError(f'start is "earliest", "latest" or a time, not {start!r}')
    if group is not None:
        await _begin_group(kafka, topic, group, start)
    consumer = kafka.consumer(
        group_id=group,
        auto_offset_reset="earliest",  # of a partition that was added; the others begin where it is said below
        max_poll_interval_ms=int(max_body_s * 1000),
    )
    turns = _Turns(consumer)
    try:
        await _started(kafka, consumer)
        if group is None:
            await _assign_all(consumer, topic, start)
        else:
            consumer.subscribe([topic], listener=turns)
        while True:
            fetched = await consumer.getmany(timeout_ms=POLL_MS)
            turns.begin()
            for record in chain.from_iterable(fetched.values()):
                if turns.lost:
                    break  # what is still this consumer's is fetched again
                if turns.was_ended(record):
                    continue
                yield record
                turns.end(record)
                if group is not None and turns.are_due:
                    await turns.commit()
            if group is not None:
                await turns.commit()
            else:
                await _assign_added(consumer, topic)
    except KafkaError as error:
        raise _says(kafka, error) from error
    finally:
        if group is not None:
            await turns.commit()
        await _stopped(consumer)


class _Turns(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types for it
    """Up to where a consumer's records had their turn, and what of that is to be committed.

    A rebalance sets every partition back to what is committed, also one that is kept. So what was fetched before it is
    ``lost``, and comes again from there, if to this consumer; what of that had its turn here is then passed over. Only
    what was fetched since is committed: so no commit goes back behind the one that another member made meanwhile.
    """

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._to_commit: dict[TopicPartition, int] = {}
        self._before: dict[TopicPartition, int] = {}
        self._committed_at = time.monotonic()
        self.lost = False

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        # Here, not when they are assigned: by then some of theirs may have been fetched, and that must not be dropped.
        self.lost = True
        self._before.update(self._to_commit)
        self._to_commit.clear()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        pass

    @property
    def are_due(self) -> bool:
        """Whether it is time for a commit."""
        return time.monotonic() - self._committed_at >= COMMIT_EVERY_S

    def begin(self) -> None:
        """Something was fetched, since the last rebalance: aiokafka gives nothing while one goes on."""
        self.lost = False

    def was_ended(self, record: ConsumerRecord[bytes, bytes]) -> bool:
        """Whether this record had its turn before a rebalance, and only was not committed."""
        partition = TopicPartition(record.topic, record.partition)
        if record.offset < self._before.get(partition, 0):
            self._to_commit[partition] = record.offset + 1
            return True
        self._before.pop(partition, None)
        return False

    def end(self, record: ConsumerRecord[bytes, bytes]) -> None:
        """A record had its turn."""
        (self._before if self.lost else self._to_commit)[TopicPartition(record.topic, record.partition)] = (
            record.offset + 1
        )

    async def commit(self) -> None:
        """Commit what had its turn; what Kafka does not take now is tried with the next."""
        self._committed_at = time.monotonic()
        ended = dict(self._to_commit)
        if not ended:
            return
        try:
            await asyncio.wait_for(self._consumer.commit(ended), STOPPING_S)
        except (KafkaError, TimeoutError) as error:
            # Not done means: delivered again, which is what a group has to expect anyway.
            _log.warning("offsets not committed, these events may come again", error=str(error) or type(error).__name__)
        else:
            self._to_commit.clear()


async def finalized(kafka: Kafka, *, group: str | None, start: Start) -> AsyncGenerator[FinalizedEvent, None]:
    """Finalized events as they come, committed as ``records`` says."""
    topic = kafka.topic("finalized")
    stream = records(kafka, topic, group=group, start=start, max_body_s=MAX_BODY_S)
    try:
        async for record in stream:
            event = event_of(record)
            if event is not None:
                yield event
    finally:
        await stream.aclose()


async def wait_for(
    kafka: Kafka,
    topic: str,
    batch_id: str,
    *,
    read: Callable[[ConsumerRecord[bytes, bytes]], T | None],
    first: Callable[[], Awaitable[object]],
    since: Callable[[], Awaitable[datetime | None]],
    missed: str,
    timeout_s: float | None,
) -> T:
    """The latest of what ``read`` gives for a batch's records of a topic, published before or not.

    What comes ``first`` is within the same time. Reads one partition, the batch's home among those of the topic, from
    what ``since`` gives on, by Kafka's clock; None is from its beginning. Raises RollcallError, and TimeoutError, which
    says what the batch ``missed`` ("was not finalized").
    """
    consumer = kafka.consumer(auto_offset_reset="earliest")
    try:
        async with asyncio.timeout(timeout_s):
            await first()
            await _started(kafka, consumer)
            home = TopicPartition(topic, home_partition(batch_id, len(await partitions_of(consumer, topic))))
            consumer.assign([home])
            [end] = (await consumer.end_offsets([home])).values()
            begin = await since()
            if begin is None:
                await consumer.seek_to_beginning(home)
            else:
                await _seek_to_time(consumer, [home], begin - CLOCKS_DIFFER)
            return await _latest(consumer, home, end, batch_id.encode(), read)
    except TimeoutError:
        raise TimeoutError(f"batch {batch_id} {missed} within {timeout_s:g} s") from None
    except KafkaError as error:
        raise _says(kafka, error) from error
    finally:
        await _stopped(consumer)


async def home_end(kafka: Kafka, topic: str, batch_id: str) -> tuple[int, int]:
    """A batch's home partition of a topic, and the offset behind all that is committed there now.

    Raises RollcallError.
    """
    async with _asking(kafka, kafka.consumer()) as consumer:
        home = TopicPartition(topic, home_partition(batch_id, len(await partitions_of(consumer, topic))))
        [end] = (await consumer.end_offsets([home])).values()
        return home.partition, end


async def is_there(kafka: Kafka, topic: str, batch_id: str) -> bool:
    """Whether a batch's home partition of a topic, read from its start, has a record of it. Raises RollcallError."""
    async with _reading(kafka, kafka.consumer(auto_offset_reset="earliest")) as consumer:
        home = TopicPartition(topic, home_partition(batch_id, len(await partitions_of(consumer, topic))))
        consumer.assign([home])
        [end] = (await consumer.end_offsets([home])).values()
        await consumer.seek_to_beginning(home)
        loop, position = asyncio.get_running_loop(), -1
        try:
            async with asyncio.timeout(STARTING_S) as silence:
                while position < end:
                    if await _last_fetched(consumer, home, batch_id.encode(), lambda _: True):
                        return True
                    before, position = position, await consumer.position(home)
                    if position != before:
                        silence.reschedule(loop.time() + STARTING_S)
        except TimeoutError:
            raise _is_silent(kafka) from None
        return False


async def home_end_behind(
    kafka: Kafka,
    topic: str,
    batch_id: str,
    *,
    partition: int,
    offset: int,
    home: int,
    since: datetime | None,
    own: bool,
) -> int:
    """The end of a batch's home once all of the batch up to this place of another partition is forwarded there.

    Where partitions were added to the topic, clients publish to another than the one that workers apply the batch from.
    ``own`` says that the record at this place is of the batch: else its last one before is looked for, appended
    ``since`` or later, as was its forward. Raises RollcallError; takes as long as the workers do.
    """
    there, here = TopicPartition(topic, partition), TopicPartition(topic, home)
    key = batch_id.encode()
    async with _reading(kafka, kafka.consumer(auto_offset_reset="earliest")) as consumer:
        consumer.assign([here] if own else [there, here])
        if since is None:
            await consumer.seek_to_beginning()
        else:
            await _seek_to_time(consumer, list(consumer.assignment()), since - CLOCKS_DIFFER)
        last = offset if own else await _last(consumer, there, offset + 1, key, lambda record: record.offset)
        if last is not None:
            await _latest(consumer, here, 0, key, lambda record: _is_forward(record, partition, last))
        [end] = (await consumer.end_offsets([here])).values()
        return int(end)


def _is_forward(record: ConsumerRecord[bytes, bytes], partition: int, offset: int) -> Literal[True] | None:
    """Whether this was forwarded from there, or from behind it."""
    headers = dict(record.headers)
    at = headers.get(FORWARDED_OFFSET) or b""
    if headers.get(FORWARDED_PARTITION) != str(partition).encode() or not _NUMBER.fullmatch(at):
        return None
    return True if int(at) >= offset else None


def event_of(record: ConsumerRecord[bytes, bytes]) -> FinalizedEvent | None:
    """The finalized event in a record; None, and a warning, where somebody else's message lies there."""
    try:
        return FinalizedEvent.of(record.value or b"", dict(record.headers))
    except ValueError as error:
        _log.warning(
            "skipped what is no finalized event", partition=record.partition, offset=record.offset, error=str(error)
        )
        return None


async def _latest(
    consumer: AIOKafkaConsumer,
    home: TopicPartition,
    end: int,
    key: bytes,
    read: Callable[[ConsumerRecord[bytes, bytes]], T | None],
) -> T:
    """The last before ``end``; where there is none, the first to come."""
    found = await _last(consumer, home, end, key, read)
    while found is None:
        found = await _last_fetched(consumer, home, key, read)
    return found


async def _last(
    consumer: AIOKafkaConsumer,
    partition: TopicPartition,
    end: int,
    key: bytes,
    read: Callable[[ConsumerRecord[bytes, bytes]], T | None],
) -> T | None:
    """The last before ``end``, or of what is fetched with it."""
    found: T | None = None
    while await consumer.position(partition) < end:
        wanted = await _last_fetched(consumer, partition, key, read)
        found = found if wanted is None else wanted
    return found


async def _last_fetched(
    consumer: AIOKafkaConsumer,
    partition: TopicPartition,
    key: bytes,
    read: Callable[[ConsumerRecord[bytes, bytes]], T | None],
) -> T | None:
    fetched = await consumer.getmany(partition, timeout_ms=POLL_MS)
    found: T | None = None
    for record in fetched.get(partition, ()):
        if record.key == key and (wanted := read(record)) is not None:
            found = wanted
    return found


async def _begin_group(kafka: Kafka, topic: str, group: str, start: Start) -> None:
    """Commit where the group begins, on partitions where it has nothing committed.

    So that what is published between now and the first commit isn't skipped with ``latest``, whatever happens. Where it
    has committed anything, the others were added since, and are read from their beginning.
    """
    async with _asking(kafka, kafka.consumer(group_id=group)) as consumer:
        partitions = await partitions_of(consumer, topic)
        consumer.assign(partitions)
        fresh = [each for each in partitions if await consumer.committed(each) is None]
        if fresh:
            await _seek(consumer, fresh, start if fresh == partitions else "earliest")
            with suppress(CommitFailedError):  # others listen in this group already, and began it
                await consumer.commit({each: await consumer.position(each) for each in fresh})


@asynccontextmanager
async def _asking(kafka: Kafka, consumer: AIOKafkaConsumer) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer that is started, to be asked something within a time. Raises RollcallError."""
    async with _reading(kafka, consumer):
        try:
            async with asyncio.timeout(STARTING_S):
                yield consumer
        except TimeoutError:
            raise _is_silent(kafka) from None


@asynccontextmanager
async def _reading(kafka: Kafka, consumer: AIOKafkaConsumer) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer that is started, and stopped at the end. Raises RollcallError."""
    try:
        await _started(kafka, consumer)
        yield consumer
    except KafkaError as error:
        raise _says(kafka, error) from error
    finally:
        await _stopped(consumer)


async def _assign_all(consumer: AIOKafkaConsumer, topic: str, start: Start) -> None:
    partitions = await partitions_of(consumer, topic)
    consumer.assign(partitions)
    await _seek(consumer, partitions, start)


async def _assign_added(consumer: AIOKafkaConsumer, topic: str) -> None:
    """Have partitions read that were added to the topic since, from their beginning; what was fetched had its turn."""
    assigned = consumer.assignment()
    found = {TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic) or ()}
    if added := found - assigned:
        try:
            async with asyncio.timeout(LOOKING_UP_S):
                reached = {each: await consumer.position(each) for each in assigned}
        except TimeoutError:
            return  # of one without a leader, and read nothing of yet, nobody knows: others are read meanwhile
        _log.info("partitions were added", topic=topic, partitions=sorted(each.partition for each in added))
        consumer.assign([*assigned, *added])
        for partition, offset in reached.items():
            consumer.seek(partition, offset)
        await consumer.seek_to_beginning(*added)


async def _seek(consumer: AIOKafkaConsumer, partitions: list[TopicPartition], start: Start) -> None:
    if start == "earliest":
        await consumer.seek_to_beginning(*partitions)
    elif start == "latest":
        await consumer.seek_to_end(*partitions)
    else:
        await _seek_to_time(consumer, partitions, start)


async def _seek_to_time(consumer: AIOKafkaConsumer, partitions: list[TopicPartition], since: datetime) -> None:
    """To the first record appended then or later; to the end where there is none."""
    # The ends first: what comes between the two answers must not be passed over.
    ends = await consumer.end_offsets(partitions)
    found = await consumer.offsets_for_times({each: int(since.timestamp() * 1000) for each in partitions})
    for partition in partitions:
        at = found.get(partition)
        consumer.seek(partition, at.offset if at is not None else ends[partition])


async def _started(kafka: Kafka, consumer: AIOKafkaConsumer) -> None:
    try:
        await asyncio.wait_for(consumer.start(), STARTING_S)
    except (KafkaError, OSError, TimeoutError) as error:
        raise UnreachableError(f"Kafka at {kafka.bootstrap_servers} does not answer: {error}") from error


def _says(kafka: Kafka, error: KafkaError) -> UnreachableError:
    return UnreachableError(f"Kafka at {kafka.bootstrap_servers} says: {error}")


def _is_silent(kafka: Kafka) -> UnreachableError:
    return UnreachableError(f"Kafka at {kafka.bootstrap_servers} does not answer within {STARTING_S:g} s")


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    try:
        await asyncio.wait_for(consumer.stop(), STOPPING_S)
    except (KafkaError, TimeoutError) as error:
        _log.warning("a consumer did not stop properly", error=str(error) or type(error).__name__)
