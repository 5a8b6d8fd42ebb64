"""What the API says of batches and items, from rows put there by hand."""

import asyncio
import csv
import io
import json
import re
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from api import history, serving
from handlers.alerts import failure_rate_event, raised_event, retry_event
from handlers.finalization import finalized_event
from handlers.overdue import overdue_event
from handlers.records import RaisedAlert, RaisedRetry
from handlers.summary import summarized_event
from rollcall.settings import Settings
from store import details, outbox
from store.overdue import Overdue
from store.rows import Batch, DeadLetterRow, OutboxRow
from store.summaries import PendingSummary
from streams.channels import DeadLetters, Events
from tests.harness.api import ServedApi
from tests.harness.api import serving as serve_api
from tests.harness.event_stream import listening
from tests.harness.stored import StoredRows

AWKWARD_IDS = ["a/b", "/", "//x/", "a%2Fb", "50 %", "?q=1#frag", "ä 🙂", "a+b", "..", "../x", "."]


async def test_a_batch_is_shown_with_its_counts_and_its_place_in_the_log(api: ServedApi, rows: StoredRows) -> None:
    await rows.applied(3, 100)
    await rows.finalized("b", total_items=10, succeeded=7, failed=3, outcome="completed_with_errors", policy="{}")
    found = await api.get("batches/b")
    assert (found["status"], found["total"], found["error_summary"]) == ("completed_with_errors", 10, "3 of 10 failed")
    assert found["as_of"] == {"topic": api.context.topics.events, "partition": 3, "offset": 41}
    assert found["finalized_at"] == "2026-11-22T10:00:05.123000Z"


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
async def test_a_moment_beyond_the_calendar_is_refused(api: ServedApi, moment: str) -> None:
    refused = await api.get("batches", 422, opened_since=moment)
    assert refused["errors"][0]["field"] == "opened_since"


async def test_who_waits_in_vain_for_others_that_ask_why_is_told_so(
    api: ServedApi, rows: StoredRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "WHY_TURN_TIMEOUT_S", 0.01, raising=False)
    monkeypatch.setattr(history, "WHY_TIMEOUT_S", 0.01)
    await rows.batch("b")
    async with api.context.asking_why, api.context.asking_why:
        refused = await api.get("batches/b/why", 503)
    assert refused["detail"].startswith("too many ask why")


async def test_what_is_unknown_is_a_problem(api: ServedApi, rows: StoredRows) -> None:
    response = await api.client.get("/api/batches/nobody")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": 'there is no batch "nobody"',
    }
    await rows.batch("b")
    for path in ("batches/%00", "batches/b/items/x", "batches/b/items/", "batches/b/items/%00", "batches/b/summary"):
        assert (await api.get(path, 404))["status"] == 404
    for path in ("items", "missing", "failures", "timeline", "results", "summary", "events"):
        await api.get(f"batches/nobody/{path}", 404)
    assert (await api.get("nowhere", 404))["detail"] == "there is no such path"


async def test_the_newest_batches_come_first_in_pages_and_can_be_filtered(api: ServedApi, rows: StoredRows) -> None:
    for number in range(5):
        metadata = json.dumps({"team": "blue" if number % 2 else "red", "n": number})
        await rows.batch(f"b{number}", minute=number, name=f"job {number % 2}", metadata=metadata)
    await rows.finalized("done", minute=9, outcome="failed", total_items=1, failed=1)

    first = await api.get("batches", limit=4)
    rest = await api.get("batches", limit=4, cursor=first["next"])
    assert [each["batch_id"] for each in first["batches"] + rest["batches"]] == ["done", "b4", "b3", "b2", "b1", "b0"]
    assert rest["next"] is None

    async def ids(**filters: Any) -> list[str]:
        return [each["batch_id"] for each in (await api.get("batches", **filters))["batches"]]

    assert await ids(status="failed") == ["done"]
    assert await ids(name="job 1") == ["b3", "b1"]
    assert await ids(metadata="team:red") == ["b4", "b2", "b0"]
    assert await ids(metadata=["team", "n:3"]) == ["b3"]
    assert await ids(opened_since="2026-11-22T10:04:00Z") == ["done", "b4"]
    assert await ids(batch_id="b2") == ["b2"]
    assert (await api.get("batches", 422, cursor="nobody"))["errors"][0]["field"] == "cursor"
    assert (await api.get("batches", 422, limit=0))["errors"][0]["field"] == "limit"
    assert (await api.get("batches", 422, name="\0"))["errors"][0]["field"] == "name"
    assert (await api.get("batches", 422, opened_since="2026-11-22T10:04:00"))["errors"][0]["field"] == "opened_since"


