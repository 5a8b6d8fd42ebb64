"""Statements on a real PostgreSQL: the compare-and-set under races, plans that never scan, rows that come back."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from struct import pack, unpack
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest
from asyncpg.exceptions import InterfaceError

from migrations.run import migrate
from rollcall.settings import Settings
from store import batches, copying, items, outbox, positions
from store.connection import BY_KEY, Connection, Database, LostSettingsError
from store.failures import is_transient
from store.positions import LostRaceError
from store.rows import Batch, DeadLetterRow, ItemRow, OutboxRow, Position
from store.statements import array_literal
from streams.applying import connect_to_apply, transaction
from streams.decoding import parse_time
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOW = datetime(2026, 1, 1, 12, 0, 0, 1_000, UTC)
TOPIC = "rollcall.events"


def item(item_id: str, status: str = "succeeded", batch_id: str = "b", **fields: Any) -> ItemRow:
    plain = ItemRow(batch_id, item_id, status, 1, 0, 5, NOW, *[None] * 10)
    return plain._replace(**fields)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    """A connection as a worker's: with generic plans."""
    await migrate(settings.database_url, settings.database_schema)
    opened = await settings.database().connect("test", command_timeout=60.0, **BY_KEY)
    yield opened
    await opened.close()


# --- positions ---------------------------------------------------------------------------------------------------


def to(partition: int, offset: int) -> Position:
    return Position(partition, offset, offset - 1, 1_000, 77, {3: 9})


async def test_positions_move_on_from_where_they_are_expected(connection: Connection) -> None:
    await positions.create(connection, TOPIC, {0: 0, 1: 100})
    await positions.create(connection, TOPIC, {0: 55})
    await positions.compare_and_set(connection, TOPIC, [(0, to(0, 10)), (100, to(1, 120))])
    assert await positions.load(connection, TOPIC, [0, 1, 2]) == {0: to(0, 10), 1: to(1, 120)}


async def test_a_wrong_expectation_of_one_partition_moves_none(connection: Connection) -> None:
    await positions.create(connection, TOPIC, {0: 0, 1: 100})
    with pytest.raises(LostRaceError, match="1 of 2 positions have moved on"):
        async with connection.transaction():
            await positions.compare_and_set(connection, TOPIC, [(0, to(0, 10)), (99, to(1, 120))])
    stored = await positions.load(connection, TOPIC, [0, 1])
    assert {partition: each.next_offset for partition, each in stored.items()} == {0: 0, 1: 100}


async def test_a_position_that_was_never_created_is_a_lost_race(connection: Connection) -> None:
    with pytest.raises(LostRaceError):
        await positions.compare_and_set(connection, TOPIC, [(0, to(0, 10))])


async def test_of_many_that_race_for_a_position_exactly_one_wins_each_step(
    connection: Connection, settings: Settings
) -> None:
    await positions.create(connection, TOPIC, dict.fromkeys(range(4), 0))
    racers = [await settings.database().connect(f"racer {n}") for n in range(8)]
    wins: list[tuple[int, int]] = []

    async def race(number: int, racer: Connection, step: int) -> None:
        advances = [(step, to(partition, step + 1)) for partition in range(4)]
        if number % 2:
            advances.reverse()
        try:
            async with racer.transaction():
                await positions.compare_and_set(racer, TOPIC, advances)
                await racer.execute("SELECT pg_sleep(0.001)")
        except LostRaceError:
            return
        wins.append((step, number))

    try:
        for step in range(20):
            await asyncio.gather(*(race(number, racer, step) for number, racer in enumerate(racers)))
    finally:
        for racer in racers:
            await racer.close()
    assert [step for step, _ in wins] == list(range(20))


async def test_known_offsets_of_output_topics_never_move_back(connection: Connection) -> None:
    for offset in (5, 9, 7):
        await positions.note_known(connection, "out", {0: offset})
    assert (await positions.load(connection, "out", [0]))[0].next_offset == 9


async def test_the_partition_count_found_first_stays(connection: Connection) -> None:
    assert [await positions.fix_partition_count(connection, TOPIC, found) for found in (4, 12, 4)] == [4, 4, 4]


