"""`make bench`: the pipeline on a million results already in the topic, beside what bounds it, in one run.

The floors: a bare aiokafka consumer that only reads, and PostgreSQL taking the very same rows by COPY on as many
connections, sent by asyncpg from ready rows and, harder to come near, as bytes that were encoded before.
"""

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from bench import copy_floor as copy_floor_rows
from bench.workload import MESSAGE_BYTES, fill
from migrations.run import migrate
from rollcall.children import Child
from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.settings import Settings
from rollcall.stack import all_assigned
from schemas.topics import Topics
from store.connection import Connection
from streams.kafka import KafkaConnection
from streams.topics import ensure_topics

POLL_RECORDS = 5_000
FLOORS = {"rows": "COPY of ready rows by asyncpg", "encoded": "COPY of encoded bytes"}


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, default=100)
    arguments.add_argument("--items", type=int, default=10_000, help="items per batch")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = arguments.parse_args()
    total = options.batches * options.items
    say(f"{options.batches} batches of {options.items:,}, results of {MESSAGE_BYTES} bytes; {platform.platform()}")
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-", ignore_cleanup_errors=True) as directory:
        async with servers(Path(directory)) as (kafka, postgres):
            pipeline: dict[int, float] = {}
            floors: dict[tuple[int, str], float] = {}
            for workers in options.workers:
                settings = Settings(
                    bootstrap_servers=kafka.bootstrap_servers,
                    database_url=postgres.database_url,
                    topic_prefix=f"bench{workers}.",
                    database_schema=f"bench{workers}",
                    log_level="warning",
                )
                topics = Topics(settings.topic_prefix)
                await ensure_topics(settings.kafka_connection(), topics)
                started = time.monotonic()
                records = await asyncio.to_thread(
                    fill, kafka.bootstrap_servers, topics.events, batches=options.batches, items=options.items
                )
                say(f"topic filled with {records:,} records in {time.monotonic() - started:.0f} s")
                if not pipeline:
                    rate = await raw_reading(settings.kafka_connection(), topics.events, records)
                    say(f"{'raw aiokafka reading, 1 process':<44}{rate:>10,.0f} items/s")
                pipeline[workers], peak = await run_pipeline(settings, records, options.batches, workers)
                say(
                    f"{f'Rollcall, {workers} worker(s)':<44}{pipeline[workers]:>10,.0f} items/s"
                    f"   peak memory of a worker {peak / 1024:.0f} MB"
                )
                await keep_rows(settings)
                for kind, what in FLOORS.items():
                    floors[workers, kind] = await copy_floor(settings, kind, total, workers)
                    say(f"{f'{what}, {workers} connection(s)':<44}{floors[workers, kind]:>10,.0f} items/s")
            for workers, rate in pipeline.items():
                for kind, what in FLOORS.items():
                    say(f"Rollcall / {what}, {workers} worker(s): {rate / floors[workers, kind]:.2f}")


@asynccontextmanager
async def servers(directory: Path) -> AsyncIterator[tuple[EmbeddedKafka, EmbeddedPostgres]]:
    kafka, postgres = EmbeddedKafka(directory / "kafka"), EmbeddedPostgres(directory / "postgres")
    try:
        await kafka.start()
        await postgres.start()
        yield kafka, postgres
    finally:
        await kafka.stop()
        await postgres.stop()


async def raw_reading(kafka: KafkaConnection, topic: str, records: int) -> float:
    """Items/s of a consumer that does nothing with what it reads."""
    consumer = kafka.consumer(topic, auto_offset_reset="earliest", isolation_level="read_committed")
    await consumer.start()
    try:
        seen, started = 0, time.monotonic()
        while seen < records:
            seen += sum(map(len, (await consumer.getmany(timeout_ms=1000, max_records=POLL_RECORDS)).values()))
        return seen / (time.monotonic() - started)
    finally:
        await consumer.stop()


async def run_pipeline(settings: Settings, records: int, batches: int, workers: int) -> tuple[float, int]:
    """Items/s from when all workers have partitions and something is committed to the end; peak memory in KiB."""
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("bench")
    children = [await spawn(settings, "relay")]
    children += [await spawn(settings, "worker", "--slot", str(slot)) for slot in range(workers)]
    try:
        topics = Topics(settings.topic_prefix)
        admin = settings.kafka_connection().admin()
        await admin.start()
        while not await all_assigned(admin, topics, workers):  # noqa: ASYNC110 (the broker does not tell by itself)
            await asyncio.sleep(0.02)
        await admin.close()
        rate = await rate_of_applying(connection, settings.database_schema, topics.events, records, children)
        finalized = await connection.fetchval("SELECT count(*) FROM batches WHERE state = 'finalized'")
        if finalized != batches:
            raise RuntimeError(f"{finalized} of {batches} batches finalized")
        peak = max(peak_memory_kib(child.pid) for child in children[1:])
        return rate, peak
    finally:
        await connection.close()
        for child in children:
            await child.stop(15)


async def rate_of_applying(
    connection: Connection, schema: str, topic: str, records: int, children: Sequence[Child] = ()
) -> float:
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
        for child in children:
            if child.returncode is not None:
                raise RuntimeError(f"{child.name} ended with {child.returncode}")
        await asyncio.sleep(0.02)


async def keep_rows(settings: Settings) -> None:
    connection = await settings.database().connect("bench")
    await copy_floor_rows.keep_rows(connection)
    await connection.close()


async def copy_floor(settings: Settings, kind: str, rows: int, connections: int) -> float:
    """Items/s of PostgreSQL taking the pipeline's own rows by COPY, from as many processes with a connection each."""
    connection = await settings.database().connect("bench")
    await connection.execute("TRUNCATE item_results")
    await connection.execute("CHECKPOINT")
    await connection.close()
    clients = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.copy_floor", settings.database_url, settings.database_schema),
            *(kind, str(share), str(connections)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for share in range(connections)
    ]
    for client in clients:
        assert client.stdout is not None
        await client.stdout.readline()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(b"go\n")
    outputs = await asyncio.gather(*(client.communicate() for client in clients))
    return rows / max(float(output) for output, _ in outputs)


async def spawn(settings: Settings, *role: str) -> Child:
    argv = [sys.executable, "-P", "-m", "rollcall", *role]
    return await Child.spawn(argv, name=" ".join(role), env=settings.environment())


def peak_memory_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