async def test_items_are_listed_by_id_and_found_whatever_their_ids_hold(api: ServedApi, rows: StoredRows) -> None:
    await rows.batch("b")
    for item_id in AWKWARD_IDS:
        await rows.item("b", item_id, "succeeded", message=f"<{item_id}>")
    first = await api.get("batches/b/items", limit=6)
    rest = await api.get("batches/b/items", limit=6, cursor=first["next"])
    listed = [each["item_id"] for each in first["items"] + rest["items"]]
    assert listed == sorted(AWKWARD_IDS, key=str.encode)
    for item_id in AWKWARD_IDS:
        [found] = (await api.get("batches/b/items", item_id=item_id))["items"]
        assert found["message"] == f"<{item_id}>"
        if set(item_id.split("/")).isdisjoint({".", ".."}):  # clients take those out of a path before they send it
            assert (await api.get(f"batches/b/items/{quote(item_id, safe='')}"))["item_id"] == item_id


async def test_an_item_is_shown_with_all_that_is_known_of_it(api: ServedApi, rows: StoredRows) -> None:
    await rows.finalized("b", outcome="completed_with_errors", expected=2)
    await rows.manifest("b", "bad", "absent")
    await rows.item(
        "b",
        "bad",
        "failed",
        17,
        attempt=3,
        error_code="E1",
        error_message="<script>",
        stack_trace="at x",
        output='{"a": [1]}',
        metrics='{"bytes": 5}',
    )
    found = await api.get("batches/b/items/bad")
    assert found["error"] == {"code": "E1", "message": "<script>", "stack_trace": "at x"}
    assert (found["attempt"], found["partition"], found["offset"], found["expected"]) == (3, 3, 17, True)
    assert (found["output"], found["metrics"]) == ({"a": [1]}, {"bytes": 5})
    absent = await api.get("batches/b/items/absent")
    assert (absent["status"], absent["attempt"], absent["error"]) == ("missing", None, None)


async def test_the_missing_are_named_where_a_manifest_does(api: ServedApi, rows: StoredRows) -> None:
    await rows.batch("b", expected=4, matched=1, succeeded=1, state="processing", first_result_at=rows.start)
    await rows.manifest("b", "i1", "i2", "i3", "i4")
    await rows.item("b", "i2", "succeeded")
    page = await api.get("batches/b/missing", limit=2)
    assert page == {"total": 4, "missing": 3, "item_ids": ["i1", "i3"], "next": "i3"}
    assert (await api.get("batches/b/missing", cursor="i3"))["item_ids"] == ["i4"]
    assert (await api.get("batches/b/missing", find="I3"))["item_ids"] == ["i3"]
    assert (await api.get("batches/b/missing", find="%"))["item_ids"] == []
    await rows.batch("only a number", total_items=7)
    unnamed = await api.get("batches/only a number/missing")
    assert (unnamed["missing"], unnamed["item_ids"]) == (7, None)


