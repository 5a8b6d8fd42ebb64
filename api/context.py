"""What the routes work with: the database, Kafka, and the limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.topics import Topics
from store import reads
from store.connection import Database
from streams.kafka import KafkaConnection
from streams.log_ends import LogEnds

READ_TIMEOUT_S = 15.0
"""A request's time with the database; beyond it the answer is 503."""


@dataclass(frozen=True)
class Limits:
    """What the API bounds; ``requests_per_second`` is per key, and without meaning where authentication is off."""

    body_bytes: int = 8 * 1024 * 1024
    page: int = 1_000
    streams: int = 1_000
    requests_per_second: float = 100.0
    items_per_batch: int | None = None


@dataclass
class Context:
    """One installation as the API reaches it."""

    topics: Topics
    partitions: int
    auth: Literal["on", "off"]
    limits: Limits
    engine: AsyncEngine
    log_ends: LogEnds

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which everything read is of one moment. Raises TimeoutError, and what the database raises."""
        async with asyncio.timeout(READ_TIMEOUT_S), reads.snapshot(self.engine) as connection:
            yield connection


@asynccontextmanager
async def opened(
    kafka: KafkaConnection,
    database: Database,
    topics: Topics,
    partitions: int,
    *,
    auth: Literal["on", "off"],
    limits: Limits,
) -> AsyncIterator[Context]:
    """The context of a running API. Nothing needs to be reachable for it to open."""
    engine = database.engine("api")
    log_ends = LogEnds(kafka, topics.events, partitions)
    looking = asyncio.create_task(log_ends.run(), name="look where the log ends")
    try:
        yield Context(topics, partitions, auth, limits, engine, log_ends)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await engine.dispose()


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(_context)]
"""A route's parameter: the context."""
