"""Items of batches that ended long ago go for good: what comes for them later changes nothing, in no replay either."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from store import pruning as statements
from store.connection import BY_KEY
from streams import pruning
from streams.reading import Homes
from streams.sending import Sender
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import Product, running
from tests.harness.tables import Row, comparable_tables, table_rows
from tests.harness.topics import create_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 2
ITEM_TABLES = ("item_results", "late_results", "expected_items")


def message(event: dict[str, Any]) -> Message:
    return Message(event["batch_id"].encode(), json.dumps(event).encode(), event["batch_id"])


def result(batch_id: str, item_id: str, status: str = "succeeded", **fields: Any) -> Message:
    return message({"batch_id": batch_id, "item_id": item_id, "status": status, **fields})


def ended(prefix: str) -> list[Message]:
    """A batch of each kind: all items in; a failure and a late result; some missing; late results that revise."""
    return [
        message({"type": "batch.opened", "batch_id": f"{prefix}-total", "total_items": 2}),
        *(result(f"{prefix}-total", item) for item in ("1", "2")),
        message({"type": "batch.opened", "batch_id": f"{prefix}-late", "item_ids": ["1", "2"]}),
        *(result(f"{prefix}-late", item, status) for item, status in (("1", "failed"), ("2", "succeeded"))),
        result(f"{prefix}-late", "1", attempt=2),
        message({"type": "batch.opened", "batch_id": f"{prefix}-missing", "item_ids": ["1", "2", "3"]}),
        result(f"{prefix}-missing", "1", "failed"),
        message({"type": "batch.finalize_requested", "batch_id": f"{prefix}-missing"}),
        message(
            {
                "type": "batch.opened",
                "batch_id": f"{prefix}-revise",
                "total_items": 2,
                "policy": {"late_results": "revise"},
            }
        ),
        *(result(f"{prefix}-revise", item, "failed") for item in ("1", "2")),
        result(f"{prefix}-revise", "1", attempt=2),
    ]


def too_late(prefix: str) -> list[Message]:
    """All that would change such batches, were they kept."""
    return [
        *(result(f"{prefix}-{name}", "2", attempt=7) for name in ("total", "late", "missing", "revise")),
        result(f"{prefix}-missing", "3"),
        result(f"{prefix}-total", "stranger", "retrying"),
        result(f"{prefix}-late", "1", "failed"),
        message({"type": "batch.opened", "batch_id": f"{prefix}-total", "total_items": 9}),
        message({"type": "batch.cancelled", "batch_id": f"{prefix}-missing"}),
        message({"type": "batch.reopened", "batch_id": f"{prefix}-missing"}),
        message({"type": "batch.reopened", "batch_id": f"{prefix}-late", "revision": 7}),
        message({"type": "batch.finalize_requested", "batch_id": f"{prefix}-late"}),
        message({"type": "batch.corrected", "batch_id": f"{prefix}-revise", "revision": 2}),
    ]


async def prune(settings: Settings, older_than: datetime | str) -> dict[str, Any]:
    moment = older_than if isinstance(older_than, str) else older_than.isoformat()
    done = await commands.rollcall(settings, "prune", "--older-than", moment, "--yes", "--json", timeout_s=120)
    assert done.exit_code == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def rows_of(settings: Settings, table: str, prefix: str = "old-") -> list[Row]:
    order = "batch_id, item_id" if table in ITEM_TABLES else "batch_id"
    return [row for row in await table_rows(settings, table, order) if row["batch_id"].startswith(prefix)]


async def said(settings: Settings) -> dict[str, list[bytes | None]]:
    """What consumers were told; but not what was refused."""
    topics = Topics(settings.topic_prefix)
    names = (topics.finalized, topics.summaries, topics.alerts, topics.requests)
    return {name: [each.value for each in await drain(settings.bootstrap_servers, name)] for name in names}


async def summarized(settings: Settings) -> bool:
    summaries = await table_rows(settings, "summaries", "batch_id")
    return bool(summaries) and all(row["state"] == "ready" for row in summaries)


async def verified(settings: Settings) -> None:
    done = await commands.rollcall(settings, "verify", "--processes", "1", timeout_s=180)
    assert done.exit_code == 0, done.stdout + done.stderr


def without(rows: Iterable[Row], *columns: str) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


async def test_a_pruned_batch_stays_as_it_is_whatever_comes_and_so_it_does_in_a_replay(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    patient = {"slow_after_s": 86_400, "stalled_after_s": 86_400}
    still_open = [
        message({"type": "batch.opened", "batch_id": "old-open", "total_items": 2, "policy": patient}),
        result("old-open", "1"),
    ]
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, [*ended("old"), *still_open])
        await product.settled()
        before = datetime.now(UTC)
        assert await prune(settings, before) | {"finalized_before": ""} == {
            "batches": 0,
            "rows": 0,
            "finalized_before": "",
        }, "their summaries are still to be computed from the items"
        await product.start_clock()
        await eventually(lambda: summarized(settings), 60)
        await produce(settings.bootstrap_servers, topics.events, ended("young"))
        await product.settled()
        await eventually(lambda: summarized(settings), 60)

        batches, summaries = await rows_of(settings, "batches"), await rows_of(settings, "summaries")
        young = {table: await rows_of(settings, table, "young-") for table in ("batches", *ITEM_TABLES)}
        rows = sum([len(await rows_of(settings, table)) for table in ITEM_TABLES]) - 1  # one of the open batch
        done = await commands.rollcall(settings, "prune", "--older-than", before.isoformat())
        assert (done.exit_code, f"{rows} rows of 4 batches" in done.stderr) == (2, True), "it asks, and nobody is there"
        pruned = await prune(settings, before)
        assert (pruned["batches"], pruned["rows"]) == (4, rows)

        assert [len(await rows_of(settings, table)) for table in ITEM_TABLES] == [1, 0, 0], "the open one's"
        for table, kept in young.items():
            assert await rows_of(settings, table, "young-") == kept
        marked = {row["batch_id"]: row["pruned_at"] for row in await rows_of(settings, "batches")}
        assert {batch_id for batch_id, at in marked.items() if at is None} == {"old-open"}
        assert without(await rows_of(settings, "batches"), "pruned_at") == without(batches, "pruned_at")
        assert await rows_of(settings, "summaries") == summaries
        assert (await prune(settings, before))["batches"] == 0, "there is nothing left to do"

        kept, told = await rows_of(settings, "batches"), await said(settings)
        await produce(settings.bootstrap_servers, topics.events, too_late("old"))
        await product.settled()
        assert await rows_of(settings, "batches") == kept
        assert await rows_of(settings, "summaries") == summaries
        assert [len(await rows_of(settings, table)) for table in ITEM_TABLES] == [1, 0, 0]
        assert await said(settings) == told
        letters = await table_rows(settings, "dead_letters")
        assert [(each["reason"], "pruned" in each["message"]) for each in letters] == [("not_applicable", True)] * 3

        await shown_and_refused(settings)
        await verified(settings)
        await promoted(settings, product)
        await rebuilt(settings, product)
        assert await said(settings) == told
    await verified(settings)


async def shown_and_refused(settings: Settings) -> None:
    done = await commands.rollcall(settings, "batch", "show", "old-missing")
    assert "its items are not kept" in done.stdout
    done = await commands.rollcall(settings, "batch", "why", "old-missing")
    assert "its items were pruned" in done.stdout
    done = await commands.rollcall(settings, "batch", "explain", "old-total")
    assert " pruned " in done.stdout
    for action in ("reopen", "retry", "finalize"):
        done = await commands.rollcall(settings, "batch", action, "old-missing", "--yes")
        assert (done.exit_code, "items were pruned" in done.stderr) == (1, True), done.stderr


async def promoted(settings: Settings, product: Product) -> None:
    """A replay has the items again until somebody prunes; all else is the same."""
    state = await comparable_tables(settings)
    shadow = f"{settings.database_schema}_s"
    done = await commands.replay_and_promote(settings, shadow)
    assert "items that were pruned are back" in done.stdout
    assert len(await rows_of(settings, "item_results")) > 1
    await verified(settings)
    assert (await prune(settings, "1970-01-01T00:00:00Z"))["rows"] > 0
    await product.settled()
    for table, rows in (await comparable_tables(settings)).items():
        assert [row for row in rows if row not in state[table]] == [], table
        assert [row for row in state[table] if row not in rows] == [], table


async def rebuilt(settings: Settings, product: Product) -> None:
    """Nor does a lost database revive them."""
    state = without(await rows_of(settings, "batches"), "published_at")
    await product.stop()
    async with product.connection() as connection:
        await connection.execute(f"DROP SCHEMA {settings.database_schema} CASCADE")
    await migrate(settings.database_url, settings.database_schema)
    await product.start_relay()
    await product.start_clock()
    await product.start_worker()
    await product.settled()
    await eventually(lambda: summarized(settings), 60)
    await product.settled()
    assert without(await rows_of(settings, "batches"), "published_at") == state


async def test_pruning_that_was_stopped_is_finished_by_the_next(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    items = {"large": 250, "small-1": 3, "small-2": 4, "small-3": 90}
    log = [message({"type": "batch.opened", "batch_id": name, "total_items": many}) for name, many in items.items()]
    log += [result(name, f"{item}") for name, many in items.items() for item in range(many)]
    async with running(settings, workers=1) as product:
        await product.start_clock()
        await produce(settings.bootstrap_servers, topics.events, log)
        await product.settled()
        await eventually(lambda: summarized(settings), 60)
    monkeypatch.setattr(pruning, "CHUNK", 100)
    monkeypatch.setattr(pruning, "WAIT_S", 0.5)
    sender = Sender(settings.kafka_connection(), topics, Homes(1))
    connection = await settings.database().connect("test", command_timeout=60, **BY_KEY)
    later = datetime.now(UTC) + timedelta(days=1)
    try:
        with pytest.raises(pruning.NotAppliedError, match="is one running"):
            async for _ in pruning.prune(connection, sender, topics, later):
                pass
        assert len(await table_rows(settings, "item_results", "batch_id")) == sum(items.values()), "nothing is deleted"
        assert await statements.left(connection, "", 10) == [], "before a worker has read that it may"
        async with running(settings, workers=1) as product:
            await product.settled()
        sizes = []
        pruned = pruning.prune(connection, sender, topics, later)
        async for each in pruned:
            sizes.append(each.rows)
            if len(sizes) == 3:
                break  # as if it were killed
        await pruned.aclose()
        assert sizes == [0, 100, 200], "chunk by chunk"
        assert await statements.count_due(connection, later) == (0, 0)
        [last] = [each async for each in pruning.prune(connection, sender, topics, later)][-1:]
        assert last.rows == sum(items.values()) - 200
    finally:
        await connection.close()
        await sender.close()
    assert await table_rows(settings, "item_results", "batch_id") == []
    assert {row["succeeded"] for row in await table_rows(settings, "batches")} == set(items.values())
    ends = await end_offsets(settings.bootstrap_servers, topics.events)
    assert sum(ends.values()) == len(log) + len(items), "each was said once"


async def test_pruning_that_is_cut_off_in_a_transaction_does_not_hold_up_a_promotion(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1) as product:
        await product.start_clock()
        opened = message({"type": "batch.opened", "batch_id": "b", "total_items": 1})
        await produce(settings.bootstrap_servers, topics.events, [opened, result("b", "1")])
        await product.settled()
        await eventually(lambda: summarized(settings), 60)
        arguments = ("prune", "--older-than", "0s", "--yes")
        async with product.connection() as connection:
            async with connection.transaction():
                await connection.execute("LOCK TABLE item_results IN SHARE MODE")
                cut_off = await commands.start(settings, *arguments)

                async def waits_to_delete() -> bool:
                    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'item_results'::regclass AND NOT granted"
                    return int(await connection.fetchval(waiting)) == 1

                await eventually(waits_to_delete, 60)
                cut_off.send_signal(signal.SIGSTOP)
            async with connection.transaction():
                await connection.execute("LOCK TABLE positions IN EXCLUSIVE MODE", timeout=60)  # as a promotion does
        cut_off.send_signal(signal.SIGCONT)
        _, said = await asyncio.wait_for(cut_off.communicate(), 60)
        assert (cut_off.returncode, said.count(b"\n")) == (1, 1), said
        done = await commands.rollcall(settings, *arguments)
        assert (done.exit_code, await rows_of(settings, "item_results", "")) == (0, []), done.stderr


async def test_an_age_that_is_none_is_refused(settings: Settings) -> None:
    ages = ("yesterday", "2026-11-24", "90", "-1d", "99999999999d")
    done = await asyncio.gather(*(commands.rollcall(settings, "prune", f"--older-than={age}") for age in ages))
    for each in done:
        assert (each.exit_code, each.stderr.count("\n"), "takes an age" in each.stderr) == (2, 1, True), each.stderr
