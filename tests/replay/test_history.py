"""What the log says of one batch: each record that touched it and what it did, and the batch at a place in the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rollcall.settings import Settings
from schemas.topics import Topics
from streams.explaining import Story
from streams.reading import Homes
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.topics import create_topic, produce

pytestmark = pytest.mark.asyncio(loop_scope="session")


def message(event: dict[str, Any], headers: tuple[tuple[str, bytes], ...] = ()) -> Message:
    return Message(event["batch_id"].encode(), json.dumps(event).encode(), event["batch_id"], headers)


def result(item_id: str, status: str, attempt: int = 1) -> Message:
    return message({"batch_id": "b", "item_id": item_id, "status": status, "attempt": attempt})


STORY = [
    (message({"type": "batch.opened", "batch_id": "b", "item_ids": ["1", "2"]}), "accepted"),
    (result("1", "failed", 2), "accepted"),
    (result("1", "failed", 2), "duplicate"),
    (result("1", "succeeded", 1), "superseded"),
    (result("stranger", "succeeded"), "unexpected"),
    (message({"type": "batch.items_expected", "batch_id": "b", "item_ids": ["3"]}), "not_applicable"),
    (message({"batch_id": "b", "item_id": "2", "status": "sukseeded"}), "invalid_event"),
    (result("2", "succeeded"), "accepted"),  # it decides
    (result("1", "succeeded", 3), "late"),
    (message({"type": "batch.sealed", "batch_id": "b"}), "no_effect"),
    (message({"type": "batch.reopened", "batch_id": "b", "item_ids": ["1"]}), "accepted"),  # adopts, and decides
    (message({"type": "batch.finalize_requested", "batch_id": "b"}), "summary_requested"),
]


async def test_every_record_is_told_with_what_it_did_and_the_batch_as_of_any_of_them(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    another = message({"type": "batch.opened", "batch_id": "another", "total_items": 1})
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, [another, *(each for each, _ in STORY), another])
        await product.await_applied(len(STORY) + 2)
    done = await commands.rollcall(settings, "batch", "explain", "b", "--json")
    assert done.exit_code == 0, done.stderr
    story = json.loads(done.stdout)
    assert (story["partition"], story["replayable_from"]) == (0, 0)
    told = story["records"]
    assert [(each["offset"], each["did"]) for each in told] == [(n, did) for n, (_, did) in enumerate(STORY, 1)]
    decided = {each["offset"]: (each["revision"], each["outcome"]) for each in told if each["revision"]}
    assert decided == {8: (1, "completed_with_errors"), 11: (2, "completed")}
    why = {each["offset"]: each["why"] for each in told if each["why"]}
    assert why.keys() == {6, 7}
    assert "the batch is sealed" in why[6]
    done = await commands.rollcall(settings, "batch", "explain", "b")
    [line] = [line for line in done.stdout.splitlines() if "revision 1" in line]
    assert line.endswith("<- finalized: completed_with_errors, revision 1")

    for offset, expected in (
        (1, ("pending", 0, 0, 0, 0)),
        (4, ("processing", 0, 1, 0, 0)),
        (7, ("processing", 0, 1, 1, 0)),
        (8, ("completed_with_errors", 1, 2, 1, 0)),
        (9, ("completed_with_errors", 1, 2, 1, 1)),
        (11, ("completed", 2, 2, 1, 0)),
    ):
        done = await commands.rollcall(settings, "batch", "as-of", "b", "--offset", str(offset), "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        expected_answers = found["answered"] - found["unexpected"], found["unexpected"]
        assert (found["status"], found["revision"], *expected_answers, found["late"]) == expected, offset
    done = await commands.rollcall(settings, "batch", "as-of", "b", "--offset", "0")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), "before its first record there is nothing of it"
    done = await commands.rollcall(settings, "batch", "as-of", "b", "--offset", "99")
    assert (done.exit_code, "holds the offsets 0 to" in done.stderr) == (1, True)
    done = await commands.rollcall(settings, "batch", "explain", "nobody")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


async def test_what_no_worker_has_applied_yet_is_not_told_as_done(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    opened = message({"type": "batch.opened", "batch_id": "b", "total_items": 2})
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, [opened, result("1", "succeeded")])
        await product.await_applied(2)
    await produce(settings.bootstrap_servers, topics.events, [result("2", "succeeded")])
    done = await commands.rollcall(settings, "batch", "explain", "b", "--json")
    story = json.loads(done.stdout)
    assert story["next_offset"] == 2
    assert [(each["offset"], each["applied"]) for each in story["records"]] == [(0, True), (1, True), (2, False)]
    done = await commands.rollcall(settings, "batch", "explain", "b")
    first, second, third = done.stdout.splitlines()
    assert "not applied yet" not in first + second
    assert third.endswith("<- finalized: completed, revision 1  (not applied yet)")


async def test_a_correction_of_an_open_batch_is_told_as_no_end(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    opened = message({"type": "batch.opened", "batch_id": "b", "total_items": 1})
    corrected = message({"type": "batch.corrected", "batch_id": "b", "revision": 1})
    await produce(settings.bootstrap_servers, topics.events, [opened, corrected, result("1", "succeeded")])
    story = Story(topics, Homes(1), "b")
    told = [each async for each in story.tell(settings.kafka_connection(), 0, 3)]
    assert [(each.did, each.revision, each.outcome) for each in told] == [
        ("accepted", None, None),
        ("accepted", None, None),
        ("accepted", 2, "completed"),
    ]
