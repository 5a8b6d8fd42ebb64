"""`make bench`: the pipeline on a million results already in the topic, beside what bounds it, in one run.

The floors: a bare aiokafka consumer that only reads, and PostgreSQL taking the very same rows by COPY, encoded before,
in transactions of as many rows and on as many connections.
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

from bench.workload import MESSAGE_BYTES, fill
from migrations.run import migrate
from rollcall.children import Child
from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.settings import Settings
from schemas.topics import Topics
from store.connection import Database
from store.rows import ItemRow
from streams.kafka import KafkaConnection
from streams.topics import ensure_topics

CHUNK = 5_000


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
            floors: dict[int, float] = {}
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
                floors[workers] = await copy_floor(settings.database(), total, workers)
                say(f"{f'PostgreSQL COPY, {workers} connection(s)':<44}{floors[workers]:>10,.0f} items/s")
            for workers, rate in pipeline.items():
                say(f"Rollcall / PostgreSQL COPY, {workers} worker(s): {rate / floors[workers]:.2f}")


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
            seen += sum(map(len, (await consumer.getmany(timeout_ms=1000, max_records=CHUNK)).values()))
        return seen / (time.monotonic() - started)
    finally:
        await consumer.stop()


async def run_pipeline(settings: Settings, records: int, batches: int, workers: int) -> tuple[float, int]:
    """Items/s from the first commit seen to the last batch finalized, and a worker's peak memory in KiB."""
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("bench")
    children = [await spawn(settings, "relay")]
    children += [await spawn(settings, "worker", "--slot", str(slot)) for slot in range(workers)]
    try:
        topic = Topics(settings.topic_prefix).events
        first = (0, 0.0)
        while True:
            applied = await connection.fetchval(
                "SELECT coalesce(sum(next_offset), 0)::int8 FROM positions WHERE topic = $1", topic
            )
            now = time.monotonic()
            if applied and not first[0]:
                first = (applied, now)
            if applied >= records:
                break
            for child in children:
                if child.returncode is not None:
                    raise RuntimeError(f"{child.name} ended with {child.returncode}")
            await asyncio.sleep(0.02)
        rate = (records - first[0]) / (now - first[1])
        finalized = await connection.fetchval("SELECT count(*) FROM batches WHERE state = 'finalized'")
        if finalized != batches:
            raise RuntimeError(f"{finalized} of {batches} batches finalized")
        peak = max(peak_memory_kib(child.pid) for child in children[1:])
        return rate, peak
    finally:
        await connection.close()
        for child in children:
            await child.stop(15)


async def copy_floor(database: Database, rows: int, connections: int) -> float:
    """Items/s of PostgreSQL taking the pipeline's own rows by COPY, encoded before, one transaction a chunk."""
    connection = await database.connect("bench")
    columns = ", ".join(ItemRow._fields)
    try:
        await connection.execute(
            f"""
            CREATE TEMP TABLE chunked AS
            SELECT {columns}, partition,
                   (row_number() OVER (PARTITION BY partition ORDER BY version) - 1) / {CHUNK} AS chunk
            FROM item_results JOIN (SELECT batch_id, partition FROM batches) homes USING (batch_id)
            """
        )
        await connection.execute("CREATE INDEX ON chunked (partition, chunk, batch_id, item_id)")
        chunks: list[tuple[int, bytes]] = []
        for partition, chunk in await connection.fetch("SELECT DISTINCT partition, chunk FROM chunked ORDER BY 2, 1"):
            buffer = bytearray()

            async def collect(data: bytes, into: bytearray = buffer) -> None:
                into += data

            await connection.copy_from_query(
                f"SELECT {columns} FROM chunked WHERE partition = $1 AND chunk = $2 ORDER BY batch_id, item_id",
                partition,
                chunk,
                output=collect,
                format="binary",
            )
            chunks.append((partition, bytes(buffer)))
        await connection.execute("DROP TABLE chunked; TRUNCATE item_results; CHECKPOINT")
    finally:
        await connection.close()
    shares = [
        [data for partition, data in chunks if partition % connections == number] for number in range(connections)
    ]
    started = time.monotonic()
    await asyncio.gather(*(copy_all(database, share) for share in shares))
    return rows / (time.monotonic() - started)


async def copy_all(database: Database, chunks: Sequence[bytes]) -> None:
    connection = await database.connect("bench", synchronous_commit="off")
    try:
        for data in chunks:
            await connection.copy_to_table("item_results", source=_once(data), columns=ItemRow._fields, format="binary")
    finally:
        await connection.close()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


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
