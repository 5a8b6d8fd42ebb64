"""`make bench-replay`: results taken live and then replayed, in one run on the same servers; then killed and resumed.

Prints items/s of both, and whether the shadows, also one whose replay was killed again and again, equal the live state.
Exit code 1 where one does not.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from bench.__main__ import run_pipeline, say, servers
from bench.workload import fill
from rollcall.settings import Settings
from schemas.topics import Topics
from store.connection import Connection
from store.tables import metadata
from streams.topics import ensure_topics

COMPARED = ("batches", "item_results", "late_results", "expected_items")


async def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, default=100)
    arguments.add_argument("--items", type=int, default=10_000, help="items per batch")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--kills", type=int, default=10)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-", ignore_cleanup_errors=True) as directory:
        async with servers(Path(directory)) as (kafka, postgres):
            settings = Settings(
                bootstrap_servers=kafka.bootstrap_servers,
                database_url=postgres.database_url,
                topic_prefix="bench.",
                database_schema="bench",
                log_level="warning",
            )
            topics = Topics(settings.topic_prefix)
            await ensure_topics(settings.kafka_connection(), topics)
            records = await asyncio.to_thread(
                fill, kafka.bootstrap_servers, topics.events, batches=options.batches, items=options.items
            )
            say(f"topic filled with {records:,} records")
            live, _ = await run_pipeline(settings, records, options.batches, options.processes)
            say(f"live intake, {options.processes} workers: {live:,.0f} items/s")
            replayed = await replayed_at(settings, records, options.processes)
            say(f"replay, {options.processes} processes: {replayed:,.0f} items/s; replay / live: {replayed / live:.2f}")
            equal = await is_equal(settings, "replayed")
            say(f"equals the live state: {equal}")
            resumed = await killed_and_resumed(settings, records, options.kills, options.processes)
            return 0 if equal and resumed else 1


async def replayed_at(settings: Settings, records: int, processes: int) -> float:
    """Items/s of a replay, taken as those of the live intake are."""
    connection = await settings.database().connect("bench")
    replaying = asyncio.create_task(rollcall(settings, "replay", "--into", "replayed", "--processes", str(processes)))
    try:
        events = Topics(settings.topic_prefix).events
        measuring = asyncio.create_task(rate_of_applying(connection, "replayed", events, records))
        await asyncio.wait([replaying, measuring], return_when=asyncio.FIRST_EXCEPTION)
        say(await replaying)
        return await measuring
    finally:
        await connection.close()


async def rollcall(settings: Settings, *arguments: str) -> str:
    """Run a command to its end; what it said. Raises RuntimeError where it failed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "rollcall", *arguments),
        env={**os.environ, **settings.environment()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, problems = await process.communicate()
    if process.returncode != 0:
        said = f"{output.decode()}{problems.decode()}"
        raise RuntimeError(f"rollcall {' '.join(arguments)} ended with {process.returncode}: {said}")
    return output.decode().strip().replace("\n", "; ")


async def killed_and_resumed(settings: Settings, records: int, kills: int, processes: int) -> bool:
    """Replay once more, killed by SIGKILL at random places of the log, each further than the one before."""
    seed = random.randrange(1_000_000)
    places = sorted(random.Random(seed).sample(range(1, records), kills))
    arguments = ("replay", "--into", "resumed", "--processes", str(processes))
    done: list[int] = []
    connection = await settings.database().connect("bench")
    try:
        for place in places:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "rollcall", *arguments),
                env={**os.environ, **settings.environment()},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            while process.returncode is None and (stands := await applied(connection)) < place:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if process.returncode is None:
                process.kill()  # its parts die with it: the kernel sends them the same
                done.append(stands)
            await process.wait()
    finally:
        await connection.close()
    await rollcall(settings, *arguments)
    equal = await is_equal(settings, "resumed")
    say(f"killed {len(done)} times, at {', '.join(f'{each:,}' for each in done)} of {records:,} records (seed {seed})")
    say(f"then equals the live state: {equal}")
    return equal and len(done) == kills


async def applied(connection: Connection) -> int:
    if not await connection.fetchval("SELECT to_regclass('resumed.positions') IS NOT NULL"):
        return 0
    return int(await connection.fetchval("SELECT coalesce(sum(next_offset), 0)::int8 FROM resumed.positions"))


async def is_equal(settings: Settings, shadow: str) -> bool:
    connection = await settings.database().connect("bench", command_timeout=600)
    try:
        for name in COMPARED:
            columns = ", ".join(
                f"{column.name}::text" for column in metadata.tables[name].columns if column.name != "published_at"
            )
            one, other = f"SELECT {columns} FROM bench.{name}", f"SELECT {columns} FROM {shadow}.{name}"
            if await connection.fetchval(f"SELECT EXISTS (({one} EXCEPT {other}) UNION ALL ({other} EXCEPT {one}))"):
                return False
        return True
    finally:
        await connection.close()


async def rate_of_applying(connection: Connection, schema: str, topic: str, records: int) -> float:
    """Items/s from when something is committed to when so many records are, as the positions of a schema say."""
    first: tuple[int, float] | None = None
    while True:
        applied = 0
        if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.positions"):
            applied = await connection.fetchval(
                f"SELECT coalesce(sum(next_offset), 0)::int8 FROM {schema}.positions WHERE topic = $1", topic
            )
        now = time.monotonic()
        if applied and first is None:
            first = (applied, now)
        if first is not None and applied >= records:
            return (records - first[0]) / (now - first[1])
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
