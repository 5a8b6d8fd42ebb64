"""What the two embedded servers have in common: ports, log tails, and one kind of error."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from pathlib import Path

from rollcall.children import Child, describe_exit

# Below the range from which Linux takes ports for outgoing connections (32768 and up): none of our own
# clients can sit on a server's port while that server restarts.
_PORTS = range(15_000, 30_000)

START_ATTEMPTS = 5
PREPARE_TIMEOUT_S = 120.0
"""For what makes a server's data directory; a busy machine takes its time."""


class EmbeddedServerError(RuntimeError):
    """An embedded server could not be installed or started; the message carries the tail of its log."""


def free_port(in_a_row: int = 1) -> int:
    """The first of so many TCP ports that nobody listens on at 127.0.0.1 right now.

    Who needs several asks for them in a row: of two asked for one by one both may be the same.
    """
    for port in random.sample(_PORTS, 200):
        if all(map(is_free, range(port, port + in_a_row))):
            return port
    raise EmbeddedServerError("no free TCP port found on 127.0.0.1")


def is_free(port: int) -> bool:
    """Whether nobody listens on this TCP port at 127.0.0.1 right now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


async def await_prepared(child: Child, failure: str, log: Path, start: int) -> None:
    """Wait for the end of what prepares a server's data, and logs there from byte `start` on.

    Raises `EmbeddedServerError`, which begins with `failure`, where it does not do its work, or not in time.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), PREPARE_TIMEOUT_S)
    if child.returncode != 0:
        raise EmbeddedServerError(f"{failure} ({await end_of(child)}):\n{tail(log_since(log, start))}")


async def end_of(child: Child) -> str:
    """How it ended, for an error message; what still runs is killed."""
    if child.returncode is None:
        await child.kill()
        return "it did not answer in time"
    return describe_exit(child.returncode)


def log_size(log: Path) -> int:
    """Bytes in the log now: what comes behind them belongs to the next start."""
    return log.stat().st_size if log.exists() else 0


def log_since(log: Path, start: int) -> str:
    """What the server has logged since byte `start`."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def tail(text: str, lines: int = 15) -> str:
    """The last lines of a log, indented for an error message."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:]) or "    (no output)"
