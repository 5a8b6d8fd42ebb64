"""Keeps a set of processes alive: starts again the one that dies, and stops all of them in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import structlog

from rollcall.children import Child, describe_exit
from rollcall.embedded.servers import EmbeddedServerError

_log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
HEALTHY_AFTER_S = 30.0
GRACE_S = 14.0
"""Ours ends behind theirs, within 15 s, on a machine that is busy as well."""

# The exit code with which a role says that starting it again is no use: wrong settings, another schema version or log.
REFUSED = 2


class RoleRefusedError(RuntimeError):
    """A role ended with exit code 2, at its start or, as where the log is another one, later; it says why on stderr."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} cannot run (it has said why), and no restart helps: stopping everything")
        self.name = name


class Supervised(Protocol):
    """A process that can be started again: a role of ours, or an embedded server."""

    name: str
    child: Child | None

    async def start(self) -> None:
        """Start it and return when it runs."""

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Stop it, by force after `grace_s` seconds; does nothing where it doesn't run."""


@dataclass
class Role:
    """One of Rollcall's own processes: `argv` with exactly the environment `env`, its output on our stderr."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    child: Child | None = field(default=None, init=False)

    async def start(self) -> None:
        """Start the process; it is not waited for."""
        self.child = await Child.spawn(self.argv, name=self.name, env=self.env)

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """SIGTERM, and SIGKILL after `grace_s` seconds."""
        if self.child is not None:
            await self.child.stop(grace_s)
            self.child = None


class Supervisor:
    """Keeps processes alive while its context is open; on leaving it stops roles first, then the servers."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Supervised, asyncio.Task[None]]] = {}
        self._refused: asyncio.Future[RoleRefusedError] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def keep(self, *members: Supervised) -> None:
        """Start the members side by side and keep them running; what a first start raises is raised here."""
        starts = [asyncio.create_task(self._start_first(member)) for member in members]
        try:
            await asyncio.gather(*starts)
        finally:
            # Where one failed, the others must not come up behind our back.
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    async def _start_first(self, member: Supervised) -> None:
        try:
            await member.start()
        except BaseException:
            await member.stop()
            raise
        task = asyncio.create_task(self._keep_alive(member), name=f"keep {member.name} alive")
        self._kept[id(member)] = (member, task)

    def processes(self) -> list[dict[str, str | int]]:
        """`[{"role": ..., "pid": ...}]` of those that run now, in the order of their start."""
        return [
            {"role": member.name, "pid": member.child.pid}
            for member, _ in self._kept.values()
            if member.child is not None and member.child.returncode is None
        ]

    async def unless_refused(self, awaitable: Awaitable[T]) -> T:
        """The result of `awaitable`; raises `RoleRefusedError` as soon as a role says it cannot run at all."""
        task = asyncio.ensure_future(awaitable)
        either: set[asyncio.Future[Any]] = {task, self._refused}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise self._refused.result()
        finally:
            task.cancel()

    async def stop(self) -> None:
        """Stop roles (SIGTERM, after 14 s SIGKILL), then Kafka and PostgreSQL."""
        members = [member for member, _ in self._kept.values()]
        watchers = [task for _, task in self._kept.values()]
        self._kept.clear()
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await _stop_all(member for member in members if isinstance(member, Role))
        await _stop_all(member for member in members if not isinstance(member, Role))

    async def _keep_alive(self, member: Supervised) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            problem = await self._end_of(member)
            if time.monotonic() - started >= HEALTHY_AFTER_S:
                failures = 0
            while problem:
                failures += 1
                delay = restart_delay_s(failures)
                _log.error(f"{member.name} {problem}", restart_in_s=delay)
                await asyncio.sleep(delay)
                problem = await _start_again(member)

    async def _end_of(self, member: Supervised) -> str:
        if member.child is None:
            return "is not running"
        pid, code = member.child.pid, await member.child.wait()
        if code == REFUSED and isinstance(member, Role) and not self._refused.done():
            self._refused.set_result(RoleRefusedError(member.name))
        return f"(pid {pid}) died: {describe_exit(code)}"


async def _start_again(member: Supervised) -> str:
    try:
        await member.start()
    except (EmbeddedServerError, OSError) as error:
        return f"could not be started: {error}"
    return ""


def restart_delay_s(failures: int) -> float:
    """Seconds to wait before the next start after that many failures in a row: 0.1, 0.2, 0.4 ... 30."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 30))


async def _stop_all(members: Iterable[Supervised]) -> None:
    await asyncio.gather(*(member.stop() for member in members))
