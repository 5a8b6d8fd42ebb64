"""Runs what has to clean up after itself, whoever ends it: Ctrl+C, an orchestrator's SIGTERM, a terminal that goes."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

ENDED_BY = 128
"""The exit code that a shell gives what ended by a signal is this and the signal's number."""
TERMINATED = ENDED_BY + signal.SIGTERM


async def to_its_end(cleaning_up: Coroutine[Any, Any, None]) -> None:
    """Await this to its end, also where the task that awaits it is cancelled meanwhile."""
    task = asyncio.ensure_future(cleaning_up)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end and return what it returns; SIGTERM and SIGHUP cancel it as SIGINT does.

    A second one ends it at once. Raises SystemExit (128 and the signal's number) once it has cleaned up after one of
    these, KeyboardInterrupt after SIGINT.
    """
    ended_by: signal.Signals | None = None

    async def interruptible() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a coroutine that runs is in a task"

        def end(signum: signal.Signals) -> None:
            nonlocal ended_by
            ended_by = signum
            for each in handled:
                loop.remove_signal_handler(each)
            task.cancel()

        # Whoever runs it with nohup does not want to hear of the terminal.
        handled = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
        for each in handled:
            loop.add_signal_handler(each, end, each)
        return await main

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        if ended_by is not None:
            raise SystemExit(ENDED_BY + ended_by) from None
        raise
