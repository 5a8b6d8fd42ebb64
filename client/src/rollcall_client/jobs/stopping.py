"""Ending early because somebody asked for it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from rollcall_client.errors import RollcallError

T = TypeVar("T")


class JobStoppedError(RollcallError):
    """A run was asked to stop; what ran is reported, and the same batch can be run again."""


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
