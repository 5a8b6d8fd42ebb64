"""Ending early because somebody asked for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from rollcall_client.errors import RollcallError

T = TypeVar("T")


class JobStoppedError(RollcallError):
    """A run was asked to stop; what ran is reported, and the same batch can be run again."""


class Stop(asyncio.Event):
    """Set where no more is to be started. For what comes too often to be waited for by a task of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self._waits: set[asyncio.Timeout] = set()

    def set(self) -> None:
        """Cut short all that is waited for; to be called in the event loop's thread."""
        if self.is_set():
            return
        super().set()
        for wait in self._waits:
            wait.reschedule(0)

    @asynccontextmanager
    async def cuts_short(self) -> AsyncIterator[None]:
        """What is waited for inside ends, without an exception, once this is set."""
        wait = asyncio.timeout(0 if self.is_set() else None)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise


async def unless_stopped(coming: Awaitable[T], stop: asyncio.Event | None, meanwhile: str) -> T:
    """What comes, or JobStoppedError where ``stop`` is set first; ``meanwhile`` says what was waited for."""
    waiting = asyncio.ensure_future(coming)
    stopping = asyncio.ensure_future(stop.wait() if stop is not None else asyncio.Event().wait())
    try:
        await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise JobStoppedError(f"stopped while waiting for {meanwhile}")
    finally:
        for each in (waiting, stopping):
            each.cancel()
        await asyncio.wait({waiting, stopping})
