"""Summaries: right, the same whenever computed, and whatever goes wrong with one stays with it."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from handlers import summary
from handlers.finalization import finalized_event
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.published import BatchSummarized
from schemas.topics import Topics
from store import batches, items, outbox, summaries
from store import statistics as stored_statistics
from store.connection import Connection, Database
from store.rows import Batch, ItemRow, SummaryRequest
from streams import summarizing
from streams.summarizing import Summarizer
from tests.harness.histories import Message
from tests.harness.product import running
from tests.harness.tables import table_rows
from tests.harness.topics import Record, drain, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPENED = datetime(2026, 1, 1, 12, tzinfo=UTC)
ENDED = OPENED + timedelta(seconds=20)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    await migrate(settings.database_url, settings.database_schema)
    opened = await settings.database().connect("test")
    yield opened
    await opened.close()


def row(batch_id: str, item_id: str, status: str = "succeeded", **fields: Any) -> ItemRow:
    return ItemRow(batch_id, item_id, status, 1, 0, 5, OPENED, *[None] * 10)._replace(**fields)


def ended(batch_id: str, rows: Sequence[ItemRow] = (), **fields: Any) -> Batch:
    counts: dict[str, Any] = Counter([each.status for each in rows] + [each.effect for each in rows if each.effect])
    batch = Batch(batch_id, 0, "finalized", "completed", "all_items_in", revision=1, sealed=True, **counts)
    batch = replace(batch, total_items=len(rows), opened_at=OPENED, first_result_at=OPENED if rows else None)
    return replace(batch, **{"finalized_at": ENDED, "decided_offset": 9, **fields})


async def store(connection: Connection, batch: Batch, rows: Sequence[ItemRow] = ()) -> None:
    """A finalized batch as a worker leaves it: rows, event, and the request for its summary."""
    await items.copy_new(connection, rows)
    await batches.write(connection, [batch])
    event = finalized_event(batch, Topics("t."), failed_item_ids=[], missing_item_ids=[], traceparent=None)
    await outbox.insert(connection, [event])
    await request(connection, batch)


async def request(connection: Connection, batch: Batch, offset: int = 9) -> None:
    await summaries.request(connection, {batch.batch_id: SummaryRequest(batch.revision, ENDED, offset)})


@asynccontextmanager
async def summarizing_in(database: Database, **options: Any) -> AsyncIterator[None]:
    stop = asyncio.Event()
    summarizer = Summarizer(database, Topics("t."), **{"timeout_s": 60.0, "retry_after_s": 0.01, **options})
    task = asyncio.create_task(summarizer.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def settled(connection: Connection) -> dict[str, Any]:
    """Every summary's row, once none is pending."""

    async def none_pending() -> bool:
        left = await connection.fetch("SELECT batch_id, problem FROM summaries WHERE state = 'pending'")
        assert not left, [tuple(each) for each in left]
        return True

    await eventually(none_pending)
    return {each["batch_id"]: each for each in await connection.fetch("SELECT * FROM summaries")}


async def events(connection: Connection, channel: str) -> dict[str, Any]:
    found = await connection.fetch("SELECT id, value FROM outbox WHERE channel = $1", channel)
    return {each["id"]: json.loads(each["value"]) for each in found}


