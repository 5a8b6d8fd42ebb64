"""How far a run is, on a terminal or to a callback. For people: what counts is what the stream says at the end."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

TELL_EVERY_S = 0.2


@dataclass(slots=True)
class Progress:
    """Items of this process so far; ``total`` is None while nobody knows."""

    total: int | None = None
    done: int = 0
    succeeded: int = 0
    failed: int = 0

    def count(self, status: str) -> None:
        """One more item is answered."""
        self.done += 1
        if status == "failed":
            self.failed += 1
        else:
            self.succeeded += 1


Callback: TypeAlias = Callable[[Progress], None]
Showing: TypeAlias = Callback | Literal["auto"] | None


@contextmanager
def shown(name: str, showing: Showing) -> Iterator[Callback]:
    """A function to tell progress to, as often as one likes: it passes on five a second, and the last.

    "auto" is a bar where stderr is a terminal and rich is installed, and nothing else.
    """
    if showing == "auto":
        with _bar(name) as tell:
            yield _throttled(tell)
    else:
        yield _throttled(showing or _nobody)


def _throttled(tell: Callback) -> Callback:
    told_at = 0.0

    def throttled(progress: Progress) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= TELL_EVERY_S or progress.done == progress.total:
            told_at = now
            tell(progress)

    return throttled


@contextmanager
def _bar(name: str) -> Iterator[Callback]:
    columns = _columns() if sys.stderr.isatty() else None
    if columns is None:
        yield _nobody
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None, succeeded=0, failed=0)

        def tell(progress: Progress) -> None:
            bars.update(
                task,
                total=progress.total,
                completed=progress.done,
                succeeded=progress.succeeded,
                failed=progress.failed,
            )

        yield tell


def _columns() -> list[Any] | None:
    try:
        from rich import progress as rich
    except ImportError:
        return None
    return [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("[green]{task.fields[succeeded]} ok[/] [red]{task.fields[failed]} failed[/]"),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    ]


def _nobody(progress: Progress) -> None:
    pass
