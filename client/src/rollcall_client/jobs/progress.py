"""How far a run is, on a terminal or to a callback. For people: what counts is what the stream says at the end."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import structlog

_log = structlog.get_logger(__name__)

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
    with ExitStack() as until_the_end:
        bar = until_the_end.enter_context(_bar(name)) if showing == "auto" else showing or _nobody
        telling = _Throttled(bar)
        try:
            yield telling.tell
        finally:
            telling.tell_the_last()


class _Throttled:
    def __init__(self, tell: Callback) -> None:
        self._tell = tell
        self._told_at = 0.0
        self._untold: Progress | None = None

    def tell(self, progress: Progress) -> None:
        if time.monotonic() - self._told_at < TELL_EVERY_S:
            self._untold = progress
        else:
            self._now(progress)

    def tell_the_last(self) -> None:
        if self._untold is not None:
            self._now(self._untold)

    def _now(self, progress: Progress) -> None:
        self._told_at, self._untold = time.monotonic(), None
        try:
            self._tell(progress)
        except Exception as error:  # somebody's callback: a job isn't lost over what it shows
            _log.warning("progress could not be shown, and is not any more", error=str(error), exc_info=error)
            self._tell = _nobody


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
