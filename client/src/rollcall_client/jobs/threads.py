"""Threads in which a job's ``handle`` runs: none can be stopped, and Python waits for each when a program ends."""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread, Timer, current_thread
from typing import NoReturn, TypeVar

import structlog

_log = structlog.get_logger(__name__)

A = TypeVar("A")
R = TypeVar("R")

HUNG_AFTER_S = 5.0
INTERRUPTED = 130
"""As a shell says it of what Ctrl+C ended."""

_handling: set[Thread] = set()


def handled(function: Callable[[A], R], argument: A) -> R:
    """Call what runs ``handle``, in its thread."""
    thread = current_thread()
    _handling.add(thread)
    try:
        return function(argument)
    finally:
        _handling.discard(thread)


@contextmanager
def ends_without_the_hung() -> Iterator[None]:
    """End this process as its work inside ends, where threads still are in ``handle`` ``HUNG_AFTER_S`` after that.

    Nobody listens to them any more by then: as an item that took too long, or a run that was interrupted, leaves them.
    """
    ended: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended = error
        raise
    finally:
        try:
            until = time.monotonic() + HUNG_AFTER_S
            for thread in list(_handling):
                thread.join(max(0.0, until - time.monotonic()))
        finally:  # also where this wait was interrupted
            if _handling:
                _end_as(ended)


def _end_as(ended: BaseException | None) -> NoReturn:
    """What Python does at the end of a program, but for its wait for threads."""
    code = 1
    try:
        if ended is not None and not isinstance(ended, SystemExit):
            sys.excepthook(type(ended), ended, ended.__traceback__)
        _log.warning("threads hang in the handle of a job, ending without them", count=len(_handling))
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        code = _exit_code(ended)
        # What is registered may wait for the same as they do: as for a process of a pool.
        timer = Timer(HUNG_AFTER_S, os._exit, [code])
        timer.daemon = True
        timer.start()
        atexit._run_exitfuncs()
    finally:
        os._exit(code)


def _exit_code(ended: BaseException | None) -> int:
    if isinstance(ended, SystemExit):
        return ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    return 0 if ended is None else INTERRUPTED if isinstance(ended, KeyboardInterrupt) else 1
