"""Dead letters that the log, the table or the topic alone still has are no difference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.topics import create_topic, produce
from tests.replay.test_disasters import delete_before

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def differences(settings: Settings) -> list[Any]:
    done = await commands.rollcall(settings, "verify", "--processes", "1", "--json", timeout_s=180)
    assert done.stdout, done.stderr
    return [(each["what"], each["offsets"]) for each in json.loads(done.stdout)["differences"]]


async def test_letters_are_compared_where_both_the_log_and_the_table_should_have_them(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1) as product:
        letters = [Message(b"?", b"%d{" % number, "?") for number in range(4)]
        await produce(settings.bootstrap_servers, topics.events, letters)
        await product.settled()
        async with product.connection() as connection:
            # Retention takes the first; the relay inserts what a lost database had put aside, and its workers have yet
            # to read.
            await delete_before(settings, topics.events, 1)
            await connection.execute(
                "INSERT INTO dead_letters (topic, partition, record_offset, appended_at, reason, message, headers,"
                " published_at) VALUES ($1, 0, 99, now(), 'invalid_json', '', '[]', now())",
                topics.events,
            )
            assert await differences(settings) == []
            # Deleted, as trimming does; and made up.
            await connection.execute("DELETE FROM dead_letters WHERE record_offset = 2")
            assert await differences(settings) == [("dead letter", [2])], "it is too young to be trimmed"
            short = settings.model_copy(update={"dead_letters_kept_days": 0.0})
            assert await differences(short) == []
            await connection.execute("UPDATE dead_letters SET reason = 'unknown_type' WHERE record_offset = 3")
            assert await differences(short) == [("dead letter", [3])], "what is there is compared, however old"
