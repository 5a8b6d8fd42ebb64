"""Runs what has to clean up after itself, whoever ends it: Ctrl+C, an orchestrator's SIGTERM, a terminal that goes."""

import asyncio
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

ENDED_BY = 128
"""The exit code that a shell gives what ended by a signal is this and the signal's number."""


@contextmanager
def heeding(
    signals: Sequence[signal.Signals],
    then: Callable[[signal.Signals], object],
    *,
    at_once: Callable[[], None] = lambda: None,
    again: Callable[[int, Any], None] | signal.Handlers = signal.SIG_DFL,
) -> Iterator[None]:
    """While it is open, have the running loop call `then` at the first of these signals; a second one is for `again`.

    But for SIGHUP: a terminal that goes may send it twice, and with nohup nobody wants to hear of it.
    Not by the loop's own handlers: a write that nobody takes blocks it, and then a second signal, which by default ends
    the process, would do nothing either. `at_once` is called within the handler: it may take no lock.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, _: Any) -> None:
        for each in heeded:
            signal.signal(each, signal.SIG_IGN if each is signal.SIGHUP else again)
        at_once()
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(then, signal.Signals(number))

    heeded = [each for each in signals if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, handle) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) is handle:
                signal.signal(each, handler)


def call_in(seconds: float, end: Callable[[], None]) -> Callable[[], None]:
    """What a signal's handler may call, once, to have that called so much later, whatever the event loop does.

    The thread is there before: a handler must start none, since what it interrupted may be starting one.
    """
    told, tell = os.pipe()

    def wait() -> None:
        os.read(told, 1)
        time.sleep(seconds)
        end()

    threading.Thread(target=wait, name="end", daemon=True).start()

    def begin() -> None:
        os.write(tell, b".")

    return begin


def end_process(code: int) -> NoReturn:
    """End as at the end of a program, but for taking Python apart.

    Of the 15 s that an end may take this costs half a second on an idle core, and several where many want it at once.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, nobody reads it, it is closed
            stream.flush()
    os._exit(code)


async def to_its_end(cleaning_up: Coroutine[Any, Any, None]) -> None:
    """Await this to its end, also where the task that awaits it is cancelled meanwhile."""
    task = asyncio.ensure_future(cleaning_up)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end and return what it returns; SIGINT, SIGTERM and SIGHUP cancel it.

    A second one, but for SIGHUP, ends it at once. Raises SystemExit (128 and the signal's number) once it has cleaned
    up, KeyboardInterrupt after SIGINT.
    """
    ended_by: signal.Signals | None = None

    async def interruptible() -> T:
        task = asyncio.current_task()
        assert task is not None, "a coroutine that runs is in a task"

        def end(signum: signal.Signals) -> None:
            nonlocal ended_by
            ended_by = signum
            task.cancel()

        with heeding((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), end):
            return await main

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        if ended_by is signal.SIGINT:
            raise KeyboardInterrupt from None
        if ended_by is not None:
            raise SystemExit(ENDED_BY + ended_by) from None
        raise
