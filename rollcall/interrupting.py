"""Runs what has to clean up after itself, whoever ends it: a terminal's Ctrl+C, or an orchestrator's SIGTERM."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TERMINATED = 128 + signal.SIGTERM
"""The exit code that a shell gives what ended by this signal."""


async def to_its_end(cleaning_up: Coroutine[Any, Any, None]) -> None:
    """Await this to its end, also where the task that awaits it is cancelled meanwhile."""
    task = asyncio.ensure_future(cleaning_up)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end and return what it returns; SIGTERM cancels it as SIGINT does, a second one ends at once.

    Raises SystemExit(143) once it has cleaned up after SIGTERM, KeyboardInterrupt after SIGINT.
    """
    terminated = False

    async def interruptible() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a coroutine that runs is in a task"

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            loop.remove_signal_handler(signal.SIGTERM)
            task.cancel()

        loop.add_signal_handler(signal.SIGTERM, terminate)
        return await main

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        if terminated:
            raise SystemExit(TERMINATED) from None
        raise
