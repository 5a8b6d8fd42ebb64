"""Messages to Kafka: buffered, in order of each partition, and not forgotten before they are acknowledged."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata

from rollcall_client.errors import DeliveryError, RollcallError, UnreachableError
from rollcall_client.kafka import Kafka, home_partition, partitions_of

_log = structlog.get_logger(__name__)

CHUNK_BYTES = 256 * 1024
MAX_REQUEST_BYTES = 1024 * 1024
BACKOFF_S = 0.5
SAY_SO_AFTER_S = 10.0
STARTING_S = 30.0
ATTEMPT_S = 30.0
"""How long one producer may take for a round: aiokafka's idempotent one never fails for want of an answer."""
REMEMBERED_BATCHES = 10_000
NAMED_AT_MOST = 100_000
"""Messages given up since the last flush that are named by it: who never flushes may be refused for ever."""
CLOSING_S = 5.0
COUNTED_AT_ONCE_S = 1.0
"""Of the time in which a round waits: more than that at once is the event loop, or the process, standing still."""

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_FOR_GOOD = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    TopicAuthorizationFailedError,
)


class Appended(NamedTuple):
    """A place in the log; ``at`` is the broker's clock, None on a topic that keeps the producers' times."""

    partition: int
    offset: int
    at: datetime | None


@dataclass(slots=True, eq=False)
class _Mark:
    """The messages published between two flushes: ``done`` once none waits, and none is to come."""

    waiting: int = 0
    given_up: list[tuple[str, str | None]] = field(default_factory=list)
    unnamed: int = 0  # how many more were given up
    may_pass: bool = False  # whether some of it was given up for want of time
    halted: dict[str, bool] = field(default_factory=dict)  # batches that lack a message, and whether for want of time
    done: asyncio.Event = field(default_factory=asyncio.Event)


class _Buffered(NamedTuple):
    batch_id: str
    item_id: str | None
    key: bytes
    value: bytes
    mark: _Mark
    opens: bool
    tried_s: float  # the publisher's for its partition, as it was published


class _Chunk(NamedTuple):
    partition: int
    messages: Sequence[_Buffered]


