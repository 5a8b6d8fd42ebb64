"""`make bench-promote`: promotions while results flow, and how long each kept the writers waiting.

A shadow is made and promoted again and again, results flowing all the time; then every result must be counted once,
every batch finalized once, nothing published twice, and `rollcall verify` find nothing. Exit code 1 otherwise.
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.__main__ import say, servers, spawn
from bench.replay import rollcall
from bench.running import APPLIED
from bench.workload import result
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from streams.topics import ensure_topics
from tests.harness.topics import drain

ITEMS = 1_000
PAUSE = re.compile(r"kept waiting for ([\d,]+) ms")


async def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--promotions", type=int, default=10)
    arguments.add_argument("--rate", type=int, default=20_000, help="results a second")
    arguments.add_argument("--workers", type=int, default=2)
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
            await ensure_topics(settings.kafka_connection(), Topics(settings.topic_prefix))
            await migrate(settings.database_url, settings.database_schema)
            problems = await promoted_under_load(settings, options.promotions, options.rate, options.workers)
            for problem in problems:
                say(f"WRONG: {problem}")
            return 1 if problems else 0


async def promoted_under_load(settings: Settings, promotions: int, rate: int, workers: int) -> list[str]:
    """What is wrong in the end."""
    stop = asyncio.Event()
    children = [await spawn(settings, "relay"), await spawn(settings, "clock")]
    children += [await spawn(settings, "worker", "--slot", str(slot)) for slot in range(workers)]
    loading = asyncio.create_task(load(settings, rate, stop))
    pauses: list[int] = []
    try:
        try:
            await flowing(settings, rate)
            for number in range(promotions):
                say(await rollcall(settings, "replay", "--into", f"shadow{number}"))
                said = await rollcall(settings, "promote", f"shadow{number}", "--yes")
                say(said)
                pauses.append(int(PAUSE.search(said).group(1).replace(",", "")))  # type: ignore[union-attr]
        finally:
            stop.set()
            sent = await loading
        say(
            f"{len(pauses)} promotions: writers waited {min(pauses):,} to {max(pauses):,} ms,"
            f" median {statistics.median(pauses):,.0f} ms"
        )
        await all_published(settings, len(sent))
        problems = [f"{child.name} ended with {child.returncode}" for child in children if child.returncode is not None]
    finally:
        for child in children:
            await child.stop(15)
    problems += await uncounted(settings, sent) + await said_twice(settings, sent)
    say(await rollcall(settings, "verify"))  # raises where it finds anything
    return problems


async def flowing(settings: Settings, results: int) -> None:
    """Wait until the workers have taken so many."""
    connection = await settings.database().connect("bench")
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval(APPLIED, Topics(settings.topic_prefix).events) < results:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def all_published(settings: Settings, batches: int) -> None:
    connection = await settings.database().connect("bench", command_timeout=600)
    published = (
        "SELECT (SELECT count(*) FROM batches WHERE published_at IS NOT NULL) = $1"
        " AND NOT EXISTS (SELECT FROM outbox WHERE published_at IS NULL AND refused IS NULL)"
        " AND NOT EXISTS (SELECT FROM summaries WHERE state = 'pending')"
    )
    try:
        async with asyncio.timeout(120):
            while not await connection.fetchval(published, batches):  # noqa: ASYNC110 (nobody tells when that is so)
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


async def uncounted(settings: Settings, sent: Counter[str]) -> list[str]:
    """Batches whose results are lost, or counted twice."""
    connection = await settings.database().connect("bench", command_timeout=600)
    try:
        rows = await connection.fetch(
            "SELECT b.batch_id, succeeded + failed, duplicates, revision, (SELECT count(*) FROM item_results i"
            " WHERE i.batch_id = b.batch_id) FROM batches b"
        )
    finally:
        await connection.close()
    found = {row[0]: tuple(row)[1:] for row in rows}
    say(f"answered {sum(row[0] for row in found.values()):,} of {sent.total():,} sent, {len(found):,} batches")
    return [
        f"{batch_id}: (answered, duplicates, revision, rows) is {found.get(batch_id)}"
        for batch_id, items in sent.items()
        if found.get(batch_id) != (items, 0, 1, items)
    ]


async def said_twice(settings: Settings, sent: Counter[str]) -> list[str]:
    """Events that are on their topic twice, or finalized events that are missing there."""
    topics = Topics(settings.topic_prefix)
    problems = []
    for topic in (topics.finalized, topics.summaries, topics.alerts, topics.requests, topics.dead_letters):
        records = await drain(settings.bootstrap_servers, topic)
        ids = Counter(dict(record.headers).get("ce_id", record.value) for record in records)
        problems += [f"{topic}: {each!r} is there {times} times" for each, times in ids.items() if times > 1]
        say(f"{topic}: {len(records):,} records")
        if topic == topics.finalized and len(ids) != len(sent):
            problems.append(f"{len(ids)} finalized events of {len(sent)} batches")
    return problems


async def load(settings: Settings, rate: int, stop: asyncio.Event) -> Counter[str]:
    """Batches at about this rate until stopped; how many results each was sent."""
    producer = settings.kafka_connection().producer(linger_ms=10, max_batch_size=256 * 1024)
    await producer.start()
    sent: Counter[str] = Counter()
    began = time.monotonic()
    topic = Topics(settings.topic_prefix).events
    try:
        while not stop.is_set():
            name = f"load-{len(sent):06d}"
            opened = {"type": "batch.opened", "batch_id": name, "total_items": ITEMS}
            await producer.send(topic, json.dumps(opened).encode(), name.encode())
            for item in range(ITEMS):
                await producer.send(topic, result(name, item), name.encode())
            sent[name] = ITEMS
            await asyncio.sleep(max(0.0, began + sent.total() / rate - time.monotonic()))
    finally:
        await producer.stop()
    say(f"{sent.total():,} results sent, {sent.total() / (time.monotonic() - began):,.0f} a second")
    return sent


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
