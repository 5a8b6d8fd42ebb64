"""What a promotion withheld alarms nobody, is not missed by `verify`, and does not stay for ever."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness import commands
from tests.harness.events import Event, opened, result
from tests.harness.product import running
from tests.harness.tables import table_rows
from tests.harness.topics import create_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually
from tests.replay.test_disasters import delete_before
from tests.test_doctor import found
from tests.test_trimming import trimmed
from tests.test_why import sentences

pytestmark = pytest.mark.asyncio(loop_scope="session")

WITHHELD = {"batch.finalized/b/1", "batch.first_failure/b"}


async def withheld(settings: Settings) -> set[str]:
    rows = await table_rows(settings, "outbox", "id")
    return {row["id"] for row in rows if row["refused"] == "withheld when this schema was promoted"}


async def verified(settings: Settings) -> None:
    done = await commands.rollcall(settings, "verify", "--processes", "1", timeout_s=180)
    assert done.exit_code == 0, done.stdout + done.stderr


async def test_what_was_withheld_is_no_quarantine_and_goes_once_the_log_no_longer_gives_it(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    short = settings.model_copy(update={"dead_letters_kept_days": 0.0})
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    log = [opened("b", total_items=1), result("b", "1", "failed"), Event(b"b", b"{broken")]
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, log)
        await product.await_applied(len(log))
        async with product.connection() as connection:
            # An older version made nothing of any of it.
            for table in ("batches", "item_results", "summaries", "outbox", "dead_letters"):
                await connection.execute(f"DELETE FROM {table}")
        await promoted(settings, "s")
        await product.start_relay()
        await product.settled()
        assert await drain(settings.bootstrap_servers, topics.finalized) == []
        assert await withheld(settings) >= WITHHELD

        assert "quarantine" not in await found(settings, "wrong")
        why = await sentences(settings, "b")
        assert "was withheld when this schema was promoted" in why["event_withheld"]
        assert "event_refused" not in why
        await verified(settings)

        async with trimmed(settings, timedelta(0), timedelta(0)):

            async def the_letter_is_gone() -> bool:
                return await table_rows(settings, "dead_letters") == []

            await eventually(the_letter_is_gone)
            assert await withheld(settings) >= WITHHELD, "verify would miss them"
            await verified(short)
            assert await withheld(settings) >= WITHHELD
            await delete_before(settings, topics.events, len(log))

            async def none_is_left() -> bool:
                return await withheld(settings) == set()

            await eventually(none_is_left)
        await verified(short)


async def test_what_was_withheld_is_told_once_when_it_is_asked_for_and_corrects_nothing(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    log = [opened("b", total_items=1), result("b", "1", "failed")]
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, log)
        await product.await_applied(len(log))
        async with product.connection() as connection:
            # An older version made nothing of any of it, and the next one something else.
            for table in ("batches", "item_results", "summaries", "outbox"):
                await connection.execute(f"DELETE FROM {table}")
            await promoted(settings, "first")
            assert "batch.finalized/b/1" in await withheld(settings)
            await connection.execute("UPDATE batches SET outcome = 'completed'")
        await promoted(settings, "second", "--emit-changes")
        await product.start_relay()
        await product.settled()
        [event] = await drain(settings.bootstrap_servers, topics.finalized)
        assert json.loads(event.value or b"")["outcome"] != "completed"
        assert sum((await end_offsets(settings.bootstrap_servers, topics.events)).values()) == len(log)


async def promoted(settings: Settings, name: str, *options: str) -> None:
    shadow = f"{settings.database_schema}_{name}"
    await commands.replay_and_promote(settings, shadow, *options)
