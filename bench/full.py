"""`make bench-full`: every shape, latency and cost, with a progress bar; writes docs/performance.md.

What has been measured is kept in docs/performance/results.jsonl, and only what is missing there is measured, so a long
run can be stopped and taken up again, or done in parts: `make bench-full ARGS="--only shapes --shape outputs"`.
`--again` measures anew what the chosen parts hold, `--report` only writes the page.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import cost, latency, quix_peer, report, streams_peer
from bench.__main__ import line
from bench.contest import Contest, Entry, entries, missing, play, warm_up
from bench.results import (
    BARE,
    ENCODED,
    QUIX,
    ROLLCALL,
    ROWS,
    STREAMS,
    STREAMS_COMPACT,
    STREAMS_DEFAULTS,
    STREAMS_SECOND,
    Results,
)
from bench.running import Bed, bed
from bench.workload import SHAPES, Shape

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "performance" / "results.jsonl"
PARTS = ("shapes", "latency", "cost")
HEADLINE = "100x10000"
# Minutes of preparation each: once is enough.
ONCE = ("20000000rows",)


@dataclass(frozen=True)
class Step:
    """Something to measure, with servers that were just started."""

    title: str
    run: Callable[[Bed], Awaitable[None]]


class Full:
    """What a run of everything is made of."""

    def __init__(self, options: argparse.Namespace, results: Results, progress: Progress) -> None:
        self._options = options
        self._results = results
        self._progress = progress
        self._classpath: str | None = None
        self._quix: Path | None = None

    async def prepare(self) -> None:
        """Build the peers; what cannot be built is left out, and said."""
        try:
            self._classpath = await streams_peer.build()
        except streams_peer.PeerMissingError as missing:
            self._say(str(missing))
        if self._chosen(QUIX):
            try:
                self._quix = await quix_peer.install()
            except streams_peer.PeerMissingError as missing:
                self._say(str(missing))

    def steps(self) -> list[Step]:
        chosen: list[Step] = []
        if self._options.only in (None, "shapes"):
            chosen += [
                Step(shape.title, self._shape(shape))
                for name, shape in SHAPES.items()
                if (self._options.shape is None or name in self._options.shape)
                and missing(shape, self._entries(shape), self._rounds(shape), self._results)
            ]
        if self._options.only in (None, "latency") and self._missing_latency():
            chosen.append(Step("latency", self._latency))
        if self._options.only in (None, "cost"):
            chosen += [
                Step(f"cost of {shape.title}", self._cost(by, shape))
                for by in cost.CURVES
                if self._options.curve in (None, by)
                for shape in cost.shapes(by)
                if (self._options.at is None or int(shape.name) in self._options.at)
                and not cost.measured(by, shape, self._results)
            ]
        return chosen

    def _contenders(self, shape: Shape) -> list[str]:
        found = [ROLLCALL]
        if self._classpath is not None:
            found.append(STREAMS)
            if shape.name == HEADLINE:
                found += [STREAMS_SECOND, STREAMS_COMPACT, STREAMS_DEFAULTS]
        if self._quix is not None and shape.name == HEADLINE:
            found.append(QUIX)
        if not shape.rows_before:
            found += [BARE, ENCODED]
            if shape.name == HEADLINE:
                found.append(ROWS)
        return [contender for contender in found if self._chosen(contender)]

    def _entries(self, shape: Shape) -> list[Entry]:
        return list(entries(shape, self._options.workers, self._contenders(shape)))

    def _rounds(self, shape: Shape) -> int:
        return 1 if shape.name in ONCE else int(self._options.rounds)

    def _chosen(self, contender: str) -> bool:
        asked: list[str] | None = self._options.contenders
        return asked is None or any(word.lower() in contender.lower() for word in asked)

    def _shape(self, shape: Shape) -> Callable[[Bed], Awaitable[None]]:
        async def run(here: Bed) -> None:
            who, rounds = self._entries(shape), self._rounds(shape)
            await warm_up(here, self._classpath)
            contest = Contest(here, shape, self._classpath, self._quix)
            await contest.fill()
            await play(contest, shape, who, rounds, self._results, lambda result: self._say(line(result)))
            await contest.close()

        return run

    async def _latency(self, here: Bed) -> None:
        await warm_up(here, self._classpath)
        for number, contender in self._missing_latency():
            workers = max(self._options.workers)
            await latency.run(here, contender, self._classpath, workers, number, self._results, self._say)

    def _missing_latency(self) -> list[tuple[int, str]]:
        workers = max(self._options.workers)
        return [
            (number, contender)
            for number in range(1, self._options.rounds + 1)
            for contender in latency.CONTENDERS
            if self._chosen(contender) and (contender == ROLLCALL or self._classpath is not None)
            if latency.missing(contender, workers, number, self._results)
        ]

    def _cost(self, by: str, shape: Shape) -> Callable[[Bed], Awaitable[None]]:
        async def run(here: Bed) -> None:
            await warm_up(here, None)
            await cost.run(here, by, shape, max(self._options.workers), self._results, self._say)

        return run

    def _say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)


async def main() -> None:
    arguments = argparse.ArgumentParser(
        prog="make bench-full", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", choices=PARTS, help="this part alone")
    arguments.add_argument("--shape", choices=SHAPES, nargs="+", help="of the shapes, these alone")
    arguments.add_argument("--curve", choices=cost.CURVES, help="of the curves of cost, this one alone")
    arguments.add_argument("--at", type=int, nargs="+", help="of these, so many items or batches alone")
    arguments.add_argument("--contenders", nargs="+", metavar="WORD", help="those alone whose names hold one of these")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--busy", action="store_true", help="say of the machine that others work on it too")
    arguments.add_argument("--again", action="store_true", help="measure anew what was measured before")
    arguments.add_argument("--report", action="store_true", help="measure nothing, write the page")
    options = arguments.parse_args()
    results = Results(RESULTS, busy=options.busy)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        if not options.report:
            if options.again:
                results.forget(options.only, options.shape, options.workers)
            full = Full(options, results, progress)
            await full.prepare()
            steps = full.steps()
            task = progress.add_task("", total=len(steps))
            for step in steps:
                progress.update(task, description=step.title)
                # Servers of its own for each: nobody pays for what another has left.
                async with bed() as here:
                    await step.run(here)
                progress.advance(task)
        report.write(DOCS, results)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
