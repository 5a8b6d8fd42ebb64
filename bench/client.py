"""`make bench-client`: a million trivial items through one job of the client, beside a bare aiokafka producer.

Both publish results of the same fields to the same kind of topic, from a process of their own that has Kafka's machine
to itself. When the job has published all, a worker and a relay finalize its batch, and its count is checked.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from rollcall_client import FinalizedEvent, Rollcall
from rollcall_client.jobs import job, run
from rollcall_client.jobs.memory import resident_mb

from bench.__main__ import servers, spawn
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from streams.topics import ensure_topics

HELD_BACK = 5_000
"""Sent messages that the bare producer does not wait for."""


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--items", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--child", nargs=3, metavar=("WHICH", "BOOTSTRAP", "PREFIX"))
    options = arguments.parse_args()
    if options.child is not None:
        which, bootstrap, prefix = options.child
        await {"bare": bare, "job": through_a_job}[which](bootstrap, prefix, options.items)
        return
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-", ignore_cleanup_errors=True) as directory:
        async with servers(Path(directory)) as (kafka, postgres):
            for number in range(options.rounds):
                settings = Settings(
                    bootstrap_servers=kafka.bootstrap_servers,
                    database_url=postgres.database_url,
                    topic_prefix=f"bench{number}.",
                    database_schema=f"bench{number}",
                    log_level="warning",
                )
                await one_round(settings, options.items)


async def one_round(settings: Settings, items: int) -> None:
    await ensure_topics(settings.kafka_connection(), Topics(settings.topic_prefix))
    await migrate(settings.database_url, settings.database_schema)
    bare_rate = (await measured(await child("bare", settings, items)))["rate"]
    print(f"{'bare aiokafka producer':<44}{bare_rate:>10,.0f} items/s", flush=True)
    process = await child("job", settings, items)
    published = await measured(process)
    print(f"{'a job of the client':<44}{published['rate']:>10,.0f} items/s", flush=True)
    early, late, peak = (published[name] for name in ("early_mb", "late_mb", "peak_mb"))
    print(f"memory: {early:.0f} MiB after a tenth of the items, {late:.0f} MiB at the end, {peak:.0f} MiB at most")
    print(f"a job / bare: {published['rate'] / bare_rate:.2f}", flush=True)
    roles = [await spawn(settings, "relay"), await spawn(settings, "worker", "--slot", "0")]
    try:
        finalized = await measured(process)
    finally:
        for role in roles:
            await role.stop(15)
    print(f"finalized: {finalized['status']}, {finalized['processed']:,} items", flush=True)
    if (finalized["status"], finalized["processed"]) != ("COMPLETED", items):
        raise RuntimeError("not all items were counted")


async def child(which: str, settings: Settings, items: int) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.client", "--items", str(items)),
        *("--child", which, settings.bootstrap_servers, settings.topic_prefix),
        stdout=PIPE,
    )


async def measured(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.startswith(b"{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise RuntimeError(f"the process ended with {await process.wait()}")


async def bare(bootstrap: str, prefix: str, items: int) -> None:
    """What anybody would write first: an idempotent producer, `send`, a bound on what is unacknowledged."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, enable_idempotence=True, acks="all", linger_ms=5, max_batch_size=256 * 1024
    )
    await producer.start()
    waiting: list[asyncio.Future[Any]] = []
    started = time.perf_counter()
    for number in range(items):
        result = {
            "type": "item.result",
            "batch_id": "bare",
            "item_id": str(number),
            "status": "succeeded",
            "attempt": 1,
            "duration_ms": 0.001,
            "worker": "bench",
        }
        waiting.append(await producer.send(f"{prefix}events", json.dumps(result).encode(), key=b"bare"))
        if len(waiting) == HELD_BACK:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)
    say(rate=items / (time.perf_counter() - started))
    await producer.stop()


class _Timed(Rollcall):
    """Says when all is acknowledged: that is when a run begins to wait."""

    acknowledged_at = 0.0

    async def wait(self, *arguments: Any, **options: Any) -> FinalizedEvent:
        self.acknowledged_at = time.perf_counter()
        self.acknowledged()
        return await super().wait(*arguments, **options)

    def acknowledged(self) -> None:
        raise NotImplementedError


async def through_a_job(bootstrap: str, prefix: str, items: int) -> None:
    memory: dict[str, float] = {}

    @job(name="bench")
    async def trivial(item: int) -> None:
        pass

    def numbers() -> Iterator[int]:
        for number in range(items):
            if number == items // 10:
                memory["early_mb"] = resident_mb() or 0
            yield number

    async with _Timed(bootstrap, topic_prefix=prefix) as rc:
        started = time.perf_counter()

        def acknowledged() -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            say(rate=items / (rc.acknowledged_at - started), late_mb=resident_mb() or 0, peak_mb=peak, **memory)

        rc.acknowledged = acknowledged  # type: ignore[method-assign]
        result = await run(trivial, numbers(), rc=rc, progress=None)
        say(**result.payload())


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
