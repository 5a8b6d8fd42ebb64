"""Dead letters are looked at, sent to the log again without ever beating what is newer, and given up."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from migrations.run import migrate
from rollcall import dead_letter_commands
from rollcall.settings import Settings
from schemas.topics import Topics
from store import dead_letters
from store.dead_letters import Chosen
from streams.topics import log_identity
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.tables import table_rows
from tests.harness.topics import create_topic, drain, produce, set_config
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


def message(event: dict[str, Any], headers: tuple[tuple[str, bytes], ...] = ()) -> Message:
    return Message(event["batch_id"].encode(), json.dumps(event).encode(), event["batch_id"], headers)


async def test_dead_letters_are_listed_redriven_and_discarded(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    broken = Message(b"?", b'{"no json', "?", (("origin", b"\xff\x00"),))
    async with running(settings, workers=1) as product:
        early = [
            message({"type": "batch.opened", "batch_id": "b"}),
            message({"type": "batch.sealed", "batch_id": "b"}),  # of how many? refused
            broken,
            message({"type": "batch.items_expected", "batch_id": "b", "item_ids": ["1"]}),
            message({"batch_id": "b", "item_id": "1", "status": "succeeded"}),
        ]
        await produce(settings.bootstrap_servers, topics.events, early)
        await product.settled()
        done = await commands.rollcall(settings, "dead-letters", "list", "--json")
        listed = sorted(json.loads(done.stdout)["dead_letters"], key=lambda each: str(each["record"]))
        assert [(each["record"], each["reason"], each["batch_id"]) for each in listed] == [
            ("0:1", "not_applicable", "b"),
            ("0:2", "invalid_json", None),
        ]
        assert base64.b64decode(listed[1]["value_base64"]) == broken.value
        done = await commands.rollcall(settings, "dead-letters", "list")
        assert ("0:1 " in done.stdout, "0:2 " in done.stdout) == (True, True)
        async with product.connection() as connection:
            without = await dead_letters.page(connection, Chosen(), limit=10, records=False)
        assert {(each.reason, each.value) for each in without} == {("not_applicable", None), ("invalid_json", None)}
        done = await commands.rollcall(settings, "dead-letters", "show", "0:2")
        assert (done.exit_code, '{"no json' in done.stdout, "invalid_json" in done.stdout) == (0, True, True)

        done = await commands.rollcall(settings, "dead-letters", "redrive", "--all")
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), "without a terminal it wants --yes"
        done = await commands.rollcall(settings, "dead-letters", "redrive", "--all", "--yes")
        assert (done.exit_code, done.stdout) == (0, "2 sent to the log again\n"), done.stderr
        await product.settled()
        [batch] = await table_rows(settings, "batches")
        assert (batch["outcome"], batch["revision"]) == ("completed", 1), "what was refused is right by now"

        letters = {row["record_offset"]: row for row in await table_rows(settings, "dead_letters")}
        assert letters.keys() == {1, 2}, "what is refused again is no second dead letter"
        assert letters[1]["redriven_at"] is not None
        assert letters[2]["redriven_at"] is None, "it is open again"

        done = await commands.rollcall(settings, "dead-letters", "redrive", "0:1", "--yes")
        assert done.exit_code == 0, done.stderr
        done = await commands.rollcall(settings, "dead-letters", "discard", "0:2", "--why", "sent by a test", "--yes")
        assert (done.exit_code, done.stdout) == (0, "1 discarded\n"), done.stderr
        await product.settled()
        assert len(await drain(settings.bootstrap_servers, topics.finalized)) == 1, "redriven twice counts once"
        assert len(await drain(settings.bootstrap_servers, topics.dead_letters)) == 2
    done = await commands.rollcall(settings, "dead-letters", "list")
    assert (done.stdout, done.stderr) == ("", "no dead letter found\n")
    done = await commands.rollcall(settings, "dead-letters", "show", "0:77")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


async def test_a_dead_letter_that_kafka_takes_no_more_is_named_and_the_others_are_redriven(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    large = Message(b"?", random.Random(4).randbytes(300_000), "?", ())  # cannot be compressed
    small = [Message(b"?", b'{"no json %d' % number, "?", ()) for number in range(4)]
    async with running(settings, workers=1, relay=False):
        await produce(settings.bootstrap_servers, topics.events, [small[0], large, small[1], large, *small[2:]])
        await eventually(lambda: has_applied(settings, topics, 6))
    limit = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "100000"}
    await set_config(settings.bootstrap_servers, topics.events, limit)
    done = await commands.rollcall(settings, "dead-letters", "redrive", "--all", "--yes")
    assert (done.exit_code, done.stdout) == (1, "4 sent to the log again\n"), done.stderr
    said = done.stderr.splitlines()
    assert [line[:16] for line in said] == ["0:1 was not sent", "0:3 was not sent"], said
    assert "MessageSizeTooLargeError" in said[0]
    log = [record.value for record in await drain(settings.bootstrap_servers, topics.events)]
    assert log[6:] == [each.value for each in small]
    letters = await table_rows(settings, "dead_letters")
    redriven = {row["record_offset"] for row in letters if row["redriven_at"] is not None}
    assert redriven == {0, 2, 4, 5}


@pytest.mark.parametrize("are_named", [False, True])
async def test_large_dead_letters_are_sent_a_few_at_a_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, are_named: bool
) -> None:
    """So many as Kafka takes in time: of a page that it does not, none would ever be done with."""
    monkeypatch.setattr(dead_letter_commands, "PAGE_BYTES", 100_000)
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test")
    try:
        await connection.execute(
            "INSERT INTO dead_letters (topic, partition, record_offset, appended_at, reason, message, value, headers)"
            " SELECT $1, 0, n, now(), 'invalid_json', '', convert_to(repeat('x', 40000), 'UTF8'), '[]'"
            " FROM generate_series(0, 6) n",
            Topics(settings.topic_prefix).events,
        )
        named = [f"0:{offset}" for offset in range(7)] if are_named else None
        pages = [page async for page in dead_letter_commands._pages(connection, settings, named, Chosen())]
    finally:
        await connection.close()
    assert [[each.key.record_offset for each in page] for page in pages] == [[0, 1, 2], [3, 4, 5], [6]]


async def test_a_redriven_result_never_beats_a_newer_one(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    log_id = (await _log_id(settings, topics)).encode()

    def redriven(offset: int) -> tuple[tuple[str, bytes], ...]:
        names = ("rollcall_redriven_partition", "rollcall_redriven_offset", "rollcall_redriven_log")
        return tuple(zip(names, (b"0", b"%d" % offset, log_id), strict=True))

    def result(item: str, status: str, headers: tuple[tuple[str, bytes], ...] = ()) -> Message:
        return message({"batch_id": "b", "item_id": item, "status": status}, headers)

    async with running(settings, workers=1, relay=False):
        log = [
            result("filler", "skipped"),
            result("a", "failed"),
            result("a", "succeeded", redriven(0)),  # older than the one at 1
            result("c", "succeeded", redriven(2)),
            result("c", "succeeded", redriven(2)),  # twice
            result("a", "partial", redriven(99)),  # nobody redrives what is not there yet: its own offset counts
        ]
        await produce(settings.bootstrap_servers, topics.events, log)

        await eventually(lambda: has_applied(settings, topics, len(log)))
    items = {row["item_id"]: (row["status"], row["version"]) for row in await table_rows(settings, "item_results")}
    assert items == {"filler": ("skipped", 0), "a": ("partial", 5), "c": ("succeeded", 2)}
    [batch] = await table_rows(settings, "batches")
    assert batch["duplicates"] == 2


async def test_what_a_redriven_result_decides_it_decides_where_it_lies_now(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    log_id = (await _log_id(settings, topics)).encode()
    names = ("rollcall_redriven_partition", "rollcall_redriven_offset", "rollcall_redriven_log")
    redriven = tuple(zip(names, (b"0", b"0", log_id), strict=True))
    policy = {"late_results": "revise"}

    def result(item: str, status: str, headers: tuple[tuple[str, bytes], ...] = ()) -> Message:
        return message({"batch_id": "b", "item_id": item, "status": status}, headers)

    log = [
        message({"type": "batch.sealed", "batch_id": "another", "total_items": 1}),
        message({"type": "batch.opened", "batch_id": "b", "total_items": 1, "policy": policy}),
        result("a", "failed"),  # decides
        message({"type": "batch.reopened", "batch_id": "b", "item_ids": ["a"]}),
        result("a", "succeeded", redriven),  # decides again, by what was first read at 0
        message({"type": "batch.finalize_requested", "batch_id": "another"}),
    ]
    await produce(settings.bootstrap_servers, topics.events, log)
    async with running(settings, workers=1, relay=False):
        await eventually(lambda: has_applied(settings, topics, len(log)))
    batches = await table_rows(settings, "batches")
    assert [(row["batch_id"], row["revision"], row["decided_offset"]) for row in batches] == [
        ("another", 1, 5),
        ("b", 2, 4),
    ]
    events = [row for row in await table_rows(settings, "outbox", "seq") if row["channel"] == "finalized"]
    said = [(row["batch_id"], row["revision"], json.loads(row["value"])["as_of"]["offset"]) for row in events]
    assert said == [("b", 1, 2), ("b", 2, 4), ("another", 1, 5)], (
        "in the order of the log, whatever was first read when"
    )


async def has_applied(settings: Settings, topics: Topics, next_offset: int) -> bool:
    rows = await table_rows(settings, "positions", "topic, partition")
    return any(row["topic"] == topics.events and row["next_offset"] == next_offset for row in rows)


async def _log_id(settings: Settings, topics: Topics) -> str:
    return await log_identity(settings.kafka_connection(), topics)
