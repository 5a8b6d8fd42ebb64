"""Event streams: what is told, what a listener that was away is told, and what one that does not read costs others."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import psutil
import pytest
from sqlalchemy import event

from api import event_streams, feed
from migrations.run import migrate
from rollcall.settings import Settings
from tests.harness.api import ServedApi, serving
from tests.harness.event_stream import EventListener, listening
from tests.harness.stored import StoredRows
from tests.harness.waiting import eventually

PARTITION = 3


class Log:
    """Writes what a worker would: batches and the position together."""

    def __init__(self, rows: StoredRows) -> None:
        self.rows = rows
        self.next_offset = 0

    async def opened(self, batch_id: str, **columns: Any) -> None:
        async with self.rows.connection.transaction():
            await self._advance()
            await self.rows.batch(batch_id, partition=PARTITION, total_items=2, **columns)

    async def answered(self, batch_id: str) -> None:
        async with self.rows.connection.transaction():
            await self._advance()
            await self.rows.connection.execute(
                "UPDATE batches SET succeeded = succeeded + 1, state = 'processing', first_result_at = now()"
                " WHERE batch_id = $1",
                batch_id,
            )

    async def finalized(self, *batch_ids: str) -> None:
        """In one transaction, as workers do."""
        async with self.rows.connection.transaction():
            for batch_id in batch_ids:
                await self.rows.connection.execute(
                    "UPDATE batches SET state = 'finalized', outcome = 'completed', finalized_by = 'all_items_in',"
                    " finalized_at = now(), decided_offset = $2, revision = revision + 1 WHERE batch_id = $1",
                    batch_id,
                    self.next_offset,
                )
                await self._advance()

    async def _advance(self) -> None:
        self.next_offset += 1
        await self.rows.connection.execute(
            "INSERT INTO positions (topic, partition, next_offset) VALUES ($1, $2, $3)"
            " ON CONFLICT (topic, partition) DO UPDATE SET next_offset = $3",
            f"{self.rows.settings.topic_prefix}events",
            PARTITION,
            self.next_offset,
        )


@pytest.fixture
def log(rows: StoredRows) -> Log:
    return Log(rows)


def ids(told: list[Any]) -> list[str]:
    return [each["batch_id"] for each in told]


async def test_a_batchs_stream_tells_its_state_its_progress_and_its_end(api: ServedApi, log: Log) -> None:
    await log.opened("b")
    async with listening(api.url, "/api/batches/b/events") as listener:
        assert "content-type: text/event-stream" in listener.headers
        [state] = await listener.until("batch")
        await listener.until("ready")
        assert (state["status"], state["answered"], state["total"]) == ("pending", 0, 2)
        await log.answered("b")
        assert (await listener.until("batch", 2))[-1]["answered"] == 1
        await log.answered("b")
        await log.finalized("b")
        [end] = await listener.until("finalized")
        assert (end["status"], end["answered"], end["revision"]) == ("completed", 2, 1)


async def test_the_stream_of_all_tells_new_batches_and_every_end(api: ServedApi, log: Log) -> None:
    async with listening(api.url, "/api/events") as listener:
        await listener.until("ready")
        await log.opened("one")
        await log.opened("two")
        assert set(ids(await listener.until("batch", 2))) == {"one", "two"}
        await log.finalized("two", "one")
        assert ids(await listener.until("finalized", 2)) == ["two", "one"]


async def test_who_comes_back_is_told_every_end_it_missed_once_and_in_order(api: ServedApi, log: Log) -> None:
    names = [f"b{number:03}" for number in range(30)]
    for name in names:
        await log.opened(name)
    told: list[str] = []
    last_id: str | None = None
    for start in range(0, 30, 10):
        # Ends before it comes back, while nobody listens, and ends that it hears.
        await log.finalized(*names[start : start + 5])
        async with listening(api.url, "/api/events", last_event_id=last_id) as listener:
            await listener.until("ready")
            for name in names[start + 5 : start + 10]:
                await log.finalized(name)
            expected = 5 if last_id is None else 10
            await listener.until("finalized", expected)
            told += ids(listener.named("finalized"))
            # It is cut off in the midst: what it has seen last is all it knows.
            seen = [each for each in listener.events if each.name == "finalized"]
            last_id = seen[-1].id
    assert told == names[5:]


async def test_one_cut_off_between_two_ends_of_one_look_gets_the_other(api: ServedApi, log: Log) -> None:
    names = ["a", "b", "c"]
    for name in names:
        await log.opened(name)
    async with listening(api.url, "/api/events") as listener:
        await listener.until("ready")
        await log.finalized(*names)
        await listener.until("finalized", 3)
        first = next(each for each in listener.events if each.name == "finalized")
    async with listening(api.url, "/api/events", last_event_id=first.id) as listener:
        await listener.until("ready")
        assert ids(listener.named("finalized")) == ["b", "c"]
    async with listening(api.url, f"/api/batches/c/events?last_event_id={first.id}") as listener:
        await listener.until("ready")
        assert ids(listener.named("finalized")) == ["c"]
    async with listening(api.url, "/api/batches/a/events", last_event_id=first.id) as listener:
        await listener.until("ready")
        assert listener.named("finalized") == []


async def test_who_missed_too_much_is_told_to_load_again(
    api: ServedApi, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_CATCH_UP", 2)
    names = ["a", "b", "c"]
    for name in names:
        await log.opened(name)
    await log.finalized(*names)
    for last_id in ("3-1", "3-999999", "7-5"):  # too far back; ahead of the log; of another log
        async with listening(api.url, "/api/events", last_event_id=last_id) as listener:
            await listener.until("ready")
            assert (len(listener.named("resync")), listener.named("finalized")) == (1, [])
    for malformed in ("x", "1-2-3", "1-", "-1-5", "9" * 30 + "-1"):
        async with listening(api.url, "/api/events", last_event_id=malformed) as listener:
            assert listener.status == 422, malformed


async def test_behind_a_promotion_all_load_again_since_ends_may_lie_before_what_was_told(
    api: ServedApi, log: Log, migrated: Settings
) -> None:
    live, old, shadow = (f'"{migrated.database_schema}{suffix}"' for suffix in ("", "_old", "_shadow"))
    await log.opened("b")
    await log.opened("c")
    async with (
        listening(api.url, "/api/events") as all_of_them,
        listening(api.url, "/api/batches/b/events") as one,
    ):
        for listener in (all_of_them, one):
            await listener.until("ready")
        before = all_of_them.events[-1].id
        connection = log.rows.connection
        await migrate(migrated.database_url, migrated.database_schema + "_shadow")
        async with connection.transaction():
            for table in ("positions", "batches"):
                await connection.execute(f"INSERT INTO {shadow}.{table} SELECT * FROM {live}.{table}")
            await connection.execute(
                f"UPDATE {shadow}.batches SET state = 'finalized', outcome = 'completed', revision = 1,"
                " finalized_by = 'all_items_in', finalized_at = now(), decided_offset = 0 WHERE batch_id = 'b'"
            )
            await connection.execute(f"ALTER SCHEMA {live} RENAME TO {old}")
            await connection.execute(f"ALTER SCHEMA {shadow} RENAME TO {live}")
        for listener in (all_of_them, one):
            assert await listener.until("resync") == [{}]
            await listener.until("ready", 2)
        assert one.named("batch")[-1]["status"] == "completed"
        await log.finalized("c")
        assert ids(await all_of_them.until("finalized")) == ["c"]
        behind = all_of_them.events[-1].id
    for last_id, again in ((before, 1), (behind, 0)):
        async with listening(api.url, "/api/events", last_event_id=last_id) as listener:
            await listener.until("ready")
            assert (len(listener.named("resync")), listener.named("finalized")) == (again, [])


async def test_where_more_ends_come_than_can_be_told_all_load_again_and_nobody_waits(
    api: ServedApi, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "DECIDED_AT_ONCE", 2)
    monkeypatch.setattr(feed, "MAX_CATCH_UP", 4)
    names = [f"b{number}" for number in range(8)]
    for name in names:
        await log.opened(name)
    async with listening(api.url, "/api/events") as all_of_them, listening(api.url, "/api/batches/b6/events") as one:
        for listener in (all_of_them, one):
            await listener.until("ready")
        await log.finalized(*names[:4])
        assert ids(await all_of_them.until("finalized", 4)) == names[:4]
        await log.finalized(*names[3:])
        assert await all_of_them.until("resync") == [{}]
        assert ids(await one.until("finalized")) == ["b6"]
        await log.finalized("b0")
        assert ids(await all_of_them.until("finalized", 5)) == [*names[:4], "b0"]
        assert one.named("resync") == []


async def test_streams_say_that_they_live_and_end_in_time(
    api: ServedApi, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "HEARTBEAT_S", 0.05)
    async with listening(api.url, "/api/events") as listener:
        await eventually(lambda: listener.comments.count("still here") >= 3)
    monkeypatch.setattr(event_streams, "LIFETIME_S", 0.1)
    async with listening(api.url, "/api/events") as listener:
        await eventually(lambda: listener.ended)


async def test_there_are_only_so_many_streams(migrated: Settings) -> None:
    async with serving(migrated, streams=2) as api, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(listening(api.url, "/api/events"))
        refused = await api.client.get("/api/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")


async def test_two_hundred_listeners_cost_one_reader_and_one_that_never_reads_costs_the_others_nothing(
    api: ServedApi, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUE_EVENTS", 100)
    monkeypatch.setattr(feed, "DECIDED_AT_ONCE", 25)
    statements: list[str] = []
    event.listen(
        api.context.engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    # Of the largest events there are: so a socket's buffers are full after some megabytes.
    large = json.dumps({"blob": "x" * 16_000})
    names = [f"b{number:03}" for number in range(600)]
    async with AsyncExitStack() as stack:
        for name in names:
            await log.opened(name, metadata=large, minute=-1)
        await log.opened("watched")
        listeners: list[EventListener] = [
            await stack.enter_async_context(listening(api.url, path))
            for path in ["/api/events"] * 4 + ["/api/batches/watched/events"] * 195
        ]
        await stack.enter_async_context(listening(api.url, "/api/events", reading=False))
        await eventually(lambda: len(api.context.feed._listeners) == 200, message="200 listeners")
        for listener in listeners:
            await listener.until("ready")

        statements.clear()
        await eventually(lambda: looks(statements) >= 3)
        assert len(statements) <= 6 * (looks(statements) + 1), "what is read does not grow with the listeners"

        before = psutil.Process().memory_info().rss
        for start in range(0, len(names), 25):
            await log.finalized(*names[start : start + 25])
            for listener in listeners[:4]:
                await listener.until("finalized", start + 25)
        await eventually(lambda: len(api.context.feed._listeners) == 199, message="who never reads is dropped")
        held = [listener.queue.qsize() for listener in api.context.feed._listeners]
        assert max(held) <= 100
        grown = psutil.Process().memory_info().rss - before
        # The test's own listeners hold what they got: 4 times 600 events of 17 KB.
        assert grown < 200 * 1024 * 1024, f"{grown / 1024 / 1024:.0f} MiB"

        await log.finalized("watched")
        for listener in listeners:
            await last_is(listener, "watched")


def looks(statements: list[str]) -> int:
    """How often the stored positions were read."""
    return sum("FROM positions" in each and "JOIN" not in each for each in statements)


async def last_is(listener: EventListener, batch_id: str) -> None:
    await eventually(lambda: ids(listener.named("finalized"))[-1:] == [batch_id], 60)


async def test_more_batches_can_be_watched_than_a_statement_has_parameters(api: ServedApi, log: Log) -> None:
    await log.opened("b")
    async with AsyncExitStack() as stack:
        wanted = frozenset(["b", *(f"other-{number}" for number in range(40_000))])
        listener = stack.enter_context(api.context.feed.listening(wanted, None))
        told = [await asyncio.wait_for(listener.queue.get(), 60) for _ in range(2)]
    assert [(each or b"").split(b"\n")[0] for each in told] == [b"event: batch", b"event: ready"]


async def test_streams_end_when_the_api_does(migrated: Settings) -> None:
    async with AsyncExitStack() as stack:
        async with serving(migrated) as api:
            listener = await stack.enter_async_context(listening(api.url, "/api/events"))
            await listener.until("ready")
        await eventually(lambda: listener.ended)
