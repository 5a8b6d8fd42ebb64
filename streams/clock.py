"""The clock: what only time, or somebody with time, can do. Of several one leads.

Deadlines: it decides nothing. ``batch.expired`` goes to the batch's home partition, behind every result published
before it, and the worker that reads it ends the batch unless its deadline is another by then. So no batch expires
because a worker lagged, a replay expires it at the same place, and saying it twice changes nothing.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from aiokafka import AIOKafkaProducer

from schemas.topics import Topics
from store import deadlines
from store.connection import Connection, Database
from store.deadlines import PassedDeadline
from store.overdue import Allowed
from streams.health import health
from streams.kafka import KafkaConnection, started
from streams.leading import Duty, lead
from streams.retrying import attempts, may_pass, sleep
from streams.summarizing import Summarizer
from streams.trimming import Trimmer
from streams.watching import Watcher

POLL_S = 0.5
# Looking takes this share of the time at most, but where servers are slow it is not put off for longer than this.
SHARE = 0.1
MAX_PAUSE_S = 10.0
# What was said stays in the log; once more is for a leader's worst day, not for a worker that lags.
REPEAT_AFTER_S = 600.0
# So many batches of a partition past their deadline are told at once; the next when a worker has read these. For each
# by itself: one that nobody reads holds up no other's.
AT_ONCE = 2_000
# So many are acknowledged before the next are sent.
TOLD_TOGETHER = 1_000
SEND_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 15.0

log = structlog.get_logger(__name__)


_ALLOWED = Allowed()


@dataclass(frozen=True)
class Limits:
    """How long a statement of a summary, and an open batch, may take; how long is kept what was published."""

    summary_timeout_s: float = 300.0
    allowed: Allowed = _ALLOWED
    events_kept: timedelta = timedelta(days=7)
    dead_letters_kept: timedelta = timedelta(days=30)


async def run(
    kafka: KafkaConnection,
    database: Database,
    topics: Topics,
    partitions: int,
    limits: Limits,
    stop: asyncio.Event,
    ready: Callable[[], None],
) -> None:
    """Lead when nobody else does, and do the clock's duties, until ``stop`` is set.

    ``partitions`` is how many are batches' homes. Each duty has connections of its own and begins anew by itself, so
    that none waits for, or falls with, another. Raises WrongSchemaError and what is a bug.
    """

    def duties() -> list[Duty]:
        return [
            Deadlines(kafka, database, topics, partitions).run(stop),
            Summarizer(database, topics, timeout_s=limits.summary_timeout_s).run(stop),
            Watcher(kafka, database, topics, limits.allowed).run(stop),
            Trimmer(
                kafka, database, topics, events_kept=limits.events_kept, dead_letters_kept=limits.dead_letters_kept
            ).run(stop),
        ]

    await lead("clock", database, topics, stop, ready, duties)


class Deadlines:
    """Publishes ``batch.expired`` for open batches whose deadline has passed, by this machine's clock."""

    def __init__(self, kafka: KafkaConnection, database: Database, topics: Topics, partitions: int) -> None:
        self._kafka = kafka
        self._database = database
        self._topics = topics
        self._partitions = partitions
        self._told_at: dict[PassedDeadline, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again until ``stop`` is set, beginning anew after every failure that may pass."""
        async for attempt in attempts("telling deadlines failed, beginning anew", stop):
            with attempt:
                connection = await self._database.connect("clock deadlines", command_timeout=COMMAND_TIMEOUT_S)
                try:
                    async with started(self._kafka.producer()) as producer:
                        while not stop.is_set():
                            began = time.monotonic()
                            await self._tell_all(connection, producer)
                            pause_s = (time.monotonic() - began) / SHARE
                            await sleep(stop, min(max(POLL_S, pause_s), MAX_PAUSE_S))
                finally:
                    health.end("deadlines")
                    connection.terminate()

    async def _tell_all(self, connection: Connection, producer: AIOKafkaProducer) -> None:
        health.beat("deadlines")
        passed = await deadlines.passed(connection, self._partitions, datetime.now(UTC), AT_ONCE)
        untold = [each for each in passed if not self._was_told(each)]
        # What is not past its deadline any more, or not open, is forgotten.
        self._told_at = {each: self._told_at[each] for each in passed if each in self._told_at}
        by_partition: defaultdict[int, list[PassedDeadline]] = defaultdict(list)
        for each in untold:
            by_partition[each.partition].append(each)
        # Each partition by itself: one that takes nothing must not keep the others' from being told.
        telling = (self._tell(producer, of_one) for of_one in by_partition.values())
        failures = [each for each in await asyncio.gather(*telling, return_exceptions=True) if each is not None]
        if failures:
            raise min(failures, key=may_pass)  # a bug first

    def _was_told(self, deadline: PassedDeadline) -> bool:
        at = self._told_at.get(deadline)
        return at is not None and time.monotonic() - at < REPEAT_AFTER_S

    async def _tell(self, producer: AIOKafkaProducer, passed: list[PassedDeadline]) -> None:
        """Publish these of one partition, and note each that is acknowledged. Raises KafkaError or TimeoutError."""
        for begin in range(0, len(passed), TOLD_TOGETHER):
            told = passed[begin : begin + TOLD_TOGETHER]
            health.beat("deadlines")
            async with asyncio.timeout(SEND_TIMEOUT_S):
                sent = [
                    await producer.send(
                        self._topics.events, _expired(each), key=each.batch_id.encode(), partition=each.partition
                    )
                    for each in told
                ]
                await asyncio.gather(*sent)
            self._told_at.update(dict.fromkeys(told, time.monotonic()))
            log.info("deadlines passed", batches=len(told))


def _expired(passed: PassedDeadline) -> bytes:
    # To the microsecond, as it is stored: the fold compares.
    deadline_at = passed.deadline_at.isoformat().replace("+00:00", "Z")
    return json.dumps(
        {
            "type": "batch.expired",
            "batch_id": passed.batch_id,
            "deadline_at": deadline_at,
            "generation": passed.generation,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
