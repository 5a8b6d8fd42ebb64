"""One process of a role works, the others stand by: the lead is an advisory lock, given up with its connection."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from migrations.version import check
from schemas.topics import Topics
from store import leadership
from store.connection import Connection, Database
from streams.health import health
from streams.metrics import LEADING
from streams.retrying import attempts, end, may_pass, sleep

LOCK_POLL_S = 0.5
HEARTBEAT_S = 2.0
HEARTBEAT_TIMEOUT_S = 5.0
DRAIN_S = 7.0
# A leader that does not even send heartbeats (stopped, cut off) loses its lock with its session.
IDLE_SESSION_TIMEOUT_MS = "15000"

log = structlog.get_logger(__name__)

Duty = Coroutine[Any, Any, None]


async def lead(
    role: str,
    database: Database,
    topics: Topics,
    stop: asyncio.Event,
    ready: Callable[[], None],
    duties: Callable[[], Iterable[Duty]],
    *,
    drain_s: float = DRAIN_S,
) -> None:
    """Run the role's duties while nobody else does, until ``stop`` is set.

    Duties heed ``stop`` themselves and have ``drain_s`` seconds for it; when one ends or raises, or the lead is lost,
    all are cancelled and the lead is sought anew. Raises WrongSchemaError and what is a bug.
    """
    try:
        async for attempt in attempts("lead failed, beginning anew", stop):
            with attempt:
                async with _leadership(role, database, topics, stop) as connection:
                    if connection is not None:
                        ready()
                        await _work_while_leading(connection, duties(), stop, drain_s)
    except Exception as error:
        if not (stop.is_set() and may_pass(error)):
            raise


async def _work_while_leading(leader: Connection, duties: Iterable[Duty], stop: asyncio.Event, drain_s: float) -> None:
    """Work until stopped, or until the lead is lost; raises what any of the tasks raises."""
    workers = {asyncio.create_task(duty) for duty in duties}
    heartbeat = asyncio.create_task(_beat(leader), name="heartbeat")
    stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({*workers, heartbeat, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await asyncio.wait(workers, timeout=drain_s)
        for task in (*workers, heartbeat):
            if task.done():
                task.result()
    finally:
        # A duty that goes on would be waited for here for ever, and nobody would take up the others.
        await end(*workers, heartbeat, stopped)


@asynccontextmanager
async def _leadership(
    role: str, database: Database, topics: Topics, stop: asyncio.Event
) -> AsyncIterator[Connection | None]:
    """The connection that leads, once nobody else does; None where ``stop`` came first."""
    connection = await database.connect(
        f"{role} leader", command_timeout=HEARTBEAT_TIMEOUT_S, idle_session_timeout=IDLE_SESSION_TIMEOUT_MS
    )
    try:
        await check(connection, database.schema)
        waiting = False
        while (
            not (leads := await leadership.try_lead(connection, role, topics.prefix, database.schema))
            and not stop.is_set()
        ):
            if not waiting:
                log.info(f"another {role} leads, waiting")
                waiting = True
            health.beat("lead")
            await sleep(stop, LOCK_POLL_S)
        if leads:
            log.info("leading")
        LEADING.labels(role).set(leads)
        yield connection if leads else None
    finally:
        LEADING.labels(role).set(0)
        health.end("lead")
        connection.terminate()


async def _beat(leader: Connection) -> None:
    while True:
        health.beat("lead")
        await asyncio.sleep(HEARTBEAT_S)
        await leadership.heartbeat(leader)
