"""Waiting for something to become true, and saying what was seen if it never does."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], timeout_s: float = ..., *, interval_s: float = ..., message: str = ...
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], timeout_s: float = ..., *, interval_s: float = ..., message: str = ...
) -> T: ...
async def eventually(
    condition: Callable[[], T | Awaitable[T]],
    timeout_s: float = 30.0,
    *,
    interval_s: float = 0.05,
    message: str = "",
) -> T:
    """Poll `condition` until it returns something true, and return that.

    An `AssertionError` raised by the condition means "not yet". After `timeout_s` seconds fails with `message`, the
    condition's source line and what it last returned or raised.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            outcome = condition()
            seen = cast(T, await outcome if inspect.isawaitable(outcome) else outcome)
            if seen:
                return seen
            last = f"it last returned {seen!r}"
        except AssertionError as error:
            last = f"it last failed with: {error}"
        if time.monotonic() >= deadline:
            raise AssertionError(f"{message or _source(condition)}: not true within {timeout_s:g} s; {last}")
        await asyncio.sleep(interval_s)


def _source(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
