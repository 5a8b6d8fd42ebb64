"""What a process says about itself: whether its loops still turn (alive), and whether it can do its work (ready).

A process has one role, so ``health`` is the process's: loops beat where they run, checks are added where they
are known.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from migrations.version import WrongSchemaError, check
from store.connection import Database
from streams.kafka import KafkaConnection, started

LOOP_TIMEOUT_S = 120.0
"""A loop that has not come round for so long is stuck: all it awaits ends earlier, or is tried again with a beat."""
CHECK_TIMEOUT_S = 5.0
KEEP_S = 2.0
"""Checks are not repeated within this time, however often somebody asks."""

Check = Callable[[], Awaitable[None]]


class NotReadyError(Exception):
    """Why this process cannot do its work (yet); a few words that anybody may read."""


@dataclass(frozen=True)
class Report:
    """What was found, by the name of the loop or check."""

    ok: bool
    details: dict[str, str]


@dataclass
class Health:
    """The heartbeats of a process's loops and the checks of its readiness."""

    checks: dict[str, Check] = field(default_factory=dict)
    _beats: dict[str, float] = field(default_factory=dict)
    _checked: tuple[float, Report] | None = None
    _checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def beat(self, loop: str) -> None:
        """A loop of this name has come round."""
        self._beats[loop] = time.monotonic()

    def wait(self, loop: str) -> None:
        """It may wait for as long as it takes, until its next beat."""
        self._beats[loop] = math.inf

    def end(self, loop: str) -> None:
        """It has ended, as it should."""
        self._beats.pop(loop, None)

    def alive(self) -> Report:
        """Whether every loop has come round lately; seconds since it did, each."""
        now = time.monotonic()
        since = {loop: max(0.0, now - beat) for loop, beat in self._beats.items()}
        details = {loop: f"{seconds:.1f} s ago" for loop, seconds in sorted(since.items())}
        return Report(all(seconds < LOOP_TIMEOUT_S for seconds in since.values()), details)

    async def ready(self) -> Report:
        """Whether every check passes; a check that fails says why in a few words."""
        async with self._checking:
            if self._checked is None or time.monotonic() - self._checked[0] > KEEP_S:
                names = sorted(self.checks)
                found = await asyncio.gather(*(_outcome(self.checks[name]) for name in names))
                report = Report(all(outcome == "ok" for outcome in found), dict(zip(names, found, strict=True)))
                self._checked = (time.monotonic(), report)
            return self._checked[1]


health = Health()
"""This process's."""


def database_check(database: Database) -> Check:
    """Whether PostgreSQL answers, with the schema of this version."""

    async def passes() -> None:
        connection = await database.connect("health", command_timeout=CHECK_TIMEOUT_S)
        try:
            await check(connection, database.schema)
        finally:
            connection.terminate()

    return passes


def broker_check(kafka: KafkaConnection) -> Check:
    """Whether a Kafka broker answers."""

    async def passes() -> None:
        async with started(kafka.admin()):
            pass

    return passes


async def _outcome(passes: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await passes()
    except (NotReadyError, WrongSchemaError) as why:
        return str(why)
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # said by its kind only: its text may name hosts and users
        return f"failed: {type(error).__name__}"
    return "ok"
