"""Verifying finds nothing where nothing is wrong, and of what was changed by hand exactly that."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from rollcall import verify_commands
from rollcall.interrupting import ENDED_BY
from rollcall.settings import Settings
from rollcall.verify_commands import Found
from schemas.topics import Topics, home_partition
from store import shadows
from store.connection import Connection
from streams.verifying import Difference
from tests.faults.proxy import Proxy
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import Product, running
from tests.harness.signals import catches
from tests.harness.tables import table_rows
from tests.harness.topics import Record, drain, end_offsets, produce
from tests.harness.waiting import eventually
from tests.replay.test_replay import live_history

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4


def message(event: dict[str, Any]) -> Message:
    return Message(event["batch_id"].encode(), json.dumps(event).encode(), event["batch_id"])


def batch(batch_id: str, *statuses: str, late: bool = False) -> list[Message]:
    items = [f"item-{number}" for number in range(len(statuses))]
    events: list[dict[str, Any]] = [{"type": "batch.opened", "batch_id": batch_id, "item_ids": items}]
    events += [
        {"batch_id": batch_id, "item_id": item, "status": status} for item, status in zip(items, statuses, strict=True)
    ]
    if late:
        events.append({"batch_id": batch_id, "item_id": items[0], "status": "failed", "attempt": 2})
    return [message(event) for event in events]


async def verify(settings: Settings, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = await commands.rollcall(settings, "verify", "--processes", "1", "--json", *arguments, timeout_s=180)
    assert done.stdout, done.stderr
    return done.exit_code, json.loads(done.stdout)


async def test_nothing_is_found_where_nothing_is_wrong_and_of_changes_by_hand_each(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await live_history(settings, 20261127, batches=24)
    code, found = await verify(settings)
    assert (code, found["differences"], found["difference_count"]) == (0, [], 0)
    assert found["batches"] == len(await table_rows(settings, "batches"))
    assert found["left_out"] == 0
    assert found["events"] > 20

    names = ("count", "item", "status", "row", "manifest", "late", "twice", "invented", "changed")
    async with running(settings, workers=1) as product:
        log = [record for name in names for record in batch(f"by-hand-{name}", "succeeded", "failed", late=True)]
        log.append(Message(b"by-hand", b"no json", "by-hand"))
        await produce(settings.bootstrap_servers, topics.events, log)
        await product.settled()
    # Decided while no relay is there to publish.
    unpublished = [record for name in ("unsent", "lost") for record in batch(f"by-hand-{name}", "succeeded")]
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, unpublished)
        await caught_up(product)
    code, found = await verify(settings)
    assert (code, found["differences"]) == (0, []), "what waits for the relay is not missing"

    events = {record.key.decode(): record for record in await drain(settings.bootstrap_servers, topics.finalized)}
    moved = await spoil_the_database(settings)
    await spoil_the_topic(settings, events)
    code, found = await verify(settings)
    differences = {(each["what"], each["batch_id"]): each for each in found["differences"]}
    expected = {
        ("batch", "by-hand-count"): "succeeded is 2, the log gives 1",
        ("item", "by-hand-item"): 'item "item-0" of batch "by-hand-item": is missing',
        ("item", "by-hand-status"): "status is skipped, the log gives succeeded",
        ("batch", "by-hand-row"): "is missing, the log has it",
        ("expected item", "by-hand-manifest"): '"item-1" of batch "by-hand-manifest": is missing',
        ("late result of item", "by-hand-late"): "attempt is 3, the log gives 2",
        ("event", "by-hand-twice"): "is there 2 times (partition",
        ("event", "by-hand-invented"): "batch.finalized/by-hand-invented/2",
        ("event", "by-hand-changed"): "has another content in the outbox",
        ("event", "by-hand-unsent"): "is published, but not there",
        ("event", "by-hand-lost"): "is lost: neither in the outbox nor on the topic",
        ("dead letter", None): "is missing, the log has it",
        ("position", None): f"position of partition {moved}: stands at",
    }
    messages = [each["message"] for each in found["differences"]]
    assert differences.keys() == expected.keys(), "\n".join(messages)
    assert len(messages) == found["difference_count"] == len(expected), "\n".join(messages)
    for key, words in expected.items():
        assert words in differences[key]["message"]
    for (_, batch_id), each in differences.items():
        assert each["partition"] is not None
        if batch_id is not None and each["what"] != "event":
            assert each["partition"] == home_partition(batch_id, PARTITIONS)
    assert code == 1

    code, found = await verify(settings, "--batch", "by-hand-status")
    assert (code, [each["batch_id"] for each in found["differences"]]) == (1, ["by-hand-status"])
    done = await commands.rollcall(settings, "verify", "--since", "2020-01-01T00:00:00Z", timeout_s=180)
    assert done.exit_code == 1
    assert len([line for line in done.stdout.splitlines() if "by-hand" in line]) == len(expected) - 2


async def test_of_very_many_differences_the_first_ones_are_listed_and_all_are_counted() -> None:
    found = Found(to_list=2)
    for number in range(5):
        found.add(Difference("batch", str(number)))
    assert ([each.message for each in found.listed], found.count) == (["0", "1"], 5)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
async def test_a_verification_that_is_terminated_leaves_no_schema_behind(
    settings: Settings, signum: signal.Signals
) -> None:
    await live_history(settings, 20261129, batches=24)
    slow = settings.model_copy(update={"max_records": 20})
    before = signal.signal(signum, signal.SIG_DFL)  # with nohup these tests ignore SIGHUP, and so would what they start
    try:
        process = await commands.start(slow, "verify", "--all", "--processes", "1")
    finally:
        signal.signal(signum, before)
    schema = f"{settings.database_schema}_verify"
    connection = await settings.database().connect("test")
    try:

        async def is_at_work() -> bool:
            assert process.returncode is None, "it is not through yet"
            return bool(await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.positions"))

        await eventually(is_at_work, 60, interval_s=0.01)
        process.send_signal(signum)
        if signum is signal.SIGHUP:  # a shell says it, and then the kernel, that the terminal has gone
            await eventually(lambda: not catches(process.pid, signum), message="the first one is heeded")
            process.send_signal(signum)
        await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == ENDED_BY + signum
        assert not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema)
    finally:
        await connection.close()
        if process.returncode is None:
            process.kill()


async def test_a_second_verification_leaves_the_first_ones_schema_alone(settings: Settings) -> None:
    async with running(settings, workers=0, relay=False) as product, product.connection() as first:
        schema = f"{settings.database_schema}_verify"
        assert await shadows.reserve(first, schema)
        await shadows.create(first, schema, shadows.Shadow(settings.database_schema))
        done = await commands.rollcall(settings, "verify")
        assert (done.exit_code, "another `rollcall verify`" in done.stderr) == (1, True), done.stderr
        assert await shadows.find(first, schema) is not None


async def caught_up(product: Product) -> None:
    await product.await_applied(await sum_of_ends(product))


async def sum_of_ends(product: Product) -> int:
    return sum((await end_offsets(product.settings.bootstrap_servers, product.topics.events)).values())


async def spoil_the_database(settings: Settings) -> int:
    """Change one thing of each batch's; returns the partition whose position was moved."""
    connection: Connection = await settings.database().connect("test")
    try:
        for statement in (
            "UPDATE batches SET succeeded = 2 WHERE batch_id = 'by-hand-count'",
            "DELETE FROM item_results WHERE batch_id = 'by-hand-item' AND item_id = 'item-0'",
            "UPDATE item_results SET status = 'skipped' WHERE batch_id = 'by-hand-status' AND item_id = 'item-0'",
            "DELETE FROM batches WHERE batch_id = 'by-hand-row'",
            "DELETE FROM expected_items WHERE batch_id = 'by-hand-manifest' AND item_id = 'item-1'",
            "UPDATE late_results SET attempt = 3 WHERE batch_id = 'by-hand-late'",
            "UPDATE outbox SET value = replace(value, 'completed_with_errors', 'completed')"
            " WHERE batch_id = 'by-hand-changed' AND channel = 'finalized'",
            "UPDATE outbox SET published_at = now() WHERE batch_id = 'by-hand-unsent' AND channel = 'finalized'",
            "DELETE FROM outbox WHERE batch_id = 'by-hand-lost' AND channel = 'finalized'",
            "DELETE FROM dead_letters WHERE key = 'by-hand'",
        ):
            assert await connection.execute(statement) in ("UPDATE 1", "DELETE 1"), statement
        topic = Topics(settings.topic_prefix).events
        return int(
            await connection.fetchval(
                "UPDATE positions SET next_offset = next_offset - 1 WHERE topic = $1 AND partition = $2"
                " RETURNING partition",
                topic,
                # Not of the batch that is verified alone afterwards: that would find this position too.
                (home_partition("by-hand-status", PARTITIONS) + 1) % PARTITIONS,
            )
        )
    finally:
        await connection.close()


