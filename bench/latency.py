"""How long a finalized event takes: from a batch's last result handed to the producer to the event read."""

import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bench import product
from bench.finalized import Finalized
from bench.results import ROLLCALL, STREAMS, Result, Results
from bench.running import Bed, spawn, stop_all
from bench.streams_peer import Streams
from bench.workload import result
from migrations.run import migrate
from schemas.topics import Topics
from streams.kafka import KafkaConnection
from streams.topics import EVENTS_PARTITIONS, ensure_topics

PROBES = 200
RESULTS = 5
"""Results of a probe's batch."""
LOAD = 20_000
SETTLING_S = 5.0
STREAMS_QUICK = "Kafka Streams, 100 commits a second"
CONTENDERS: dict[str, dict[str, object]] = {
    ROLLCALL: {},
    STREAMS: {},
    # An event is out when its transaction commits; a thread that waits for records does not look whether that is due.
    STREAMS_QUICK: {"commit_ms": 10, "poll_ms": 5},
}
"""With what is special about each."""
SUBJECTS = {"idle": 0, "loaded": LOAD}


async def run(
    bed: Bed,
    contender: str,
    classpath: str | None,
    workers: int,
    number: int,
    results: Results,
    told: Callable[[str], None],
) -> None:
    """Both subjects of one contender, with processes of their own."""
    subjects = missing(contender, workers, number, results)
    prefix = f"{bed.new_name('latency')}."
    topics = Topics(prefix)
    kafka = KafkaConnection(bed.kafka.bootstrap_servers)
    await ensure_topics(kafka, topics)
    running = _rollcall(bed, prefix, workers)
    if contender != ROLLCALL:
        assert classpath is not None
        running = _streams(bed, classpath, topics.events, workers, CONTENDERS[contender])
    async with running as output:
        for subject in subjects:
            async with _load(bed, topics.events, SUBJECTS[subject]):
                times = await probe(kafka, topics.events, output, f"{subject}-{number}")
            values = dict(zip(("p50", "p95", "p99"), percentiles(times), strict=True))
            results.add(Result("latency", subject, contender, workers, number, values))
            told(f"{contender}, {subject}: " + ", ".join(f"{name} {value:.0f} ms" for name, value in values.items()))


def missing(contender: str, workers: int, number: int, results: Results) -> list[str]:
    """The subjects that are still to be measured."""
    return [subject for subject in SUBJECTS if ("latency", subject, contender, workers, number, 0.0) not in results]


def percentiles(times: list[float]) -> tuple[float, float, float]:
    """p50, p95 and p99 in ms."""
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return 1000 * cuts[49], 1000 * cuts[94], 1000 * cuts[98]


async def probe(kafka: KafkaConnection, events: str, output: str, name: str) -> list[float]:
    """Seconds from last result to event of one batch after the other, at moments that follow no rhythm."""
    seed = random.randrange(1_000_000)
    choose = random.Random(seed)
    sent: dict[bytes, float] = {}
    times: list[float] = []
    producer = kafka.producer()
    await producer.start()
    try:
        async with Finalized(kafka, output) as finalized:

            async def listen() -> None:
                while True:
                    found = await finalized.read()
                    now = time.monotonic()
                    times.extend(now - sent.pop(record.key) for record in found if record.key in sent)

            # The first ones find connections, code and caches cold, on both sides.
            listening = asyncio.create_task(listen())
            for number in range(-PROBES // 10, PROBES):
                if number == 0:
                    times.clear()
                batch = f"probe-{name}-{number}"
                opened = {"type": "batch.opened", "batch_id": batch, "total_items": RESULTS}
                await producer.send_and_wait(events, json.dumps(opened).encode(), batch.encode())
                for item in range(RESULTS - 1):
                    await producer.send_and_wait(events, result(batch, item), batch.encode())
                await asyncio.sleep(choose.uniform(0.02, 0.12))
                sent[batch.encode()] = time.monotonic()
                await producer.send_and_wait(events, result(batch, RESULTS - 1), batch.encode())
                # One at a time: what follows must not hasten it.
                async with asyncio.timeout(60):
                    while batch.encode() in sent:  # noqa: ASYNC110 (the listener notes the time)
                        await asyncio.sleep(0.002)
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
    finally:
        await producer.stop()
    return times


@asynccontextmanager
async def _rollcall(bed: Bed, prefix: str, workers: int) -> AsyncIterator[str]:
    settings = bed.settings(prefix, bed.new_name("latency"))
    await migrate(settings.database_url, settings.database_schema)
    children = [await spawn(settings, "relay")]
    children += [await spawn(settings, "worker", "--slot", str(slot)) for slot in range(workers)]
    try:
        topics = Topics(prefix)
        await product.until_assigned(settings, topics, workers)
        yield topics.finalized
    finally:
        await stop_all(children)
        await product.drop(settings)


@asynccontextmanager
async def _streams(
    bed: Bed, classpath: str, topic: str, threads: int, options: dict[str, object]
) -> AsyncIterator[str]:
    streams = Streams(bed, classpath, topic, threads=threads, partitions=EVENTS_PARTITIONS, **options)
    try:
        await streams.start()
        yield streams.finalized
    finally:
        await streams.stop()


@asynccontextmanager
async def _load(bed: Bed, topic: str, rate: int) -> AsyncIterator[None]:
    if not rate:
        yield
        return
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load", bed.kafka.bootstrap_servers, topic, str(rate))
    )
    try:
        await asyncio.sleep(SETTLING_S)
        yield
        if program.returncode is not None:
            raise RuntimeError("the load ended early")
    finally:
        if program.returncode is None:
            program.terminate()
        await program.wait()
