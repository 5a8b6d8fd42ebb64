"""A replay gives what the workers gave: the same rows and bytes, whoever died on the way, and it publishes nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from migrations.run import migrate
from rollcall.reaching import ServerError
from rollcall.replaying import Part, fold_part, look, prepare_shadow
from rollcall.settings import Settings
from schemas.topics import Topics
from store import positions
from store.shadows import Shadow
from streams import applying
from streams import topics as kafka_topics
from streams.portion import Portion
from streams.reading import Homes
from tests.harness import commands
from tests.harness.histories import Message, Shape, make_history, mixed_sizes
from tests.harness.librdkafka import produce_with_librdkafka
from tests.harness.product import running
from tests.harness.tables import comparable_tables, make_rows_slow, table_rows
from tests.harness.topics import create_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4


def shadow_of(settings: Settings, name: str = "shadow") -> Settings:
    return settings.model_copy(update={"database_schema": f"{settings.database_schema}_{name}"})


async def live_history(settings: Settings, seed: int, batches: int = 60) -> None:
    """A log with all kinds of records in it, some on wrong partitions and some that nobody can read, all applied."""
    history = make_history(seed, sizes=mixed_sizes(seed, batches=batches, large=1), shapes=tuple(Shape))
    misplaced = make_history(seed + 1, sizes=(1, 2, 100) * 4, prefix="misplaced")
    print(history, misplaced)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    broken = [Message(b"broken", b"{", "broken"), Message(b"broken", b'{"type":"item.resolt"}', "broken")]
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topics.events, [*broken, *history])
        await produce_with_librdkafka(settings.bootstrap_servers, topics.events, misplaced.messages)
        await product.settled()


async def outputs(settings: Settings) -> dict[str, Any]:
    topics = Topics(settings.topic_prefix)
    names = (topics.finalized, topics.summaries, topics.alerts, topics.requests, topics.dead_letters, topics.events)
    return {name: await end_offsets(settings.bootstrap_servers, name) for name in names}


async def assert_shadow_is_the_live_state(settings: Settings, shadow: Settings) -> None:
    live, replayed = await comparable_tables(settings), await comparable_tables(shadow)
    for table in live:
        assert replayed[table] == live[table], table


async def test_a_replay_gives_the_same_rows_and_publishes_nothing(settings: Settings) -> None:
    await live_history(settings, 20261125)
    shadow = shadow_of(settings)
    before = await outputs(settings)
    done = await commands.rollcall(settings, "replay", "--into", shadow.database_schema)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("replayed ")
    await assert_shadow_is_the_live_state(settings, shadow)
    assert await outputs(settings) == before
    assert [row for row in await table_rows(shadow, "outbox") if row["published_at"]] == []
    assert await table_rows(shadow, "incomplete_history", "batch_id") == []


async def test_a_replay_killed_again_and_again_goes_on_where_it_was(settings: Settings) -> None:
    await live_history(settings, 20261126, batches=40)
    shadow = shadow_of(settings)
    slow = settings.model_copy(update={"max_records": 40})
    topic = Topics(settings.topic_prefix).events
    end = sum((await end_offsets(settings.bootstrap_servers, topic)).values())
    kills = 0
    for number in range(10):
        begun = await _applied(shadow)
        # A share of what is left: each gets further than that before it is killed.
        step = (end - begun) // (14 - number)
        process = await commands.start(slow, "replay", "--into", shadow.database_schema, "--processes", "2")

        async def further(target: int = begun + step, process: Any = process) -> bool:
            return process.returncode is not None or await _applied(shadow) >= target

        await eventually(further, 60, interval_s=0.01)
        if process.returncode is None:
            process.kill()
            kills += 1
        await process.communicate()
    assert kills == 10, "it was killed in its midst, each time"
    done = await commands.rollcall(settings, "replay", "--into", shadow.database_schema)
    assert done.exit_code == 0, done.stderr
    await assert_shadow_is_the_live_state(settings, shadow)


async def _applied(shadow: Settings) -> int:
    connection = await shadow.database().connect("test")
    try:
        if not await connection.fetchval("SELECT to_regclass('positions') IS NOT NULL"):
            return 0
        return int(await connection.fetchval("SELECT coalesce(sum(next_offset), 0) FROM positions") or 0)
    finally:
        await connection.close()


async def test_a_process_of_a_replay_that_cannot_reach_postgresql_says_so_in_one_line() -> None:
    unreachable = Settings(
        bootstrap_servers="127.0.0.1:1", database_url="postgresql+asyncpg://me:secret@127.0.0.1:1/db"
    )
    part = Part("shadow", {0: 1}, Homes(1, "log")).encoded()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "rollcall.replay_part", part),
        stderr=asyncio.subprocess.PIPE,
        env=commands.environment(unreachable),
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    said = "rollcall: PostgreSQL at 127.0.0.1:1 (ROLLCALL_DATABASE_URL) cannot be reached: connection refused\n"
    assert (process.returncode, stderr.decode()) == (1, said)


async def test_a_kafka_that_does_not_say_which_log_it_is_in_time_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test")
    try:
        await positions.fix_partition_count(connection, Topics(settings.topic_prefix).events, 1)
        monkeypatch.setattr(kafka_topics, "ADMIN_TIMEOUT_S", 0.0)
        with pytest.raises(ServerError) as failed:
            await look(settings, connection)
    finally:
        await connection.close()
    where = f"Kafka at {settings.bootstrap_servers} (ROLLCALL_BOOTSTRAP_SERVERS)"
    assert str(failed.value) == f"{where} cannot be reached: no answer in time"


async def test_a_replay_that_takes_too_long_over_a_micro_batch_reads_less_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Topics(settings.topic_prefix).events
    await create_topic(settings.bootstrap_servers, topic, partitions=1)
    async with running(settings, workers=1) as product:
        await produce(settings.bootstrap_servers, topic, make_history(7, sizes=(150,)))
        await product.settled()
    connection = await settings.database().connect("test")
    live = await look(settings, connection)
    await connection.close()
    shadow = shadow_of(settings)
    of = Shadow(settings.database_schema, None)
    await prepare_shadow(settings, live, shadow.database_schema, live.span.starts, of)
    await make_rows_slow(shadow)
    monkeypatch.setattr(applying, "APPLY_TIMEOUT_S", 1.0)
    too_long: list[int] = []
    too_much = Portion.too_much

    def noting(self: Portion, taken: int) -> None:
        too_long.append(taken)
        too_much(self, taken)

    monkeypatch.setattr(Portion, "too_much", noting)
    ends = {partition: position.next_offset for partition, position in live.positions.items()}
    await fold_part(settings, Part(shadow.database_schema, ends, live.homes))
    assert too_long[0] > 50, "more than PostgreSQL takes in this time"
    await assert_shadow_is_the_live_state(settings, shadow)


async def test_a_replay_from_the_middle_marks_what_it_has_not_seen_begin(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)

    def opened(batch: str) -> Message:
        return _message({"type": "batch.opened", "batch_id": batch, "total_items": 2})

    def result(batch: str, item: str) -> Message:
        return _message({"batch_id": batch, "item_id": item, "status": "succeeded"})

    async with running(settings, workers=1, relay=False) as product:
        first = [opened("old"), result("old", "1"), opened("over"), result("over", "1"), result("over", "2")]
        # Of this one results came before its opening, some of them before where the replay begins.
        first += [result("early", "1")]
        later = [opened("new"), result("new", "1"), result("new", "2"), result("old", "2"), opened("early")]
        await produce(settings.bootstrap_servers, topics.events, first)
        await product.await_applied(len(first))  # so that append times differ
        await produce(settings.bootstrap_servers, topics.events, later)
        await product.await_applied(len(first) + len(later))
    shadow = shadow_of(settings)
    done = await commands.rollcall(settings, "replay", "--from", f"0:{len(first)}", "--into", shadow.database_schema)
    assert done.exit_code == 0, done.stderr
    assert "2 batches were not seen from their beginning" in done.stdout
    assert [row["batch_id"] for row in await table_rows(shadow, "incomplete_history", "batch_id")] == [
        "early",
        "old",
    ]
    assert [row["batch_id"] for row in await table_rows(shadow, "batches")] == ["early", "new", "old"]
    time = (await drain(settings.bootstrap_servers, topics.events))[0].timestamp
    another = shadow_of(settings, "one")
    done = await commands.rollcall(
        settings, "replay", "--batch", "old", "--to", "0:2", "--into", another.database_schema
    )
    assert done.exit_code == 0, done.stderr
    [row] = await table_rows(another, "batches")
    assert (row["batch_id"], row["succeeded"], row["opened_at"].timestamp()) == ("old", 1, time / 1000)


async def test_a_replay_writes_into_nothing_but_shadows(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, [_message({"type": "batch.opened", "batch_id": "b"})])
        await product.await_applied(1)
    for schema, why in ((settings.database_schema, "is the live schema"), ("public", "is not a shadow")):
        done = await commands.rollcall(settings, "replay", "--into", schema)
        assert (done.exit_code, why in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
    done = await commands.rollcall(settings, "replay", "--into", "x", "--from", "yesterday")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.stderr
    results = await asyncio.gather(
        *(commands.rollcall(settings, "replay", "--into", f"{settings.database_schema}_b") for _ in range(1))
    )
    assert [done.exit_code for done in results] == [0]


def _message(event: dict[str, Any]) -> Message:
    return Message(event["batch_id"].encode(), json.dumps(event).encode(), event["batch_id"])
