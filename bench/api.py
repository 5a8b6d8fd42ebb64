"""`make bench-api`: `GET /batches/{id}` on a large database beside a bare FastAPI route, idle and beside busy workers.

The large database is 100,000 batches of 100 items (one of them holds a tenth of all): the list and a batch are also
asked for on one with ten batches, to see that size makes no difference.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from fastapi import FastAPI
from pydantic import BaseModel

from api.serving import listening, serve
from bench import api_data
from bench.__main__ import say, servers, spawn
from bench.running import APPLIED
from bench.workload import fill
from migrations.run import migrate
from rollcall.children import Child
from rollcall.settings import Settings
from rollcall.stack import all_assigned
from schemas.topics import Topics
from streams.topics import ensure_topics

PATHS = {
    "GET /api/batches/{id}": "/api/batches/batch-0000005",
    "GET /api/batches (50)": "/api/batches",
    "GET /api/batches?status=": "/api/batches?status=completed_with_errors",
    "GET /api/batches/{id}/items (100)": "/api/batches/big/items?cursor=item-0000005",
}


class Answer(BaseModel):
    """What the bare route answers."""

    batch_id: str
    status: str


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, default=100_000)
    arguments.add_argument("--seconds", type=float, default=10)
    arguments.add_argument("--connections", type=int, default=16)
    arguments.add_argument("--load", type=int, default=3_000_000, help="results for the workers to be busy with")
    arguments.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.bare is not None:
        await bare(options.bare)
        return
    say(f"{options.connections} connections, {options.seconds:g} s each; {platform.platform()}")
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-", ignore_cleanup_errors=True) as directory:
        async with servers(Path(directory)) as (kafka, postgres):
            for batches in (10, options.batches):
                settings = Settings(
                    bootstrap_servers=kafka.bootstrap_servers,
                    database_url=postgres.database_url,
                    topic_prefix=f"bench{batches}.",
                    database_schema=f"bench{batches}",
                    auth="off",
                    api_port=free_port(),
                    log_level="warning",
                )
                started = time.monotonic()
                items = await filled(settings, batches)
                say(f"{batches:,} batches, {items:,} items, made in {time.monotonic() - started:.0f} s")
                async with served(settings):
                    for what, path in PATHS.items():
                        await measure(what, settings.api_port, path, options)
                    if batches == options.batches:
                        await beside_bare(settings, options)


async def beside_bare(settings: Settings, options: argparse.Namespace) -> None:
    """The batch and the bare route, idle and while workers take results in."""
    port = free_port()
    name, path = next(iter(PATHS.items()))
    bare_route = await Child.spawn([sys.executable, "-m", "bench.api", "--bare", str(port)], name="bare")
    try:
        await until_listening(port)
        await measure("a bare FastAPI route, idle", port, "/", options)
        await measure(f"{name}, idle", settings.api_port, path, options)
        async with busy_workers(settings, options.load):
            await measure("a bare FastAPI route, workers busy", port, "/", options)
            await measure(f"{name}, workers busy", settings.api_port, path, options)
    finally:
        await bare_route.stop(10)


async def measure(what: str, port: int, path: str, options: argparse.Namespace) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.http_load", str(port), path, str(options.connections), str(options.seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{what}: the load ended with {process.returncode}")
    found = json.loads(output)
    say(
        f"{what:<46}{found['per_second']:>8,.0f} requests/s   p50 {found['p50_ms']:>7.2f} ms"
        f"   p99 {found['p99_ms']:>7.2f} ms"
    )


async def filled(settings: Settings, batches: int) -> int:
    """A migrated schema with that many batches; returns how many items."""
    topics = Topics(settings.topic_prefix)
    await ensure_topics(settings.kafka_connection(), topics)
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("bench")
    try:
        await connection.execute("INSERT INTO logs VALUES ($1, 12)", topics.events)
        items = await api_data.fill(connection, batches)
        # What is applied must be what is in the log: nothing yet.
        await connection.execute("UPDATE positions SET next_offset = 0")
        return items
    finally:
        await connection.close()


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[None]:
    """`rollcall api` in a process of its own."""
    child = await spawn(settings, "api")
    try:
        await until_listening(settings.api_port)
        yield
    finally:
        await child.stop(15)


@asynccontextmanager
async def busy_workers(settings: Settings, results: int) -> AsyncIterator[None]:
    """Two workers and a relay with more to do than time; where they ended before us it is said."""
    topics = Topics(settings.topic_prefix)
    records = await asyncio.to_thread(
        fill, settings.bootstrap_servers, topics.events, batches=100, items=max(1, results // 100)
    )
    children = [await spawn(settings, "relay")]
    children += [await spawn(settings, "worker", "--slot", str(slot)) for slot in range(2)]
    connection = await settings.database().connect("bench")
    try:
        admin = settings.kafka_connection().admin()
        await admin.start()
        while not await all_assigned(admin, topics, 2):  # noqa: ASYNC110 (the broker does not tell by itself)
            await asyncio.sleep(0.02)
        await admin.close()
        before, started = await connection.fetchval(APPLIED, topics.events), time.monotonic()
        yield
        now = await connection.fetchval(APPLIED, topics.events)
        rate = (now - before) / (time.monotonic() - started)
        say(f"meanwhile the workers took in {rate:,.0f} results/s" + (" (and had nothing left)" * (now >= records)))
    finally:
        await connection.close()
        for child in children:
            await child.stop(15)


async def bare(port: int) -> None:
    """The least that FastAPI does."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/")
    async def answer() -> Answer:
        return Answer(batch_id="bare", status="completed")

    with listening("127.0.0.1", port) as listener:
        await serve(app, listener, asyncio.Event(), lambda: None)


async def until_listening(port: int) -> None:
    """Wait until something takes connections there."""
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise RuntimeError(f"nothing listens on port {port}")


def free_port() -> int:
    """A port nobody has at the moment."""
    with listening("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    uvloop.run(main())
