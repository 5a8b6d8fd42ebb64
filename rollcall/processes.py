"""Assembles one role's process: event loop, signals, start-up checks, and the role itself."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import rollcall_native
import structlog
import typer
import uvloop
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from migrations.version import WrongSchemaError, check
from rollcall.garbage import collect_seldom
from rollcall.interrupting import call_in, heeding
from rollcall.operations import serving
from rollcall.reaching import ServerError, naming
from rollcall.readiness import announce
from rollcall.settings import Settings
from rollcall.supervisor import REFUSED
from rollcall.telemetry import switch_on_tracing
from schemas.topics import Topics
from store import positions
from store.connection import LostSettingsError
from store.overdue import Allowed
from streams import clock, figures, relay
from streams.anchoring import LogChangedError
from streams.health import NotReadyError, broker_check, database_check, health
from streams.intake import Intake
from streams.reading import Homes
from streams.retrying import may_pass
from streams.topics import UnusableTopicError, ensure_topics, log_identity

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 9.0
"""From the first signal to the end of what can be cancelled; a supervisor kills after 14 s, to end itself within 15."""
EXIT_TIMEOUT_S = 11.0
"""From the first signal to the end of what cannot: a thread that still folds would be waited for."""

FATAL = (LogChangedError, WrongSchemaError, UnusableTopicError, positions.ForeignLogError)
"""What no restart mends; the message says what does."""


def run_worker(settings: Settings, slot: str | None) -> int:
    """Run one worker until SIGTERM or SIGINT; returns the exit code."""
    return _run("worker", settings, lambda topics, homes, stop: _worker(settings, topics, homes, slot, stop))


def run_relay(settings: Settings) -> int:
    """Run the relay until SIGTERM or SIGINT; returns the exit code."""
    return _run("relay", settings, lambda topics, homes, stop: _relay(settings, topics, homes, stop))


def run_api(settings: Settings) -> int:
    """Run the HTTP API until SIGTERM or SIGINT; returns the exit code."""
    return _run("api", settings, lambda topics, homes, stop: _api(settings, topics, homes, stop))


def run_clock(settings: Settings) -> int:
    """Run the clock until SIGTERM or SIGINT; returns the exit code."""
    return _run("clock", settings, lambda topics, homes, stop: _clock(settings, topics, homes, stop))


async def _worker(settings: Settings, topics: Topics, homes: Homes, slot: str | None, stop: asyncio.Event) -> None:
    intake = Intake(
        settings.kafka_connection(),
        settings.database(),
        topics,
        homes,
        slot=slot,
        max_records=settings.max_records,
        batch_timeout_ms=settings.batch_timeout_ms,
        failure_rate_limit=settings.failure_rate_limit,
    )
    if not rollcall_native.compiled:
        log.warning("results cost this worker more CPU time: nothing is compiled", reason=rollcall_native.reason)
    collect_seldom()
    health.checks["assignment"] = intake.check_assigned
    await intake.run(stop, announce)


async def _relay(settings: Settings, topics: Topics, homes: Homes, stop: asyncio.Event) -> None:
    kafka, database = settings.kafka_connection(), settings.database()
    relaying = asyncio.create_task(relay.run(kafka, database, topics, stop, announce), name="relay")
    watching = asyncio.create_task(figures.run(kafka, database, topics, homes.partitions, stop), name="figures")
    try:
        ended, _ = await asyncio.wait({relaying, watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        await relaying
    finally:
        for task in (relaying, watching):
            task.cancel()
        await asyncio.gather(relaying, watching, return_exceptions=True)


async def _api(settings: Settings, topics: Topics, homes: Homes, stop: asyncio.Event) -> None:
    # A web framework takes its time to import, which the other roles need not spend.
    from api.app import create_app
    from api.context import Limits, opened
    from api.serving import listening, serve

    limits = Limits(
        body_bytes=settings.api_max_body_bytes,
        streams=settings.api_max_streams,
        requests_per_second=settings.api_requests_per_second,
        items_per_batch=settings.max_items,
    )
    with listening(settings.api_host, settings.api_port) as listener:
        async with opened(
            settings.kafka_connection(),
            settings.database(),
            topics,
            homes.partitions,
            auth=settings.auth,
            limits=limits,
            secure_cookies=settings.api_secure_cookies,
        ) as context:
            host, port, *_ = listener.getsockname()
            log.info("listening", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            if settings.auth == "off":
                log.warning("authentication is off (ROLLCALL_AUTH=off): whoever is on this machine may do anything")
            await serve(create_app(context), listener, stop, announce, context.feed.close)


async def _clock(settings: Settings, topics: Topics, homes: Homes, stop: asyncio.Event) -> None:
    allowed = Allowed(settings.slow_after_s, settings.stalled_after_s, settings.never_opened_after_s)
    limits = clock.Limits(
        summary_timeout_s=settings.summary_timeout_s,
        allowed=allowed,
        events_kept=settings.events_kept,
        dead_letters_kept=settings.dead_letters_kept,
    )
    await clock.run(settings.kafka_connection(), settings.database(), topics, homes.partitions, limits, stop, announce)


async def _prepared(settings: Settings, topics: Topics) -> Homes:
    """Topics exist, the schema is this version's and this log's; returns what fixes every batch's home.

    Waits for servers that are away. Raises UnusableTopicError, WrongSchemaError and what else no waiting mends.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(lambda error: may_pass(error.__cause__ or error)),
        wait=wait_exponential_jitter(multiplier=0.2, max=5.0),
        before_sleep=_report,
        reraise=True,
    ):
        with attempt:
            with naming(settings, "PostgreSQL"):
                connection = await settings.database().connect("start-up")
            try:
                with naming(settings, "PostgreSQL"):
                    await check(connection, settings.database_schema)
                with naming(settings, "Kafka"):
                    found = await ensure_topics(settings.kafka_connection(), topics)
                    log_id = await log_identity(settings.kafka_connection(), topics)
                with naming(settings, "PostgreSQL"):
                    return Homes(await positions.fix_partition_count(connection, topics.events, found), log_id)
            finally:
                connection.terminate()
    raise AssertionError("unreachable: attempts go on until one succeeds or raises")


