"""Live changes for any number of listeners, with one reader of the database.

While somebody listens, one task looks twice a second, in one snapshot: at the stored positions, at what was decided
between them and the positions it saw before, and at the batches that are watched. Each event is encoded once and put
into every listener's bounded queue. Its id is the schema and the cursor behind it: whoever comes back with it as
``Last-Event-ID`` gets what was decided since, from the log's own order, and the present state of what it watches;
nothing is skipped.
A promotion may bring ends that lie before every cursor: then, and to whoever comes back from before, ``resync``.
A listener whose queue is full is dropped, and comes back the same way.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import structlog
from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.presenting import shown
from api.problems import unavailable
from store import changes, reads
from store.reads import BatchStatus
from streams.health import health
from streams.log_ends import LogEnds

LOOK_EVERY_S = 0.5
LOOK_TIMEOUT_S = 15.0
RETRY_EVERY_S = 2.0
QUEUE_EVENTS = 1_000
"""Events a listener may be behind."""
DECIDED_AT_ONCE = 200
"""Finalizations read at one time: well below what a queue holds."""
MAX_CATCH_UP = 800
"""Finalizations a listener is told of that it missed, or that come between two looks; of more, only that there are."""
NEWEST = 50
"""Whoever listens to all batches is told of progress in this many."""

log = structlog.get_logger(__name__)

Cursor = dict[int, int]


class Seen(NamedTuple):
    """Up to where a listener has been told, and of which schema (None: its id is of a version that did not say)."""

    cursor: Cursor
    schema: int | None


_LOOP = "feed"
_State = tuple[BatchStatus, bool | None]


class MalformedCursorError(ValueError):
    """A ``Last-Event-ID`` that is none of ours."""


def written(cursor: changes.Cursor, schema: int) -> str:
    """A cursor as an event's id: the schema, a colon, and ``partition-offset`` joined by dots."""
    return f"{schema}:" + ".".join(f"{partition}-{offset}" for partition, offset in sorted(cursor.items()) if offset)


def read(text: str) -> Seen:
    """What an id stands for. Raises MalformedCursorError."""
    schema, colon, places = text.rpartition(":")
    try:
        pairs = [part.split("-") for part in places.split(".")] if places else []
        seen = Seen({int(partition): int(offset) for partition, offset in pairs}, int(schema) if colon else None)
    except ValueError:
        raise MalformedCursorError(text) from None
    if len(text) > 20_000 or any(not 0 <= n < 2**63 for pair in seen.cursor.items() for n in pair):
        raise MalformedCursorError(text)
    return seen


