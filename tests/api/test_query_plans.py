"""On a large database the API reads what it shows, and no more: the plans of every statement it sends."""

import json
import uuid
from collections.abc import AsyncIterator, Iterator, Set
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from bench import api_data
from migrations.run import migrate
from rollcall.settings import Settings
from store import statistics
from store.connection import driver
from tests.harness.api import ServedApi, serving
from tests.harness.event_stream import listening
from tests.harness.servers import Servers
from tests.harness.stored import StoredRows, stored_rows

BATCHES = 10_000
LARGE = frozenset({"batches", "item_results", "expected_items", "outbox"})

Statement = tuple[str, Any]

PATHS = [
    "batches",
    "batches?limit=100&cursor=batch-0005000",
    "batches?status=processing",
    "batches?status=completed_with_errors&cursor=batch-0005003",
    "batches?status=cancelled",
    "batches?name=job 3",
    "batches?opened_since=2026-02-01T00:00:00Z",
    "batches/batch-0005000",
    "batches/big/items",
    "batches/big/items?status=failed&cursor=item-0050000",
    "batches/big/items?cursor=item-0090000",
    "batches/big/items/item-0050000",
    "batches/big/missing",
    "batches/big/missing?find=nothing like that",
    "batches/batch-0000107/missing",
    "batches/big/failures",
    "batches/big/timeline",
    "batches/big/why",
    "batches/big/results?status=failed",
    "jobs/job 3/runs",
]


@pytest.fixture(scope="module")
async def filled(servers: Servers) -> AsyncIterator[StoredRows]:
    """10,000 batches and about 1,000,000 items."""
    unique = f"t{uuid.uuid4().hex[:7]}"
    settings = Settings(
        bootstrap_servers=servers.bootstrap_servers,
        database_url=servers.database_url,
        topic_prefix=f"{unique}.",
        database_schema=unique,
        auth="off",
    )
    await migrate(settings.database_url, settings.database_schema)
    async with stored_rows(settings) as rows:
        await rows.connection.execute("INSERT INTO logs VALUES ($1, 12)", f"{unique}.events")
        assert await api_data.fill(rows.connection, BATCHES) > 900_000
        yield rows
        await rows.connection.execute(f'DROP SCHEMA "{unique}" CASCADE')


@pytest.fixture(scope="module")
async def large(filled: StoredRows) -> AsyncIterator[ServedApi]:
    async with serving(filled.settings) as api:
        yield api


@contextmanager
def sent(api: ServedApi) -> Iterator[list[Statement]]:
    """The statements that the API sends meanwhile, with their parameters."""
    statements: list[Statement] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    engine = api.context.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("path", PATHS)
async def test_no_statement_scans_a_large_table(large: ServedApi, filled: StoredRows, path: str) -> None:
    with sent(large) as statements:
        response = await large.client.get(f"/api/{path}")
    assert response.status_code == 200, response.text
    assert statements
    await assert_good_plans(filled, statements)


@pytest.mark.parametrize(
    "path",
    ["", "?status=processing&cursor=batch-0005000", "batches/big", "batches/big?find=1", "batches/batch-0005000",
     "batches/big?find=item-00999", "batches/big/items?first=item-0050000&last=item-0050100", "?name=job 3",
     "?opened_since=2026-02-01", "jobs?name=job 3", "system", "audit"],
)  # fmt: skip
async def test_no_page_scans_a_large_table(large: ServedApi, filled: StoredRows, path: str) -> None:
    with sent(large) as statements:
        response = await large.client.get(f"/{path}")
    assert response.status_code == 200, response.text
    assert statements
    await assert_good_plans(filled, statements)


@pytest.mark.parametrize("path", ["api/batches?metadata=team:team 3", "jobs"])
async def test_what_has_to_look_at_every_batch_looks_at_no_item(
    large: ServedApi, filled: StoredRows, path: str
) -> None:
    with sent(large) as statements:
        response = await large.client.get(f"/{path}")
    assert response.status_code == 200, response.text
    await assert_good_plans(filled, statements, LARGE - {"batches"})


async def test_a_retry_of_one_error_reads_the_failed_only(large: ServedApi, filled: StoredRows) -> None:
    with sent(large) as statements:
        async with large.context.engine.connect() as connection:
            raw = await driver(connection)
            raw.add_query_logger(lambda query: statements.append((query.query, query.args)))
            found, following = await statistics.failed_with(raw, "big", "timeout", after="item-0050000", limit=100)
    assert (len(found), following) == (100, found[-1])
    await assert_good_plans(filled, statements)


async def test_event_streams_scan_no_large_table(large: ServedApi, filled: StoredRows) -> None:
    with sent(large) as statements:
        for path, last_id in (("/api/events", "3-9800"), ("/api/batches/big/events", None)):
            async with listening(large.url, path, last_event_id=last_id) as listener:
                await listener.until("ready")
    assert any("spans" in statement for statement, _ in statements), "what was missed was looked for"
    await assert_good_plans(filled, statements)


async def assert_good_plans(filled: StoredRows, statements: list[Statement], large: Set[str] = LARGE) -> None:
    for statement, parameters in {each[0]: each for each in statements}.values():
        # The plan for these parameters, and the one that a prepared statement comes to after a few executions.
        for options in ("FORMAT JSON", "FORMAT JSON, GENERIC_PLAN"):
            plan = await filled.connection.fetchval(f"EXPLAIN ({options}) {statement}", *tuple(parameters or ()))
            scanned = {node["Relation Name"] for node in nodes(json.loads(plan)[0]["Plan"]) if is_scan(node)}
            assert not scanned & large, f"{options}: {scanned} scanned by\n{statement}\n{plan}"
            filters = [node.get("Filter", "") for node in nodes(json.loads(plan)[0]["Plan"])]
            assert not any(is_bound(each) for each in filters), (
                f"{options}: a bound is a filter in\n{statement}\n{plan}"
            )


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def is_bound(condition: str) -> bool:
    """Whether it says where a page or a slice begins: as a filter it costs what lies before that."""
    return "ROW(" in condition or "COALESCE(item_results.item_id, expected_items.item_id)" in condition


def is_scan(node: dict[str, Any]) -> bool:
    return bool(node["Node Type"] == "Seq Scan")