class Publisher:
    """Publishes to ``rollcall.events`` in rounds: what gathers while one is under way goes out with the next.

    A round takes a chunk of every partition. Whatever happens to the producer, what is unacknowledged goes out again,
    through a new one, until Kafka took nothing of its partition for ``delivery_timeout_s`` since it was published; that
    Rollcall then gets something twice changes nothing there.

    Where a message about a batch itself is given up, all that comes behind it of this batch is given up with it, until
    a flush has said so: a part of a manifest, and the seal behind it, would end the batch before its time. That flush
    may be somebody else's: ``check_opened`` is for who is about to seal, and no seal goes out until the batch is opened
    again.
    """

    def __init__(self, kafka: Kafka, *, delivery_timeout_s: float, buffer_bytes: int, compression: str | None) -> None:
        self._kafka = kafka
        self._topic = kafka.topic("events")
        self._delivery_timeout_s = delivery_timeout_s
        self._buffer_bytes = buffer_bytes
        self._compression = compression
        self._home: Callable[[str], int] | None = None
        self._producer: AIOKafkaProducer | None = None
        self._lanes: dict[int, deque[_Buffered]] = {}
        self._buffered = 0
        self._room = asyncio.Event()
        self._work = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()
        self._mark = _Mark()
        self._marks = [self._mark]  # and those before that no flush has seen the end of
        self._halted: dict[str, bool] = {}  # of all of these
        self._half_opened: dict[str, bool] = {}  # whose opening was given up, also in part; whether for want of time
        self._cause = ""
        self._tried_s = defaultdict[int, float](float)  # for how long each partition was tried, in all
        self._taken_at: dict[int, float] = {}  # what that was as Kafka last took something
        self._closed = False
        self._appended: dict[str, Appended] = {}
        self._appended_last: dict[str, Appended] = {}

    @property
    def undelivered(self) -> bool:
        """Whether something was given up since the last flush."""
        return any(mark.given_up for mark in self._marks)

    def appended(self, batch_id: str) -> Appended | None:
        """Where the first message about this batch itself went; None until it is acknowledged."""
        return self._appended.get(batch_id)

    def appended_last(self, batch_id: str) -> Appended | None:
        """Where the last acknowledged message about this batch itself went; None where that isn't known."""
        return self._appended_last.get(batch_id)

    async def start(self) -> None:
        """Connect. Raises RollcallError where no broker answers, ConfigurationError where the topic is missing."""
        try:
            async with asyncio.timeout(STARTING_S):
                self._producer = await self._new_producer()
                partitions = len(await partitions_of(self._producer, self._topic))
        except (KafkaError, OSError, TimeoutError) as error:
            await self.abandon()
            raise UnreachableError(
                f"Kafka at {self._kafka.bootstrap_servers} does not answer: {_cause(error)}"
            ) from error
        except BaseException:
            await self.abandon()
            raise
        self._home = lru_cache(maxsize=10_000)(lambda batch_id: home_partition(batch_id, partitions))
        self._sending = asyncio.create_task(self._send_rounds(), name="rollcall-publisher")
        self._sending.add_done_callback(self._end)

    def open_anew(self, batch_id: str) -> None:
        """Say that all of a batch's opening is to come."""
        self._half_opened.pop(batch_id, None)

    def check_opened(self, batch_id: str) -> None:
        """Raises DeliveryError where some of the batch's opening was given up, whoever was told so."""
        may_pass = self._half_opened.get(batch_id)
        if may_pass is not None:
            raise DeliveryError([(batch_id, None)], self._cause, may_pass=may_pass)

    async def publish(
        self, batch_id: str, item_id: str | None, value: bytes, seals: bool = False, *, opens: bool = False
    ) -> None:
        """Buffer a message, which may be (a part of) what ``opens`` a batch; waits only while the buffer is full.

        What ``seals`` a batch is given up where some of the opening was, be it during that wait.
        """
        while self._buffered > self._buffer_bytes and not self._has_ended:
            self._room.clear()
            await self._room.wait()
        if self._closed or self._home is None:
            raise RollcallError("this client is closed" if self._closed else "this client is not started: async with")
        if self._has_ended:
            raise RollcallError(f"this client sends nothing any more: {self._cause}")
        home = self._home(batch_id)
        message = _Buffered(batch_id, item_id, batch_id.encode(), value, self._mark, opens, self._tried_s[home])
        if self._is_halted(batch_id):
            self._note_given_up(message, may_pass=self._halted.get(batch_id, True))
            return
        if seals and batch_id in self._half_opened:
            self._note_given_up(message, may_pass=self._half_opened[batch_id])
            return
        lane = self._lanes.get(home)
        if lane is None:
            lane = self._lanes[home] = deque()
        lane.append(message)
        self._mark.waiting += 1
        self._buffered += len(value)
        self._work.set()

    async def flush(self) -> None:
        """Wait until all that was published before is acknowledged. Raises DeliveryError naming what was given up.

        A flush that was cut off has seen the end of nothing: the next one waits for the same. Of flushes at the same
        time each waits for all, and names all.
        """
        if self._sending is None:
            return
        if self._mark.waiting or self._mark.given_up:
            self._mark = _Mark()
            self._marks.append(self._mark)
        covered = self._marks[:-1]
        if any(mark.waiting for mark in covered):
            done = asyncio.create_task(_all_done(covered))
            try:
                await asyncio.wait({done, self._sending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                done.cancel()
            if unsent := sum(mark.waiting for mark in covered):
                why = "was closed meanwhile" if self._closed else f"sends nothing any more: {self._cause}"
                raise RollcallError(f"{unsent} messages were not sent: this client {why}")
        seen = set(covered)
        self._marks = [mark for mark in self._marks if mark not in seen]
        self._halted = {batch_id: may_pass for mark in self._marks for batch_id, may_pass in mark.halted.items()}
        if given_up := [each for mark in covered for each in mark.given_up]:
            raise DeliveryError(
                given_up,
                self._cause,
                may_pass=any(mark.may_pass for mark in covered),
                unnamed=sum(mark.unnamed for mark in covered),
            )

    async def close(self) -> None:
        """Flush and disconnect; the second time does nothing. Raises what ``flush`` raises."""
        if self._closed:
            return
        try:
            await self.flush()
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Disconnect without waiting for what is unacknowledged."""
        self._closed = True
        self._room.set()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        self._discard_producer()
        if self._discarding:
            await asyncio.wait(self._discarding, timeout=2 * CLOSING_S)

    @property
    def _has_ended(self) -> bool:
        return self._closed or (self._sending is not None and self._sending.done())

    def _end(self, sending: asyncio.Task[None]) -> None:
        """Let nobody wait for room that nobody makes any more."""
        if not sending.cancelled() and (error := sending.exception()) is not None:
            self._cause = _cause(error)
            _log.error("a publisher ended", error=self._cause, exc_info=error)
        self._room.set()

    async def _send_rounds(self) -> None:
        chunks: list[_Chunk] = []
        while True:
            # What has nothing under way joins: behind a silent partition others wait for an attempt, not for its end.
            busy = {chunk.partition for chunk in chunks}
            idle = [(home, lane) for home, lane in self._lanes.items() if lane and home not in busy]
            chunks += [_Chunk(home, _take(lane)) for home, lane in idle]
            if chunks:
                chunks = await self._round(chunks)
            else:
                await self._work.wait()
                self._work.clear()

    async def _round(self, chunks: list[_Chunk]) -> list[_Chunk]:
        """Send once, or give up what is overdue; the chunks that are neither acknowledged nor given up."""
        if overdue := [chunk for chunk in chunks if self._left_s(chunk) <= 0]:
            self._give_up(overdue, f"for {self._delivery_timeout_s:g} s", may_pass=True)
            return self._going(chunk for chunk in chunks if self._left_s(chunk) > 0)
        # Of a chunk that was halved the first part alone: the other stays behind it, and may be given up with it.
        first = {chunk.partition: chunk for chunk in reversed(chunks)}
        behind = [chunk for chunk in chunks if chunk is not first[chunk.partition]]
        again = await self._attempt(list(first.values()), min(ATTEMPT_S, max(map(self._left_s, chunks))))
        # At once: a flush that is told of what was given up lets the rest of its batch go on.
        left = self._going(behind)
        if failed := [chunk.partition for chunk in again if chunk is first[chunk.partition]]:
            await asyncio.sleep(BACKOFF_S)
            self._note_tried(failed, BACKOFF_S)
        return [*again, *left]

    def _left_s(self, chunk: _Chunk) -> float:
        """For how long a chunk is still tried: by its last message, since it goes out as a whole."""
        since = max(chunk.messages[-1].tried_s, self._taken_at.get(chunk.partition, 0.0))
        return since + self._delivery_timeout_s - self._tried_s[chunk.partition]

    def _note_tried(self, partitions: Iterable[int], seconds: float) -> None:
        for partition in partitions:
            self._tried_s[partition] += seconds

    async def _attempt(self, chunks: Sequence[_Chunk], timeout_s: float) -> list[_Chunk]:
        """Send once, by a producer that then is given up unless all went well; the chunks to send again."""
        sent: list[asyncio.Future[RecordMetadata]] = []
        sending = asyncio.create_task(self._sent(chunks, sent), name="rollcall-publisher-round")
        sending.add_done_callback(lambda task: task.cancelled() or task.exception())  # said where it is waited for
        try:
            await self._within(sending, [chunk.partition for chunk in chunks], timeout_s)
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            errors = [_error_of(future) for future in sent]
        failure = TimeoutError("not sent in time") if sending.cancelled() else sending.exception()
        again: list[_Chunk] = []
        for number, chunk in enumerate(chunks):
            problem = errors[number] if number < len(errors) else failure
            if problem is None:
                self._taken_at[chunk.partition] = self._tried_s[chunk.partition]
                self._note_where(chunk, sent[number].result())
                self._settle(chunk.messages)
            else:
                again += self._after(problem, chunk)
        if again or any(errors) or failure is not None:
            self._discard_producer()
        return again

    async def _sent(self, chunks: Sequence[_Chunk], sent: list[asyncio.Future[RecordMetadata]]) -> None:
        """Send a chunk after the other, and wait until those that could be sent are acknowledged, or are not."""
        if self._producer is None:
            self._producer = await self._new_producer()
        for chunk in chunks:
            try:
                built = _built(self._producer, chunk)
                sent.append(await self._producer.send_batch(built, self._topic, partition=chunk.partition))
            except Exception as error:  # not Kafka's alone: it asserts that it knows the partition, uvloop has its own
                sent.append(asyncio.get_running_loop().create_future())
                sent[-1].set_exception(error)
        await asyncio.wait(sent)

    async def _within(self, sending: asyncio.Task[None], partitions: Sequence[int], timeout_s: float) -> None:
        """Wait for a round as long as it may take, which is counted for these partitions."""
        waited, said = 0.0, 0.0
        while waited < timeout_s:
            began, most = time.monotonic(), min(COUNTED_AT_ONCE_S, timeout_s - waited)
            done, _ = await asyncio.wait({sending}, timeout=most)
            passed = min(time.monotonic() - began, most)
            waited += passed
            self._note_tried(partitions, passed)
            if done:
                return
            if waited - said >= SAY_SO_AFTER_S:
                said = waited
                _log.warning("Kafka does not acknowledge, waiting", buffered_bytes=self._buffered)

    def _after(self, error: BaseException, chunk: _Chunk) -> list[_Chunk]:
        """What to send again of a chunk that failed."""
        if isinstance(error, _TOO_LARGE) and len(chunk.messages) > 1:
            half = len(chunk.messages) // 2
            return [_Chunk(chunk.partition, chunk.messages[:half]), _Chunk(chunk.partition, chunk.messages[half:])]
        if isinstance(error, (*_TOO_LARGE, *_FOR_GOOD)):
            self._give_up([chunk], _cause(error), may_pass=False)
            return []
        _log.warning("Kafka did not take messages, sending them again", error=_cause(error), count=len(chunk.messages))
        return [chunk]

    def _give_up(self, chunks: Sequence[_Chunk], cause: str, *, may_pass: bool) -> None:
        self._cause = cause
        for chunk in chunks:
            _log.error("messages given up", cause=cause, count=len(chunk.messages))
            for each in chunk.messages:
                self._note_given_up(each, may_pass=may_pass)
            self._settle(chunk.messages)
            lane = self._lanes[chunk.partition]
            if lane and any(each.item_id is None for each in chunk.messages):
                self._lanes[chunk.partition] = deque(self._without_halted(lane))

    def _note_given_up(self, message: _Buffered, *, may_pass: bool) -> None:
        batch_id, mark = message.batch_id, message.mark
        if len(mark.given_up) < NAMED_AT_MOST:
            mark.given_up.append((batch_id, message.item_id))
        else:
            mark.unnamed += 1
        mark.may_pass |= may_pass
        if message.item_id is None or self._is_halted(batch_id):
            for halted in (self._halted, mark.halted):
                if len(halted) < REMEMBERED_BATCHES:
                    halted[batch_id] = may_pass
        if message.opens:
            if len(self._half_opened) >= REMEMBERED_BATCHES:
                self._half_opened.pop(next(iter(self._half_opened)))
            self._half_opened[batch_id] = may_pass

    def _is_halted(self, batch_id: str) -> bool:
        """Whether nothing of this batch goes out; where they are too many to be told apart, nothing of any does."""
        return batch_id in self._halted or len(self._halted) >= REMEMBERED_BATCHES

    def _without_halted(self, messages: Iterable[_Buffered]) -> list[_Buffered]:
        """What may go out of these; the others are given up."""
        going: list[_Buffered] = []
        held: list[_Buffered] = []
        for each in messages:
            (held if self._is_halted(each.batch_id) else going).append(each)
        for each in held:
            self._note_given_up(each, may_pass=self._halted.get(each.batch_id, True))
        self._settle(held)
        return going

    def _going(self, chunks: Iterable[_Chunk]) -> list[_Chunk]:
        left = [_Chunk(chunk.partition, self._without_halted(chunk.messages)) for chunk in chunks]
        return [chunk for chunk in left if chunk.messages]

    def _settle(self, messages: Iterable[_Buffered]) -> None:
        for each in messages:
            self._buffered -= len(each.value)
            mark = each.mark
            mark.waiting -= 1
            if not mark.waiting and mark is not self._mark:
                mark.done.set()
        self._room.set()

    def _note_where(self, chunk: _Chunk, first: RecordMetadata) -> None:
        at = None if first.timestamp < 0 else datetime.fromtimestamp(first.timestamp / 1000, UTC)
        for number, each in enumerate(chunk.messages):
            if each.item_id is not None:
                continue
            self._appended_last.pop(each.batch_id, None)
            if first.offset < 0:
                continue  # the broker took it before, and doesn't know where
            place = Appended(chunk.partition, first.offset + number, at)
            for places in (self._appended, self._appended_last):
                if each.batch_id not in places:
                    if len(places) >= REMEMBERED_BATCHES:
                        places.pop(next(iter(places)))
                    places[each.batch_id] = place

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = self._kafka.producer(max_batch_size=MAX_REQUEST_BYTES, compression_type=self._compression)
        try:
            await producer.start()
        except BaseException:
            await _stopped(producer)
            raise
        return producer

    def _discard_producer(self) -> None:
        """Let a producer go, with all that it still holds; it takes the time of its last request."""
        if self._producer is None:
            return
        producer, self._producer = self._producer, None
        # Else stop() would go on trying to send what this one holds.
        producer._message_accumulator.fail_all(KafkaError("given up"))
        task = asyncio.create_task(_stopped(producer), name="rollcall-publisher-stop")
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)


async def _all_done(marks: Sequence[_Mark]) -> None:
    for mark in marks:
        if mark.waiting:
            await mark.done.wait()


def _take(lane: deque[_Buffered]) -> list[_Buffered]:
    """The next chunk of a partition: at least one message."""
    taken = [lane.popleft()]
    size = len(taken[0].value)
    while lane and size + len(lane[0].value) <= CHUNK_BYTES:
        each = lane.popleft()
        size += len(each.value)
        taken.append(each)
    return taken


def _built(producer: AIOKafkaProducer, chunk: _Chunk) -> BatchBuilder:
    builder = producer.create_batch()
    for each in chunk.messages:
        if builder.append(timestamp=None, key=each.key, value=each.value) is None:
            raise RollcallError(f"a chunk of {len(chunk.messages)} messages does not fit into one Kafka batch")
    builder.close()
    return builder


def _error_of(future: asyncio.Future[RecordMetadata]) -> BaseException | None:
    if not future.done():
        future.cancel()
        return TimeoutError("no acknowledgement")
    if future.cancelled():
        return TimeoutError("cancelled")
    return future.exception()


async def _stopped(producer: AIOKafkaProducer) -> None:
    try:
        await asyncio.wait_for(producer.stop(), CLOSING_S)
    except Exception:
        # It waits for a request that nobody answers: close the connections under it.
        with suppress(Exception):
            await asyncio.wait_for(producer.client.close(), CLOSING_S)


def _cause(error: BaseException) -> str:
    name, said = type(error).__name__, str(error)
    return said if said.startswith(name) else f"{name}: {said}" if said else name