@dataclass(eq=False)
class Listener:
    """One event stream: what it wants (None: all batches), where it was, and what is ready for it."""

    wanted: frozenset[str] | None
    since: Seen | None
    queue: "asyncio.Queue[bytes | None]" = field(default_factory=lambda: asyncio.Queue(QUEUE_EVENTS))
    greeted: bool = False

    def wants(self, batch_id: str) -> bool:
        """Whether it is to be told about this batch."""
        return self.wanted is None or batch_id in self.wanted

    def put(self, event: bytes) -> bool:
        """Queue an event; False where the listener is too slow: then its stream ends."""
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.end()
            return False
        return True

    def end(self) -> None:
        """End its stream."""
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class Feed:
    """The one reader, and its listeners."""

    def __init__(self, engine: AsyncEngine, events_topic: str, log_ends: LogEnds, max_listeners: int) -> None:
        self._engine = engine
        self._topic = events_topic
        self._log_ends = log_ends
        self._max_listeners = max_listeners
        self._listeners: set[Listener] = set()
        self._wake = asyncio.Event()
        self._cursor: Cursor | None = None
        self._schema = 0
        self._seen: dict[str, _State] = {}
        self._closed = False

    @contextmanager
    def listening(self, wanted: frozenset[str] | None, since: Seen | None) -> Iterator[Listener]:
        """A listener for as long as the context is open. Raises 503 where there are too many, or on the way down."""
        if self._closed or len(self._listeners) >= self._max_listeners:
            raise unavailable("too many event streams are open" if not self._closed else "the API is going down")
        listener = Listener(wanted, since)
        self._listeners.add(listener)
        self._wake.set()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        """End all streams, for good."""
        self._closed = True
        for listener in self._listeners:
            listener.end()

    async def run(self) -> None:
        """Keep looking while anybody listens, until cancelled; while the database is away, try again."""
        try:
            await self._run()
        finally:
            health.end(_LOOP)

    async def _run(self) -> None:
        while True:
            health.beat(_LOOP)
            if not self._listeners:
                # What happens while nobody listens is read by nobody.
                self._cursor, self._seen = None, {}
                self._wake.clear()
                health.wait(_LOOP)
                await self._wake.wait()
                health.beat(_LOOP)
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S), reads.snapshot(self._engine) as connection:
                    more = await self._look(connection)
            except (SQLAlchemyError, OSError) as error:
                log.warning("event streams stand still: the database is away", error=repr(error))
                await asyncio.sleep(RETRY_EVERY_S)
            except Exception as error:
                log.error("event streams stand still", exc_info=error)
                await asyncio.sleep(RETRY_EVERY_S)
            else:
                await asyncio.sleep(0.01 if more else LOOK_EVERY_S)

    async def _look(self, connection: AsyncConnection) -> bool:
        """Tell everybody what is new; returns whether there is more to tell at once."""
        schema = await changes.schema(connection)  # first: what is read behind it may be of a newer one
        end = await changes.cursor(connection, self._topic)
        listeners = list(self._listeners)
        if schema != self._schema:
            self._begin_anew(schema, end)
        greeted = [listener for listener in listeners if listener.greeted]
        now = await self._watched(connection, listeners)
        start = end if self._cursor is None else self._cursor
        ended = await self._ended(connection, start, end) if greeted else []
        more, told = len(ended) > DECIDED_AT_ONCE, greeted
        if len(ended) <= MAX_CATCH_UP:
            decided = await changes.in_order(connection, self._topic, ended[:DECIDED_AT_ONCE])
        else:
            # They come faster than they are told: whoever wants all loads it again, who wants some is told of those.
            for listener in (each for each in greeted if each.wanted is None):
                self._put(listener, self._event("resync", "{}", end))
            told = [listener for listener in greeted if listener.wanted is not None]
            decided, more = _decided_since(start, now.values()), False
        reached = _behind(decided, start, end) if more else end
        self._tell_decided(told, decided, start, end)
        self._tell_progress(greeted, now, {each.batch_id for each in decided}, reached)
        self._cursor, self._seen = reached, {batch_id: self._state(found) for batch_id, found in now.items()}
        if not more:
            # Only where the others are can a newcomer join them.
            for newcomer in (listener for listener in listeners if not listener.greeted):
                await self._greet(connection, newcomer, now, end)
        return more

    def _begin_anew(self, schema: int, end: Cursor) -> None:
        """Behind a promotion whoever listens loads all again: of what ended before the cursor nobody has been told."""
        self._cursor, self._schema, self._seen = None, schema, {}
        for listener in [each for each in self._listeners if each.greeted]:
            listener.greeted, listener.since = False, None
            self._put(listener, self._event("resync", "{}", end))

    async def _watched(self, connection: AsyncConnection, listeners: Sequence[Listener]) -> dict[str, BatchStatus]:
        named = {batch_id for listener in listeners for batch_id in listener.wanted or ()}
        found = list(await changes.some(connection, self._topic, sorted(named)))
        if any(listener.wanted is None for listener in listeners):
            found += (await reads.batches(connection, self._topic, limit=NEWEST)).rows
        return {each.batch_id: each for each in found}

    async def _greet(
        self, connection: AsyncConnection, newcomer: Listener, now: Mapping[str, BatchStatus], end: Cursor
    ) -> None:
        """What a newcomer missed, then the present state of what it watches."""
        if newcomer.since is not None:
            decided = await self._missed(connection, newcomer.since, end, newcomer.wanted)
            if decided is None:
                newcomer.put(self._event("resync", "{}", end))
            else:
                self._tell_decided([newcomer], decided, newcomer.since.cursor, end)
        for found in now.values():
            if newcomer.wants(found.batch_id):
                newcomer.put(self._batch_event("batch", found, end))
        newcomer.put(self._event("ready", "{}", end))
        newcomer.greeted = True  # behind all that may fail: the next look begins anew with it

    async def _missed(
        self, connection: AsyncConnection, seen: Seen, end: Cursor, wanted: frozenset[str] | None
    ) -> Sequence[BatchStatus] | None:
        """What was decided since; None where that cannot be told: too much, or a cursor of another log or schema."""
        since = seen.cursor
        if seen.schema not in (None, self._schema):
            return None
        if any(offset > end.get(partition, 0) for partition, offset in since.items()):
            return None
        if wanted is not None:
            # Few: whether one was decided since is seen on the batch itself.
            return _decided_since(since, await changes.some(connection, self._topic, sorted(wanted)))
        ended = await self._ended(connection, since, end)
        return None if len(ended) > MAX_CATCH_UP else await changes.in_order(connection, self._topic, ended)

    async def _ended(self, connection: AsyncConnection, start: Cursor, end: Cursor) -> Sequence[str]:
        """Ids of the batches that were decided in between, one more at most than can be told."""
        return await changes.finalized_between(connection, start, end, limit=MAX_CATCH_UP + 1)

    def _tell_decided(
        self, listeners: Iterable[Listener], decided: Sequence[BatchStatus], start: Cursor, end: Cursor
    ) -> None:
        cursor = dict(start)
        for found in decided:
            cursor = _behind([found], cursor, end)
            interested = [listener for listener in listeners if listener.wants(found.batch_id)]
            if interested:
                event = self._batch_event("finalized", found, cursor)
                for listener in interested:
                    self._put(listener, event)

    def _tell_progress(
        self, listeners: Sequence[Listener], now: Mapping[str, BatchStatus], told: set[str], cursor: Cursor
    ) -> None:
        """Watched batches that have changed, other than by being finalized just now."""
        for batch_id, found in now.items():
            if batch_id in told or self._seen.get(batch_id) == self._state(found):
                continue
            interested = [listener for listener in listeners if listener.wants(batch_id)]
            if interested:
                event = self._batch_event("batch", found, cursor)
                for listener in interested:
                    self._put(listener, event)

    def _state(self, found: BatchStatus) -> _State:
        """What has to change for an event to go out: not how far the partition is applied, but whether it lags."""
        end = self._log_ends.of(found.partition)
        lagging = None if end is None else end > (found.next_offset or 0)
        return replace(found, next_offset=None, as_of=None), lagging

    def _put(self, listener: Listener, event: bytes) -> None:
        if not listener.put(event):
            self._listeners.discard(listener)
            log.info("an event stream was ended: its listener does not keep up")

    def _batch_event(self, name: str, found: BatchStatus, cursor: changes.Cursor) -> bytes:
        return self._event(name, shown(found, self._log_ends).model_dump_json(), cursor)

    def _event(self, name: str, data: str, cursor: changes.Cursor) -> bytes:
        return format_sse_event(event=name, data_str=data, id=written(cursor, self._schema))


def _offset(decided: BatchStatus) -> int:
    assert decided.as_of is not None
    return decided.as_of.offset


def _decided_since(since: changes.Cursor, found: Iterable[BatchStatus]) -> Sequence[BatchStatus]:
    """Those of these batches that ended at or behind a cursor; by partition and offset."""
    missed = [each for each in found if each.outcome and _offset(each) >= since.get(each.partition, 0)]
    return sorted(missed, key=lambda each: (each.partition, _offset(each)))


def _behind(decided: Sequence[BatchStatus], start: changes.Cursor, end: Mapping[int, int]) -> Cursor:
    """The cursor behind the last of these, which are in order of partition and offset, and were all until there."""
    cursor = dict(start)
    if decided:
        last = decided[-1]
        cursor |= {partition: offset for partition, offset in end.items() if partition < last.partition}
        cursor[last.partition] = _offset(last) + 1
    return cursor
