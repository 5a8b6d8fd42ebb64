"""`rollcall batch ...` as its users meet it: real commands on a real database."""

import asyncio
import json
import os
import pty
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from sqlalchemy import text

from migrations.run import migrate
from rollcall.rendering import ColumnStyle, column_widths, showable
from rollcall.settings import Settings
from rollcall.supervisor import REFUSED
from schemas.published import (
    BatchSummarized,
    DurationStatistics,
    ErrorGroup,
    ItemCounts,
    WorkerStatistics,
    WriteCounts,
)
from schemas.topics import Topics
from store import reads
from tests.harness.commands import argv, environment, rollcall
from tests.harness.stored import START, StoredRows, stored_rows

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[StoredRows]:
    await migrate(settings.database_url, settings.database_schema)
    async with stored_rows(settings) as stored:
        yield stored


async def asked(settings: Settings, *arguments: str) -> dict[str, Any]:
    done = await rollcall(settings, "batch", *arguments, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return dict(json.loads(done.stdout))


async def lines(settings: Settings, *arguments: str) -> list[str]:
    done = await rollcall(settings, "batch", *arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


async def test_a_finalized_batch_is_shown_with_the_record_that_decided(database: StoredRows) -> None:
    await database.finalized(
        "invoices", outcome="completed_with_errors", total_items=10, succeeded=7, failed=3, name="Müller & Söhne"
    )
    await database.applied(3, 99)
    found = await asked(database.settings, "show", "invoices")
    assert found["status"] == found["outcome"] == "completed_with_errors"
    assert (found["state"], found["finalized_by"], found["revision"]) == ("finalized", "all_items_in", 1)
    assert (found["total"], found["answered"], found["failed"], found["missing"]) == (10, 10, 3, 0)
    assert (found["progress_percent"], found["error_summary"]) == (100.0, "3 of 10 failed")
    assert (found["finalized_at"], found["published_at"]) == ("2026-11-22T10:00:05.123Z", None)
    topic = Topics(database.settings.topic_prefix).events
    assert found["as_of"] == {"topic": topic, "partition": 3, "offset": 41}

    shown = "\n".join(await lines(database.settings, "show", "invoices"))
    for expected in ("[##############################] 100.0%", "Müller & Söhne", "3 of 10 failed", "offset 41"):
        assert expected in shown


async def test_an_open_batch_is_shown_as_of_the_last_record_applied(database: StoredRows) -> None:
    await database.batch("orders", state="processing", first_result_at=START, total_items=3, succeeded=1)
    await database.applied(3, 99)
    found = await asked(database.settings, "show", "orders")
    assert (found["status"], found["progress_percent"], found["missing"]) == ("processing", 33.3, 2)
    assert found["as_of"]["offset"] == 98


async def test_the_newest_batches_come_first_page_by_page_each_once(database: StoredRows) -> None:
    for minute in range(5):
        await database.batch(f"b{minute}", minute=minute // 2, name="odd" if minute % 2 else None, total_items=1)
    for batch_id in ("announced-1", "announced-2"):
        await database.batch(batch_id, opened_at=None)
    seen: list[str] = []
    after: list[str] = []
    while True:
        page = await asked(database.settings, "list", "--limit", "2", *after)
        seen += [each["batch_id"] for each in page["batches"]]
        if page["next"] is None:
            break
        after = ["--after", page["next"]]
    assert seen == ["b4", "b3", "b2", "b1", "b0", "announced-2", "announced-1"]
    odd = await asked(database.settings, "list", "--name", "odd")
    assert [each["batch_id"] for each in odd["batches"]] == ["b3", "b1"]
    assert (await asked(database.settings, "list", "--status", "completed"))["batches"] == []


async def test_items_are_paged_by_id_and_chosen_by_status(database: StoredRows) -> None:
    await database.batch("b", state="processing", first_result_at=START)
    for number in range(5):
        error = {"error_code": "TIMEOUT", "error_message": "no\nanswer \x1b[31m"} if number % 2 else {}
        status = "failed" if number % 2 else "succeeded"
        await database.item("b", f"i{number}", status, version=number, duration_ms=12.5, worker="w", **error)
    first = await asked(database.settings, "items", "b", "--limit", "3")
    assert ([each["item_id"] for each in first["items"]], first["next"]) == (["i0", "i1", "i2"], "i2")
    rest = await asked(database.settings, "items", "b", "--after", "i2")
    assert ([each["item_id"] for each in rest["items"]], rest["next"]) == (["i3", "i4"], None)
    [failed, _] = (await asked(database.settings, "items", "b", "--status", "failed"))["items"]
    assert (failed["item_id"], failed["partition"], failed["offset"]) == ("i1", 3, 1)
    assert failed["error_message"] == "no\nanswer \x1b[31m"

    heading, *rows = await lines(database.settings, "items", "b")
    assert heading.split() == ["ITEM", "STATUS", "TRY", "TOOK", "AT", "WORKER", "ERROR"]
    assert len(rows) == 5
    assert rows[1].split(maxsplit=7)[-1] == r"TIMEOUT: no\nanswer \x1b[31m"


async def test_the_missing_are_named_where_a_manifest_names_them(database: StoredRows) -> None:
    await database.batch("b", state="processing", first_result_at=START, expected=5, matched=2, succeeded=1, failed=1)
    await database.manifest("b", "a", "b", "c", "d", "é")
    await database.item("b", "a", "succeeded")
    await database.item("b", "b", "failed")
    await database.item("b", "c", "retrying")
    await database.item("b", "stranger", "succeeded")
    first = await asked(database.settings, "missing", "b", "--limit", "2")
    assert first == {"batch_id": "b", "total": 5, "missing": 3, "item_ids": ["c", "d"], "next": "d"}
    assert (await asked(database.settings, "missing", "b", "--after", "d"))["item_ids"] == ["é"]
    done = await rollcall(database.settings, "batch", "missing", "b")
    assert done.stdout == "c\nd\né\n"
    assert done.stderr == "3 of 5 items are missing\n"


async def test_where_only_a_total_is_known_the_missing_are_counted(database: StoredRows) -> None:
    await database.batch("b", state="processing", first_result_at=START, total_items=5, succeeded=1)
    found = await asked(database.settings, "missing", "b")
    assert found == {"batch_id": "b", "total": 5, "missing": 4, "item_ids": None, "next": None}
    [line] = await lines(database.settings, "missing", "b")
    assert line.startswith("4 of 5 items are missing")
    assert "no manifest" in line


async def test_stack_traces_are_shown_where_asked_for(database: StoredRows) -> None:
    await database.batch("b", state="processing", first_result_at=START)
    await database.item("b", "i", "failed", error_message="boom", stack_trace="Traceback\n  at \x1b[31mline 1")
    without = await asked(database.settings, "items", "b")
    assert [each["stack_trace"] for each in without["items"]] == [None]
    *_, first, second = await lines(database.settings, "items", "b", "--status", "failed", "--stack-traces")
    assert (first, second) == ("    Traceback", r"      at \x1b[31mline 1")


async def test_a_batch_that_was_ended_by_hand_shows_why_and_has_no_summary_yet(database: StoredRows) -> None:
    await database.finalized(
        "b",
        outcome="failed",
        finalized_by="aborted",
        reason="wrong file",
        error='{"code": "DISK", "message": "disk full"}',
        reopened_at=START,
    )
    shown = "\n".join(await lines(database.settings, "show", "b"))
    for expected in ("wrong file", "DISK: disk full", "reopened"):
        assert expected in shown
    none = await rollcall(database.settings, "batch", "summary", "b")
    assert (none.exit_code, none.stdout) == (1, "it has no summary; `rollcall batch finalize` asks for one\n")


async def test_a_summary_is_shown_with_its_workers_and_errors(database: StoredRows) -> None:
    await database.finalized("b", outcome="completed_with_errors", total_items=3, succeeded=1, failed=2)
    summary = BatchSummarized(
        batch_id="b",
        revision=1,
        outcome="completed_with_errors",
        item_counts=ItemCounts(total=3, succeeded=1, partial=0, failed=2, skipped=0, missing=0, unexpected=0),
        write_counts=WriteCounts(created=1, updated=0, unchanged=0),
        duration_ms=61_000,
        item_duration_ms=DurationStatistics(min=1, mean=2.5, p50=2, p95=4, p99=4, max=4),
        success_rate=1 / 3,
        failure_rate=2 / 3,
        items_per_second=0.05,
        metrics={"bytes": 1200.5},
        workers=[WorkerStatistics(worker="w7", items=3, failed=2, duration_ms=7.5, mean_duration_ms=2.5)],
        error_groups=[ErrorGroup(error="no answer from <address>", count=2, item_ids=["x", "y"])],
    )
    await database.connection.execute(
        "INSERT INTO summaries (batch_id, revision, state, requested_at, requested_offset, summary)"
        " VALUES ('b', 1, 'ready', now(), 0, $1)",
        summary.model_dump_json(),
    )
    shown = "\n".join(await lines(database.settings, "summary", "b"))
    for expected in ("66.7%", "1 min 01 s", "p95 4 ms", "1,200.5", "w7", "no answer from <address>", "x, y"):
        assert expected in shown
    found = await asked(database.settings, "summary", "b")
    assert (found["summary_state"], found["summary"]) == ("ready", summary.model_dump())


@pytest.mark.parametrize("command", ["show", "items", "missing"])
async def test_an_unknown_batch_is_one_line_and_exit_code_1(database: StoredRows, command: str) -> None:
    done = await rollcall(database.settings, "batch", command, "n\x1bope")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == 'rollcall: there is no batch "n\\x1bope"\n'


async def test_a_schema_that_is_not_there_is_one_line_that_says_what_to_run(settings: Settings) -> None:
    done = await rollcall(settings, "batch", "list")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("rollcall: ")
    assert "rollcall migrate" in done.stderr
    assert done.stderr.count("\n") == 1


REACHING = (
    ("migrate",),
    ("batch", "list"),
    ("batch", "as-of", "b", "--offset", "0"),
    ("batch", "explain", "b"),
    ("verify",),
    ("replay", "--into", "shadow"),
    ("promote", "shadow", "--yes"),
    ("prune", "--older-than", "1d", "--yes"),
    ("dead-letters", "list"),
)


@pytest.mark.parametrize("command", REACHING, ids=" ".join)
async def test_postgresql_out_of_reach_is_one_line_that_names_it_and_no_password(command: tuple[str, ...]) -> None:
    url = "postgresql+asyncpg://me:secret@127.0.0.1:1/db"
    done = await rollcall(Settings(bootstrap_servers="127.0.0.1:1", database_url=url), *command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "rollcall: PostgreSQL at 127.0.0.1:1 (ROLLCALL_DATABASE_URL) cannot be reached: connection refused\n"
    )


@pytest.mark.parametrize(
    ("command", "exit_code"), [(("batch", "list"), 1), (("migrate",), 1), (("worker",), REFUSED), (("relay",), REFUSED)]
)
async def test_a_user_whom_postgresql_refuses_is_one_line(
    settings: Settings, command: tuple[str, ...], exit_code: int
) -> None:
    _, at, rest = settings.database_url.partition("@")
    refused = settings.model_copy(update={"database_url": f"postgresql+asyncpg://nobody:secret{at}{rest}"})
    done = await rollcall(refused, *command)
    assert (done.exit_code, done.stdout) == (exit_code, "")
    # A role may have logged where its metrics are before.
    said = [line for line in done.stderr.splitlines() if "metrics and health" not in line]
    assert len(said) == 1
    assert said[0].startswith("rollcall: PostgreSQL at ")
    assert '"nobody"' in said[0]
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("batch", "items", "b", "--status", "odd"), ("batch", "list", "--limit", "0"), ("batch", "nope")]
)
async def test_wrong_use_is_one_line_that_points_to_the_help(settings: Settings, arguments: tuple[str, ...]) -> None:
    done = await rollcall(settings, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("rollcall: ")
    assert "--help`" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_table_fits_a_terminal_of_80_columns_and_wide_characters(database: StoredRows) -> None:
    for number, batch_id in enumerate(("b" * 200, "完了したバッチ" * 9, "plain")):
        await database.finalized(batch_id, outcome="completed_with_errors", failed=number, name="名前" * 40)
    shown = await asyncio.to_thread(on_a_terminal, database.settings, "batch", "list")
    assert "completed_with_errors" in shown
    assert [line for line in shown.splitlines() if cell_len(line) > 80] == []


def on_a_terminal(settings: Settings, *arguments: str) -> str:
    ours, theirs = pty.openpty()
    environ = environment(settings) | {"COLUMNS": "80", "TERM": "dumb"}
    process = subprocess.Popen(argv(*arguments), stdout=theirs, env=environ)
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(ours)
    assert process.wait(60) == 0
    return output.decode()


async def test_no_read_scans_the_items_and_a_page_reads_no_more_than_it_shows(database: StoredRows) -> None:
    await database.connection.execute("""
        INSERT INTO item_results (version, received_at, attempt, generation, batch_id, item_id, status)
        SELECT i, now(), 1, 0, 'b' || i % 40, 'i' || i, CASE WHEN i % 1000 < 40 THEN 'failed' ELSE 'succeeded' END
        FROM generate_series(1, 80000) i
    """)
    await database.connection.execute("INSERT INTO expected_items SELECT batch_id, item_id FROM item_results")
    await database.connection.execute("INSERT INTO expected_items SELECT 'b1', 'z' || i FROM generate_series(1, 9) i")
    await database.batch("b1", state="processing", first_result_at=START)
    await database.connection.execute("ANALYZE")
    engine = database.settings.database().engine("test")
    topic = Topics(database.settings.topic_prefix).events
    read = text("""
        SELECT seq_scan, coalesce(idx_tup_fetch, 0) AS rows FROM pg_stat_xact_user_tables
        WHERE relid = 'item_results'::regclass
    """)
    rows_read = []
    try:
        async with reads.snapshot(engine) as connection:
            await reads.batch(connection, topic, "b1")
            await reads.batches(connection, topic)
            for look in (
                lambda: reads.items(connection, "b1", limit=10),
                lambda: reads.items(connection, "b1", after="i5", limit=10),
                lambda: reads.items(connection, "b1", status="failed", limit=10),
                lambda: reads.missing(connection, "b1"),
            ):
                before = (await connection.execute(read)).one_or_none()
                page = await look()
                assert page.rows
                after = (await connection.execute(read)).one()
                assert after.seq_scan == 0
                rows_read.append(after.rows - (before.rows if before else 0))
    finally:
        await engine.dispose()
    *pages, missing = rows_read
    assert all(rows <= 11 for rows in pages), rows_read
    assert missing <= 2_000, rows_read


@given(
    st.lists(st.tuples(st.integers(1, 250), st.sampled_from(["fixed", "folded", "cut"]), st.booleans()), max_size=6),
    st.integers(40, 200),
)
async def test_columns_never_take_more_room_than_there_is(rest: list[tuple[int, Any, bool]], room: int) -> None:
    natural = [200, 21, *(width for width, _, _ in rest)]
    columns = [
        ColumnStyle("id", "folded"),
        ColumnStyle("status"),
        *(ColumnStyle("x", "cut" if fits == "fixed" else fits, needed=needed) for _, fits, needed in rest),
    ]
    widths = column_widths(columns, natural, room)
    assert 0 in widths
    assert sum(widths.values()) + 2 * (len(widths) - 1) <= max(room, 21 + 3 * len(widths))


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a b-ü🎉", "a b-ü🎉"), ("a\nb\tc", r"a\nb\tc"), ("\x1b[2J", r"\x1b[2J"), ("gnp.\u202eexe", r"gnp.\u202eexe")],
)
async def test_what_could_do_something_to_a_terminal_is_escaped(given: str, shown: str) -> None:
    assert showable(given) == shown
