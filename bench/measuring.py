"""How every contender is measured: the same clock, from the same moment, with CPU time and memory by process."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

WARM_UP = 0.1
"""The clock starts when this share of the records is committed: interpreters are loaded then, and the JVM is warm."""
POLL_S = 0.05
STANDSTILL_S = 300.0
"""A contender that commits nothing for so long will not go on."""


@dataclass(frozen=True)
class Measured:
    """``rate``: items/s. ``cpu_us``: microseconds an item, by process. ``peak_mib``: the largest worker's memory.

    ``tenths``: items/s in each tenth of the way behind the first.
    """

    rate: float
    cpu_us: Mapping[str, float]
    peak_mib: float
    tenths: Sequence[float]


class Cpu:
    """CPU time of groups of processes, by name; of a process counts what its children used too, ended ones included."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        self._groups = {name: [psutil.Process(pid) for pid in pids] for name, pids in groups.items()}

    def seconds(self) -> dict[str, float]:
        return {name: sum(map(_with_children, processes)) for name, processes in self._groups.items()}


def _with_children(process: psutil.Process) -> float:
    used = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue  # between two looks: its parent has taken its time over
        used += times.user + times.system + times.children_user + times.children_system
    return used


async def measure(
    *,
    items: int,
    progress: int,
    applied: Callable[[], Awaitable[int]],
    finished: Callable[[], Awaitable[bool]],
    alive: Callable[[], None],
    cpu: Cpu,
    memory_of: Sequence[int],
    warm_up: float = WARM_UP,
) -> Measured:
    """Watch a contender until it is through.

    ``applied`` counts up to ``progress``; then ``finished`` says whether all events are out too. ``alive`` raises when
    a process has ended. Raises RuntimeError where nothing more is committed.
    """
    first: tuple[int, float, dict[str, float]] | None = None
    looks: list[tuple[int, float]] = []
    last, moved_at = -1, time.monotonic()
    while True:
        count, now = await applied(), time.monotonic()
        if count != last:
            last, moved_at = count, now
        elif now - moved_at > STANDSTILL_S:
            raise RuntimeError(f"stands still at {count:,} of {progress:,} records")
        if first is None and count >= progress * warm_up:
            first = (count, now, cpu.seconds())
        if len(looks) < 10 and count >= progress * (len(looks) + 1) / 10:
            looks.append((count, now))
        if count >= progress and await finished():
            break
        alive()
        await asyncio.sleep(POLL_S)
    if first is None or first[0] >= count:
        raise RuntimeError("it was over before it could be measured: take more items")
    counted, begun, before = first
    share = items * (count - counted) / count
    return Measured(
        rate=share / (now - begun),
        cpu_us={name: 1e6 * (after - before[name]) / share for name, after in cpu.seconds().items()},
        peak_mib=max(map(peak_memory_kib, memory_of)) / 1024,
        tenths=[
            items / progress * (later[0] - earlier[0]) / (later[1] - earlier[1])
            for earlier, later in itertools.pairwise(looks)
            if later[1] > earlier[1]
        ],
    )


def peak_memory_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
