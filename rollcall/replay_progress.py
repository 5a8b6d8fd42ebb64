"""How a replay's progress looks: bars on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from rollcall.replaying import Progress

LINE_EVERY_S = 5.0


async def shown(folding: AsyncIterator[Progress]) -> Progress:
    """Show all of it; returns the last."""
    last: Progress | None = None
    if sys.stderr.isatty():
        last = await _as_bars(folding)
    else:
        said = time.monotonic()
        async for last in folding:
            if time.monotonic() - said >= LINE_EVERY_S:
                said = time.monotonic()
                sys.stderr.write(f"{_line(last)}\n")
                sys.stderr.flush()
    assert last is not None, "a replay says at least where it begins"
    return last


async def _as_bars(folding: AsyncIterator[Progress]) -> Progress:
    last: Progress | None = None
    columns = (
        TextColumn("{task.description}", justify="right"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", justify="right"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        total = bars.add_task("records", rate="", total=None)
        parts: dict[int, TaskID] = {}
        async for last in folding:
            rate = f"{last.rate:,.0f}/s" if last.done > last.done_before else ""
            bars.update(total, completed=last.done, total=last.total, rate=rate)
            for partition, (first, at, end) in sorted(last.partitions.items()):
                if partition not in parts:
                    parts[partition] = bars.add_task(f"partition {partition}", rate="")
                bars.update(parts[partition], completed=at - first, total=max(end, at) - first)
    assert last is not None
    return last


def _line(progress: Progress) -> str:
    left = progress.total - progress.done
    eta = f", {left / progress.rate:,.0f} s left" if progress.rate > 0 else ""
    share = 100 * progress.done / progress.total if progress.total else 100.0
    slowest = max(progress.partitions.items(), key=lambda each: each[1][2] - each[1][1], default=None)
    behind = f"; partition {slowest[0]} at {slowest[1][1]:,} of {slowest[1][2]:,}" if slowest else ""
    return (
        f"replayed {progress.done:,} of {progress.total:,} records ({share:.0f} %), {progress.rate:,.0f}/s{eta}{behind}"
    )