async def test_a_schema_is_the_state_of_one_log_only(connection: Connection) -> None:
    await positions.fix_partition_count(connection, TOPIC, 4)
    with pytest.raises(positions.ForeignLogError, match="needs a schema of its own"):
        await positions.fix_partition_count(connection, "other.events", 4)


# --- rows --------------------------------------------------------------------------------------------------------


LITERALS: dict[str, list[Any]] = {
    "int4": [0, None, -(2**31), 2**31 - 1],
    "int8": [None, -(2**63), 2**63 - 1],
    "bool": [True, None, False],
    "float8": [0.1, None, -0.0, 5e-324, 1e16, 1e22, 1.7976931348623157e308],
    "timestamptz": [NOW, None, *map(parse_time, ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"))],
    "text": ["", "null", "NULL", "a b", " ", "{a,b}", ",", "項😀\u2028\x7f", "plain", "n"],
    "text, with what is escaped": [
        '"',
        None,
        "\\",
        "\\n",
        "\n",
        '\\"',
        "'",
        "".join(map(chr, range(1, 128))),
        "null",
        "",
    ],
}


@pytest.mark.parametrize("kind", LITERALS)
async def test_an_arrays_literal_says_what_the_array_says(connection: Connection, kind: str) -> None:
    values, name = LITERALS[kind], kind.partition(",")[0]
    assert await connection.fetchval(f"SELECT $1::text::{name}[]", array_literal(values)) == values
    for value in values:
        assert await connection.fetchval(f"SELECT $1::text::{name}[]", array_literal([value])) == [value]
    with pytest.raises(asyncpg.DataError):
        await connection.fetchval("SELECT $1::text::text[]", array_literal(["a\0b"]))


async def test_item_rows_come_back_as_they_went_in_by_copy_and_by_upsert(connection: Connection) -> None:
    rows = [
        item("plain"),
        item(
            *("full", "failed"),
            attempt=2**31 - 1,
            generation=3,
            version=2**63 - 1,
            effect="updated",
            duration_ms=0.1,
            message='m\\N\t\n"é😀',
            error_code="E",
            error_message="",
            stack_trace="x" * 16_384,
            output='{"ü":[1,null,1e308]}',
            metrics='{"m":0.1}',
            worker="w",
            occurred_at=parse_time("0001-01-01T00:00:00Z"),
        ),
        item("😀" * 200, "skipped", batch_id="項" * 200, occurred_at=parse_time("9999-12-31T23:59:59.999999Z")),
        item("early", "retrying", received_at=datetime(1970, 1, 1, tzinfo=UTC), duration_ms=5e-324),
        item("zero", "partial", duration_ms=0.0, effect="created", message="", output="null", metrics="{}", worker=""),
        *[item(f"n{number:04d}", version=number, worker=f"w{number % 3}") for number in range(1_203)],
    ]
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        ids[row.batch_id].append(row.item_id)
    written = {(row.batch_id, row.item_id): row for row in rows}
    async with connection.transaction():
        await items.copy_new(connection, rows)
    found = await items.load(connection, ids)
    assert {(batch, name): row for batch, part in found.items() for name, row in part.items()} == written
    await items.upsert(connection, rows)
    await items.upsert_late(connection, rows)
    late = await items.load_late(connection, ids)
    assert {(batch, name): row for batch, part in late.items() for name, row in part.items()} == written


async def test_a_dead_letter_refused_again_is_the_same_in_one_statement_and_in_two(connection: Connection) -> None:
    first = DeadLetterRow(TOPIC, 0, 3, NOW, "invalid_json", "no", None, b"k", b"v", '[["own", "MQ=="]]')
    again = first._replace(appended_at=NOW + timedelta(days=9), reason="too_large", batch_id="b", headers="[]")
    rows = []
    for letters in ([[first, again]], [[first], [again]]):
        await connection.execute("TRUNCATE dead_letters RESTART IDENTITY")
        for each in letters:
            await outbox.insert_dead_letters(connection, each)
        rows.append([dict(row) for row in await connection.fetch("SELECT * FROM dead_letters")])
    assert rows[0] == rows[1]
    assert rows[0][0]["appended_at"] == NOW


async def test_a_pooler_that_drops_the_search_path_is_noticed(settings: Settings) -> None:
    """PgBouncer with `ignore_startup_parameters = search_path`: every name would be another schema's."""
    target = urlsplit(settings.database().dsn)

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length, version = unpack("!ii", await reader.readexactly(8))
        if version == 80877103:  # asks for TLS
            writer.write(b"N")
            length, version = unpack("!ii", await reader.readexactly(8))
        words = (await reader.readexactly(length - 8)).split(b"\0")
        at = words.index(b"search_path")
        kept = b"\0".join(words[:at] + words[at + 2 :])
        server_reader, server_writer = await asyncio.open_connection(target.hostname, target.port)
        server_writer.write(pack("!ii", len(kept) + 8, version) + kept)
        with suppress(OSError):
            await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))

    async with await asyncio.start_server(drop, "127.0.0.1", 0) as pooler:
        port = pooler.sockets[0].getsockname()[1]
        url = settings.database_url.replace(f":{target.port}/", f":{port}/")
        with pytest.raises(LostSettingsError, match=f"search_path is .*public', not '{settings.database_schema}'"):
            await Database(url, settings.database_schema).connect("test")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def test_copying_an_item_that_is_there_already_fails(connection: Connection) -> None:
    await items.copy_new(connection, [item("x")])
    with pytest.raises(asyncpg.UniqueViolationError):
        async with connection.transaction():
            await items.copy_new(connection, [item("w"), item("x")])
    assert await connection.fetchval("SELECT count(*) FROM item_results") == 1


