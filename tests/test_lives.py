"""Whole lives of batches on a real PostgreSQL: however the log is read, and wherever reading is cut off, one state.

`ROLLCALL_LIVES` says how many messages the log has; `make test-lives` asks for 50,000.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from handlers.records import TakenRecord
from migrations.run import migrate
from rollcall.settings import Settings
from store.connection import Connection
from tests.harness.lives import make_lives
from tests.harness.micro_batches import applied, emptied, micro_batch, tables, taken
from tests.harness.model import Model
from tests.harness.model import fold as modelled

pytestmark = pytest.mark.asyncio(loop_scope="session")

SEED = 20_261_124
MESSAGES = int(os.environ.get("ROLLCALL_LIVES", "2500"))
Picture = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect(
        "test", plan_cache_mode="force_generic_plan", synchronous_commit="off"
    )
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def log() -> list[tuple[int, int, bytes]]:
    print("seed", SEED, "messages", MESSAGES)
    return make_lives(SEED, MESSAGES)


@pytest.fixture(scope="module")
def records(log: list[tuple[int, int, bytes]]) -> list[TakenRecord]:
    return taken(log)


@pytest.fixture(scope="module")
def model(log: list[tuple[int, int, bytes]]) -> Model:
    return modelled(log)


async def read(connection: Connection, records: list[TakenRecord], size: int) -> Picture:
    await emptied(connection)
    for begin in range(0, len(records), size):
        await applied(connection, micro_batch(records, begin, min(begin + size, len(records))), optimistic=True)
    return await tables(connection)


async def test_a_log_of_whole_lives_is_one_state_in_micro_batches_of_any_size_and_with_crashes(
    connection: Connection, records: list[TakenRecord], model: Model
) -> None:
    whole = await read(connection, records, 5_000)
    assert_as_modelled(whole, model)
    assert await read(connection, records, 7) == whole
    assert await read(connection, records, 1) == whole
    assert await read_with_crashes(connection, records, every=100) == whole


async def read_with_crashes(connection: Connection, records: list[TakenRecord], every: int) -> Picture:
    """A crash before the commit at every so many records; what comes next reads on from the stored position."""
    random = Random(SEED)
    await emptied(connection)
    begin, crash = 0, every
    while begin < len(records):
        end = min(begin + random.choice((1, 7, 40, 150, 1_000)), len(records))
        optimistic = random.random() < 0.7
        if begin <= crash < end:
            await crashed(connection, records, begin, crash + 1)
            crash += every
            continue
        await applied(connection, micro_batch(records, begin, end), optimistic=optimistic)
        begin = end
    return await tables(connection)


async def crashed(connection: Connection, records: list[TakenRecord], begin: int, end: int) -> None:
    crash = connection.transaction()
    await crash.start()
    await applied(connection, micro_batch(records, begin, end), optimistic=False)
    await crash.rollback()


def assert_as_modelled(picture: Picture, model: Model) -> None:
    """What went out is what the model says: revisions, alerts, requests; what was refused, too."""
    batches = model.batches.values()
    outbox = picture["outbox"]
    said = {(batch, revision): json.loads(text) for _, kind, batch, revision, text, _ in outbox if kind == "finalized"}
    wanted = {(batch, final.revision): final for batch, all_of in model.all_revisions().items() for final in all_of}
    assert said.keys() == wanted.keys()
    wrong = [line for key, final in wanted.items() for line in final.contradictions(said[key])]
    assert wrong == []
    alerts = {identity for identity, kind, *_ in outbox if kind == "alerts" and "failure_rate" not in identity}
    assert alerts == {f"{alert}/{batch.batch_id}" for batch in batches for alert, _ in batch.alerts}
    requests = {identity for identity, kind, *_ in outbox if kind == "requests"}
    assert requests == {
        f"batch.retry_requested/{batch.batch_id}/{offset}" for batch in batches for offset, *_ in batch.requests
    }
    assert sorted(row[2] for row in picture["dead letters"]) == sorted(refusal.offset for refusal in model.refusals)
    seen = {final.finalized_by for final in wanted.values()}
    assert seen == {"all_items_in", "deadline", "cancelled", "aborted", "forced"}
    assert max(final.revision for final in wanted.values()) > 3
