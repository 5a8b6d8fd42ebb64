"""What the API says of batches and items, from rows put there by hand."""

from tests.harness.api import ServedApi
from tests.harness.stored import StoredRows


async def test_a_batch_is_shown_with_its_counts_and_its_place_in_the_log(api: ServedApi, rows: StoredRows) -> None:
    await rows.applied(3, 100)
    await rows.finalized("b", total_items=10, succeeded=7, failed=3, outcome="completed_with_errors", policy="{}")
    found = await api.get("batches/b")
    assert (found["status"], found["total"], found["error_summary"]) == (
        "completed_with_errors",
        10,
        "3 of 10 failed",
    )
    assert found["as_of"] == {"topic": api.context.topics.events, "partition": 3, "offset": 41}
    assert found["finalized_at"] == "2026-11-22T10:00:05.123000Z"


async def test_an_unknown_batch_is_a_problem(api: ServedApi) -> None:
    response = await api.client.get("/api/batches/nobody")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": 'there is no batch "nobody"',
    }
    assert (await api.get("batches/%00", 404))["status"] == 404
    assert (await api.get("nowhere", 404))["detail"] == "there is no such path"
