"""`python -m bench.replay`: results taken live and then replayed, on the same servers; killed and resumed; promoted.

Prints items/s of both, whether a shadow that was killed again and again equals the live state, and how long promotions
under load kept writers waiting.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.__main__ import run_pipeline, say, servers, spawn
from bench.workload import fill, result
from rollcall.settings import Settings
from schemas.topics import Topics
from store.tables import metadata
from streams.topics import ensure_topics

COMPARED = ("batches", "item_results", "late_results", "expected_items")


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, default=100)
    arguments.add_argument("--items", type=int, default=10_000, help="items per batch")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--promotions", type=int, default=10)
    arguments.add_argument("--rate", type=int, default=20_000, help="results a second while promoting")
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
            await rollcall(settings, "replay", "--into", "replayed", "--processes", str(options.processes))
            say(f"equals the live state: {await is_equal(settings, 'replayed')}")
            await killed_and_resumed(settings, options.kills, options.processes)
            await promoted_under_load(settings, options.promotions, options.rate)


async def rollcall(settings: Settings, *arguments: str, show: bool = True) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "rollcall", *arguments),
        env={**os.environ, **settings.environment()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL if show else None,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"rollcall {' '.join(arguments)} ended with {process.returncode}: {output.decode()}")
    if show:
        say(output.decode().strip().replace("\n", "; "))
    return output.decode()


async def killed_and_resumed(settings: Settings, kills: int, processes: int) -> None:
    """Replay once more, killed at random moments."""
    seed = random.randrange(1_000_000)
    choose, done = random.Random(seed), 0
    arguments = ("replay", "--into", "resumed", "--processes", str(processes))
    for _ in range(kills):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "rollcall", *arguments),
            env={**os.environ, **settings.environment()},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await asyncio.wait_for(process.wait(), choose.uniform(3.0, 9.0))
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            await process.wait()
            done += 1
    await rollcall(settings, *arguments)
    say(f"killed {done} times (seed {seed}), then equals the live state: {await is_equal(settings, 'resumed')}")


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


async def promoted_under_load(settings: Settings, promotions: int, rate: int) -> None:
    """Shadows take over while results flow; each is made and promoted, then all is verified."""
    stop = asyncio.Event()
    children = [await spawn(settings, "relay")]
    children += [await spawn(settings, "worker", "--slot", str(slot)) for slot in range(2)]
    loading = asyncio.create_task(load(settings, rate, stop))
    try:
        for number in range(promotions):
            await rollcall(settings, "replay", "--into", f"shadow{number}", show=False)
            await rollcall(settings, "promote", f"shadow{number}", "--yes")
    finally:
        stop.set()
        sent = await loading
        say(f"{sum(sent.values()):,} results sent meanwhile, {len(sent):,} batches")
    connection = await settings.database().connect("bench", command_timeout=600)
    try:
        finalized = "SELECT count(*) FROM batches WHERE state = 'finalized' AND batch_id LIKE 'load-%'"
        while await connection.fetchval(finalized) < len(sent):  # noqa: ASYNC110 (the database does not tell by itself)
            await asyncio.sleep(0.5)
        duplicates, answered = await connection.fetchrow(
            "SELECT sum(duplicates)::int8, sum(succeeded + failed)::int8 FROM batches WHERE batch_id LIKE 'load-%'"
        ) or (0, 0)
        say(f"answered {answered:,} of {sum(sent.values()):,} sent, {duplicates} duplicates")
        if any(child.returncode is not None for child in children):
            raise RuntimeError("a worker or the relay ended")
    finally:
        await connection.close()
        for child in children:
            await child.stop(15)
    await rollcall(settings, "verify")


async def load(settings: Settings, rate: int, stop: asyncio.Event) -> dict[str, int]:
    """Batches of 1,000 at about this rate until stopped; how many results each was sent."""
    producer = settings.kafka_connection().producer(linger_ms=10, max_batch_size=256 * 1024)
    await producer.start()
    sent: dict[str, int] = {}
    began, count = time.monotonic(), 0
    topic = Topics(settings.topic_prefix).events
    try:
        while not stop.is_set():
            name = f"load-{len(sent):06d}"
            opened = {"type": "batch.opened", "batch_id": name, "total_items": 1_000}
            await producer.send(topic, json.dumps(opened).encode(), name.encode())
            for item in range(1_000):
                await producer.send(topic, result(name, item), name.encode())
            sent[name] = 1_000
            count += 1_000
            await asyncio.sleep(max(0.0, began + count / rate - time.monotonic()))
    finally:
        await producer.stop()
    say(f"sent at {count / (time.monotonic() - began):,.0f} results a second")
    return sent


if __name__ == "__main__":
    asyncio.run(main())
