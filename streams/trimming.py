"""Keeps outbox and dead letters from growing for ever: what is published stays for a while and goes."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count

import structlog

from schemas.topics import Topics
from store import trimming
from store.connection import BY_KEY, SERVING, Connection, Database
from streams.kafka import KafkaConnection
from streams.log_span import log_span, times_at
from streams.retrying import attempts, sleep

EVERY_S = 60.0
CHUNK = 1_000
PAUSE_S = 0.1
ROUNDS_A_LOOK = 60
"""At the log, for what was withheld: once an hour."""
COMMAND_TIMEOUT_S = 60.0

log = structlog.get_logger(__name__)


class Trimmer:
    """Deletes what was published longer ago than it is kept, a chunk at a time."""

    def __init__(
        self,
        kafka: KafkaConnection,
        database: Database,
        topics: Topics,
        *,
        events_kept: timedelta,
        dead_letters_kept: timedelta,
        every_s: float = EVERY_S,
    ) -> None:
        self._kafka = kafka
        self._database = database
        self._topics = topics
        self._events_kept = events_kept
        self._dead_letters_kept = dead_letters_kept
        self._every_s = every_s

    async def run(self, stop: asyncio.Event) -> None:
        """Trim until ``stop`` is set, beginning anew after every failure that may pass."""
        async for attempt in attempts("trimming failed, beginning anew", stop):
            with attempt:
                connection = await self._database.connect(
                    "clock trimming", command_timeout=COMMAND_TIMEOUT_S, **BY_KEY, **SERVING
                )
                try:
                    for number in count():
                        await self._round(connection, stop)
                        if number % ROUNDS_A_LOOK == 0:
                            await self._trim_withheld_events(connection, stop)
                        await sleep(stop, self._every_s)
                        if stop.is_set():
                            return
                finally:
                    connection.terminate()

    async def _round(self, connection: Connection, stop: asyncio.Event) -> None:
        now = datetime.now(UTC)
        events_kept, letters_kept = now - self._events_kept, now - self._dead_letters_kept
        for what, trim in (
            ("old events", partial(trimming.trim_events, connection, events_kept)),
            ("old dead letters", partial(trimming.trim_dead_letters, connection, letters_kept)),
            ("old withheld dead letters", partial(trimming.trim_withheld_dead_letters, connection, letters_kept)),
        ):
            await _trim(what, trim, stop)

    async def _trim_withheld_events(self, connection: Connection, stop: asyncio.Event) -> None:
        """Those that `rollcall verify` can miss no more, since the log has lost what they were decided by."""
        if not await trimming.has_withheld_events(connection):
            return
        now = datetime.now(UTC)
        span = await log_span(self._kafka, self._topics.events)
        starts = {partition: start for partition, start in span.starts.items() if start > 0}
        times = await times_at(self._kafka, self._topics.events, starts) if starts else {}
        first_times = {partition: time or now for partition, time in times.items()}
        trim = partial(trimming.trim_withheld_events, connection, first_times)
        await _trim("withheld events that the log no longer gives", trim, stop)


async def _trim(what: str, trim: Callable[[int], Awaitable[int]], stop: asyncio.Event) -> None:
    deleted = total = await trim(CHUNK)
    while deleted == CHUNK and not stop.is_set():
        await sleep(stop, PAUSE_S)
        deleted = await trim(CHUNK)
        total += deleted
    if total:
        log.info(f"{what} deleted", count=total)
