"""What is submitted over HTTP goes through the stream: a real worker and a real relay decide what becomes of it."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rollcall.settings import Settings
from schemas.topics import MAX_EVENT_BYTES, Topics
from store.connection import Connection
from streams import commanding
from streams.sending import encoded
from streams.topics import ensure_topics
from tests.harness.api import ServedApi, serving
from tests.harness.product import Product, running
from tests.harness.servers import Servers
from tests.harness.stored import StoredRows, stored_rows
from tests.harness.topics import create_topic, drain
from tests.harness.waiting import eventually


@pytest.fixture(scope="module")
async def product(servers: Servers) -> AsyncIterator[Product]:
    """One worker and one relay for all tests of this module."""
    unique = f"t{uuid.uuid4().hex[:7]}"
    settings = Settings(
        bootstrap_servers=servers.bootstrap_servers,
        database_url=servers.database_url,
        topic_prefix=f"{unique}.",
        database_schema=unique,
        auth="off",
    )
    async with running(settings) as product:
        yield product


@pytest.fixture(scope="module")
async def live(product: Product) -> AsyncIterator[ServedApi]:
    """The API beside that worker and relay."""
    async with serving(product.settings) as served:
        yield served


@pytest.fixture
def batch_id(unique: str) -> str:
    return f"batch {unique}"


async def status_of(api: ServedApi, batch_id: str, *statuses: str) -> Any:
    """The batch, once it is of one of these statuses."""

    async def is_it() -> Any:
        found = await api.get(f"batches/{batch_id}")
        assert found["status"] in statuses, found["status"]
        return found

    return await eventually(is_it)


async def test_a_batch_submitted_over_http_completes_by_its_results(live: ServedApi, batch_id: str) -> None:
    response = await live.client.post(
        "/api/batches",
        json={"batch_id": batch_id, "item_ids": ["a", "b"], "name": "import", "metadata": {"team": "blue"}},
    )
    assert (response.status_code, response.headers["location"]) == (201, f"/api/batches/{batch_id.replace(' ', '%20')}")
    assert response.json() == {"batch_id": batch_id, "status": "pending", "state": "pending", "total_items": 2}
    found = (await live.client.get(response.headers["location"])).json()
    assert (found["status"], found["total"], found["metadata"]) == ("pending", 2, {"team": "blue"})

    results = [{"item_id": "a", "status": "succeeded"}, {"item_id": "b", "status": "failed", "error": {"message": "x"}}]
    sent = await live.post(f"batches/{batch_id}/results", {"results": results}, 202)
    found = await status_of(live, batch_id, "completed_with_errors")
    assert (found["succeeded"], found["failed"]) == (1, 1)
    assert found["as_of"] == {
        "topic": live.context.topics.events,
        "partition": sent["partition"],
        "offset": sent["offset"],
    }


async def test_an_id_is_given_to_a_batch_that_has_none(live: ServedApi) -> None:
    opened = await live.post("batches", {}, 201)
    assert opened["total_items"] is None
    assert (await live.get(f"batches/{opened['batch_id']}"))["sealed"] is False


async def test_the_same_idempotency_key_has_one_effect_and_one_answer(live: ServedApi, unique: str) -> None:
    key = {"Idempotency-Key": unique}
    answers = await asyncio.gather(
        *(live.client.post("/api/batches", json={"total_items": 3}, headers=key) for _ in range(5))
    )
    assert {each.status_code for each in answers} <= {201, 409}
    [batch_id] = {each.json()["batch_id"] for each in answers if each.status_code == 201}
    again = await live.client.post("/api/batches", json={"total_items": 3}, headers=key)
    assert (again.status_code, again.json()["batch_id"]) == (201, batch_id)
    assert again.headers["location"] == f"/api/batches/{batch_id}"
    other = await live.post("batches", {"total_items": 4}, 422, **key)
    assert other["detail"] == "this Idempotency-Key was used for another request"
    audited = (await live.get("audit", batch_id=batch_id))["actions"]
    assert [each["action"] for each in audited] == ["open"]


async def test_a_failed_attempt_under_an_idempotency_key_can_be_repeated(live: ServedApi, unique: str) -> None:
    key = {"Idempotency-Key": unique}
    refused = await live.post("batches", {"total_items": 3, "item_ids": ["a"]}, 422, **key)
    assert refused["errors"][0]["field"] == "item_ids"
    await live.post("batches", {"total_items": 3}, 201, **key)


async def test_a_retry_that_was_not_possible_can_be_repeated_under_its_key(
    live: ServedApi, batch_id: str, unique: str
) -> None:
    key = {"Idempotency-Key": unique}
    await live.post("batches", {"batch_id": batch_id, "item_ids": ["a"], "sealed": False}, 201)
    taken = await live.post(f"batches/{batch_id}/retry", {"batch_id": batch_id}, 409, **key)
    assert taken["detail"] == f'there is a batch "{batch_id}" already: choose another id'
    await live.post(f"batches/{batch_id}/retry", None, 201, **key)


async def test_a_batch_is_not_opened_twice(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "total_items": 3}, 201)
    twice = await live.post("batches", {"batch_id": batch_id, "total_items": 4}, 409)
    assert twice["detail"] == f'there is a batch "{batch_id}" already'
    assert (await live.get(f"batches/{batch_id}"))["total"] == 3


async def test_a_long_manifest_is_cut_and_arrives_whole(live: ServedApi, batch_id: str) -> None:
    ids = [f"item {number:06} {'x' * 60}" for number in range(25_000)]
    opened = await live.post("batches", {"batch_id": batch_id, "item_ids": ids}, 201)
    assert opened["total_items"] == 25_000
    found = await live.get(f"batches/{batch_id}")
    assert (found["total"], found["missing"], found["sealed"]) == (25_000, 25_000, True)


async def test_a_long_opening_of_which_a_part_is_there_says_how_to_complete_it(live: ServedApi, batch_id: str) -> None:
    ids = [f"item {number}" for number in range(10_001)]
    await live.post("batches", {"batch_id": batch_id, "item_ids": ids[:10], "sealed": False}, 201)
    refused = await live.post("batches", {"batch_id": batch_id, "item_ids": ids}, 409)
    assert "not sealed: if that is this opening" in refused["detail"]
    assert "with the Idempotency-Key that it had" in refused["detail"]
    refused = await live.post("batches", {"batch_id": batch_id, "item_ids": ids, "sealed": False}, 409)
    assert refused["detail"] == f'there is a batch "{batch_id}" already'
    await live.post(f"batches/{batch_id}/items", {"item_ids": ids}, 202)
    sealed = await live.post(f"batches/{batch_id}/seal")
    assert (sealed["batch"]["sealed"], sealed["batch"]["total"]) == (True, 10_001)
    refused = await live.post("batches", {"batch_id": batch_id, "item_ids": ids}, 409)
    assert refused["detail"] == f'there is a batch "{batch_id}" already'


async def test_a_long_opening_whose_answer_was_lost_can_be_repeated_under_its_key(
    live: ServedApi, product: Product, batch_id: str, unique: str
) -> None:
    body = {"batch_id": batch_id, "item_ids": [f"item {number}" for number in range(10_001)]}
    key = {"Idempotency-Key": unique}
    async with product.connection() as connection:
        async with answers_lost(connection):
            await live.post("batches", body, 503, **key)

        async def sealed() -> bool:
            return bool((await live.get(f"batches/{batch_id}"))["sealed"])

        await eventually(sealed, message="all that the first try sent is applied")
        await live.post("batches", body, 201, **key)
        assert await connection.fetch("SELECT message FROM dead_letters WHERE batch_id = $1", batch_id) == []
    assert (await live.get(f"batches/{batch_id}"))["total"] == 10_001


@asynccontextmanager
async def answers_lost(connection: Connection) -> AsyncIterator[None]:
    """Meanwhile writing down where a record is, behind its being sent, costs the API its connection."""
    await connection.execute("""
        CREATE FUNCTION cut_off() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE TRIGGER cut_off AFTER UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION cut_off();
    """)
    try:
        yield
    finally:
        await connection.execute("DROP FUNCTION cut_off CASCADE")


async def test_an_open_ended_batch_takes_more_items_until_it_is_sealed(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "item_ids": ["a"], "sealed": False}, 201)
    added = await live.post(f"batches/{batch_id}/items", {"item_ids": ["b", "c"]}, 202)
    assert (added["items"], added["applied"]) == (2, True)
    sealed = await live.post(f"batches/{batch_id}/seal")
    assert (sealed["batch"]["sealed"], sealed["batch"]["total"]) == (True, 3)
    refused = await live.post(f"batches/{batch_id}/items", {"item_ids": ["d"]}, 409)
    assert refused["detail"] == "the batch is sealed: nothing can be added"


async def test_to_a_batch_that_has_ended_nothing_is_added(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "item_ids": ["a"], "sealed": False}, 201)
    await live.post(f"batches/{batch_id}/cancel")
    refused = await live.post(f"batches/{batch_id}/items", {"item_ids": ["b"]}, 409)
    assert refused["detail"] == "the batch is cancelled: nothing can be added (reopen it first)"


@pytest.mark.parametrize("key", ["\\ud800", "deep"])
async def test_what_no_event_can_hold_is_refused_with_the_field(live: ServedApi, batch_id: str, key: str) -> None:
    value = "[" * 300 + "]" * 300 if key == "deep" else "1"
    nested = f'{{"a": {{"{key}": {value}}}}}'
    for path, body in (
        ("batches", f'{{"batch_id": "{batch_id}", "metadata": {nested}}}'),
        ("jobs/job/runs", f'{{"params": {nested}}}'),
    ):
        answer = await live.client.post(f"/api/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text


async def test_what_the_state_forbids_is_answered_with_the_workers_own_words(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id}, 201)
    refused = await live.post(f"batches/{batch_id}/seal", None, 409)
    assert "total" in refused["detail"]
    await live.post(f"batches/{batch_id}/seal", {"total_items": 0})
    await status_of(live, batch_id, "completed")


async def test_ending_a_batch_says_how_many_items_it_touched_and_is_kept_with_who(
    live: ServedApi, batch_id: str
) -> None:
    for action, body, status in (
        ("cancel", {"reason": "not needed"}, "cancelled"),
        ("abort", {"error": {"message": "disk full"}}, "failed"),
        ("finalize", None, "failed"),
    ):
        name = f"{batch_id} {action}"
        await live.post("batches", {"batch_id": name, "item_ids": ["a", "b"]}, 201)
        acted = await live.post(f"batches/{name}/{action}", body)
        assert (acted["action"], acted["items"], acted["applied"]) == (action, 2, True)
        assert acted["batch"]["status"] == status
        [done, _] = (await live.get("audit", batch_id=name))["actions"]
        assert (done["caller"], done["action"], done["items"]) == ("anonymous", action, 2)
        assert (done["partition"], done["offset"]) == (acted["partition"], acted["offset"])
        events = (await live.get(f"batches/{name}/timeline"))["events"]
        [told] = [each for each in events if each["what"] == "action" and each["detail"].startswith(action)]
        assert (told["caller"], told["offset"]) == ("anonymous", acted["offset"])
        refused = await live.post(f"batches/{name}/seal", None, 409)
        assert refused["detail"] == f"the batch is finalized already, {status}: there is nothing to seal"


async def test_a_reopened_batch_ends_in_another_revision(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "item_ids": ["a", "b"]}, 201)
    await live.post(f"batches/{batch_id}/reopen", None, 409)
    results = [{"item_id": "a", "status": "succeeded"}, {"item_id": "b", "status": "failed"}]
    await live.post(f"batches/{batch_id}/results", {"results": results}, 202)
    await status_of(live, batch_id, "completed_with_errors")
    refused = await live.post(f"batches/{batch_id}/reopen", {"item_ids": ["b", "B"]}, 422)
    assert refused["errors"] == [
        {"field": "item_ids", "message": '"B" is no item of the batch: no result came, and no manifest names it'}
    ]
    reopened = await live.post(f"batches/{batch_id}/reopen")
    assert (reopened["items"], reopened["batch"]["state"]) == (1, "processing")
    fixed = {"results": [{"item_id": "b", "status": "succeeded", "attempt": 2}]}
    await live.post(f"batches/{batch_id}/results", fixed, 202)
    assert (await status_of(live, batch_id, "completed"))["revision"] == 2


async def test_a_reopening_that_names_its_revision_can_be_repeated(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "item_ids": ["a"]}, 201)
    failed: dict[str, Any] = {"results": [{"item_id": "a", "status": "failed"}]}
    await live.post(f"batches/{batch_id}/results", failed, 202)
    await status_of(live, batch_id, "failed")
    await live.post(f"batches/{batch_id}/reopen", {"revision": 2}, 409)
    await live.post(f"batches/{batch_id}/reopen", {"revision": 1})
    failed["results"][0]["attempt"] = 2
    await live.post(f"batches/{batch_id}/results", failed, 202)
    assert (await status_of(live, batch_id, "failed"))["revision"] == 2
    repeated = await live.post(f"batches/{batch_id}/reopen", {"revision": 1}, 409)
    assert repeated["detail"] == "the batch is at revision 2: revision 1 cannot be reopened"
    assert (await live.get(f"batches/{batch_id}"))["status"] == "failed"


@pytest.mark.parametrize("action", ["cancel", "abort", "finalize"])
async def test_an_end_that_names_its_revision_ends_nothing_that_was_reopened_meanwhile(
    live: ServedApi, batch_id: str, action: str
) -> None:
    await live.post("batches", {"batch_id": batch_id, "item_ids": ["a"]}, 201)
    end = {"revision": 0} | ({"error": {"message": "disk full"}} if action == "abort" else {})
    refused = await live.post(f"batches/{batch_id}/{action}", end | {"revision": 1}, 409)
    assert refused["detail"] == "the batch is at revision 0, not 1: it has not come so far"
    assert (await live.post(f"batches/{batch_id}/{action}", end))["batch"]["revision"] == 1
    repeated = await live.post(f"batches/{batch_id}/{action}", end, 409)
    assert f"there is nothing to {action}" in repeated["detail"]
    await live.post(f"batches/{batch_id}/reopen", {"revision": 1})
    repeated = await live.post(f"batches/{batch_id}/{action}", end, 409)
    assert repeated["detail"] == "the batch is at revision 1, not 0: it ended and was reopened since"
    assert (await live.get(f"batches/{batch_id}"))["outcome"] is None


async def test_a_retry_is_a_new_batch_of_what_failed_or_is_missing(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "item_ids": ["a", "b", "c", "d"], "name": "import"}, 201)
    results = [
        {"item_id": "a", "status": "succeeded"},
        {"item_id": "b", "status": "failed"},
        {"item_id": "c", "status": "partial", "error": {"message": "no mail"}},
    ]
    await live.post(f"batches/{batch_id}/results", {"results": results}, 202)
    await live.post(f"batches/{batch_id}/finalize")
    key = {"Idempotency-Key": f"retry {batch_id}"}
    first = await live.post(f"batches/{batch_id}/retry", None, 201, **key)
    assert (first["retry_of"], first["items"], first["applied"]) == (batch_id, 2, True)
    assert await live.post(f"batches/{batch_id}/retry", None, 201, **key) == first
    found = await live.get(f"batches/{first['batch_id']}")
    assert (found["retry_of"], found["name"], found["total"]) == (batch_id, "import", 2)
    assert (await live.get(f"batches/{first['batch_id']}/missing"))["item_ids"] == ["b", "d"]

    partial = await live.post(f"batches/{batch_id}/retry", {"status": ["partial"]}, 201)
    assert (await live.get(f"batches/{partial['batch_id']}/missing"))["item_ids"] == ["c"]
    refused = await live.post(f"batches/{partial['batch_id']}/retry", {"status": ["failed"]}, 409)
    assert refused["detail"] == "no item of the batch is failed"


async def test_all_that_failed_with_one_error_can_be_retried_however_it_is_worded(
    live: ServedApi, batch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commanding, "PAGE", 2)  # of pages without any, some are in between
    await live.post("batches", {"batch_id": batch_id, "total_items": 9}, 201)
    errors: list[dict[str, Any]] = [
        *({"message": f"no such user: {4000 + number}"} for number in range(4)),
        *({"code": "timeout", "message": f"after {number} s"} for number in range(4)),
        {"message": "no such user: 7"},
    ]
    results = [{"item_id": f"i{n}", "status": "failed", "error": error} for n, error in enumerate(errors)]
    await live.post(f"batches/{batch_id}/results", {"results": results}, 202)
    await status_of(live, batch_id, "failed")
    groups = (await live.get(f"batches/{batch_id}/failures"))["groups"]
    assert {each["error"]: each["count"] for each in groups} == {"no such user: <n>": 5, "timeout": 4}
    for group in groups:
        retried = await live.post(f"batches/{batch_id}/retry", {"error": group["error"]}, 201)
        assert retried["items"] == group["count"]
        asked_for = await live.get(f"batches/{retried['batch_id']}/missing")
        assert set(asked_for["item_ids"]) >= set(group["item_ids"])
    refused = await live.post(f"batches/{batch_id}/retry", {"error": "no such error"}, 409)
    assert refused["detail"] == "no failed item of the batch has the error no such error"
    both = {"error": "timeout", "status": ["missing"]}
    assert (await live.post(f"batches/{batch_id}/retry", both, 422))["errors"][0]["field"] == "error"
    half = b'{"error": "\\ud800"}'
    response = await live.client.post(
        f"/api/batches/{batch_id}/retry", content=half, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422


async def test_a_key_used_again_after_its_day_asks_for_another_run(
    live: ServedApi, product: Product, unique: str
) -> None:
    key = {"Idempotency-Key": f"nightly {unique}"}
    first = await live.post(f"jobs/{unique}/runs", None, 202, **key)
    connection = await product.settings.database().connect("test")
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = created_at - interval '25 hours' WHERE key = $1",
        key["Idempotency-Key"],
    )
    second = await live.post(f"jobs/{unique}/runs", None, 202, **key)
    assert second["run_id"] != first["run_id"]
    assert await live.post(f"jobs/{unique}/runs", None, 202, **key) == second
    asked = await connection.fetch(
        "SELECT value FROM outbox WHERE channel = 'requests' AND value LIKE $1", f"%{unique}%"
    )
    assert {json.loads(row["value"])["run_id"] for row in asked} == {first["run_id"], second["run_id"]}
    await connection.close()


async def test_a_run_of_a_job_is_asked_for_once_and_its_runs_are_listed(
    live: ServedApi, product: Product, unique: str
) -> None:
    asked = [
        await live.post(f"jobs/{unique}/runs", {"params": {"day": 1}}, 202, **{"Idempotency-Key": unique})
        for _ in range(2)
    ]
    assert asked[0] == asked[1] == {"job": unique, "run_id": asked[0]["run_id"]}

    async def requests() -> list[Any]:
        records = await drain(product.settings.bootstrap_servers, product.topics.requests)
        mine = [json.loads(record.value) for record in records if unique.encode() in record.value]
        assert mine
        return mine

    assert await eventually(requests) == [{"job": unique, "params": {"day": 1}, "run_id": asked[0]["run_id"]}]

    await live.post("batches", {"batch_id": f"{unique}-run", "total_items": 3, "name": unique}, 201)
    results = [
        {"item_id": "a", "status": "succeeded", "effect": "created"},
        {"item_id": "b", "status": "succeeded", "effect": "unchanged"},
        {"item_id": "c", "status": "skipped"},
    ]
    await live.post(f"batches/{unique}-run/results", {"results": results}, 202)
    await status_of(live, f"{unique}-run", "completed")
    [run] = (await live.get(f"jobs/{unique}/runs"))["runs"]
    assert (run["batch_id"], run["status"], run["processed"]) == (f"{unique}-run", "completed", 3)
    assert (run["created"], run["updated"], run["skipped"], run["failed"]) == (1, 0, 2, 0)
    assert run["duration_ms"] >= 0


async def test_a_bad_result_refuses_the_call_and_names_its_index(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "total_items": 3}, 201)
    good = {"item_id": "a", "status": "succeeded"}
    for bad, field in (
        ({"item_id": "b", "status": "done"}, "results.1.status"),
        ({"item_id": "", "status": "failed"}, "results.1.item_id"),
        ({"item_id": "b", "status": "failed", "attempt": "2"}, "results.1.attempt"),
        ({"item_id": "b", "status": "failed", "misspelt": 1}, "results.1.misspelt"),
        ({"item_id": "b", "status": "failed", "output": "\0"}, "results.1"),
        ({"item_id": "b", "status": "failed", "occurred_at": "2026-02-30T00:00:00Z"}, "results.1"),
    ):
        refused = await live.post(f"batches/{batch_id}/results", {"results": [good, bad]}, 422)
        assert refused["errors"][0]["field"] == field, refused
    large = {**good, "output": "x" * 70_000}
    refused = await live.post(f"batches/{batch_id}/results", {"results": [large]}, 413)
    assert refused["detail"].startswith("results.0.output: ")
    many = [{"item_id": str(number), "status": "succeeded"} for number in range(1_001)]
    await live.post(f"batches/{batch_id}/results", {"results": many}, 422)
    assert (await live.get(f"batches/{batch_id}"))["answered"] == 0


async def test_of_results_of_which_one_is_too_large_for_the_log_none_counts(live: ServedApi, batch_id: str) -> None:
    await live.post("batches", {"batch_id": batch_id, "total_items": 2}, 201)
    good, large = {"item_id": "a", "status": "succeeded"}, {"item_id": "b", "status": "failed", "message": "x" * 2**20}
    refused = await live.post(f"batches/{batch_id}/results", {"results": [good, large]}, 413)
    assert refused["detail"].startswith("results.1: ")
    # Behind what had been sent, had any been.
    assert (await live.post(f"batches/{batch_id}/finalize"))["batch"]["answered"] == 0
    assert (await live.post(f"batches/{batch_id}/finalize", {"reason": large["message"]}, 413))["status"] == 413


async def test_where_the_topic_takes_less_than_ours_the_answer_names_the_results_that_are_not_in_the_log(
    migrated: Settings, rows: StoredRows
) -> None:
    topics = Topics(migrated.topic_prefix)
    await rows.batch("b", partition=0, total_items=40)
    await create_topic(migrated.bootstrap_servers, topics.events, configs={"max.message.bytes": "20000"})
    results = [{"item_id": str(number), "status": "succeeded", "message": "x" * 1_000} for number in range(40)]
    results[20]["output"] = "x" * 30_000
    async with serving(migrated, partitions=1) as api:
        refused = await api.post("batches/b/results", {"results": results}, 413)
        small = await api.post("batches/b/results", {"results": results[:1]}, 202)
    there = {json.loads(each.value)["item_id"] for each in await drain(migrated.bootstrap_servers, topics.events)}
    named = {each["field"]: each["message"] for each in refused["errors"]}
    assert named["results.20"] == "too large for the topic, alone or with what was sent in one with it"
    assert named.keys() == {f"results.{number}" for number in range(40) if str(number) not in there}
    assert refused["detail"].startswith(f"{len(named)} of 40 results are not in the log, those that `errors` names:")
    assert len(there) > 1
    assert small["applied"] is False


async def test_the_largest_event_that_is_taken_fits_the_log_with_the_longest_id_and_trace(live: ServedApi) -> None:
    batch_id = "\N{ABACUS}" * 200
    await live.post("batches", {"batch_id": batch_id, "total_items": 1}, 201)
    result = {"item_id": "a", "status": "failed", "message": ""}
    result["message"] = "x" * (MAX_EVENT_BYTES - len(encoded({"batch_id": batch_id, **result})))
    await live.post(f"batches/{batch_id}/results", {"results": [result]}, 202, traceparent="x" * 128)
    await status_of(live, batch_id, "failed")
    result["message"] += "x"
    await live.post(f"batches/{batch_id}/results", {"results": [result]}, 413)


async def test_json_that_is_none_is_refused_as_malformed(live: ServedApi) -> None:
    for body in (b"{", b"", b'{"total_items": 1', b"\xff", b"[" * 5_000):
        response = await live.client.post("/api/batches", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), body
        assert response.headers["content-type"] == "application/problem+json"
    for body in (b'{"metadata": {"n": 1e999}}', b'{"metadata": {"n": NaN}}', b'{"name": "\\ud800"}'):
        response = await live.client.post("/api/batches", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), body


async def test_sizes_are_limited(product: Product, unique: str) -> None:
    async with serving(product.settings, body_bytes=2_000, items_per_batch=5) as small:
        refused = await small.post("batches", {"name": "x" * 3_000}, 413)
        assert refused["status"] == 413

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b" " * 100

        response = await small.client.post(
            "/api/batches", content=endless(), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413
        refused = await small.post("batches", {"total_items": 6}, 422)
        assert "ROLLCALL_MAX_ITEMS" in refused["detail"]
        await small.post("batches", {"item_ids": list("abcdef")}, 422)
        await small.post("batches", {"batch_id": unique, "item_ids": list("abcd"), "sealed": False}, 201)
        await small.post(f"batches/{unique}/items", {"item_ids": ["e", "f"]}, 422)
        await small.post(f"batches/{unique}/items", {"item_ids": ["e"]}, 202)


async def test_results_for_a_batch_that_nobody_knows_are_not_taken(live: ServedApi, unique: str) -> None:
    body = {"results": [{"item_id": "a", "status": "succeeded"}]}
    await eventually(lambda: live.context.log_ends.of(0) is not None)
    refused = await live.post(f"batches/{unique}-nobody/results", body, 404)
    assert refused["detail"] == f'there is no batch "{unique}-nobody"'
    for action in ("seal", "cancel", "finalize", "reopen", "retry"):
        await live.post(f"batches/{unique}-nobody/{action}", None, 404)


async def test_without_a_worker_it_is_taken_and_said_to_be_pending(migrated: Settings, unique: str) -> None:
    topics = Topics(migrated.topic_prefix)
    await ensure_topics(migrated.kafka_connection(), topics)
    async with serving(migrated) as api, stored_rows(migrated) as stored:
        opened = await api.post("batches", {"batch_id": unique, "total_items": 1}, 202)
        assert opened["status"] == "pending"
        # It is not known yet, but may well be in what is not read: its results are taken too.
        sent = {"results": [{"item_id": "a", "status": "succeeded"}]}
        await api.post(f"batches/{unique}/results", sent, 202)
        assert await _audited(stored) == ["open", "results"]
    records = await drain(migrated.bootstrap_servers, topics.events)
    assert [json.loads(record.value).get("type", "item.result") for record in records] == [
        "batch.opened",
        "item.result",
    ]


async def _audited(stored: StoredRows) -> list[str]:
    return [row[0] for row in await stored.connection.fetch("SELECT action FROM audit ORDER BY seq")]
