"""Runs a replay: prepares the shadow, starts the processes that fold, and says how far they are."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from rollcall.children import Child
from rollcall.reaching import naming
from rollcall.settings import ENV_PREFIX, Settings
from schemas.topics import Topics
from store import positions, shadows
from store.connection import Connection, Database
from store.rows import Position
from store.shadows import Shadow
from streams.applying import TooMuchError, connect_to_apply
from streams.log_span import Span, log_span, times_before
from streams.portion import Portion
from streams.reading import Homes
from streams.replay import Replay
from streams.topics import log_identity

PROGRESS_EVERY_S = 0.5
STOP_GRACE_S = 10.0

log = structlog.get_logger(__name__)


class ReplayError(RuntimeError):
    """A replay cannot begin or go on; the message is one line and says what to do."""


@dataclass(frozen=True)
class Part:
    """What one process folds: partitions of the log up to their ends, into a schema."""

    schema: str
    ends: dict[int, int]
    homes: Homes
    batch_id: str | None = None

    def encoded(self) -> str:
        """As an argument of that process."""
        said = {"schema": self.schema, "ends": self.ends, "batch_id": self.batch_id}
        return json.dumps(said | {"partitions": self.homes.partitions, "log_id": self.homes.log_id})

    @classmethod
    def decoded(cls, argument: str) -> Part:
        """The inverse of ``encoded``."""
        said = json.loads(argument)
        ends = {int(partition): end for partition, end in said["ends"].items()}
        return cls(said["schema"], ends, Homes(said["partitions"], said["log_id"]), said["batch_id"])


@dataclass(frozen=True)
class Progress:
    """How far a replay is: of each partition the first offset, the next one, and the end."""

    started: float
    done_before: int
    partitions: dict[int, tuple[int, int, int]]

    @property
    def done(self) -> int:
        """Offsets folded."""
        return sum(at - first for first, at, _ in self.partitions.values())

    @property
    def total(self) -> int:
        """Offsets to fold."""
        return sum(max(end, at) - first for first, at, end in self.partitions.values())

    @property
    def rate(self) -> float:
        """Offsets a second, of this run."""
        return (self.done - self.done_before) / max(time.monotonic() - self.started, 1e-9)


@dataclass(frozen=True)
class Live:
    """The live schema's place in its log."""

    topics: Topics
    homes: Homes
    positions: dict[int, Position]
    span: Span


def shadow_database(settings: Settings, schema: str) -> Database:
    """The database as connections to that schema see it. Raises ValueError where that is no name of a schema."""
    return Database(settings.database_url, schema)


async def look(settings: Settings, connection: Connection) -> Live:
    """Where the live schema stands in the log. Raises ReplayError where it has none yet, and ServerError."""
    topics = Topics(settings.topic_prefix)
    count = await positions.partition_count(connection, topics.events)
    if count is None:
        raise ReplayError(f'the schema "{settings.database_schema}" has no log yet: start workers first')
    with naming(settings, "Kafka"):
        log_id = await log_identity(settings.kafka_connection(), topics)
    stored = await positions.load_all(connection, settings.database_schema, topics.events)
    with naming(settings, "Kafka"):
        span = await log_span(settings.kafka_connection(), topics.events)
    return Live(topics, Homes(count, log_id), stored, span)


async def begins_midway(settings: Settings, live: Live, shadow: Connection) -> dict[int, datetime | None]:
    """Of partitions whose replay began behind the log's first record: when the last record before that was appended."""
    first = await positions.first_offsets(shadow, live.topics.events, sorted(live.span.starts))
    midway = {partition: offset for partition, offset in first.items() if offset > 0}
    return await times_before(settings.kafka_connection(), live.topics.events, midway) if midway else {}


async def prepare_shadow(
    settings: Settings, live: Live, schema: str, starts: Mapping[int, int], shadow: Shadow
) -> None:
    """Make the shadow, or find the one begun before; where it stands already, ``starts`` says nothing.

    Raises ReplayError and NotAShadowError.
    """
    from migrations.run import migrate

    if schema == settings.database_schema:
        raise ReplayError(f'"{schema}" is the live schema: replay into another one')
    database = shadow_database(settings, schema)
    connection = await settings.database().connect("replay")
    try:
        found = await shadows.find(connection, schema)
        if found is None:
            await shadows.create(connection, schema, shadow)
        elif found != shadow:
            of = f"of batch {found.batch_id}" if found.batch_id else "of all batches"
            raise ReplayError(
                f'the schema "{schema}" is a shadow of "{found.of}", {of}: choose another name, or drop it'
            )
    finally:
        await connection.close()
    await migrate(settings.database_url, schema)
    connection = await database.connect("replay")
    try:
        await positions.fix_partition_count(connection, live.topics.events, live.homes.partitions)
        await positions.create(connection, live.topics.events, dict(starts))
    finally:
        await connection.close()


