"""Micro-batching is invisible: however a log is cut, the same rows and byte-identical events come of it."""

import gc
import json
from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from random import Random
from typing import Any

import asyncpg
import pytest

from handlers.microbatch import apply
from handlers.slices import Slice, Work
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.published import LISTED_IDS
from schemas.topics import Topics
from store import items, positions
from streams.decoding import decode
from streams.reading import Homes, new_reading, take
from streams.topics import log_identity
from tests.harness.broken_records import BROKEN
from tests.harness.histories import Shape, make_history
from tests.harness.librdkafka import produce_with_librdkafka
from tests.harness.micro_batches import EPOCH, applied, emptied, micro_batch, taken
from tests.harness.micro_batches import tables as all_tables
from tests.harness.product import running
from tests.harness.tables import TABLES, Row, comparable_tables, forwarded_from
from tests.harness.topics import Message, Record, create_topic, drain

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4


async def test_a_log_read_in_micro_batches_of_1_7_and_5000_gives_equal_tables_and_events(settings: Settings) -> None:
    seed = 20261126
    history = make_history(seed, sizes=(0, 1, 2, 20, 60) * 8, shapes=tuple(Shape))
    print(history)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    # By librdkafka's partitioner: so that the log holds misplaced records, their forwards and dead letters, too.
    messages: list[Message] = [*history.messages[:500], *BROKEN[::10], *history.messages[500:]]
    seven = settings.model_copy(update={"max_records": 7})
    async with running(seven, workers=2) as product:
        await produce_with_librdkafka(settings.bootstrap_servers, topics.events, messages)
        await product.settled()
    log = await drain(settings.bootstrap_servers, topics.events)
    assert any(forwarded_from(record) for record in log)

    by_workers = await comparable_tables(seven)
    assert all(by_workers[table] for table in TABLES), "a table that is empty shows nothing"
    for size in (1, 7, 5_000):
        schema = settings.model_copy(update={"database_schema": f"{settings.database_schema}_{size}"})
        optimistic, pessimistic = await apply_in_micro_batches(schema, log, size)
        print(f"micro-batches of {size}: {optimistic} optimistic, {pessimistic} applied again")
        _assert_equal(await comparable_tables(schema), by_workers, f"micro-batches of {size}")


async def test_many_results_that_revise_a_batch_give_what_each_alone_gives_in_as_many_statements_as_two(
    settings: Settings,
) -> None:
    seed = 20261129
    print(f"seed {seed}")
    random = Random(seed)
    ids = [f"i{number:03}" for number in range(400)]
    opened = {"type": "batch.opened", "item_ids": ids, "policy": {"late_results": "revise"}}
    # More failed, and more missing, than an event lists; those that change are among the first and behind them.
    answers = [{"item_id": each, "status": "failed" if random.random() < 0.8 else "succeeded"} for each in ids[::2]]
    statuses = ["succeeded", "succeeded", "failed", "partial", "retrying"]
    late = [
        {"item_id": random.choice([*ids, *ids[:60], "stranger"]), "status": random.choice(statuses), "attempt": attempt}
        for attempt in (1, 2, 2, 3)
        for _ in range(120)
    ]
    events: list[dict[str, Any]] = [opened, *answers, {"type": "batch.finalize_requested"}, *late]
    log = [
        decode(json.dumps({"batch_id": "b", **event}).encode(), offset, EPOCH + timedelta(seconds=offset))
        for offset, event in enumerate(events)
    ]
    ended = len(events) - len(late)
    asked: list[str] = []

    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test")
    connection.add_query_logger(lambda query: asked.append(query.query))
    by_cut, statements = [], []
    try:
        for cuts in (range(ended, len(log)), range(ended, len(log), 7), [ended, ended + 2], [ended]):
            await emptied(connection)
            for begin, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
                asked.clear()
                await applied(connection, micro_batch(log, begin, end), optimistic=True)
                if begin == ended:
                    statements.append(len(asked))
            by_cut.append(await all_tables(connection))
    finally:
        await connection.close()
    revisions = [row for row in by_cut[0]["outbox"] if row[1] == "finalized"]
    assert len(revisions) > 100
    first = json.loads(revisions[0][4])
    assert len(first["failed_item_ids"]) == len(first["missing_item_ids"]) == LISTED_IDS
    for table, rows in by_cut[0].items():
        assert all(other[table] == rows for other in by_cut), table
    *_, two, all_together = statements
    assert all_together <= two + 2  # an upsert and alerts, where two had none


async def test_a_micro_batch_whose_copy_failed_is_freed_without_looking_for_garbage(settings: Settings) -> None:
    result = json.dumps({"batch_id": "b", "item_id": "i", "status": "failed"}).encode()
    records = taken((offset, int(EPOCH.timestamp()) * 1_000, result) for offset in range(2))
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test", plan_cache_mode="force_generic_plan")
    gc.collect()
    gc.disable()
    try:
        await emptied(connection)
        await applied(connection, micro_batch(records, 0, 1), optimistic=True)
        _, again = await applied(connection, micro_batch(records, 1, 2), optimistic=True)
        assert again
        assert not [each for each in gc.get_objects() if isinstance(each, Slice | Work)]
    finally:
        gc.enable()
        await connection.close()


@pytest.mark.parametrize("optimistic", [True, False])
async def test_registers_are_read_only_where_a_record_may_need_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, optimistic: bool
) -> None:
    asked: list[int] = []

    async def load(connection: Any, ids: Any) -> Any:
        asked.append(sum(map(len, ids.values())))
        return await load_registers(connection, ids)

    load_registers = items.load
    monkeypatch.setattr(items, "load", load)
    first = {"item_id": "i", "status": "retrying"}
    log: list[tuple[dict[str, Any], int | None]] = [
        ({"type": "batch.opened", "total_items": 3, "sealed": False}, None),
        ({"type": "batch.opened", "total_items": 3, "sealed": False, "name": "n"}, None),
        (first, None if optimistic else 1),
        (first | {"attempt": 2, "status": "failed"}, 1),
        ({"type": "batch.items_expected", "item_ids": ["i", "j", "k"]}, 3),
        ({"type": "batch.sealed"}, None),
        ({"type": "batch.cancelled"}, None),
        ({"type": "batch.reopened"}, 1),
    ]
    begun_ms = int(EPOCH.timestamp()) * 1_000
    records = taken(
        (offset, begun_ms, json.dumps({"batch_id": "b"} | event).encode()) for offset, (event, _) in enumerate(log)
    )
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test", plan_cache_mode="force_generic_plan")
    try:
        await emptied(connection)
        for offset, (event, wanted) in enumerate(log):
            asked.clear()
            await applied(connection, micro_batch(records, offset, offset + 1), optimistic=optimistic)
            assert asked == [wanted] * (wanted is not None), event
    finally:
        await connection.close()


async def apply_in_micro_batches(settings: Settings, log: Sequence[Record], size: int) -> tuple[int, int]:
    """Read a log as a worker does, `size` records at a time; how often the optimism held, and how often it didn't."""
    topics = Topics(settings.topic_prefix)
    homes = Homes(PARTITIONS, await log_identity(settings.kafka_connection(), topics))
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test")
    held = wrong = 0
    try:
        await positions.create(connection, topics.events, dict.fromkeys(range(PARTITIONS), 0))
        stands = await positions.load(connection, topics.events, range(PARTITIONS))
        for begin in range(0, len(log), size):
            reading = new_reading(topics, homes)
            for partition, part in groupby(log[begin : begin + size], attrgetter("partition")):
                records = list(part)
                stands[partition] = await take(reading, records, stands[partition], records[-1].offset + 1, homes)
            try:
                async with connection.transaction():
                    await apply(connection, reading.micro_batch, optimistic=True)
                held += 1
            except asyncpg.UniqueViolationError:
                async with connection.transaction():
                    await apply(connection, reading.micro_batch, optimistic=False)
                wrong += 1
    finally:
        await connection.close()
    return held, wrong


def _assert_equal(tables: dict[str, list[Row]], expected: dict[str, list[Row]], where: str) -> None:
    for table, rows in expected.items():
        differing: list[tuple[Any, Any]] = [
            (row, other) for row, other in zip(tables[table], rows, strict=False) if row != other
        ]
        assert differing == [], f"{where}: {table}"
        assert len(tables[table]) == len(rows), f"{where}: {table}"