async def spoil_the_topic(settings: Settings, events: dict[str, Record]) -> None:
    """Say one thing twice, and one that was never decided."""
    topic = Topics(settings.topic_prefix).finalized
    twice, invented = events["by-hand-twice"], events["by-hand-invented"]
    headers = [
        (name, b"batch.finalized/by-hand-invented/2" if name == "ce_id" else value) for name, value in invented.headers
    ]
    value = json.dumps(json.loads(invented.value) | {"revision": 2}).encode()
    await produce(settings.bootstrap_servers, topic, [twice])
    await produce(settings.bootstrap_servers, topic, [Message(invented.key, value, "by-hand-invented", tuple(headers))])


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_comparison_that_gets_no_answer_waits_for_none_to_its_rollback(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr(verify_commands, "COMPARE_TIMEOUT_S", 60.0 if is_cancelled else 4.0)
    where = urlsplit(settings.database_url)
    proxy = Proxy(lambda: where.port)
    await proxy.start()
    proxied = urlunsplit(where._replace(netloc=where.netloc.replace(f":{where.port}", f":{proxy.port}")))

    async def compare() -> None:
        behind = settings.model_copy(update={"database_url": proxied})
        async with verify_commands._snapshot(behind, settings.database_schema) as connection:
            proxy.black_hole()
            asked.set()
            await connection.fetchval("SELECT 1")

    try:
        asked = asyncio.Event()
        comparing = asyncio.create_task(compare())
        await asyncio.wait_for(asked.wait(), 30)
        if is_cancelled:
            comparing.cancel()
        done, _ = await asyncio.wait({comparing}, timeout=7)
        assert done, "it waits once more"
        assert comparing.cancelled() or isinstance(comparing.exception(), TimeoutError)
    finally:
        comparing.cancel()
        await proxy.stop()