async def fold_in_processes(
    settings: Settings, live: Live, schema: str, ends: Mapping[int, int], *, processes: int, batch_id: str | None = None
) -> AsyncIterator[Progress]:
    """Fold into the shadow up to the ends in that many processes; yields how far they are, at last that they are done.

    Raises ReplayError where one of them fails; what it says goes to stderr.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    environment |= settings.environment()
    connection = await shadow_database(settings, schema).connect("replay progress")
    children: list[Child] = []
    try:
        first = await positions.first_offsets(connection, live.topics.events, sorted(ends))
        begun = await _progress(connection, live, ends, first, time.monotonic(), None)
        behind = {partition: end for partition, end in ends.items() if begun.partitions[partition][1] < end}
        for share in _shares(behind, processes):
            part = Part(schema, share, live.homes, batch_id)
            argv = [sys.executable, "-P", "-m", "rollcall.replay_part", part.encoded()]
            children.append(await Child.spawn(argv, name="replay", env=environment))
        yield begun
        running = [asyncio.ensure_future(child.wait()) for child in children]
        while running:
            finished, _ = await asyncio.wait(running, timeout=PROGRESS_EVERY_S)
            if any(each.result() != 0 for each in finished):
                raise ReplayError("a process of the replay failed (see above); run the same command again to go on")
            progress = await _progress(connection, live, ends, first, begun.started, begun.done)
            if progress.done == begun.done:
                begun = replace(begun, started=time.monotonic())  # still starting: that is no part of the rate
            yield progress
            if len(finished) == len(running):
                break
    finally:
        for child in children:
            await child.stop(STOP_GRACE_S)
        connection.terminate()


async def fold_part(settings: Settings, part: Part) -> None:
    """What one of the processes does."""
    portion = Portion(settings.max_records)
    while True:
        try:
            async with replaying(settings, part.schema, part.homes, part.batch_id, portion=portion) as replay:
                await replay.fold_to(part.ends)
                return
        except TooMuchError as error:
            log.warning("a flush took too long, reading less at once", reason=str(error))


@asynccontextmanager
async def replaying(
    settings: Settings,
    schema: str,
    homes: Homes,
    batch_id: str | None = None,
    connection: Connection | None = None,
    portion: Portion | None = None,
) -> AsyncIterator[Replay]:
    """A replay into that schema, on a connection of its own unless one is given.

    Its micro-batches have a limited time where a ``portion`` is given, which outlives it.
    """
    patience = portion.patience if portion else 1
    own = None if connection else await connect_to_apply(shadow_database(settings, schema), "replay", patience)
    replay = Replay(
        settings.kafka_connection(),
        connection or _given(own),
        Topics(settings.topic_prefix),
        homes,
        portion=portion or Portion(settings.max_records),
        yields=portion is not None,
        failure_rate_limit=settings.failure_rate_limit,
        only=None if batch_id is None else {batch_id},
    )
    try:
        yield replay
    finally:
        await replay.close()
        if own is not None:
            own.terminate()


def _given(connection: Connection | None) -> Connection:
    assert connection is not None
    return connection


def _shares(ends: Mapping[int, int], processes: int) -> list[dict[int, int]]:
    shares = [dict(list(ends.items())[number::processes]) for number in range(processes)]
    return [share for share in shares if share]


async def _progress(
    connection: Connection,
    live: Live,
    ends: Mapping[int, int],
    first: Mapping[int, int],
    started: float,
    done_before: int | None,
) -> Progress:
    stored = await positions.load(connection, live.topics.events, sorted(ends))
    partitions = {
        partition: (first.get(partition, 0), stored[partition].next_offset, end) for partition, end in ends.items()
    }
    progress = Progress(started, 0, partitions)
    return Progress(started, progress.done if done_before is None else done_before, partitions)
