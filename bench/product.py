"""Rollcall itself: workers and the relay, as they run in production, on a topic that is full already."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiokafka.errors import UnknownTopicOrPartitionError, for_code

from bench.finalized import Finalized
from bench.measuring import WARM_UP, Cpu, Measured, measure
from bench.running import APPLIED, spawn, stop_all
from migrations.run import migrate
from rollcall.children import Child
from rollcall.settings import Settings
from rollcall.stack import all_assigned
from schemas.topics import Topics
from store.connection import Connection
from streams.topics import ensure_topics


async def run(
    settings: Settings,
    *,
    items: int,
    progress: int,
    batches: int,
    workers: int,
    servers: Mapping[str, Sequence[int]] | None = None,
    filling: Callable[[], Awaitable[object]] | None = None,
) -> Measured:
    """Fold a whole topic into a schema of its own. ``progress`` is the sum of positions at its end.

    ``servers``: processes whose CPU time is to be measured beside the workers' and the relay's. ``filling`` fills the
    topic once all are up; then everything is measured, not only what comes behind the first tenth.
    """
    topics = Topics(settings.topic_prefix)
    await fresh_outputs(settings)
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("bench")
    await connection.execute("CHECKPOINT")
    relay = await spawn(settings, "relay")
    children = [await spawn(settings, "worker", "--slot", str(slot)) for slot in range(workers)]

    async def applied() -> int:
        return int(await connection.fetchval(APPLIED, topics.events))

    async def finished() -> bool:
        # By the partial index: else each look would read the whole table, beside the relay.
        unpublished = "SELECT FROM outbox WHERE published_at IS NULL AND refused IS NULL"
        return not await connection.fetchval(f"SELECT EXISTS ({unpublished})")

    try:
        await until_assigned(settings, topics, workers)
        filled = asyncio.ensure_future(filling()) if filling is not None else None
        measured = await measure(
            items=items,
            progress=progress,
            applied=applied,
            finished=finished,
            alive=lambda: still_there([relay, *children]),
            cpu=Cpu({"worker": [child.pid for child in children], "relay": [relay.pid], **(servers or {})}),
            memory_of=[child.pid for child in children],
            warm_up=WARM_UP if filled is None else 0.0,
        )
        if filled is not None:
            await filled
        async with Finalized(settings.kafka_connection(), topics.finalized) as finalized:
            try:
                await finalized.expect(batches, items // batches)
            except RuntimeError as error:
                error.add_note(await stored(connection, finalized))
                raise
        return measured
    finally:
        await connection.close()
        await stop_all([*children, relay])


async def stored(connection: Connection, finalized: Finalized) -> str:
    """What PostgreSQL has of batches whose event was not read: whether it is the worker's, the relay's or our fault."""
    without = """
        SELECT b.batch_id, b.partition, b.state, b.succeeded + b.failed AS answered, b.published_at AS told_at,
               o.published_at, o.published_partition, o.published_offset, o.refused
        FROM batches b LEFT JOIN outbox o ON o.channel = 'finalized' AND o.batch_id = b.batch_id
        WHERE b.batch_id <> ALL($1::text[]) ORDER BY b.batch_id LIMIT 10
    """
    rows = await connection.fetch(without, [key.decode() for key in finalized.values])
    lines = [f"without an event: {dict(row)}" for row in rows]
    lines += map(str, await connection.fetch("SELECT topic, partition, next_offset FROM positions ORDER BY 1, 2"))
    return "\n".join([*lines, f"read of the events up to: {await finalized.positions()}"])


async def until_assigned(settings: Settings, topics: Topics, workers: int) -> None:
    admin = settings.kafka_connection().admin()
    await admin.start()
    try:
        while not await all_assigned(admin, topics, workers):  # noqa: ASYNC110 (the broker does not tell by itself)
            await asyncio.sleep(0.02)
    finally:
        await admin.close()


def still_there(children: list[Child]) -> None:
    for child in children:
        if child.returncode is not None:
            raise RuntimeError(f"{child.name} ended with {child.returncode}")


async def fresh_outputs(settings: Settings) -> None:
    """Make the topics, those of the outputs empty: a relay would find its predecessor's events and publish nothing."""
    topics = Topics(settings.topic_prefix)
    outputs = [topics.finalized, topics.summaries, topics.alerts, topics.requests, topics.dead_letters]
    admin = settings.kafka_connection().admin()
    await admin.start()
    try:
        if existing := set(outputs) & set(await admin.list_topics()):
            for name, code in (await admin.delete_topics(sorted(existing))).topic_error_codes:
                if code and for_code(code) is not UnknownTopicOrPartitionError:
                    raise RuntimeError(f"topic {name} cannot be deleted: {for_code(code).__name__}")
            while set(outputs) & set(await admin.list_topics()):  # noqa: ASYNC110 (nor does it tell this)
                await asyncio.sleep(0.05)
    finally:
        await admin.close()
    await ensure_topics(settings.kafka_connection(), topics)


async def drop(settings: Settings) -> None:
    connection = await settings.database().connect("bench")
    await connection.execute(f"DROP SCHEMA {settings.database_schema} CASCADE")
    await connection.close()
