"""Keeps outbox and dead letters from growing for ever: what is published stays for a while and goes."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from store import trimming
from store.connection import BY_KEY, SERVING, Connection, Database
from streams.retrying import attempts, sleep

EVERY_S = 60.0
CHUNK = 1_000
PAUSE_S = 0.1
COMMAND_TIMEOUT_S = 60.0

log = structlog.get_logger(__name__)


class Trimmer:
    """Deletes what was published longer ago than it is kept, a chunk at a time."""

    def __init__(
        self, database: Database, *, events_kept: timedelta, dead_letters_kept: timedelta, every_s: float = EVERY_S
    ) -> None:
        self._database = database
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
                    while not stop.is_set():
                        await _trim(connection, trimming.trim_events, "events", self._events_kept, stop)
                        await _trim(
                            connection, trimming.trim_dead_letters, "dead letters", self._dead_letters_kept, stop
                        )
                        await sleep(stop, self._every_s)
                finally:
                    connection.terminate()


async def _trim(
    connection: Connection,
    trim: Callable[[Connection, datetime, int], Awaitable[int]],
    what: str,
    kept: timedelta,
    stop: asyncio.Event,
) -> None:
    published_before = datetime.now(UTC) - kept
    deleted = total = await trim(connection, published_before, CHUNK)
    while deleted == CHUNK and not stop.is_set():
        await sleep(stop, PAUSE_S)
        deleted = await trim(connection, published_before, CHUNK)
        total += deleted
    if total:
        log.info(f"old {what} deleted", count=total)
