"""What was measured, one JSON line each, so that a long run can be stopped, taken up again and reported on later."""

import json
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

ROLLCALL = "Rollcall"
STREAMS = "Kafka Streams exactly_once_v2"
STREAMS_SECOND = "Kafka Streams, one commit a second"
STREAMS_COMPACT = "Kafka Streams, keeping no fields of an item"
STREAMS_DEFAULTS = "Kafka Streams, settings as they come"
QUIX = "Quix Streams"
BARE = "bare loop"
ENCODED = "PostgreSQL alone, encoded rows"
ROWS = "PostgreSQL alone, asyncpg's rows"


@dataclass(frozen=True)
class Result:
    """One measurement. ``values`` holds figures by name; what belongs to a series is told apart by ``at``."""

    part: str
    subject: str
    contender: str
    workers: int
    round: int
    values: Mapping[str, float]
    at: float = 0.0
    taken: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M}")
    machine: str = field(default_factory=lambda: machine())
    command: str = field(default_factory=lambda: command())

    @property
    def key(self) -> tuple[object, ...]:
        return (self.part, self.subject, self.contender, self.workers, self.round, self.at)


class Results:
    """All measurements of a file, or of this process where there is none; a repeated one replaces what was there."""

    def __init__(self, file: Path | None = None, *, busy: bool = False) -> None:
        self._file = file
        self._busy = busy
        self._by_key: dict[tuple[object, ...], Result] = {}
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                result = Result(**json.loads(line))
                self._by_key[result.key] = result

    def add(self, result: Result) -> None:
        if self._busy:
            result = replace(result, machine=f"{result.machine}, busy with other work")
        self._by_key[result.key] = result
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._file.with_suffix(".new")
            unfinished.write_text("".join(f"{json.dumps(asdict(each))}\n" for each in self))
            unfinished.replace(self._file)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._by_key.values())

    def __contains__(self, key: tuple[object, ...]) -> bool:
        return key in self._by_key

    def forget(self, part: str | None, subjects: Sequence[str] | None, workers: Sequence[int]) -> None:
        """Drop what was measured with so many workers of a part, or of some subjects of it; without either, of all."""
        self._by_key = {
            key: each
            for key, each in self._by_key.items()
            if part not in (None, each.part)
            or not (subjects is None or each.subject in subjects)
            or each.workers not in workers
        }

    def of(self, part: str, subject: str, contender: str, workers: int) -> list[Result]:
        wanted = (part, subject, contender, workers)
        return [each for each in self if (each.part, each.subject, each.contender, each.workers) == wanted]

    def rates(self, subject: str, contender: str, workers: int) -> list[float]:
        return [each.values["rate"] for each in self.of("shapes", subject, contender, workers)]

    def ratio(self, subject: str, other: str, workers: int) -> float | None:
        """Rollcall's median by another's, where both were measured."""
        ours, theirs = self.rates(subject, ROLLCALL, workers), self.rates(subject, other, workers)
        return statistics.median(ours) / statistics.median(theirs) if ours and theirs else None


def spread(values: Iterable[float]) -> str:
    """``123,456 (120,000 to 130,000)``: median, least and most."""
    found = sorted(values)
    middle = f"{statistics.median(found):,.0f}"
    return middle if len(found) == 1 else f"{middle} ({found[0]:,.0f} to {found[-1]:,.0f})"


def machine() -> str:
    """The machine, without a name: ``2 cores, 24 GiB``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cores} cores, {round(psutil.virtual_memory().total / 2**30)} GiB"


def command() -> str:
    """What was called to measure this, as one would type it."""
    module = {"__main__.py": "bench", "full.py": "bench-full"}.get(Path(sys.argv[0]).name)
    if module is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return f"make {module}" + (f' ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else "")