async def test_failures_are_grouped_by_their_error(api: ServedApi, rows: StoredRows) -> None:
    await rows.batch("b", failed=7, state="processing", first_result_at=rows.start)
    for number in range(4):
        await rows.item("b", f"t{number}", "failed", error_code="timeout", error_message=f"after {number} s")
    for number in range(2):
        await rows.item("b", f"n{number}", "failed", error_message=f"no such user: {4000 + number}")
    await rows.item("b", "x", "failed")
    found = await api.get("batches/b/failures")
    assert found["failed"] == 7
    assert [(each["error"], each["count"]) for each in found["groups"]] == [
        ("timeout", 4),
        ("no such user: <n>", 2),
        ("no error given", 1),
    ]
    assert found["groups"][1]["item_ids"] == ["n0", "n1"]


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t"])
async def test_a_download_holds_every_result_and_no_formula(api: ServedApi, rows: StoredRows, begin: str) -> None:
    await rows.batch("b")
    count = 2 * details.RESULTS_PAGE + 1
    await rows.connection.execute(
        "INSERT INTO item_results (version, received_at, attempt, generation, batch_id, item_id, status, message)"
        " SELECT n, now(), 1, 0, 'b', to_char(n, 'FM00000'), 'succeeded', $2 FROM generate_series(1, $1::int) n",
        count,
        f'{begin}cmd|"/C calc"!A0',
    )
    response = await api.client.get("/api/batches/b/results", params={"format": "csv"})
    table = list(csv.DictReader(io.StringIO(response.text)))
    assert response.headers["content-disposition"] == 'attachment; filename="results.csv"'
    assert [int(row["item_id"]) for row in table] == list(range(1, count + 1))
    assert {row["message"] for row in table} == {f'\'{begin}cmd|"/C calc"!A0'}

    response = await api.client.get("/api/batches/b/results", params={"format": "ndjson", "status": "succeeded"})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert len(lines) == count
    assert lines[0]["message"] == f'{begin}cmd|"/C calc"!A0'


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell who takes nothing")
async def test_a_download_that_nobody_reads_is_ended(
    migrated: Settings, rows: StoredRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STALLED_S", 0.5)
    await rows.batch("b")
    await rows.connection.execute(
        "INSERT INTO item_results (version, received_at, attempt, generation, batch_id, item_id, status, output)"
        " SELECT n, now(), 1, 0, 'b', to_char(n, 'FM00000'), 'succeeded', to_jsonb(repeat('x', 60000))"
        " FROM generate_series(1, $1::int) n",
        2 * details.RESULTS_PAGE,
    )
    began, ended = asyncio.Event(), asyncio.Event()
    pages = details.results

    async def watched(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        try:
            async for page in pages(*arguments, **options):
                began.set()
                yield page
        finally:
            ended.set()

    monkeypatch.setattr(details, "results", watched)
    async with serve_api(migrated) as api, listening(api.url, "/api/batches/b/results", reading=False):
        await asyncio.wait_for(began.wait(), 30)
        await asyncio.wait_for(ended.wait(), 30)


async def test_the_timeline_tells_what_happened_and_where_it_says_so(api: ServedApi, rows: StoredRows) -> None:
    await rows.finalized("b", outcome="completed", total_items=1, succeeded=1)
    topic = api.context.topics.events
    await rows.connection.execute(
        "INSERT INTO dead_letters (topic, partition, record_offset, appended_at, reason, message, batch_id, headers)"
        " VALUES ($1, 3, 12, now(), 'not_applicable', 'too late', 'b', '[]')",
        topic,
    )
    events = (await api.get("batches/b/timeline"))["events"]
    assert [each["what"] for each in events] == ["opened", "first_result", "finalized", "dead_letter"]
    assert (events[2]["detail"], events[2]["topic"], events[2]["partition"], events[2]["offset"]) == (
        "revision 1: completed (all_items_in)",
        topic,
        3,
        41,
    )
    assert (events[3]["detail"], events[3]["offset"]) == ("not_applicable: too late", 12)


async def test_the_timeline_has_all_that_went_out_about_a_batch_and_nothing_else(
    api: ServedApi, rows: StoredRows
) -> None:
    topics, batch = api.context.topics, Batch("b-1", 3, state="finalized", outcome="failed", finalized_by="forced")
    batch.revision, batch.finalized_at, batch.decided_offset, batch.failed = 2, rows.start, 41, 1

    def about(batch: Batch) -> list[OutboxRow]:
        raised = RaisedAlert("batch.first_failure", 7, rows.start, "one failed", {})
        late = Overdue(batch.batch_id, 0, "batch.slow_detected", rows.start, 1.0, 0, None, None)
        found = [
            finalized_event(batch, topics, failed_item_ids=[], missing_item_ids=[], traceparent=None),
            raised_event(topics, batch, raised, None),
            overdue_event(topics, late),
            failure_rate_event(topics, batch, 0.5, None),
            retry_event(topics, batch, RaisedRetry(7, rows.start, "a", ["i1", "i2"]), None),
            summarized_event(topics, PendingSummary(batch.batch_id, 2, rows.start, 41, 0, 1), batch, '{"revision":2}'),
        ]
        return [event for event in found if event is not None]

    await rows.finalized("b-1", revision=2, outcome="failed", failed=1)
    for other in ("b", "b-", "b-1!", "b-10", "b-1.", "b-1:", "b-2", "ä"):
        await outbox.insert(rows.connection, about(msgspec.structs.replace(batch, batch_id=other)))
    await outbox.insert(rows.connection, about(batch))
    await Events(topics).quarantine(rows.connection, about(batch)[0], "too large")
    letter = DeadLetterRow(topics.events, 3, 12, rows.start, "unstorable", "no", "b-1", b"b-1", b"{", "[]")
    await outbox.insert_dead_letters(rows.connection, [letter])
    await DeadLetters(topics).quarantine(rows.connection, letter, "too large")

    events = (await api.get("batches/b-1/timeline"))["events"]
    known = {"opened", "first_result", "dead_letter"}
    assert sorted((each["what"], each["detail"].partition(":")[0]) for each in events if each["what"] not in known) == [
        ("alert", "batch.failure_rate_exceeded"),
        ("alert", "batch.first_failure"),
        ("alert", "batch.slow_detected"),
        ("alert", "relay.record_refused"),
        ("alert", "relay.record_refused"),
        ("finalized", "revision 2"),
        ("retry_requested", "2 items asked for"),
        ("summarized", "revision 2"),
    ]


async def test_why_a_batch_is_not_done_is_said_in_sentences(api: ServedApi, rows: StoredRows) -> None:
    await rows.batch("b", expected=2, matched=0)
    await rows.manifest("b", "i1", "i2")
    found = await api.get("batches/b/why")
    assert found["missing"] == {"count": 2, "item_ids": ["i1", "i2"]}
    assert "missing_items" in [each["code"] for each in found["findings"]]


async def test_every_answer_has_the_security_headers(api: ServedApi) -> None:
    for path in ("/api/batches", "/api/nowhere", "/openapi.json"):
        headers = (await api.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


async def test_a_page_offers_a_retry_of_those_only_that_can_be_named(api: ServedApi, rows: StoredRows) -> None:
    async def offered(batch_id: str) -> list[tuple[str, str]]:
        text = (await api.client.get(f"/batches/{batch_id}")).text
        return re.findall(r'data-action="(\w+)".* data-items="(\d+)"', text)

    await rows.finalized("named", outcome="failed", expected=2, matched=1, failed=1)
    await rows.manifest("named", "a", "b")
    await rows.finalized("unnamed", outcome="failed", total_items=2, failed=1)
    await rows.finalized("only-unnamed", outcome="failed", finalized_by="forced", total_items=2)
    await rows.finalized("done", outcome="completed", total_items=2, succeeded=2)
    assert await offered("named") == [("retry", "2"), ("reopen", "2")]
    assert await offered("unnamed") == [("retry", "1"), ("reopen", "2")]
    assert await offered("only-unnamed") == [("reopen", "2")]
    assert await offered("done") == []


async def test_the_audit_comes_in_pages_like_all_lists(api: ServedApi, rows: StoredRows) -> None:
    await rows.connection.execute(
        "INSERT INTO audit (caller, action) SELECT 'somebody', 'run ' || n FROM generate_series(1, 3) n"
    )
    first = await api.get("audit", limit=2)
    rest = await api.get("audit", limit=2, cursor=first["next"])
    assert [each["action"] for each in first["actions"] + rest["actions"]] == ["run 3", "run 2", "run 1"]
    assert rest["next"] is None


async def test_a_pruned_batch_says_so_and_is_left_alone(api: ServedApi, rows: StoredRows) -> None:
    await rows.applied(3, 100)
    await rows.finalized(
        "b", total_items=3, succeeded=1, failed=1, outcome="completed_with_errors", pruned_at=rows.start
    )
    found = await api.get("batches/b")
    assert (found["pruned_at"], found["failed"], found["missing"]) == ("2026-11-22T10:00:00.123000Z", 1, 1)
    assert (await api.get("batches/b/items"))["items"] == []
    assert "pruned" in [each["what"] for each in (await api.get("batches/b/timeline"))["events"]]
    for action, body in (
        ("reopen", {}),
        ("reopen", {"item_ids": ["i1"]}),
        ("retry", {}),
        ("retry", {"item_ids": ["i1"]}),
        ("finalize", {}),
    ):
        problem = await api.post(f"batches/b/{action}", body, 409)
        assert "items were pruned" in problem["detail"], action
    said = {each["code"]: each["text"] for each in (await api.get("batches/b/why"))["findings"]}
    assert said["never_answered"] == "1 of 3 items had not answered when it ended; which, is not known any more"
    page = await api.client.get("/batches/b")
    assert 'id="pruned"' in page.text
    assert "1 items have not answered. Which, is not kept any more." in page.text
    assert 'data-action="' not in page.text, "there is nothing to be done with it"
