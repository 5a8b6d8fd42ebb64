"""Assembles one role's process: event loop, signals, start-up checks, and the role itself."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvloop
from tenacity import AsyncRetrying, retry_if_exception, wait_exponential_jitter

from migrations.version import WrongSchemaError, check
from rollcall.readiness import announce
from rollcall.settings import Settings
from rollcall.supervisor import REFUSED
from schemas.topics import Topics
from store import positions
from streams import relay
from streams.anchoring import LogChangedError
from streams.flushing import may_pass
from streams.intake import Intake
from streams.reading import Homes
from streams.topics import UnusableTopicError, ensure_topics

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 13.0
"""From the first signal to the end; a supervisor kills after 15 s."""

FATAL = (LogChangedError, WrongSchemaError, UnusableTopicError)
"""What no restart mends; the message says what does."""


def run_worker(settings: Settings, slot: str) -> int:
    """Run one worker until SIGTERM or SIGINT; returns the exit code."""
    return _run(lambda stop: _worker(settings, slot, stop))


def run_relay(settings: Settings) -> int:
    """Run the relay until SIGTERM or SIGINT; returns the exit code."""
    return _run(lambda stop: _relay(settings, stop))


async def _worker(settings: Settings, slot: str, stop: asyncio.Event) -> None:
    topics = Topics(settings.topic_prefix)
    homes = Homes(await _prepared(settings, topics))
    intake = Intake(
        settings.kafka_connection(),
        settings.database(),
        topics,
        homes,
        slot=slot,
        max_records=settings.max_records,
        batch_timeout_ms=settings.batch_timeout_ms,
    )
    # What was imported stays: no later collection needs to walk over it.
    gc.collect()
    gc.freeze()
    await intake.run(stop, announce)


async def _relay(settings: Settings, stop: asyncio.Event) -> None:
    topics = Topics(settings.topic_prefix)
    await _prepared(settings, topics)
    await relay.run(settings.kafka_connection(), settings.database(), topics, stop, announce)


async def _prepared(settings: Settings, topics: Topics) -> int:
    """Topics exist, the schema is this version's; returns the partition count that fixes every batch's home."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(may_pass),
        wait=wait_exponential_jitter(initial=0.2, max=5.0),
        before_sleep=_report,
        reraise=True,
    ):
        with attempt:
            connection = await settings.database().connect("start-up")
            try:
                await check(connection, settings.database_schema)
                found = await ensure_topics(settings.kafka_connection(), topics)
                return await positions.fix_partition_count(connection, topics.events, found)
            finally:
                connection.terminate()
    raise AssertionError("unreachable: attempts go on until one succeeds or raises")


def _report(state: object) -> None:
    error = getattr(getattr(state, "outcome", None), "exception", lambda: None)()
    log.warning("cannot start yet, trying again", error=repr(error))


def _run(role: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stopping() -> None:
            # The second signal ends the process at once: put back what the operating system does.
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping)
        working = asyncio.ensure_future(role(stop))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not working.done():
            await asyncio.wait({working}, timeout=STOP_TIMEOUT_S)
        if stop.is_set() and not working.done():
            log.warning("not drained in time, ending anyway; what was not committed is read again")
            working.cancel()
            await asyncio.wait({working}, timeout=1.0)
            return
        await working

    try:
        uvloop.run(main())
    except FATAL as error:
        log.error(str(error))
        return REFUSED
    return 0
