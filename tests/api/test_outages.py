"""The database or the broker away: 503 with Retry-After, and all well again when they are back."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from api import history
from rollcall.settings import Settings
from schemas.topics import Topics
from streams.topics import ensure_topics
from tests.faults.proxy import Proxy
from tests.harness.api import ServedApi, serving
from tests.harness.stored import StoredRows
from tests.harness.topics import drain
from tests.harness.waiting import eventually

READS = ("batches", "batches/b", "batches/b/items", "batches/b/missing", "jobs/j/runs", "audit", "batches/b/events")


async def test_while_the_database_is_away_the_answer_is_503_and_then_it_goes_on(
    migrated: Settings, rows: StoredRows
) -> None:
    await rows.batch("b")
    address = urlsplit(migrated.database_url.replace("+asyncpg", ""))
    proxy = Proxy(lambda: address.port)
    await proxy.start()
    try:
        through = migrated.database_url.replace(f":{address.port}", f":{proxy.port}")
        async with serving(migrated.model_copy(update={"database_url": through})) as api:
            await api.get("batches/b")
            proxy.refuse()
            proxy.cut()
            for path in READS:
                await assert_unavailable(api, "GET", path)
            await assert_unavailable(api, "POST", "batches")
            await assert_unavailable(api, "POST", "jobs/j/runs")
            proxy.heal()

            async def well() -> bool:
                return (await api.client.get("/api/batches/b")).status_code == 200

            await eventually(well)
    finally:
        await proxy.stop()


async def test_postgresql_ends_a_transaction_that_the_api_left_standing_but_no_question_why(api: ServedApi) -> None:
    async with api.context.reading() as connection:
        [limit] = (
            await connection.execute(
                text("SELECT setting::int FROM pg_settings WHERE name = :name"),
                {"name": "idle_in_transaction_session_timeout"},
            )
        ).one()
    assert history.WHY_TIMEOUT_S * 1000 < limit <= 60_000


async def test_while_the_broker_is_away_reading_works_and_submitting_is_503(
    migrated: Settings, rows: StoredRows
) -> None:
    await rows.batch("b", total_items=1)
    async with serving(migrated.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})) as api:
        assert (await api.get("batches/b"))["lag"] == {"records": None, "lagging": None, "next_offset": None}
        why = await api.get("batches/b/why")
        assert why["log_problem"]
        await assert_unavailable(api, "POST", "batches")
        await assert_unavailable(api, "POST", "batches/b/cancel")


async def test_what_the_broker_did_not_take_can_be_submitted_again_under_its_key(
    migrated: Settings, unique: str
) -> None:
    await ensure_topics(migrated.kafka_connection(), Topics(migrated.topic_prefix))
    key = {"Idempotency-Key": unique}
    async with serving(migrated.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})) as api:
        await api.post("batches", {"total_items": 1}, 503, **key)
    async with serving(migrated) as api:
        assert (await api.post("batches", {"total_items": 1}, 202, **key))["total_items"] == 1


@pytest.mark.parametrize("path", ["batches", "batches/b/retry"])
async def test_where_an_id_was_made_up_the_503_names_it_to_be_used_again(
    migrated: Settings, rows: StoredRows, unique: str, path: str
) -> None:
    await ensure_topics(migrated.kafka_connection(), Topics(migrated.topic_prefix))
    await rows.batch("b", total_items=1, failed=1)
    await rows.item("b", "i", "failed")
    async with serving(migrated.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})) as api:
        refused = await api.post(path, {}, 503)
        for body, headers in (({"batch_id": "mine"}, {}), ({}, {"Idempotency-Key": unique})):
            assert "sending it again is harmless" in (await api.post(path, body, 503, **headers))["detail"]
    [batch_id] = re.findall(r'it may have arrived, and send it again with "batch_id": "(.+)" only', refused["detail"])
    async with serving(migrated) as api:
        assert (await api.post(path, {"batch_id": batch_id}, 202))["batch_id"] == batch_id


async def test_where_no_revision_was_given_the_503_names_it(migrated: Settings, rows: StoredRows) -> None:
    await ensure_topics(migrated.kafka_connection(), Topics(migrated.topic_prefix))
    await rows.finalized("b", revision=3, outcome="failed", total_items=1, failed=1)
    async with serving(migrated.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})) as api:
        await rows.batch("open", total_items=1)
        for path, revision in (("batches/b/reopen", 3), ("batches/open/cancel", 0), ("batches/open/finalize", 0)):
            refused = await api.post(path, {}, 503)
            assert f'send it again with "revision": {revision} only' in refused["detail"]
            assert "sending it again is harmless" in (await api.post(path, {"revision": revision}, 503))["detail"]
        summary_only = (await api.post("batches/b/finalize", {}, 503))["detail"]
        assert summary_only.endswith("see that nobody has reopened the batch before you send it again: it would end it")


async def test_a_try_that_did_not_come_to_sending_gives_no_right_to_a_batch_that_is_there(
    migrated: Settings, rows: StoredRows, unique: str
) -> None:
    await ensure_topics(migrated.kafka_connection(), Topics(migrated.topic_prefix))
    await rows.batch("b", total_items=1, failed=1)
    await rows.item("b", "i", "failed")
    requests: list[tuple[str, dict[str, Any], str]] = [
        ("batches", {"batch_id": "new", "total_items": 1}, "batches"),
        ("batches/b/retry", {"batch_id": "other"}, "item_results"),
    ]
    async with serving(migrated) as api:
        for path, body, table in requests:
            key = {"Idempotency-Key": f"{unique} {path}"}
            async with cut_off_at(table, rows):
                await api.post(path, body, 503, **key)
            await api.post(path, body, 202, **{"Idempotency-Key": f"{unique} {path} of somebody else"})
            await rows.batch(body["batch_id"])
            refused = await api.post(path, body, 409, **key)
            assert f'there is a batch "{body["batch_id"]}" already' in refused["detail"]


@asynccontextmanager
async def cut_off_at(table: str, rows: StoredRows) -> AsyncIterator[None]:
    """Whoever looks into the table meanwhile loses the connection over it."""

    async def cut() -> bool:
        waiting = f"FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass"
        return bool(await connection.fetch(f"SELECT pg_terminate_backend(pid) {waiting}"))

    connection = rows.connection
    async with connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        cutting = asyncio.create_task(eventually(cut, message=f"somebody looks into {table}"))
        yield
        await cutting


async def test_what_is_in_the_log_already_is_said_to_be_where_the_database_goes_away_then(
    migrated: Settings, rows: StoredRows, unique: str
) -> None:
    topics = Topics(migrated.topic_prefix)
    await ensure_topics(migrated.kafka_connection(), topics)
    # Writing down where the record is, behind its being sent, costs the API its connection.
    await rows.connection.execute("""
        CREATE FUNCTION cut_off() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE TRIGGER cut_off AFTER UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION cut_off();
    """)
    async with serving(migrated) as api:
        body, key = {"batch_id": unique, "total_items": 1}, {"Idempotency-Key": unique}
        response = await api.client.post("/api/batches", json=body, headers=key)
        assert (response.status_code, int(response.headers["retry-after"]) > 0) == (503, True)
        [record] = await drain(migrated.bootstrap_servers, topics.events)
        place = f"partition {record.partition}, offset {record.offset}"
        assert f'it is in the log (batch "{unique}", {place})' in response.json()["detail"]

        await rows.connection.execute("DROP TRIGGER cut_off ON audit")
        await rows.batch(unique)
        await api.post("batches", body, 202, **key)


async def assert_unavailable(api: ServedApi, method: str, path: str) -> None:
    response = await api.client.request(method, f"/api/{path}", json={} if method == "POST" else None)
    assert response.status_code == 503, f"{method} {path}: {response.text}"
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["content-type"] == "application/problem+json"
