"""What the routes work with: the database, Kafka, and the limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.feed import Feed
from api.known_keys import KnownKeys
from schemas.topics import Topics
from store import reads
from store.connection import Database
from streams.kafka import KafkaConnection
from streams.log_ends import LogEnds
from streams.reading import Homes
from streams.sending import Sender

DATABASE_TIMEOUT_S = 15.0
"""A request's time with the database; beyond it the answer is 503."""


DATABASE_CONNECTIONS = 16
"""Of one API process, kept open: more would only queue in PostgreSQL what now queues here."""
IDLE_IN_TRANSACTION_MS = "60000"
"""As other processes that serve (``store.connection.SERVING``), but who asks why reads the log within a snapshot."""


@dataclass(frozen=True)
class Limits:
    """What the API bounds; ``requests_per_second`` is per key, and without meaning where authentication is off."""

    body_bytes: int = 8 * 1024 * 1024
    streams: int = 1_000
    requests_per_second: float = 100.0
    items_per_batch: int | None = None


@dataclass
class Context:
    """One installation as the API reaches it."""

    topics: Topics
    homes: Homes
    auth: Literal["on", "off"]
    limits: Limits
    secure_cookies: bool
    engine: AsyncEngine
    kafka: KafkaConnection
    sender: Sender
    log_ends: LogEnds
    keys: KnownKeys
    feed: Feed
    asking_why: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for a single question. Raises TimeoutError, and what the database raises."""
        async with asyncio.timeout(DATABASE_TIMEOUT_S), self.engine.connect() as connection:
            # Each statement is a transaction of its own: no BEGIN and ROLLBACK around it.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which everything read is of one moment. Raises TimeoutError, and what the database raises."""
        async with asyncio.timeout(DATABASE_TIMEOUT_S), reads.snapshot(self.engine) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction on the API's own tables. Raises TimeoutError, and what the database raises."""
        async with asyncio.timeout(DATABASE_TIMEOUT_S), self.engine.begin() as connection:
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
    secure_cookies: bool = False,
) -> AsyncIterator[Context]:
    """The context of a running API. Nothing needs to be reachable for it to open."""
    engine = database.engine("api", DATABASE_CONNECTIONS, idle_in_transaction_session_timeout=IDLE_IN_TRANSACTION_MS)
    homes = Homes(partitions)
    sender = Sender(kafka, topics, homes)
    log_ends = LogEnds(kafka, topics.events, partitions)
    feed = Feed(engine, topics.events, log_ends, limits.streams)
    running = [asyncio.create_task(log_ends.run()), asyncio.create_task(feed.run())]
    try:
        yield Context(
            topics=topics,
            homes=homes,
            auth=auth,
            limits=limits,
            secure_cookies=secure_cookies,
            engine=engine,
            kafka=kafka,
            sender=sender,
            log_ends=log_ends,
            keys=KnownKeys(engine, limits.requests_per_second),
            feed=feed,
        )
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await sender.close()
        await engine.dispose()


# Asynchronous, though it waits for nothing: FastAPI would run it in a thread otherwise.
async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(_context)]
"""A route's parameter: the context."""
