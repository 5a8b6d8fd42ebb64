"""One operating-system child process: started so that it cannot outlive its parent, and stopped for certain.

The kernel's parent-death signal does what no clean-up code can: it also works when the parent is killed with
SIGKILL. `setpriv` (util-linux) sets it and then becomes the program, so the child's pid is the program's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

NOBODY = 65534
KILLED_WITHIN_S = 30.0

# Where setpriv is missing: the same two steps (ask for the signal, become the program) by a bare interpreter.
# Systems other than Linux have no such signal: there a SIGKILL of the parent leaves the child behind.
_LAUNCHER = """
import ctypes, os, sys
death_signal, parent, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
if os.getppid() == parent:
    os.execvp(argv[0], argv)
"""

_children: weakref.WeakSet[Child] = weakref.WeakSet()


class Child:
    """A running child process in a process group of its own, so that Ctrl+C reaches only the parent."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        _children.add(self)

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
        unprivileged: bool = False,
    ) -> Child:
        """Start `argv`; its stdout and stderr are appended to `log`, or go to this process' stderr.

        `death_signal` is what the kernel sends the child when its parent ends. `unprivileged` runs it as the
        user "nobody" if we are root, while it may still reach files below directories closed to others.

        Raises `RuntimeError` outside the main thread (the death signal fires when the spawning *thread* ends)
        and `OSError` where the program cannot be started.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children must be started from the main thread")
        command = outlived_by_nobody(argv, death_signal=death_signal, unprivileged=unprivileged)
        with contextlib.ExitStack() as files:
            output = files.enter_context(log.open("ab")).fileno() if log else sys.__stderr__.fileno()  # type: ignore[union-attr]
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
            )
        return cls(name, process)

    @property
    def pid(self) -> int:
        """The program's own process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal's number if a signal ended it, None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end and return the exit code (negative: ended by that signal)."""
        return await self._process.wait()

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal to the child, if it is still there."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signum)

    async def stop(self, grace_s: float, *, signum: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop with `signum`; after `grace_s` seconds kill it and its group. Returns the exit code."""
        self.send_signal(signum)
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            return await self.kill()
        except asyncio.CancelledError:
            self.kill_now()
            raise

    async def kill(self) -> int:
        """Kill it and its process group at once; the exit code.

        One that the kernel does not let go of is not waited for any longer than ``KILLED_WITHIN_S``.
        """
        self.kill_now()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), KILLED_WITHIN_S)
        return -signal.SIGKILL if self.returncode is None else self.returncode

    def kill_now(self) -> None:
        """Kill it and its process group without waiting for the end."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def kill_all_children() -> None:
    """Kill every child of this process that still runs."""
    for child in list(_children):
        child.kill_now()


def outlived_by_nobody(argv: Sequence[str], *, death_signal: signal.Signals, unprivileged: bool) -> list[str]:
    """The command line that runs `argv` with a parent-death signal and, if asked as root, as "nobody"."""
    setpriv = shutil.which("setpriv")
    drop_root = unprivileged and os.geteuid() == 0
    if setpriv:
        privileges = _nobody_who_reads_all() if drop_root else []
        return [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG"), *privileges, "--", *argv]
    if drop_root:
        raise FileNotFoundError(
            "setpriv (package util-linux) is needed to run this as root; install it or use another user"
        )
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(int(death_signal)), str(os.getpid()), *argv]


def _nobody_who_reads_all() -> list[str]:
    # The one capability spares us from opening up the modes of every directory above the data.
    return [
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]


def describe_exit(returncode: int) -> str:
    """`exit code 1` or `signal SIGKILL`, for a log line."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