async def test_a_summary_says_what_the_items_amount_to(connection: Connection, settings: Settings) -> None:
    seed = 20261124
    print(f"seed {seed}")
    chance = random.Random(seed)
    rows = [
        row(
            "b",
            f"item-{number:03}",
            chance.choice(["succeeded", "partial", "failed", "skipped"]),
            duration_ms=chance.choice([None, chance.uniform(0, 1e4)]),
            effect=chance.choice([None, "created", "updated", "unchanged"]),
            worker=chance.choice([None, "w1", "w2"]),
            metrics=chance.choice([None, json.dumps({"bytes": chance.randrange(10**6), "cost": 0.1})]),
        )
        for number in range(200)
    ]
    rows = [
        each._replace(error_code="E1" if each.item_id < "item-150" else None, error_message="x" * 5) for each in rows
    ]
    retrying = row("b", "unanswered", "retrying", duration_ms=1e9, worker="w9", metrics='{"bytes": 1}')
    batch = ended("b", rows, retrying=1, total_items=201, finalized_by="forced")
    await store(connection, batch, [*rows, retrying])
    async with summarizing_in(settings.database()):
        found = await settled(connection)
    said = json.loads(found["b"]["summary"])
    BatchSummarized.model_validate(said)
    assert found["b"]["state"] == "ready"

    took = sorted(each.duration_ms for each in rows if each.duration_ms is not None)
    assert said["item_duration_ms"] == pytest.approx(
        {
            "min": took[0],
            "mean": statistics.fmean(took),
            "max": took[-1],
            **{f"p{percent}": percentile(took, percent) for percent in (50, 95, 99)},
        },
        abs=0.001,
    )
    statuses = Counter(each.status for each in rows)
    assert said["success_rate"] == pytest.approx((statuses["succeeded"] + statuses["partial"]) / 200)
    assert said["failure_rate"] == pytest.approx(statuses["failed"] / 200)
    assert (said["duration_ms"], said["items_per_second"]) == (20_000, 10.0)
    assert said["item_counts"]["missing"] == 1
    effects = Counter(each.effect for each in rows)
    assert said["write_counts"] == {name: effects[name] for name in ("created", "updated", "unchanged")}
    measured = [json.loads(each.metrics, parse_float=Decimal) for each in rows if each.metrics is not None]
    assert said["metrics"] == {
        "bytes": sum(each["bytes"] for each in measured),
        "cost": float(sum(each["cost"] for each in measured)),
    }
    assert said["workers"] == [
        {
            "worker": name,
            "items": len(share),
            "failed": sum(each.status == "failed" for each in share),
            "duration_ms": pytest.approx(sum(each.duration_ms or 0 for each in share), abs=0.001),
            "mean_duration_ms": pytest.approx(
                statistics.fmean(each.duration_ms for each in share if each.duration_ms is not None), abs=0.001
            ),
        }
        for name, share in sorted(
            ((name, [each for each in rows if each.worker == name]) for name in ("w1", "w2")),
            key=lambda one: -len(one[1]),
        )
    ]
    failed = [each.item_id for each in rows if each.status == "failed"]
    coded = [item for item in failed if item < "item-150"]
    assert said["error_groups"] == [
        {"error": "E1", "count": len(coded), "item_ids": coded[:10]},
        {"error": "xxxxx", "count": len(failed) - len(coded), "item_ids": failed[len(coded) :][:10]},
    ]
    assert await events(connection, "summaries") == {"batch.summarized/b/1": said}


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation between the two values next to the place."""
    place = Fraction(percent, 100) * (len(values) - 1)
    low = int(place)
    return values[low] + float(place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


async def test_batches_without_items_or_times_have_summaries_too(connection: Connection, settings: Settings) -> None:
    nothing = ended("nothing", opened_at=None, outcome="cancelled", finalized_by="cancelled", sealed=False)
    plain = [row("plain", "a"), row("plain", "b", "failed")]
    await store(connection, nothing)
    await store(connection, ended("plain", plain, finalized_at=OPENED), plain)
    async with summarizing_in(settings.database()):
        found = await settled(connection)
    empty = json.loads(found["nothing"]["summary"])
    assert (empty["duration_ms"], empty["item_duration_ms"], empty["success_rate"]) == (None, None, None)
    assert (empty["failure_rate"], empty["items_per_second"], empty["workers"]) == (None, None, [])
    said = json.loads(found["plain"]["summary"])
    assert (said["item_duration_ms"], said["items_per_second"], said["failure_rate"]) == (None, None, 0.5)
    assert said["error_groups"] == [{"error": "no error given", "count": 1, "item_ids": ["b"]}]


SAME_ERROR = {
    "user <n> not found": ("user 17 not found", "user 1,234 not found", "  user 8\nnot found "),
    "cannot reach <address>": (
        "cannot reach 10.0.0.1",
        "cannot reach 10.0.0.1:5432",
        "cannot reach fe80::1",
        "cannot reach 2001:db8:0:0:1:0:0:1",
        "cannot reach https://api.example.com/v1/users?id=7",
        "cannot reach jane.doe@example.com",
        "cannot reach 0x7ffd3a2b",
    ),
    "order <id> is gone": (
        "order 3f2504e0-4f89-11d3-9a0c-0305e82c3301 is gone",
        "order 01ARZ3NDEKTSV4RRFFQ69G5FAV is gone",
        "order 9fceb02d0ae598e95dc970b74767f19372d61af8 is gone",
        "order a1b2c3 is gone",
    ),
    "too late: <time>": (
        "too late: 2026-01-02T03:04:05.678Z",
        "too late: 2026-01-02 03:04:05+01:00",
        "too late: 2026-01-02",
        "too late: 12:30:45",
    ),
    "std::bad_alloc in Foo::Bad": ("std::bad_alloc in Foo::Bad",),
    "Sha<n>MismatchErrorOfFile": ("Sha256MismatchErrorOfFile", "Sha512MismatchErrorOfFile"),
    "checksum of <id> differs": ("checksum of {item_id} differs",),
    "no error given": (None, "", "   "),
}


async def test_messages_that_differ_in_ids_numbers_and_addresses_are_one_error(
    connection: Connection, settings: Settings
) -> None:
    rows: list[ItemRow] = []
    for number, (_, messages) in enumerate(SAME_ERROR.items()):
        for place in range(12):
            # Names differ by letters, and some look like patterns.
            item_id = f"{'abcdefghijkl'[place]}/{'mnopqrst'[number]}(.*)\\1"
            message = messages[place % len(messages)]
            text = None if message is None else message.replace("{item_id}", item_id)
            rows.append(row("b", item_id, "failed", error_message=text))
    coded = [row("b", f"z{place}", "failed", error_code=" E42 ", error_message=str(place)) for place in range(3)]
    rows = sorted([*rows, *coded])
    await store(connection, ended("b", rows), rows)
    async with summarizing_in(settings.database()):
        found = await settled(connection)
    groups = {each["error"]: each for each in json.loads(found["b"]["summary"])["error_groups"]}
    assert {error: each["count"] for error, each in groups.items()} == dict.fromkeys(SAME_ERROR, 12) | {"E42": 3}
    assert groups["E42"]["item_ids"] == ["z0", "z1", "z2"]
    assert all(len(each["item_ids"]) <= 10 for each in groups.values())


async def test_what_is_listed_is_bounded_and_sums_beyond_a_double_are_not_the_end(
    connection: Connection, settings: Settings
) -> None:
    rows = [
        row(
            "b",
            f"{number:04}",
            "failed",
            worker=f"w{number:04}",
            error_code=f"{number:04}{'x' * 5_000}",
            metrics=json.dumps({f"m{number:04}": 1, "a": 1.7e308, "b": 10**308, "c" * 1_000: 0.5}),
            duration_ms=1.7e308,
        )
        for number in range(300)
    ]
    await store(connection, ended("b", rows), rows)
    async with summarizing_in(settings.database()):
        found = await settled(connection)
    said = json.loads(found["b"]["summary"])
    assert (len(said["workers"]), len(said["metrics"]), len(said["error_groups"])) == (100, 100, 20)
    assert said["metrics"]["a"] == said["metrics"]["b"] == sys.float_info.max
    assert said["metrics"]["c" * 200] == 150.0
    assert said["item_duration_ms"]["mean"] == pytest.approx(1.7e308)
    assert [each["error"][:4] for each in said["error_groups"]] == [f"{number:04}" for number in range(20)]
    assert len(found["b"]["summary"]) < 100_000


async def test_a_summary_is_the_same_bytes_whatever_order_the_rows_lie_in_and_whatever_is_read_at_once(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(20261125)
    rows = [
        row(
            "b",
            f"{number}",
            "failed",
            duration_ms=chance.uniform(0, 1e6),
            error_message=f"bad {number % 7 * 'x'}",
            metrics=json.dumps({"sum": chance.uniform(-1e9, 1e9)}),
            worker=f"w{number % 3}",
        )
        for number in range(2_000)
    ]
    await store(connection, ended("b", rows), rows)
    async with summarizing_in(settings.database()):
        first = (await settled(connection))["b"]["summary"]
        await connection.execute("DELETE FROM item_results")
        await items.copy_new(connection, chance.sample(rows, len(rows)))
        await request(connection, ended("b", rows))
        monkeypatch.setattr("store.statistics.METRICS_PAGE", 300)
        second = (await settled(connection))["b"]["summary"]
    assert first == second


async def test_a_summary_that_raises_leaves_batch_and_event_as_they_were_and_the_others_ready(
    connection: Connection, settings: Settings
) -> None:
    for number in range(20):
        rows = [row(f"b{number:02}", "a", metrics='{"n": 1}')]
        await store(connection, ended(f"b{number:02}", rows), rows)
    # The fault: what no decoding lets through, so that PostgreSQL raises in the middle of the sums.
    await connection.execute("""UPDATE item_results SET metrics = '{"n": "one"}' WHERE batch_id IN ('b07', 'b13')""")
    before = [tuple(each) for each in await connection.fetch("SELECT * FROM batches ORDER BY batch_id")]
    finalized = await events(connection, "finalized")
    async with summarizing_in(settings.database()):
        found = await settled(connection)
        # What is repaired can be asked for again; with an id of its own, so that it goes out.
        await connection.execute("""UPDATE item_results SET metrics = '{"n": 2}' WHERE batch_id = 'b13'""")
        await request(connection, ended("b13"), offset=77)
        again = await settled(connection)
    assert {batch_id for batch_id, each in found.items() if each["state"] == "failed"} == {"b07", "b13"}
    assert found["b07"]["attempts"] == summary.ATTEMPTS
    assert "invalid input syntax for type numeric" in found["b07"]["problem"]
    assert [tuple(each) for each in await connection.fetch("SELECT * FROM batches ORDER BY batch_id")] == before
    assert await events(connection, "finalized") == finalized
    alerts = await events(connection, "alerts")
    assert set(alerts) == {"batch.summary_failed/b07/1", "batch.summary_failed/b13/1"}
    assert alerts["batch.summary_failed/b07/1"]["details"]["attempts"] == summary.ATTEMPTS
    assert (again["b13"]["state"], json.loads(again["b13"]["summary"])["metrics"]) == ("ready", {"n": 2})
    summarized = await events(connection, "summaries")
    assert set(summarized) == {f"batch.summarized/b{n:02}/1" for n in range(20) if n not in (7, 13)} | {
        "batch.summarized/b13/1/77"
    }
    status = "SELECT batch_id, summary_state FROM batch_status WHERE summary_state <> 'ready'"
    assert [tuple(each) for each in await connection.fetch(status)] == [("b07", "failed")]


async def test_a_failed_attempt_is_made_again_after_a_while(connection: Connection, settings: Settings) -> None:
    rows = [row("b", "a", metrics='{"n": 1}')]
    await store(connection, ended("b", rows), rows)
    await connection.execute("""UPDATE item_results SET metrics = '{"n": "one"}'""")
    async with summarizing_in(settings.database(), retry_after_s=3.0):

        async def has_failed() -> bool:
            return bool(await connection.fetchval("SELECT attempts = 1 AND state = 'pending' FROM summaries"))

        await eventually(has_failed)
        await connection.execute("""UPDATE item_results SET metrics = '{"n": 1}'""")
        found = await settled(connection)
    assert (found["b"]["state"], found["b"]["attempts"], found["b"]["problem"]) == ("ready", 1, None)
    assert await events(connection, "alerts") == {}


async def test_a_disk_that_is_full_for_long_ends_no_summary(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    async def load(*arguments: Any) -> Any:
        nonlocal failures
        if failures < summary.ATTEMPTS:
            failures += 1
            raise asyncpg.DiskFullError("could not write to file: No space left on device")
        return await stored_load(*arguments)

    stored_load = stored_statistics.load
    monkeypatch.setattr(stored_statistics, "load", load)
    await store(connection, ended("b"))
    async with summarizing_in(settings.database()):
        found = await settled(connection)
    assert (found["b"]["state"], failures) == ("ready", summary.ATTEMPTS)
    assert await events(connection, "alerts") == {}


async def test_of_a_batch_that_is_open_again_the_next_revision_is_summarized(
    connection: Connection, settings: Settings
) -> None:
    rows = [row("b", "a")]
    batch = ended("b", rows)
    await store(connection, batch, rows)
    reopened = replace(
        batch, state="processing", outcome=None, finalized_by=None, finalized_at=None, decided_offset=None, generation=1
    )
    await batches.write(connection, [reopened])
    await store(connection, ended("other"))
    async with summarizing_in(settings.database()):

        async def other_is_ready() -> bool:
            return bool(await connection.fetchval("SELECT state = 'ready' FROM summaries WHERE batch_id = 'other'"))

        await eventually(other_is_ready)
        assert await connection.fetchval("SELECT state FROM summaries WHERE batch_id = 'b'") == "pending"
        again = ended("b", rows, revision=2, generation=1, decided_offset=20)
        await batches.write(connection, [again])
        await request(connection, again, offset=20)
        found = await settled(connection)
    assert json.loads(found["b"]["summary"])["revision"] == 2
    assert set(await events(connection, "summaries")) == {"batch.summarized/other/1", "batch.summarized/b/2"}


async def test_a_summary_computed_over_a_promotion_is_of_one_schema(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, shadow = settings.database_schema, f"{settings.database_schema}_s"
    await migrate(settings.database_url, shadow)
    for schema, took in ((live, 1.0), (shadow, 2.0)):
        rows = [row("b", "a", duration_ms=took)]
        filling = await Database(settings.database_url, schema).connect("test")
        await store(filling, ended("b", rows), rows)
        await filling.close()
    load = stored_statistics.load
    promoted = False

    async def load_before_it(*given: Any) -> Any:
        nonlocal promoted
        found = await load(*given)
        if not promoted:
            promoting = await settings.database().connect("test")
            await promoting.execute(f"ALTER SCHEMA {live} RENAME TO {live}_old; ALTER SCHEMA {shadow} RENAME TO {live}")
            await promoting.close()
        promoted = True
        return found

    monkeypatch.setattr(stored_statistics, "load", load_before_it)
    async with summarizing_in(settings.database()):
        found = await settled(connection)
    assert json.loads(found["b"]["summary"])["item_duration_ms"]["max"] == 2.0


async def test_many_batches_take_few_rounds(connection: Connection, settings: Settings) -> None:
    count = 3 * summarizing.ROUND_BATCHES
    rows = [row(f"b{number:05}", item) for number in range(count) for item in "abcde"]
    await items.copy_new(connection, rows)
    ends = [ended(f"b{number:05}", rows[5 * number : 5 * number + 5]) for number in range(count)]
    await batches.write(connection, ends)
    await summaries.request(connection, {each.batch_id: SummaryRequest(1, ENDED, 9) for each in ends})
    transactions = "SELECT count(DISTINCT xmin::text) FROM summaries"
    async with summarizing_in(settings.database()):
        found = await settled(connection)
    assert {each["state"] for each in found.values()} == {"ready"}
    assert await connection.fetchval(transactions) == 3
    assert len(await events(connection, "summaries")) == count


async def test_a_summary_goes_out_anew_when_asked_for_and_when_a_late_result_counts_without_a_revision(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    async with running(settings) as product:
        await product.start_clock()

        async def publish(kind: str, **fields: Any) -> None:
            value = json.dumps({"type": kind, "batch_id": "b", **fields}).encode()
            await produce(settings.bootstrap_servers, topics.events, [Message(b"b", value, "b")])

        async def published(count: int) -> list[Record]:
            records = await drain(settings.bootstrap_servers, topics.summaries)
            assert len(records) >= count, f"{len(records)} of {count} summaries"
            return records

        await publish("batch.opened", total_items=1, policy={"late_results": "revise"})
        await publish("item.result", item_id="a", status="succeeded", duration_ms=2.5)
        await eventually(lambda: published(1), interval_s=0.5)
        await publish("batch.finalize_requested")
        await eventually(lambda: published(2), interval_s=0.5)
        await publish("item.result", item_id="a", status="succeeded", duration_ms=7.5, attempt=2)
        first, second, third = await eventually(lambda: published(3), interval_s=0.5)
        await product.settled()
        [finalized] = await drain(settings.bootstrap_servers, topics.finalized)
        [stored] = await table_rows(settings, "batches")
    assert first.key == second.key == b"b"
    assert first.value == second.value
    assert json.loads(first.value)["item_duration_ms"]["p99"] == 2.5
    assert json.loads(third.value)["item_duration_ms"]["p99"] == 7.5
    headers = [dict(each.headers) for each in (first, second, third)]
    assert [each["ce_id"] for each in headers] == [
        *(b"batch.summarized/b/1", b"batch.summarized/b/1/2", b"batch.summarized/b/1/3")
    ]
    assert {each["ce_type"] for each in headers} == {b"rollcall.batch.summarized.v1"}
    # The broker's acknowledgement that the batch shows is that of its finalized event.
    [marked] = [each for each in await table_rows(settings, "outbox") if each["channel"] == "finalized"]
    assert (stored["published_at"], stored["revision"]) == (marked["published_at"], 1)
    assert json.loads(finalized.value)["revision"] == 1
