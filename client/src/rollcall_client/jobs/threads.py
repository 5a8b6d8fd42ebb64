"""Threads in which a job's ``handle`` runs: none can be stopped, and Python waits for each when a program ends."""

import atexit
import os
import sys
import time
from collections.abc import Callable
from threading import Thread, current_thread
from typing import TypeVar

import structlog

_log = structlog.get_logger(__name__)

A = TypeVar("A")
R = TypeVar("R")

_handling: set[Thread] = set()


def handled(function: Callable[[A], R], argument: A) -> R:
    """Call what runs ``handle``, in its thread."""
    thread = current_thread()
    _handling.add(thread)
    try:
        return function(argument)
    finally:
        _handling.discard(thread)


def end_without_the_hung(code: int, patience_s: float) -> None:
    """End this process with ``code`` where threads still are in ``handle`` after so long; else return.

    To be called when nobody listens to them any more: as an item that took too long, or a run that was interrupted,
    leaves them.
    """
    until = time.monotonic() + patience_s
    for thread in list(_handling):
        thread.join(max(0.0, until - time.monotonic()))
    if not _handling:
        return
    _log.warning("threads hang in the handle of a job, ending without them", count=len(_handling))
    atexit._run_exitfuncs()  # as Python would, once all threads have ended
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
