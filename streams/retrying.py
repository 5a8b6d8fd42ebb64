"""How streams wait for what passes by itself: Kafka or PostgreSQL away, a lost connection, a deadlock."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from store.failures import is_transient
from streams.metrics import RETRIES

CANCEL_AGAIN_S = 1.0

log = structlog.get_logger(__name__)


def may_pass(error: BaseException) -> bool:
    """Whether waiting may help, for Kafka's failures and PostgreSQL's."""
    return isinstance(error, KafkaError) or is_transient(error)


def attempts(failed: str, stop: asyncio.Event, before_next: Callable[[], None] = lambda: None) -> AsyncRetrying:
    """Attempts with growing pauses of at most 5 s, until one succeeds or fails for good, or ``stop`` is set.

    ``failed`` is what the log says of a failure; ``before_next`` is called after each. Raises the last failure.
    """

    retries = RETRIES.labels(failed.split(" failed")[0])

    def report(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(failed, error=repr(error), attempt=state.attempt_number)
        retries.inc()
        before_next()

    return AsyncRetrying(
        retry=retry_if_exception(may_pass),
        stop=lambda _: stop.is_set(),
        sleep=partial(sleep, stop),
        wait=wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.1),
        before_sleep=report,
        reraise=True,
    )


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until all have ended: a library may take a cancellation for one of its own, and lose it."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


async def sleep(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not beyond the moment at which ``stop`` is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
