"""A shadow takes over while results flow: none is lost or counted twice, and nothing is published twice."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from migrations.version import SCHEMA_VERSION
from rollcall.interrupting import ENDED_BY
from rollcall.promote_commands import _locked, _promote
from rollcall.replaying import ReplayError
from rollcall.settings import Settings
from schemas.topics import Topics
from store import trimming
from store.connection import Connection
from streams import sending
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import Product, running
from tests.harness.signals import is_stopped
from tests.harness.tables import finalized_events, table_rows
from tests.harness.topics import create_topic, drain, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4
ITEMS = 50


def message(event: dict[str, Any]) -> Message:
    return Message(event["batch_id"].encode(), json.dumps(event).encode(), event["batch_id"])


def batch(batch_id: str) -> list[Message]:
    opened = message({"type": "batch.opened", "batch_id": batch_id, "total_items": ITEMS})
    results = [
        message({"batch_id": batch_id, "item_id": str(item), "status": "failed" if item == 7 else "succeeded"})
        for item in range(ITEMS)
    ]
    return [opened, *results]


async def test_promoted_under_load_twice_nothing_is_lost_or_published_twice(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    stop = asyncio.Event()
    sent: list[str] = []

    async def load() -> None:
        while not stop.is_set():
            names = [f"batch-{len(sent) + number}" for number in range(20)]
            sent.extend(names)
            await produce(settings.bootstrap_servers, topics.events, [m for name in names for m in batch(name)])
            await asyncio.sleep(0.5)  # about 2,000 records a second

    async with running(settings, workers=2) as product:
        loading = asyncio.create_task(load())
        try:
            for number in range(2):
                shadow = f"{settings.database_schema}_{number}"
                done = await commands.rollcall(settings, "replay", "--into", shadow, timeout_s=180)
                assert done.exit_code == 0, done.stderr
                done = await commands.rollcall(settings, "promote", shadow, "--yes", timeout_s=180)
                assert done.exit_code == 0, done.stderr
                print(done.stdout)
        finally:
            stop.set()
            await loading
        await product.settled(120)
        assert all(child.returncode is None for child in product.children.values()), "nobody had to be started again"
    rows = {row["batch_id"]: row for row in await table_rows(settings, "batches")}
    assert rows.keys() == set(sent)
    wrong = {name: row for name, row in rows.items() if (row["succeeded"], row["failed"]) != (ITEMS - 1, 1)}
    assert wrong == {}
    assert {row["duplicates"] for row in rows.values()} == {0}
    events = await finalized_events(settings)
    assert events.keys() == set(sent)
    assert {name: len(found) for name, found in events.items() if len(found) != 1} == {}
    for name in (topics.alerts, topics.requests, topics.summaries):
        ids = Counter(dict(record.headers)["ce_id"] for record in await drain(settings.bootstrap_servers, name))
        assert {each: times for each, times in ids.items() if times != 1} == {}, name
    done = await commands.rollcall(settings, "verify", timeout_s=180)
    assert done.exit_code == 0, done.stdout + done.stderr


async def open_batches(settings: Settings, **results: str) -> None:
    """Batches of two items, each with these results."""
    topics = Topics(settings.topic_prefix)
    opened = [message({"type": "batch.opened", "batch_id": name, "total_items": 2}) for name in results]
    done = [
        message({"batch_id": name, "item_id": item, "status": "succeeded"})
        for name, items in results.items()
        for item in items
    ]
    await produce(settings.bootstrap_servers, topics.events, [*opened, *done])


async def end_too_early(connection: Connection, batch_id: str, *, revision: int = 1) -> None:
    """As a bug might."""
    await connection.execute(
        "UPDATE batches SET state = 'finalized', outcome = 'completed', finalized_by = 'all_items_in', revision = $2,"
        " finalized_at = now(), decided_offset = 4 WHERE batch_id = $1",
        batch_id,
        revision,
    )


async def publish_too_early(connection: Connection, batch_id: str, *, revision: int = 1) -> None:
    await end_too_early(connection, batch_id, revision=revision)
    identity = f"batch.finalized/{batch_id}/{revision}"
    await connection.execute(
        "INSERT INTO outbox (id, channel, batch_id, revision, value, headers, published_at, published_partition,"
        " published_offset) VALUES ($1, 'finalized', $2, $3, '{}', '{}', now(), 0, 0) ON CONFLICT DO NOTHING",
        identity,
        batch_id,
        revision,
    )


async def said(settings: Settings) -> dict[str, list[tuple[int, str]]]:
    events = await finalized_events(settings)
    return {
        name: [(json.loads(each.value)["revision"], json.loads(each.value)["outcome"]) for each in found]
        for name, found in events.items()
    }


async def test_what_was_published_wrongly_goes_out_corrected_where_asked_for(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1) as product:
        await open_batches(settings, wrong="12", early="1")
        await product.settled()
        async with product.connection() as connection:
            await connection.execute("UPDATE batches SET outcome = 'failed' WHERE batch_id = 'wrong'")
            await end_too_early(connection, "early")
        shadow = f"{settings.database_schema}_s"
        done = await commands.replay_and_promote(settings, shadow, "--emit-changes")
        assert "2 batches have another outcome or revision than before; 2 corrections were sent" in done.stdout
        last = message({"batch_id": "early", "item_id": "2", "status": "succeeded"})
        await produce(settings.bootstrap_servers, topics.events, [last])
        await product.settled()
    assert await said(settings) == {"wrong": [(1, "completed"), (2, "completed")], "early": [(2, "completed")]}
    done = await commands.rollcall(settings, "verify", timeout_s=180)
    assert done.exit_code == 0, done.stdout + done.stderr


async def test_an_event_whose_row_was_trimmed_is_not_published_again_though_its_batch_was_reopened_twice(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1) as product:
        await open_batches(settings, again="1", other="12")
        last = message({"batch_id": "again", "item_id": "2", "status": "succeeded"})
        await produce(settings.bootstrap_servers, topics.events, [last])
        await product.settled()
        assert await said(settings) == {"again": [(1, "completed")], "other": [(1, "completed")]}
        await product.children["relay"].kill()
        async with product.connection() as connection:
            assert await connection.execute("DELETE FROM outbox WHERE id = 'batch.finalized/again/1'") == "DELETE 1"
        # Its second event is decided, and unpublished; it is open once more.
        reopened = message({"type": "batch.reopened", "batch_id": "again", "item_ids": ["2"]})
        answered = message({"batch_id": "again", "item_id": "2", "status": "succeeded", "attempt": 2})
        await produce(settings.bootstrap_servers, topics.events, [reopened, answered, reopened])
        await eventually(product._is_caught_up)
        shadow = f"{settings.database_schema}_s"
        await commands.replay_and_promote(settings, shadow, "--emit-changes")
        await product.start_relay()
        await product.settled()
    assert await said(settings) == {"again": [(1, "completed"), (2, "completed")], "other": [(1, "completed")]}


async def test_a_batch_that_is_open_after_all_ends_by_a_new_number_though_no_changes_are_emitted(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1) as product:
        await open_batches(settings, early="1", twice="12")
        await product.settled()
        shadow = f"{settings.database_schema}_s"
        async with product.connection() as connection:
            await publish_too_early(connection, "early")
            await publish_too_early(connection, "twice", revision=2)
        done = await commands.rollcall(settings, "replay", "--into", shadow, timeout_s=180)
        assert done.exit_code == 0, done.stderr
        refused = await commands.rollcall(settings, "promote", shadow, "--yes", timeout_s=180)
        assert refused.exit_code == 1
        assert "1 batches have ended fewer times than was published (twice)" in refused.stderr
        async with product.connection() as connection:
            await connection.execute("UPDATE batches SET revision = 1 WHERE batch_id = 'twice'")
        done = await commands.rollcall(settings, "promote", shadow, "--yes", timeout_s=180)
        assert done.exit_code == 0, done.stderr
        assert "nothing of it was published; the log says of 1 that are open by which number" in done.stdout
        last = message({"batch_id": "early", "item_id": "2", "status": "succeeded"})
        await produce(settings.bootstrap_servers, topics.events, [last])
        await product.settled()
    assert await said(settings) == {"twice": [(1, "completed")], "early": [(2, "completed")]}


async def promote_with_its_summary_trimmed(settings: Settings, *changes: str) -> None:
    """A promotion of a batch whose summary was published and trimmed, over a live schema changed by these statements.

    Asserts that it is not published again.
    """
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    shadow = f"{settings.database_schema}_s"
    async with running(settings, workers=1) as product:
        await product.start_clock()
        await open_batches(settings, done="12")

        async def summarized() -> bool:
            [row] = await table_rows(settings, "summaries", "batch_id")
            return bool(row["state"] == "ready")

        await product.settled()
        await eventually(summarized, 60)
        await product.settled()
        async with product.connection() as connection:
            for statement in (*changes, "DELETE FROM outbox WHERE channel = 'summaries'"):
                await connection.execute(statement)
        await commands.replay_and_promote(settings, shadow)
        await eventually(summarized, 60)
        await product.settled()
    ids = [dict(each.headers)["ce_id"] for each in await drain(settings.bootstrap_servers, topics.summaries)]
    assert ids == [b"batch.summarized/done/1"]


async def test_a_summary_that_is_computed_anew_is_not_published_again_though_its_row_was_trimmed(
    settings: Settings,
) -> None:
    await promote_with_its_summary_trimmed(settings, "UPDATE batches SET created = 2")  # so that it is not as it was
    [row] = await table_rows(settings, "summaries", "batch_id")
    assert '"created":0' in row["summary"]


async def test_a_summary_of_a_batch_that_another_record_decides_is_not_published_again_though_its_row_was_trimmed(
    settings: Settings,
) -> None:
    # As if an older version had taken a later record for the one that decides.
    await promote_with_its_summary_trimmed(
        settings,
        "UPDATE batches SET decided_offset = decided_offset + 1",
        "UPDATE summaries SET requested_offset = requested_offset + 1",
    )


@pytest.mark.parametrize("reopened", [0, 1])
async def test_an_alert_whose_row_was_trimmed_when_its_batch_had_ended_too_early_is_not_raised_again(
    settings: Settings, reopened: int
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    shadow = f"{settings.database_schema}_s"
    eager = settings.model_copy(update={"slow_after_s": 0.0, "outbox_kept_days": 0.0})

    async def raised(count: int) -> bool:
        rows = [row for row in await table_rows(eager, "outbox") if row["id"].startswith("batch.slow_detected/")]
        return len(rows) == count and all(row["published_at"] for row in rows)

    async with running(eager, workers=1) as product:
        await product.start_clock()
        await open_batches(eager, early="1")
        await eventually(lambda: raised(1), 60)
        async with product.connection() as connection:
            await end_too_early(connection, "early")
            # Somebody reopened it since, so that what it is said to be slow in is another generation.
            await connection.execute("UPDATE batches SET generation = generation + $1", reopened)
            # The newest stays.
            await connection.execute(
                "INSERT INTO outbox (id, channel, value, headers, published_at)"
                " VALUES ('-', 'alerts', '{}', '{}', now())"
            )
            # What the clock does each minute.
            await trimming.trim_events(connection, datetime.now(UTC), 100)
        assert await raised(0)
        await product.children["clock"].kill()
        await commands.replay_and_promote(eager, shadow)
        await open_batches(eager, another="1")  # when this one is slow, the clock has looked at the other, too
        await product.start_clock()
        await eventually(lambda: raised(2), 60)
        await product.settled()
    ids = [dict(each.headers)["ce_id"] for each in await drain(settings.bootstrap_servers, topics.alerts)]
    slow = sorted(each for each in ids if each.startswith(b"batch.slow_detected/"))
    assert slow == [b"batch.slow_detected/another/0", b"batch.slow_detected/early/0"]


async def test_whoever_cannot_send_corrections_is_told_that_some_may_be_on_the_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    shadow = f"{settings.database_schema}_s"
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, batch("b"))
        await product.settled()
        async with product.connection() as connection:
            await connection.execute("UPDATE batches SET outcome = 'failed'")
        done = await commands.rollcall(settings, "replay", "--into", shadow)
        assert done.exit_code == 0, done.stderr
        monkeypatch.setattr(sending, "SEND_TIMEOUT_S", 0.0)
        with pytest.raises(ReplayError) as failed:
            await _promote(settings, shadow, emit_changes=True, processes=1)
        assert str(failed.value).startswith(f"Kafka at {settings.bootstrap_servers} (ROLLCALL_BOOTSTRAP_SERVERS)")
        assert "some of the 1 corrections may be on the log" in str(failed.value)
    [row] = await table_rows(settings, "batches")
    assert row["outcome"] == "failed", "it was given up"


async def test_a_schema_that_is_migrated_until_the_pause_begins_is_not_promoted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replayed(settings) as (product, shadow):
        for schema in (settings.database_schema, shadow):

            async def locked(*of: Any, schema: str = schema) -> float:
                async with product.connection() as connection:
                    await connection.execute(f"UPDATE {schema}.alembic_version SET version_num = '9999'")
                return await _locked(*of)

            monkeypatch.setattr("rollcall.promote_commands._locked", locked)
            with pytest.raises(ReplayError, match=f'"{schema}" was migrated meanwhile: it is at version 9999'):
                await _promote(settings, shadow, emit_changes=False, processes=1)
            async with product.connection() as connection:
                await connection.execute(f"UPDATE {schema}.alembic_version SET version_num = $1", SCHEMA_VERSION)


async def test_a_shadow_whose_last_record_is_not_the_live_schemas_is_not_promoted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replayed(settings) as (product, shadow):

        async def locked(*of: Any) -> float:
            async with product.connection() as connection:
                await connection.execute(f"UPDATE {shadow}.positions SET last_checksum = last_checksum + 1")
            return await _locked(*of)

        monkeypatch.setattr("rollcall.promote_commands._locked", locked)
        with pytest.raises(ReplayError, match="run `rollcall verify` to see why; nothing has changed"):
            await _promote(settings, shadow, emit_changes=False, processes=1)


async def test_events_that_a_relay_had_sent_and_not_marked_are_marked_in_the_promoted_schema(
    settings: Settings,
) -> None:
    async with replayed(settings) as (product, shadow), product.connection() as connection:
        relay = await product.start_relay(failpoint="mark.before:1:stop")
        await eventually(lambda: is_stopped(relay.pid), message="the relay has sent the event")
        [event] = (await finalized_events(settings))["b"]
        done = await commands.rollcall(settings, "promote", shadow, "--yes")
        assert done.exit_code == 0, done.stderr
        unpublished = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
        assert await connection.fetchval(unpublished)
        relay.send_signal(signal.SIGCONT)

        async def all_marked() -> bool:
            return not await connection.fetchval(unpublished)

        await eventually(all_marked, 60)
        assert (await finalized_events(settings))["b"] == [event]


async def test_a_promotion_that_has_happened_is_told_whatever_fails_behind_it(settings: Settings) -> None:
    async with replayed(settings) as (_, shadow):
        pass
    connection = await settings.database().connect("test")
    try:
        live = settings.database_schema
        rename = f"IF to_regclass('{live}.late_results') IS NOT NULL THEN"
        rename += f" ALTER TABLE {live}.late_results RENAME TO elsewhere; END IF"
        await do_at_commit(connection, shadow, rename)
    finally:
        await connection.close()
    done = await commands.rollcall(settings, "promote", shadow, "--yes")
    assert (done.exit_code, f'the old one is "{settings.database_schema}_until_' in done.stdout) == (0, True), (
        done.stderr
    )
    assert "whether items that were pruned are back is not known" in done.stdout


async def test_whoever_gets_no_answer_to_the_commit_is_told_how_to_look(settings: Settings) -> None:
    async with replayed(settings) as (product, shadow):
        async with product.connection() as connection:
            await do_at_commit(connection, shadow, "PERFORM pg_terminate_backend(pg_backend_pid())")
        done = await commands.rollcall(settings, "promote", shadow, "--yes")
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "no answer to the COMMIT" in done.stderr
        assert f'"{settings.database_schema}_until_' in done.stderr


async def test_whoever_ends_a_promotion_at_its_commit_is_told_how_to_look(settings: Settings) -> None:
    async with replayed(settings) as (product, shadow), product.connection() as connection:
        await do_at_commit(connection, shadow, "PERFORM pg_sleep(60)")
        process = await commands.start(settings, "promote", shadow, "--yes")

        async def commits() -> int:
            sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query = 'COMMIT'"
            pid = await connection.fetchval(f"{sleeping} AND datname = current_database()")
            assert pid is not None
            return int(pid)

        pid = await eventually(commits, 60)
        process.terminate()
        _, said = await asyncio.wait_for(process.communicate(), 30)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        assert process.returncode == ENDED_BY + signal.SIGTERM
        assert "there was no answer to the COMMIT" in said.decode()
        assert f'"{settings.database_schema}_until_' in said.decode()


@asynccontextmanager
async def replayed(settings: Settings) -> AsyncIterator[tuple[Product, str]]:
    """A worker that has applied a batch, and the name of a shadow of that."""
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    shadow = f"{settings.database_schema}_s"
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, batch("b"))
        await product.await_applied(ITEMS + 1)
        done = await commands.rollcall(settings, "replay", "--into", shadow)
        assert done.exit_code == 0, done.stderr
        yield product, shadow


async def do_at_commit(connection: Connection, shadow: str, statement: str) -> None:
    """Have that done within the COMMIT of the transaction in which the shadow has lost its name."""
    await connection.execute(f"""
        CREATE FUNCTION "{shadow}".at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF to_regnamespace('{shadow}') IS NULL THEN {statement}; END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON "{shadow}".positions
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION "{shadow}".at_commit();
    """)
