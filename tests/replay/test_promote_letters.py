"""Dead letters through a promotion: each on its topic once, and none lost that only the live schema knows."""

from __future__ import annotations

import json
import random
from datetime import timedelta

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from rollcall.settings import Settings
from schemas.headers import DLT_OFFSET
from schemas.topics import Topics
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.tables import table_rows
from tests.harness.topics import create_topic, drain, produce, set_config
from tests.harness.waiting import eventually
from tests.test_trimming import trimmed

pytestmark = pytest.mark.asyncio(loop_scope="session")


def broken(first: int, last: int) -> list[Message]:
    return [Message(b"?", b"%d{" % number, "?") for number in range(first, last)]


def event(batch_id: str, kind: str, **fields: object) -> Message:
    body = {"type": f"batch.{kind}", "batch_id": batch_id, **fields}
    return Message(batch_id.encode(), json.dumps(body).encode(), batch_id)


async def promote(settings: Settings, *arguments: str) -> None:
    shadow = f"{settings.database_schema}_s"
    await commands.replay_and_promote(settings, shadow, *arguments)


async def letters(settings: Settings) -> dict[tuple[int, int], str | None]:
    """By partition and offset, why they do not go out."""
    rows = await table_rows(settings, "dead_letters")
    return {(row["partition"], row["record_offset"]): row["refused"] for row in rows}


async def said(settings: Settings) -> list[int]:
    """The offsets of the records whose dead letters are on the topic."""
    found = await drain(settings.bootstrap_servers, Topics(settings.topic_prefix).dead_letters)
    return sorted(int(dict(record.headers)[DLT_OFFSET]) for record in found)


async def test_a_dead_letter_whose_row_was_trimmed_is_not_published_again(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, broken(0, 3))
        await product.settled()
        async with trimmed(settings, timedelta(0), timedelta(0)):

            async def only_the_newest_is_left() -> bool:
                return (await letters(settings)).keys() == {(0, 2)}

            await eventually(only_the_newest_is_left)
        await promote(settings.model_copy(update={"dead_letters_kept_days": 0.0}))
        await produce(settings.bootstrap_servers, topics.events, broken(3, 4))
        await product.settled()
        assert await said(settings) == [0, 1, 2, 3]
        assert await letters(settings) == {(0, 2): None, (0, 3): None}
        await product.children["relay"].kill()
        await product.start_relay("another")
        await produce(settings.bootstrap_servers, topics.events, broken(4, 5))
        await product.settled()
    assert await said(settings) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("emit_changes", [False, True])
async def test_a_dead_letter_that_only_the_new_fold_gives_goes_out_where_asked_for(
    settings: Settings, emit_changes: bool
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, broken(0, 2))
        await product.await_applied(2)
        async with product.connection() as connection:
            # An older version took it.
            await connection.execute("DELETE FROM dead_letters WHERE record_offset = 0")
        await promote(settings, *(["--emit-changes"] if emit_changes else []))
        await product.start_relay()
        await product.settled()
        assert await said(settings) == ([0, 1] if emit_changes else [1])
        why = None if emit_changes else "withheld when this schema was promoted"
        assert await letters(settings) == {(0, 0): why, (0, 1): None}, "it is there to be looked at"
        if not emit_changes:
            await promote(settings, "--emit-changes")
            await product.settled()
            assert await said(settings) == [0, 1], "asked for later it goes out as well"


async def test_dead_letters_that_no_replay_can_give_are_taken_over(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=2)
    [(home, _)] = await produce(settings.bootstrap_servers, topics.events, [Message(b"b", b'{"batch_id": "b"}', "b")])
    filling = random.Random(1).randbytes(200_000).hex()  # which compresses to half of it
    huge = json.dumps({"batch_id": "b", "item_id": "1", "status": "succeeded", "filling": filling}).encode()
    await produce(settings.bootstrap_servers, topics.events, [Message(b"b", huge, "b")], partition=1 - home)
    await set_config(settings.bootstrap_servers, topics.events, {"max.message.bytes": "100000"})
    async with running(settings, workers=1) as product:
        await product.settled()
        async with product.connection() as connection:
            # The database was lost, and the relay has found this one on its topic before workers get there.
            await connection.execute(
                "INSERT INTO dead_letters (topic, partition, record_offset, appended_at, reason, message, headers,"
                " published_at) VALUES ($1, $2, 1, now(), 'invalid_json', '', '[]', now())",
                *(topics.events, home),
            )
        await promote(settings)
        await produce(settings.bootstrap_servers, topics.events, broken(1, 2), partition=home)
        await product.settled()
        listed = await commands.rollcall(settings, "dead-letters", "list", "--json")
        found = {each["record"]: each["reason"] for each in json.loads(listed.stdout)["dead_letters"]}
    assert found == {f"{home}:0": "invalid_event", f"{1 - home}:0": "too_large", f"{home}:1": "invalid_json"}
    assert await said(settings) == [0, 0], "what was found there is not sent again"


async def test_a_batch_that_is_carried_keeps_the_dead_letters_that_it_had_and_gets_none(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1, relay=False) as product:
        opened = [event("counted", "opened", total_items=2, sealed=False), event("listed", "opened", item_ids=["1"])]
        await produce(settings.bootstrap_servers, topics.events, opened)
        await product.await_applied(2)
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(topics.events, 0): RecordsToDelete(2)})
        finally:
            await admin.close()
        # Whoever has not seen them opened refuses the one, and takes the other.
        more = [event("counted", "sealed"), event("listed", "items_expected", item_ids=["2"])]
        await produce(settings.bootstrap_servers, topics.events, more)
        await product.await_applied(4)
        assert await letters(settings) == {(0, 3): None}
        await promote(settings, "--emit-changes")
        assert await letters(settings) == {(0, 3): None}
        await product.start_relay()
        await product.settled()
    assert await said(settings) == [3]
