"""What a process does with signals."""

import signal
from pathlib import Path

import psutil


def catches(pid: int, signum: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal; ours have one until the first has come."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signum - 1) & 1)


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped (SIGSTOP), as by its failpoint, and does not go on yet."""
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED
