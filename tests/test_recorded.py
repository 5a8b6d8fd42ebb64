"""What earlier versions have written is read: messages of every released form, and the database of the first version.

Under `tests/recorded/`: `events-*.ndjson`, messages upstream services published; `database-0001.sql`, a dump of the
first schema with data in it. Never change a recorded file; a new release adds its own.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from handlers import fold
from handlers.records import Disposition, LifecycleRecord, Registers
from migrations.run import migrate
from migrations.version import check
from rollcall.settings import Settings
from schemas.dead_letters import Refused
from schemas.events import ADAPTERS
from schemas.published import BatchFinalized
from store import batches, items
from store.connection import Connection, Database
from store.rows import Batch
from streams.decoding import decode
from streams.summarizing import Summarizer
from tests.harness.micro_batches import TOPICS, applied, micro_batch
from tests.harness.model import Model
from tests.harness.waiting import eventually

RECORDED = Path(__file__).parent / "recorded"
MESSAGES = [
    (path.name, number, line)
    for path in sorted(RECORDED.glob("events-*.ndjson"))
    for number, line in enumerate(path.read_text().splitlines(), 1)
]
NOW = datetime(2026, 11, 24, tzinfo=UTC)
FILES = sorted({file for file, *_ in MESSAGES})


@pytest.mark.parametrize(("file", "number", "line"), MESSAGES, ids=[f"{file}:{number}" for file, number, _ in MESSAGES])
def test_every_recorded_message_is_taken(file: str, number: int, line: str) -> None:
    record = decode(line.encode(), number, NOW)
    assert record.batch_id == json.loads(line)["batch_id"]


@pytest.mark.parametrize("file", FILES)
def test_what_the_recorded_messages_mean_together_stays_what_it_is(file: str) -> None:
    """Each message behind the other, as one log: what comes of its batches is what an independent model says."""
    model, registers = Model(), defaultdict[str, Registers](Registers)
    batches_now: dict[str, Batch] = {}
    for number, line in ((number, line) for name, number, line in MESSAGES if name == file):
        moment = NOW + timedelta(seconds=number)
        model.apply(number, round(moment.timestamp() * 1000), json.loads(line))
        record = decode(line.encode(), number, moment)
        batch = batches_now.setdefault(record.batch_id, Batch(record.batch_id, 0))
        with suppress(Refused):
            fold.step(batch, registers[record.batch_id], record)
    for batch_id, wanted in model.batches.items():
        found, counts = batches_now[batch_id], wanted.item_counts()
        assert (found.outcome or found.state, found.revision) == (model.status(batch_id), wanted.revision)
        assert {name: getattr(found, name) for name in counts if counts[name] is not None} == {
            name: count for name, count in counts.items() if count is not None
        }
        assert found.duplicates == model.duplicates(batch_id)


def test_every_message_type_is_recorded_with_every_field_it_has() -> None:
    recorded: defaultdict[str, set[str]] = defaultdict(set)
    for _, _, line in MESSAGES:
        message = json.loads(line)
        recorded[message.get("type") or "item.result"].update(_paths(message))
    for kind, adapter in ADAPTERS.items():
        schema = adapter.json_schema()
        nested = {"policy": "Policy", "error": "ItemError"}
        wanted = set(schema["properties"])
        for name in nested.keys() & wanted:
            wanted |= {f"{name}.{part}" for part in schema["$defs"][nested[name]]["properties"]}
        assert wanted - recorded[kind] == set(), kind


def _paths(message: dict[str, Any]) -> set[str]:
    inner = {f"{name}.{part}" for name in ("policy", "error") for part in message.get(name) or ()}
    return message.keys() | inner


def test_a_message_from_before_a_field_existed_reads_with_its_default() -> None:
    record = decode(b'{"batch_id":"b","item_id":"x","status":"succeeded"}', 0, NOW)
    assert not isinstance(record, LifecycleRecord)
    assert (record.attempt, record.generation, record.effect, record.error_code) == (1, 0, None, None)
    reopened = decode(b'{"type":"batch.reopened","batch_id":"b"}', 0, NOW)
    assert isinstance(reopened, LifecycleRecord)
    assert reopened.body == {"type": "batch.reopened", "batch_id": "b"}


@pytest.fixture
async def migrated(settings: Settings) -> AsyncIterator[tuple[Connection, Database, dict[str, list[Any]]]]:
    """The recorded first database, migrated; and what it held before."""
    database = settings.database()
    dump = (RECORDED / "database-0001.sql").read_text().replace("recorded", database.schema)
    connection = await database.connect("test")
    await connection.execute(dump)
    await connection.execute(f"SET search_path = {database.schema}")
    before = {
        table: [dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")]
        for table in ("batches", "item_results", "late_results", "expected_items", "outbox", "batch_status")
    }
    await migrate(database.url, database.schema)
    await connection.close()
    connection = await database.connect("test")
    yield connection, database, before
    await connection.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_database_of_the_first_version_keeps_all_it_held(
    migrated: tuple[Connection, Database, dict[str, list[Any]]],
) -> None:
    connection, database, before = migrated
    await check(connection, database.schema)
    for table, rows in before.items():
        now = [dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")]
        assert [{name: row[name] for name in old} for old, row in zip(rows, now, strict=True)] == rows, table
    assert len(before["item_results"]) > 30
    for row in before["outbox"]:
        BatchFinalized.model_validate_json(row["value"])


@pytest.mark.asyncio(loop_scope="session")
async def test_a_batch_of_the_first_version_goes_on_living(
    migrated: tuple[Connection, Database, dict[str, list[Any]]],
) -> None:
    connection, _, before = migrated
    failed = next(row["batch_id"] for row in before["batches"] if row["outcome"] and row["failed"])
    batch = (await batches.load(connection, [failed]))[failed]
    assert (batch.generation, batch.reason, batch.reopened_at, batch.failure_seen) == (0, None, None, True)
    ids = await items.reopenable_ids(connection, failed, some_retrying=True)
    held = await items.load(connection, {failed: ids})
    registers = Registers(held.get(failed, {}), (await items.load_late(connection, {failed: ids})).get(failed, {}))
    reopened = decode(
        json.dumps({"type": "batch.reopened", "batch_id": failed}).encode(), 10_000, NOW + timedelta(seconds=1)
    )
    assert fold.step(batch, registers, reopened) is Disposition.ACCEPTED
    assert any(registers.items[item_id].generation == 1 for item_id in registers.changed)
    await items.upsert(connection, [registers.items[item_id] for item_id in registers.changed])
    await batches.write(connection, [batch])
    status = await connection.fetchrow("SELECT status, generation FROM batch_status WHERE batch_id = $1", failed)
    assert status is not None
    assert tuple(status) == (batch.outcome or batch.state, 1)


@pytest.mark.asyncio(loop_scope="session")
async def test_workers_and_clock_go_on_where_the_first_version_stopped(
    migrated: tuple[Connection, Database, dict[str, list[Any]]],
) -> None:
    connection, database, _ = migrated
    position = await connection.fetchval("SELECT next_offset FROM positions")
    events: list[dict[str, Any]] = [
        {"batch_id": "open", "item_id": "y", "status": "succeeded", "attempt": 2},
        {"batch_id": "open", "item_id": "z", "status": "failed"},
        {"batch_id": "batch-11-0003-a b", "type": "batch.reopened"},
        {"batch_id": "batch-11-0003-a b", "item_id": 'q"00002', "status": "succeeded"},
        {"batch_id": "batch-11-0000", "type": "batch.finalize_requested"},
    ]
    records = [
        decode(json.dumps(event).encode(), position + number, NOW + timedelta(seconds=number))
        for number, event in enumerate(events)
    ]
    before = records[:1] * position  # Their places only: they were applied by the first version.
    part = micro_batch([*before, *records], position, position + len(records))
    done, _ = await applied(connection, part, optimistic=True)
    # Not the first failure of the batch: that one came before anybody told of it.
    assert [event.id for event in done.events] == [
        "batch.finalized/open/1",
        "batch.failure_rate_exceeded/open/1",
        "batch.finalized/batch-11-0003-a b/2",
    ]
    found = await batches.load(connection, ["open", "batch-11-0003-a b"])
    assert [(each.outcome, each.failed, each.revision) for _, each in sorted(found.items())] == [
        ("completed", 0, 2),
        ("completed_with_errors", 2, 1),
    ]
    stop = asyncio.Event()
    summarizer = asyncio.create_task(Summarizer(database, TOPICS, timeout_s=60.0).run(stop))

    async def all_summarized() -> bool:
        states = await connection.fetch("SELECT state FROM summaries")
        return [each["state"] for each in states] == ["ready"] * 3

    try:
        await eventually(all_summarized)
    finally:
        stop.set()
        await summarizer
