"""What happens while a promotion waits for others' locks, and others for its own."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from migrations.run import migrate
from migrations.version import MIGRATION_LOCK
from rollcall.promote_commands import _locked
from rollcall.replaying import ReplayError
from rollcall.settings import Settings
from schemas.topics import Topics
from store import pruning
from store.connection import BY_KEY, Connection
from store.promotion import Promotion
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.topics import create_topic, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def waiting_for_a_lock(connection: Connection, schema: str, role: str) -> list[Any]:
    """Transactions of a role that wait for a lock: when each began, and whether workers wait for it meanwhile."""
    rows: list[Any] = await connection.fetch(
        """SELECT xact_start, EXISTS (
               SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
               WHERE l.pid = a.pid AND l.granted AND l.mode = 'ExclusiveLock' AND c.relname = 'positions'
                 AND c.relnamespace = to_regnamespace($2)) AS holds_workers_up
           FROM pg_stat_activity a
           WHERE application_name = 'rollcall ' || $1 AND wait_event_type = 'Lock' AND datname = current_database()""",
        *(role, schema),
    )
    return rows


async def test_a_promotion_gives_way_to_a_dump_and_comes_when_that_is_done(settings: Settings) -> None:
    topics, shadow = Topics(settings.topic_prefix), f"{settings.database_schema}_s"
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    event = {"type": "batch.opened", "batch_id": "b", "total_items": 0}
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, [Message(b"b", json.dumps(event).encode(), "b")])
        await product.await_applied(1)
        done = await commands.rollcall(settings, "replay", "--into", shadow)
        assert done.exit_code == 0, done.stderr
        async with product.connection() as dumping, product.connection() as looking:
            dump = dumping.transaction()
            await dump.start()
            await dumping.execute("LOCK TABLE audit IN ACCESS SHARE MODE")
            promoting = await commands.start(settings, "promote", shadow, "--yes")
            begun: set[datetime] = set()

            async def has_tried_twice() -> bool:
                if promoting.returncode is not None:
                    pytest.fail("it has given up")
                for began, holds_workers_up in await waiting_for_a_lock(looking, settings.database_schema, "promote"):
                    begun.add(began)
                    if holds_workers_up:
                        pytest.fail("workers wait while it waits")
                assert len(begun) > 1, f"tried {len(begun)} times"
                return True

            try:
                await eventually(has_tried_twice, 60, interval_s=0.02)
            finally:
                await dump.rollback()
                _, stderr = await asyncio.wait_for(promoting.communicate(), 60)
            assert promoting.returncode == 0, stderr.decode()


async def test_a_promotion_waits_for_a_migration_before_it_locks_anything(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(settings.database_url, settings.database_schema)
    monkeypatch.setattr("rollcall.promote_commands.LOCK_ATTEMPTS", 1)
    migrating = await settings.database().connect("test")
    promoting = await settings.database().connect("test", lock_timeout="100")
    promotion = Promotion(promoting, settings.database_schema, f"{settings.database_schema}_s")
    try:
        async with migrating.transaction():
            await migrating.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
            with pytest.raises(ReplayError, match="or a migration, hold their locks for too long"):
                await _locked(promoting, promotion)
        await _locked(promoting, promotion)
    finally:
        for connection in (migrating, promoting):
            connection.terminate()


async def test_a_verification_that_meets_a_promotion_says_so_and_finds_no_differences(settings: Settings) -> None:
    topics, live, shadow = Topics(settings.topic_prefix), settings.database_schema, f"{settings.database_schema}_s"
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    event = {"type": "batch.opened", "batch_id": "b", "total_items": 0}
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, [Message(b"b", json.dumps(event).encode(), "b")])
        await product.settled()
    promoting = await settings.database().connect("test")
    looking = await settings.database().connect("test")
    try:
        async with promoting.transaction():
            await promoting.execute(f"LOCK TABLE {live}.batches IN ACCESS EXCLUSIVE MODE")
            verifying = await commands.start(settings, "verify", "--processes", "1")

            async def waits() -> bool:
                assert await waiting_for_a_lock(looking, live, "verify")
                return True

            await eventually(waits, 60)
            # Its snapshot is older than the shadow's rows.
            done = await commands.rollcall(settings, "replay", "--into", shadow)
            assert done.exit_code == 0, done.stderr
            await Promotion(promoting, live, shadow).rename(datetime.now(UTC))
        stdout, stderr = await asyncio.wait_for(verifying.communicate(), 60)
    finally:
        for connection in (promoting, looking):
            await connection.close()
    assert (verifying.returncode, stdout.decode()) == (1, "")
    assert "there was a promotion meanwhile" in stderr.decode()


async def items(connection: Connection, schema: str, batch_id: str, many: int) -> None:
    await connection.execute(
        f"INSERT INTO {schema}.item_results (version, received_at, attempt, generation, batch_id, item_id, status)"
        " SELECT n, now(), 1, 0, $1, n::text, 'succeeded' FROM generate_series(1, $2) n",
        *(batch_id, many),
    )


async def test_pruning_that_meets_a_promotion_deletes_no_other_batches_items(settings: Settings) -> None:
    live, shadow = settings.database_schema, f"{settings.database_schema}_s"
    for schema in (live, shadow):
        await migrate(settings.database_url, schema)
    promoting = await settings.database().connect("test")
    looking = await settings.database().connect("test")
    deleting = await settings.database().connect("prune", command_timeout=60.0, **BY_KEY)
    try:
        for schema in (live, shadow):
            await promoting.execute(
                f"INSERT INTO {schema}.batches (batch_id, partition, state, outcome, finalized_by, finalized_at,"
                " decided_offset, pruned_at, revision, sealed)"
                " VALUES ('old', 0, 'finalized', 'completed', 'forced', now(), 0, now(), 1, true)"
            )
        # Where the one's rows lie here, there lie the other's.
        await items(promoting, live, "old", 50)
        await items(promoting, shadow, "young", 50)
        await items(promoting, shadow, "old", 50)
        promotion = Promotion(promoting, live, shadow)
        async with promoting.transaction():
            await promotion.lock()
            pruned = asyncio.create_task(pruning.delete_some(deleting, "item_results", ["old"], "", 5_000))

            async def waits() -> bool:
                assert await waiting_for_a_lock(looking, live, "prune")
                return True

            await eventually(waits, 30)
            await promotion.rename(datetime.now(UTC))
        assert (await asyncio.wait_for(pruned, 30))[0] == 50, "it finds those to be deleted where they are now"
        left = await looking.fetch("SELECT batch_id, count(*) FROM item_results GROUP BY 1")
        assert [tuple(row) for row in left] == [("young", 50)]
    finally:
        for connection in (promoting, looking, deleting):
            await connection.close()
