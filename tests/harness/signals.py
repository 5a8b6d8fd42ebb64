"""What a process does with signals."""

import signal
from pathlib import Path


def catches(pid: int, signum: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal; ours have one until the first has come."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signum - 1) & 1)