def _report(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(f"cannot start yet, trying again: {error}")


def _run(name: str, settings: Settings, role: Callable[[Topics, Homes, asyncio.Event], Awaitable[None]]) -> int:
    switch_on_tracing(name)
    try:
        uvloop.run(_serving_until_stopped(settings, role))
    except FATAL as error:
        log.error(str(error))
        return REFUSED
    except ServerError as error:
        if not isinstance(error.__cause__, asyncpg.InvalidAuthorizationSpecificationError | LostSettingsError):
            raise
        typer.echo(f"rollcall: {error}", err=True)
        return REFUSED
    return 0


async def _serving_until_stopped(
    settings: Settings, role: Callable[[Topics, Homes, asyncio.Event], Awaitable[None]]
) -> None:
    health.checks |= {
        "database": database_check(settings.database()),
        "broker": broker_check(settings.kafka_connection()),
        "start-up": _still_starting,
    }
    async with serving(settings):
        await _until_stopped(settings, role)


async def _still_starting() -> None:
    raise NotReadyError("waits for its servers")


async def _until_stopped(settings: Settings, role: Callable[[Topics, Homes, asyncio.Event], Awaitable[None]]) -> None:
    """Prepare and run the role; a first signal lets it drain, a second one ends the process at once."""
    stop = asyncio.Event()
    with heeding((signal.SIGINT, signal.SIGTERM), lambda _: stop.set(), at_once=call_in(EXIT_TIMEOUT_S, _exit)):
        try:
            await _prepare_and_run(settings, role, stop)
        except Exception as error:
            _exit_after(error)
            raise


def _exit_after(error: Exception) -> None:
    """End this process in time, so that another may start: a task that is left may not heed being cancelled."""
    code = REFUSED if isinstance(error, FATAL) else 1

    def end() -> None:
        call_in(1.0, lambda: os._exit(code))()  # where nobody takes the line
        log.error("tasks do not end, ending without them", exc_info=error)
        os._exit(code)

    call_in(EXIT_TIMEOUT_S, end)()


async def _prepare_and_run(
    settings: Settings, role: Callable[[Topics, Homes, asyncio.Event], Awaitable[None]], stop: asyncio.Event
) -> None:
    topics = Topics(settings.topic_prefix)
    preparing = asyncio.ensure_future(_prepared(settings, topics))
    if not await _ended_before(preparing, stop, grace_s=0.0):
        return
    del health.checks["start-up"]
    working = asyncio.ensure_future(role(topics, preparing.result(), stop))
    if not await _ended_before(working, stop, grace_s=STOP_TIMEOUT_S):
        log.warning("not drained in time, ending anyway; what was not committed is read again")
        return
    working.result()


def _exit() -> None:
    """At once, whatever the threads and the event loop do; log lines are not held back by anything."""
    os._exit(0)


async def _ended_before(task: "asyncio.Future[Any]", stop: asyncio.Event, grace_s: float) -> bool:
    """Wait for the task, or for ``stop`` and the time of grace; what has not ended by then is cancelled."""
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done() and grace_s:
        await asyncio.wait({task}, timeout=grace_s)
    if task.done():
        return True
    task.cancel()
    await asyncio.wait({task}, timeout=1.0)
    return False
