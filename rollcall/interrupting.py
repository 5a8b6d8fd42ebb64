"""Runs what has to clean up after itself, whoever ends it: Ctrl+C, an orchestrator's SIGTERM, a terminal that goes."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

ENDED_BY = 128
"""The exit code that a shell gives what ended by a signal is this and the signal's number."""
TERMINATED = ENDED_BY + signal.SIGTERM


@contextmanager
def heeding(
    signals: Sequence[signal.Signals],
    then: Callable[[signal.Signals], object],
    *,
    at_once: Callable[[], None] = lambda: None,
    again: Callable[[int, Any], None] | signal.Handlers = signal.SIG_DFL,
) -> Iterator[None]:
    """While it is open, have the running loop call `then` at the first of these signals; a second one is for `again`.

    Not by the loop's own handlers: a write that nobody takes blocks it, and then a second signal, which by default ends
    the process, would do nothing either. `at_once` is called within the handler: it may take no lock.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, _: Any) -> None:
        for each in signals:
            signal.signal(each, again)
        at_once()
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(then, signal.Signals(number))

    before = {each: signal.signal(each, handle) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) is handle:
                signal.signal(each, handler)


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
        task = asyncio.current_task()
        assert task is not None, "a coroutine that runs is in a task"

        def end(signum: signal.Signals) -> None:
            nonlocal ended_by
            ended_by = signum
            task.cancel()

        # Whoever runs it with nohup does not want to hear of the terminal.
        heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
        with heeding(heeded, end):
            return await main

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        if ended_by is not None:
            raise SystemExit(ENDED_BY + ended_by) from None
        raise