async def test_no_copy_is_larger_than_fits_into_its_time(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reopening may adopt millions of late results at once."""
    taken = []
    copy = copying.copy

    async def noting(*given: Any) -> None:
        before = await connection.fetchval("SELECT count(*) FROM item_results")
        await copy(*given)
        taken.append(await connection.fetchval("SELECT count(*) FROM item_results") - before)

    monkeypatch.setattr(copying, "copy", noting)
    await items.copy_new(connection, [item(f"{number:05}") for number in range(25_000)])
    assert taken == [items.WRITTEN_AT_ONCE, items.WRITTEN_AT_ONCE, 5_000]


async def test_a_copy_of_large_items_ends_after_so_many_bytes(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = 0
    within_time = copying.within_time

    async def counted(*given: Any) -> None:
        nonlocal copies
        copies += 1
        await within_time(*given)

    monkeypatch.setattr(copying, "within_time", counted)
    await items.copy_new(connection, [item(f"{number:03}", output=json.dumps("x" * 60_000)) for number in range(400)])
    assert await connection.fetchval("SELECT count(*) FROM item_results") == 400
    assert copies in range(4, 7), "24 MB, of 4 MiB each and a piece more"


@pytest.mark.parametrize(
    "unstorable",
    [
        {"message": "a\x00b"},
        {"message": "\ud800"},
        {"output": "{"},
        {"output": '{"a":'},
        {"version": 2**63},
        {"attempt": 2**31},
    ],
    ids=repr,
)
async def test_what_postgresql_cannot_hold_is_found_and_leaves_nothing_behind(
    connection: Connection, unstorable: dict[str, Any]
) -> None:
    async with connection.transaction():
        assert await items.why_unstorable(connection, item("x", **unstorable))
        assert await items.why_unstorable(connection, item("y")) is None
        assert await connection.fetchval("SELECT count(*) FROM item_results") == 0


@pytest.mark.parametrize("unstorable", [{"message": "a\x00b"}, {"message": "\ud800"}, {"output": "{"}], ids=repr)
async def test_copy_refuses_what_cannot_be_held_as_the_flusher_expects_it(
    connection: Connection, unstorable: dict[str, Any]
) -> None:
    with pytest.raises((asyncpg.DataError, UnicodeEncodeError, OverflowError)):
        async with connection.transaction():
            await items.copy_new(connection, [item("w"), item("x", **unstorable)])
    assert await connection.fetchval("SELECT count(*) FROM item_results") == 0


async def test_batches_come_back_as_they_went_in_and_keep_their_publication(connection: Connection) -> None:
    final = Batch("b", 3, "finalized", "completed", "all_items_in", 1, finalized_at=NOW, decided_offset=9, sealed=True)
    final.metadata, final.policy, final.name = '{"b":1, "a":[1.50]}', "{}", "n"
    final.opened_at, final.duplicates = NOW, 2**40
    final.deadline_at = parse_time("9999-12-31T23:59:59.999999Z")
    await batches.write(connection, [final, Batch("a", 0)])
    assert await batches.load(connection, ["a", "b", "c"]) == {"a": Batch("a", 0), "b": final}
    await batches.mark_published(connection, [("b", 2, NOW), ("a", 1, NOW)])
    assert await connection.fetchval("SELECT count(published_at) FROM batches") == 0
    await batches.mark_published(connection, [("b", 1, NOW)])
    final.late = 1
    await batches.write(connection, [final])
    assert await connection.fetchval("SELECT published_at FROM batches WHERE batch_id = 'b'") == NOW


async def test_batches_come_back_as_they_went_in_by_copy_and_by_upsert(connection: Connection) -> None:
    late, early = parse_time("9999-12-31T23:59:59.999999Z"), datetime(1970, 1, 1, tzinfo=UTC)
    full = Batch(
        "項" * 200,
        2**31 - 1,
        state="finalized",
        outcome="completed_with_errors",
        finalized_by="forced",
        revision=2,
        generation=3,
        sealed=True,
        expected=5,
        matched=4,
        succeeded=6,
        partial=7,
        failed=8,
        skipped=9,
        retrying=10,
        created=11,
        updated=12,
        unchanged=14,
        duplicates=2**63 - 1,
        late=13,
        name='m\\N\t\n"é😀',
        metadata='{"b":1, "a":[1.50]}',
        policy='{"tolerated_failure_count":3}',
        deadline_at=late,
        retry_of="r",
        request_retry=True,
        opened_at=early,
        first_result_at=early + timedelta(microseconds=1),
        last_result_at=NOW,
        last_result_offset=2**63 - 1,
        last_answer_at=NOW + timedelta(milliseconds=1),
        completed_at=NOW + timedelta(milliseconds=2),
        finalized_at=NOW + timedelta(milliseconds=3),
        decided_offset=0,
        reopened_at=NOW + timedelta(milliseconds=4),
        reason="",
        error='{"message":"ü"}',
        failure_seen=True,
        threshold_exceeded=True,
        pruned_at=NOW + timedelta(milliseconds=5),
    )
    unlike_a_new_one = {each for each in Batch.__struct_fields__ if getattr(full, each) != getattr(Batch("", 0), each)}
    assert unlike_a_new_one == set(Batch.__struct_fields__) - {"total_items"}
    rows = [full, Batch("total", 0, total_items=2**31 - 1, sealed=True), Batch("error", 1, error="{}")]
    rows += [Batch(f"n{number:04d}", 5, total_items=number, name=f"n{number % 3}") for number in range(1_203)]
    wanted = {each.batch_id: each for each in rows}
    for write in (batches.copy_new, batches.write):
        await write(connection, rows)
        assert await batches.load(connection, list(wanted)) == wanted
        await connection.execute("UPDATE batches SET succeeded = 9, name = 'x', total_items = 8")


@pytest.mark.parametrize("ends", ["its time", "its session"])
async def test_a_copy_that_the_server_does_not_read_ends_with(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    if ends == "its time":
        monkeypatch.setattr(copying, "COPY_TIMEOUT_S", 1.0)
    # More than sockets hold: the sender waits for room.
    rows = [item(f"{number:04}", output=json.dumps("x" * 60_000)) for number in range(400)]
    other = await settings.database().connect("test", command_timeout=60.0)
    async with other.transaction(), asyncio.timeout(25):
        await other.execute("LOCK TABLE item_results")
        task = asyncio.create_task(items.copy_new(connection, rows))
        transport = cast(Any, connection)._transport
        await eventually(lambda: transport.get_write_buffer_size() > 64 * 1024)
        if ends == "its session":
            await other.fetchval("SELECT pg_terminate_backend($1)", connection.get_server_pid())
        with pytest.raises((OSError, asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)) as failed:
            await task
        assert is_transient(failed.value)
        assert connection.is_closed()
    await other.close()


async def test_a_worker_cut_off_in_the_midst_of_a_copy_loses_its_locks_to_the_next(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await positions.create(connection, TOPIC, {0: 0})
    cut_off = await connect_to_apply(settings.database(), "worker")

    async def rows() -> AsyncIterator[bytes]:
        yield b"PGCOPY\n\xff\r\n\0"
        await asyncio.Event().wait()

    await cut_off.execute("BEGIN")
    await positions.compare_and_set(cut_off, TOPIC, [(0, to(0, 5))])
    copy = asyncio.create_task(cut_off.copy_to_table("item_results", source=rows(), format="binary"))
    copying_since = "SELECT clock_timestamp() - query_start FROM pg_stat_activity WHERE pid = $1 AND query LIKE 'COPY%'"
    await eventually(lambda: connection.fetchval(copying_since, cut_off.get_server_pid()))

    young = await connect_to_apply(settings.database(), "worker")
    assert not cut_off.is_closed(), "it may still go on"
    monkeypatch.setattr(copying, "COPY_TIMEOUT_S", 0.1)

    async def taken_over() -> bool:
        next_one = await connect_to_apply(settings.database(), "worker")
        try:
            async with asyncio.timeout(2):
                await positions.compare_and_set(next_one, TOPIC, [(0, to(0, 7))])
        except TimeoutError:
            return False
        finally:
            next_one.terminate()
        return True

    await eventually(taken_over)
    copy.cancel()
    await asyncio.gather(copy, return_exceptions=True)
    young.terminate()


async def test_what_ends_a_transaction_is_raised_whatever_becomes_of_its_rollback(connection: Connection) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with transaction(connection):
            connection.terminate()  # as a COPY does that is cancelled
            raise ZeroDivisionError
    with pytest.raises(InterfaceError, match="closed"):
        await connection.execute("SELECT 1")


async def test_copying_a_batch_that_is_there_already_fails(connection: Connection) -> None:
    await batches.copy_new(connection, [Batch("b", 0)])
    with pytest.raises(asyncpg.UniqueViolationError):
        await batches.copy_new(connection, [Batch("a", 0), Batch("b", 0)])
    assert await connection.fetchval("SELECT count(*) FROM batches") == 1


async def test_an_event_known_already_stays_as_it_is(connection: Connection) -> None:
    event = OutboxRow("batch.finalized/b/1", "finalized", "b", 1, '{"first":1}', "{}")
    await outbox.insert(connection, [event])
    await outbox.insert(connection, [event._replace(value='{"second":1}')])
    [(found, said)] = await outbox.unpublished(connection, 10, 1_000_000)
    assert (found.value, said) == ('{"first":1}', False)
    published = outbox.PublishedEvent(event.id, "finalized", "b", 1, NOW, 0, 5)
    await outbox.mark_published(connection, [published])
    assert await outbox.unpublished(connection, 10, 1_000_000) == []
    await outbox.insert(connection, [event])
    assert await outbox.unpublished(connection, 10, 1_000_000) == []


async def test_a_revision_not_above_the_highest_published_one_counts_as_said(connection: Connection) -> None:
    events = [OutboxRow(f"batch.finalized/b/{n}", "finalized", "b", n, "{}", "{}") for n in (1, 2, 3)]
    await outbox.insert(connection, events)
    await outbox.mark_published(
        connection, [outbox.PublishedEvent("batch.finalized/b/2", "finalized", "b", 2, NOW, 0, 5)]
    )
    assert [(row.revision, said) for row, said in await outbox.unpublished(connection, 10, 1_000_000)] == [
        (1, True),
        (3, False),
    ]


async def test_a_summary_not_above_the_highest_published_one_counts_as_said(connection: Connection) -> None:
    """Else a database begun anew would leave an old one as the newest on the compacted topic."""
    ids = ("b/1", "b/1/57", "b/2/60", "b/2/7", "b/2/80", "b/10", "c/1")
    await outbox.insert(
        connection, [OutboxRow(f"batch.summarized/{each}", "summaries", each[0], None, "{}", "{}") for each in ids]
    )
    found = outbox.PublishedEvent("batch.summarized/b/2/60", "summaries", "b", None, NOW, 0, 5)
    await outbox.mark_published(connection, [found])
    said = {
        row.id.removeprefix("batch.summarized/"): said for row, said in await outbox.unpublished(connection, 9, 999)
    }
    assert said == {"b/1": True, "b/1/57": True, "b/2/7": True, "b/2/80": False, "b/10": False, "c/1": False}


async def test_what_is_read_to_be_published_is_bounded_in_bytes(connection: Connection) -> None:
    events = [OutboxRow(f"e{n}", "alerts", None, None, json.dumps("x" * 1_000), "{}") for n in range(5)]
    await outbox.insert(connection, events)
    assert [row.id for row, _ in await outbox.unpublished(connection, 10, 1_003)] == ["e0", "e1"]
    values = [b"x" * 1_000, None, b"x" * 1_000, b"x", None]
    keys = [None, b"k", None, b"k" * 5_000, None]
    letters = [
        DeadLetterRow("t", 0, n, NOW, "r", "m", None, key, value, "[]")
        for n, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    await outbox.insert_dead_letters(connection, letters)
    found = await outbox.unpublished_dead_letters(connection, 10, 5_000)
    assert [row.record_offset for row in found] == [0, 1, 2, 3]
    found = await outbox.unpublished_dead_letters(connection, 10, 1_006)
    assert [row.record_offset for row in found] == [0, 1, 2]
    assert len(await outbox.unpublished_dead_letters(connection, 10, 1)) == 1
    marks = [outbox.PublishedDeadLetter(letter, NOW, 1, 7) for letter in found]
    await outbox.mark_dead_letters_published(connection, marks)
    assert [row.record_offset for row in await outbox.unpublished_dead_letters(connection, 10, 9_999)] == [3, 4]


# --- plans -------------------------------------------------------------------------------------------------------


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", ()) for node in nodes(inner))]


async def plan_of(connection: Connection, query: str, *parameters: str) -> list[dict[str, Any]]:
    """The nodes of a statement's generic plan, as a worker's connection gets it."""
    await connection.execute(f"PREPARE planned AS {query}")
    try:
        explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE planned({', '.join(parameters)})")
    finally:
        await connection.execute("DEALLOCATE planned")
    return nodes(json.loads(explained)[0]["Plan"])


def scanned(plan: list[dict[str, Any]]) -> set[str]:
    return {node["Relation Name"] for node in plan if node["Node Type"] == "Seq Scan"}


def indexes(plan: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in plan if "Index Name" in node}


@pytest.fixture
async def filled(connection: Connection) -> Connection:
    """A few thousand rows in every table, as they lie after a while."""
    await connection.execute("""
        INSERT INTO item_results (version, received_at, attempt, generation, batch_id, item_id, status)
        SELECT i, now(), 1, 0, 'b' || b, 'i' || i, CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'succeeded' END
        FROM generate_series(1, 20) b, generate_series(1, 1000) i;
        INSERT INTO late_results SELECT * FROM item_results WHERE version < 200;
        INSERT INTO expected_items SELECT 'b' || b, 'i' || i FROM generate_series(1, 20) b, generate_series(1, 1010) i;
        INSERT INTO outbox (id, channel, batch_id, revision, value, published_at)
        SELECT 'e' || i, 'finalized', 'b' || i, 1, '{}', CASE WHEN i < 4990 THEN now() END
        FROM generate_series(1, 5000) i;
        INSERT INTO dead_letters (topic, partition, record_offset, appended_at, reason, message, headers, published_at)
        SELECT 't', 0, i, now(), 'r', 'm', '[]', CASE WHEN i < 4990 THEN now() END FROM generate_series(1, 5000) i;
        INSERT INTO batches (batch_id, partition, state, sealed)
        SELECT 'b' || i, 0, 'pending', false FROM generate_series(1, 5000) i;
        ANALYZE""")
    return connection


LOOKUPS = pytest.mark.parametrize(
    ("query", "table"),
    [
        (items._REGISTERS["item_results"], "item_results"),
        (items._REGISTERS["late_results"], "late_results"),
        (items._UNEXPECTED, "expected_items"),
        (items._FORGET_LATE, "late_results"),
    ],
    ids=["registers", "late registers", "on manifest", "forgotten late registers"],
)


@LOOKUPS
async def test_looking_up_items_asks_for_each_by_its_whole_key(filled: Connection, query: str, table: str) -> None:
    await asks_by_whole_keys(filled, query, table)


@LOOKUPS
async def test_so_it_does_where_nothing_is_known_of_the_tables(connection: Connection, query: str, table: str) -> None:
    await asks_by_whole_keys(connection, query, table)


async def asks_by_whole_keys(connection: Connection, query: str, table: str) -> None:
    parameters = ["'{b1,b2}'", "'{i1,i2}'", "'{1,1}'"]
    plan = await plan_of(connection, query, *parameters[: 3 if "$3" in query else 2])
    assert scanned(plan) == set()
    assert indexes(plan) == {f"{table}_pkey"}
    for condition in (node["Index Cond"] for node in plan if "Index Name" in node):
        assert "batch_id = " in condition, condition
        assert "item_id = " in condition, condition


async def test_who_is_on_which_manifest_is_said_of_each_batch(filled: Connection) -> None:
    asked = {"b1": {"i1", "x", "i1\u2028"}, "b2": set[str](), "none": {"i1"}, "b3": {"i7", "i8"}}
    others = await items.unexpected(filled, {batch_id: items.Lines.of(ids) for batch_id, ids in asked.items()})
    assert others == {"b1": {"x", "i1\u2028"}, "b2": set(), "none": {"i1"}, "b3": set()}


async def test_failed_ids_come_from_the_partial_index(filled: Connection) -> None:
    plan = await plan_of(filled, items._FAILED, "'{b1,b2}'", "'{100,100}'")
    assert scanned(plan) == set()
    assert indexes(plan) == {"item_results_failed"}
    failed = await items.failed_ids(filled, {"b1": 3, "b2": 2, "none": 3})
    assert failed == {"b1": ["i100", "i1000", "i150"], "b2": ["i100", "i1000"]}


async def test_missing_ids_never_scan_the_results(filled: Connection) -> None:
    plan = await plan_of(filled, items._MISSING, "'{b1,b2}'", "'{100,100}'")
    assert scanned(plan) == set()
    assert indexes(plan) <= {"expected_items_pkey", "item_results_pkey"}
    assert await items.missing_ids(filled, {"b1": 3}) == {"b1": ["i1001", "i1002", "i1003"]}


async def test_loading_batches_never_scans(filled: Connection) -> None:
    plan = await plan_of(filled, batches._LOAD, "'{b1,b2}'")
    assert scanned(plan) == set()


async def test_the_relay_finds_what_is_unpublished_by_its_partial_index(filled: Connection) -> None:
    events = await plan_of(filled, outbox._UNPUBLISHED, "1000", "1000000")
    assert scanned(events) == set()
    assert indexes(events) == {"outbox_unpublished", "outbox_revisions", "outbox_pkey"}
    letters = await plan_of(filled, outbox._UNPUBLISHED_DEAD_LETTERS, "1000", "1000000")
    assert scanned(letters) == set()
    assert indexes(letters) == {"dead_letters_unpublished"}
    assert len(await outbox.unpublished(filled, 1_000, 1_000_000)) == 11
    arrays = ["'{t}'", "'{0}'", "'{7}'", "'{2026-01-01T00:00:00Z}'", "'{0}'", "'{1}'"]
    marked = await plan_of(filled, outbox._MARK_DEAD_LETTERS, *arrays)
    assert scanned(marked) == set()
    assert indexes(marked) == {"dead_letters_pkey"}
