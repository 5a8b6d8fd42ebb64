"""What an item costs Rollcall, and how that grows with items and with batches: CPU, memory, WAL, disk."""

import asyncio
from collections.abc import Callable

from bench import product
from bench.contest import figures
from bench.results import ROLLCALL, Result, Results
from bench.running import Bed
from bench.workload import Shape, publish, records
from rollcall.settings import Settings
from schemas.topics import Topics
from streams.topics import ensure_topics

ITEMS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
BATCHES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
BATCHES_ITEMS = 1_000_000
TOGETHER = 100
"""Batches that take turns, whatever their number."""
SMALL = 100_000
"""Below this a full topic is read in a moment: there everything from the first record on is measured."""
CURVES = ("items", "batches")
TENTHS = "rows"


def shapes(by: str) -> list[Shape]:
    """The curve of items (in 100 batches) or of batches (of a million items in all)."""
    if by == "items":
        return [Shape(f"{items}", f"{items:,} items", 100, items // 100) for items in ITEMS]
    return [
        Shape(f"{batches}", f"{batches:,} batches", batches, BATCHES_ITEMS // batches, window=min(batches, TOGETHER))
        for batches in BATCHES
    ]


def measured(by: str, shape: Shape, results: Results) -> bool:
    return any((each.part, each.subject, each.at) == ("cost", by, float(shape.name)) for each in results)


async def run(bed: Bed, by: str, shape: Shape, workers: int, results: Results, told: Callable[[str], None]) -> None:
    """One point of a curve."""
    at = float(shape.name)
    prefix = f"{bed.new_name('cost')}."
    settings = bed.settings(prefix, bed.new_name("cost"))
    topics = Topics(prefix)
    await ensure_topics(settings.kafka_connection(), topics)

    async def fill() -> int:
        return await asyncio.to_thread(publish, bed.kafka.bootstrap_servers, topics.events, shape)

    small = shape.total < SMALL
    progress = sum(1 for _ in records(shape)) if small else await fill()
    before = await _wal(bed.settings(prefix, "public"))
    found = await product.run(
        settings,
        items=shape.total,
        progress=progress,
        batches=shape.batches,
        workers=workers,
        servers=bed.processes,
        filling=fill if small else None,
    )
    values = {
        **figures(found),
        "wal_bytes": (await _wal(settings) - before) / shape.total,
        "disk_bytes": await _disk(settings) / shape.total,
    }
    results.add(Result("cost", by, ROLLCALL, workers, 1, values, at=at))
    if by == "items" and shape.total == max(ITEMS):
        for number, rate in enumerate(found.tenths, start=1):
            rows = shape.total * (number + 0.5) / 10
            results.add(Result("cost", TENTHS, ROLLCALL, workers, 1, {"rate": rate}, at=rows))
    told(f"{shape.title}: " + ", ".join(f"{name} {value:,.1f}" for name, value in values.items()))
    await product.drop(settings)


async def _wal(settings: Settings) -> int:
    connection = await settings.database().connect("bench")
    try:
        return int(await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
    finally:
        await connection.close()


async def _disk(settings: Settings) -> int:
    """Bytes of all tables and indexes of the schema."""
    connection = await settings.database().connect("bench", command_timeout=600)
    try:
        size = "sum(pg_total_relation_size(c.oid))::int8"
        query = f"SELECT {size} FROM pg_class c WHERE relnamespace = $1::regnamespace AND relkind = 'r'"
        return int(await connection.fetchval(query, settings.database_schema))
    finally:
        await connection.close()
