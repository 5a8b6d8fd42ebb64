"""Points at which a process under test kills itself, as a crash at that very moment would, or stops.

``ROLLCALL_FAILPOINT=cas.after`` kills it with SIGKILL where it first gets there, ``cas.after:3`` where it does for
the third time; ``cas.after:3:stop`` stops it there with SIGSTOP, until somebody has it go on (SIGCONT). Meant for
tests; without the variable ``reach`` does nothing.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

VARIABLE = "ROLLCALL_FAILPOINT"

_SIGNALS = {"": signal.SIGKILL, "stop": signal.SIGSTOP}
_WORKER_STEPS = ("read", "cas", "copy", "batches", "outbox", "commit", "kafka_commit")
_RELAY_STEPS = ("read_back", "send", "relay.commit", "mark")

WORKER = tuple(f"{step}.{moment}" for step in _WORKER_STEPS for moment in ("before", "after"))
RELAY = ("relay.start", *(f"{step}.{moment}" for step in _RELAY_STEPS for moment in ("before", "after")))


class UnknownFailpointError(ValueError):
    """The variable names no failpoint; the message is one line and says which there are."""


def armed(setting: str) -> Callable[[str], None]:
    """What ``reach`` does under this setting. Raises UnknownFailpointError."""
    if not setting:
        return _pass_by
    wanted, _, how = setting.partition(":")
    count, _, action = how.partition(":")
    if (
        wanted not in WORKER + RELAY
        or not (count or "1").isdecimal()
        or int(count or "1") < 1
        or action not in _SIGNALS
    ):
        known = ", ".join(WORKER + RELAY)
        raise UnknownFailpointError(f"{VARIABLE}={setting} is no failpoint (name, name:n or name:n:stop, of: {known})")
    left, signum = int(count or "1"), _SIGNALS[action]

    def reach(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signum)

    return reach


def _pass_by(name: str) -> None:
    pass


def _from_environment() -> Callable[[str], None]:
    try:
        return armed(os.environ.get(VARIABLE, ""))
    except UnknownFailpointError as error:
        _refuse(error)


def _refuse(error: UnknownFailpointError) -> NoReturn:
    # Wrong use; a supervisor does not start what ends with 2 again.
    sys.stderr.write(f"rollcall: {error}\n")
    raise SystemExit(2)


reach = _from_environment()
"""Call it with the name of the point."""
