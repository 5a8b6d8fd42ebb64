"""One shape, all contenders: same topic, same messages, one after the other, round by round."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import floors, prefill, product, quix_peer, streams_peer
from bench.measuring import Measured
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
    Result,
    Results,
)
from bench.running import Bed
from bench.workload import Shape, publish
from rollcall.settings import Settings
from schemas.topics import Topics
from streams.topics import EVENTS_PARTITIONS, ensure_topics

STREAMS_OPTIONS: dict[str, dict[str, object]] = {
    STREAMS: {},
    STREAMS_SECOND: {"commit_ms": 1000},
    STREAMS_COMPACT: {"register": "compact"},
    STREAMS_DEFAULTS: {"tuned": "false"},
}


@dataclass(frozen=True)
class Entry:
    """Who is to be measured: a contender with so many workers (threads, connections, processes)."""

    contender: str
    workers: int


def entries(shape: Shape, workers: list[int], contenders: list[str]) -> Iterator[Entry]:
    """Whom a shape is for, Rollcall first: the floors take the rows that it has written."""
    for number in workers:
        for contender in contenders:
            # It would stop at the first duplicate.
            if contender == BARE and (shape.duplicates or shape.retries):
                continue
            yield Entry(contender, number)


class Contest:
    """A shape's records in a topic, and what it takes to run each contender on them."""

    def __init__(self, bed: Bed, shape: Shape, classpath: str | None, quix: Path | None = None) -> None:
        self._bed = bed
        self._shape = shape
        self._classpath = classpath
        self._quix = quix
        self._prefix = ""
        self._records = 0
        self._kept: Settings | None = None

    async def fill(self) -> int:
        """Publish the records; how many they are."""
        self._prefix, self._records = await self._filled()
        return self._records

    async def run(self, entry: Entry) -> dict[str, float]:
        """Measure one contender."""
        if entry.contender == ROLLCALL:
            return figures(await self._rollcall(entry.workers))
        if entry.contender in STREAMS_OPTIONS:
            return figures(await self._streams(entry))
        if entry.contender == QUIX:
            return figures(await self._quix_streams(entry.workers))
        if self._kept is None:
            # Their rows are those that it writes.
            await self._rollcall(entry.workers)
        assert self._kept is not None
        if entry.contender == BARE:
            return {
                "rate": await floors.bare(self._kept, Topics(self._prefix).events, self._shape.total, entry.workers)
            }
        kind = {ENCODED: "encoded", ROWS: "rows"}[entry.contender]
        return {"rate": await floors.copy(self._kept, kind, self._shape.total, entry.workers)}

    async def close(self) -> None:
        """Leave nothing of this shape with the servers."""
        if self._kept is not None:
            await product.drop(self._kept)

    async def _filled(self) -> tuple[str, int]:
        prefix = f"{self._bed.new_name('bench')}."
        settings = self._bed.settings(prefix, "public")
        await ensure_topics(settings.kafka_connection(), Topics(prefix))
        events = Topics(prefix).events
        return prefix, await asyncio.to_thread(publish, settings.bootstrap_servers, events, self._shape)

    async def _rollcall(self, workers: int) -> Measured:
        shape, prefix = self._shape, self._prefix
        if shape.misplaced:
            # Its forwards go into the topic, which the others read too.
            prefix, _ = await self._filled()
        settings = self._bed.settings(prefix, self._bed.new_name("r"))
        if shape.rows_before:
            await prefill.postgres(settings, shape.rows_before)
        measured = await product.run(
            settings,
            items=shape.total,
            progress=self._records * (2 if shape.misplaced else 1),
            batches=shape.batches,
            workers=workers,
            servers=self._bed.processes,
        )
        if self._kept is None:
            self._kept = settings
            await floors.keep_rows(settings)
        else:
            await product.drop(settings)
        return measured

    async def _streams(self, entry: Entry) -> Measured:
        assert self._classpath is not None
        shape, topic = self._shape, Topics(self._prefix).events
        progress, options = self._records, dict(STREAMS_OPTIONS[entry.contender])
        if shape.misplaced:
            options["repartition"] = "true"
            progress *= 2
        if shape.rows_before:
            options["topics"] = f"{topic},{await prefill.topic(self._bed, shape.rows_before)}"
        return await streams_peer.run(
            self._bed,
            self._classpath,
            topic,
            items=shape.total,
            progress=progress,
            batches=shape.batches,
            threads=entry.workers,
            partitions=EVENTS_PARTITIONS,
            **options,
        )

    async def _quix_streams(self, processes: int) -> Measured:
        assert self._quix is not None
        return await quix_peer.run(
            self._bed,
            self._quix,
            Topics(self._prefix).events,
            items=self._shape.total,
            progress=self._records,
            batches=self._shape.batches,
            processes=processes,
        )


def figures(measured: Measured) -> dict[str, float]:
    return {
        "rate": measured.rate,
        "peak_mib": measured.peak_mib,
        **{f"cpu_us {name}": value for name, value in measured.cpu_us.items()},
    }


async def warm_up(bed: Bed, classpath: str | None) -> None:
    """Let the broker compile what it does most, so that who comes first does not pay for it."""
    contest = Contest(bed, Shape("warm-up", "warm-up", 100, 2_000), classpath)
    await contest.fill()
    if classpath is not None:
        await contest.run(Entry(STREAMS, 2))
    await contest.run(Entry(ROLLCALL, 2))
    await contest.close()


def missing(shape: Shape, who: list[Entry], rounds: int, results: Results) -> bool:
    """Whether anything is still to be measured."""
    return any(_key(shape, entry, number) not in results for entry in who for number in range(1, rounds + 1))


def _key(shape: Shape, entry: Entry, number: int) -> tuple[object, ...]:
    return ("shapes", shape.name, entry.contender, entry.workers, number, 0.0)


async def play(
    contest: Contest,
    shape: Shape,
    who: list[Entry],
    rounds: int,
    results: Results,
    told: Callable[[Result], None],
) -> None:
    """Round by round, each contender in turn, but for what ``results`` holds already."""
    for number in range(1, rounds + 1):
        for entry in who:
            if _key(shape, entry, number) in results:
                continue
            values = await contest.run(entry)
            result = Result("shapes", shape.name, entry.contender, entry.workers, number, values)
            results.add(result)
            told(result)
