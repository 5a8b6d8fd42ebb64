"""A soft limit on this process's memory, above which no new item starts."""

import asyncio
import gc
import os
import resource
import sys
import time
from pathlib import Path

import structlog

from rollcall_client.errors import ConfigurationError
from rollcall_client.jobs.job import CriticalError

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = 0.002
"""Often enough that items which take much memory can't start together, at a cost of some percent of one core."""
WAIT_S = 0.05
PATIENCE_S = 30.0

_STATM = Path("/proc/self/statm")


def resident_mb() -> float | None:
    """Resident memory of this process in MiB; None where the system doesn't tell."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError, ValueError):
        return None


class MemoryGate:
    """Lets items pass while memory is below ``limit_mb``; without a limit, always."""

    def __init__(self, limit_mb: float | None) -> None:
        self._limit_mb = limit_mb
        self._above = False
        self._look_at = 0.0
        if limit_mb is not None and resident_mb() is None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            raise ConfigurationError(
                f"memory_limit_mb: {sys.platform} does not tell how much memory is in use (peak {peak}); leave it out"
            )

    async def passed(self, in_flight: "InFlight", stop: asyncio.Event) -> None:
        """Wait until memory is below the limit, or the run is stopped.

        Raises CriticalError where it stays above with nothing in flight: then nothing will change by waiting.
        """
        if self._limit_mb is None or time.monotonic() < self._look_at:
            return
        idle_since: float | None = None
        while (used := resident_mb() or 0.0) > self._limit_mb and not stop.is_set():
            if not self._above:
                _log.warning("memory above its limit, no new item starts", used_mb=round(used), limit=self._limit_mb)
                self._above = True
                gc.collect()
            now = time.monotonic()
            idle_since = None if in_flight.count else idle_since or now
            if idle_since is not None and now - idle_since > PATIENCE_S:
                raise CriticalError(
                    f"{used:.0f} MiB are in use with no item running, above the limit of {self._limit_mb:g}: "
                    "raise memory_limit_mb"
                )
            await asyncio.sleep(WAIT_S)
        self._above = False
        self._look_at = time.monotonic() + LOOK_EVERY_S


class InFlight:
    """How many items are being handled."""

    def __init__(self) -> None:
        self.count = 0
