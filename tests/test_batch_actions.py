"""`rollcall batch cancel|abort|finalize|reopen|retry` on a real stream: what is asked, sent, applied and shown."""

import asyncio
import json
import os
import pty
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from migrations.run import migrate
from rollcall.acting import carried_out
from rollcall.batch_asking import snapshot
from rollcall.reaching import ServerError
from rollcall.settings import Settings
from schemas.topics import Topics
from store import reads
from store.reads import BatchStatus
from streams import commanding, sending
from streams.commanding import NotPossibleError
from streams.decoding import decode
from streams.reading import append_time
from streams.topics import ensure_topics
from tests.harness.commands import argv, environment, rollcall
from tests.harness.events import event, opened, result
from tests.harness.product import running
from tests.harness.stored import stored_rows
from tests.harness.topics import drain, produce

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def done(settings: Settings, *arguments: str) -> dict[str, Any]:
    outcome = await rollcall(settings, "batch", *arguments, "--yes", "--json")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    return dict(json.loads(outcome.stdout))


async def stored(settings: Settings, batch_id: str) -> BatchStatus | None:
    async with snapshot(settings) as connection:
        return await reads.batch(connection, Topics(settings.topic_prefix).events, batch_id)


def on_a_terminal(
    settings: Settings, answer: bytes, *arguments: str, meanwhile: Callable[[], object] = lambda: None
) -> tuple[int, str]:
    """Run a command that asks, and answer it; returns exit code and screen. ``meanwhile`` is before the answer."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        argv(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(settings) | {"TERM": "dumb"}
    )
    os.close(theirs)
    screen, answered = b"", False
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        screen += chunk
        if b"[y/N]" in screen and not answered:
            meanwhile()
            os.write(ours, answer + b"\n")
            answered = True
    os.close(ours)
    return process.wait(60), screen.decode()


async def test_a_batch_is_cancelled_reopened_and_retried_by_records_on_the_stream(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    async with running(settings, workers=1, relay=False) as product:
        first = [opened("b", item_ids=["x", "y", "z"], name="Import"), result("b", "x"), result("b", "y", "failed")]
        await produce(settings.bootstrap_servers, topics.events, first)
        await product.await_applied(len(first))

        unasked = await rollcall(settings, "batch", "cancel", "b")
        assert (unasked.exit_code, unasked.stdout) == (2, "")
        assert "it ends as cancelled: 2 answered, 1 of 3 items stay missing; say --yes to do that" in unasked.stderr
        code, screen = await asyncio.to_thread(on_a_terminal, settings, b"n", "batch", "cancel", "b")
        assert (code, "nothing was done" in screen) == (1, True)
        assert len(await drain(settings.bootstrap_servers, topics.events)) == len(first)
        code, screen = await asyncio.to_thread(on_a_terminal, settings, b"y", "batch", "cancel", "b")
        assert code == 0, screen
        assert "2 answered, 1 of 3 items stay missing" in screen
        assert "cancelled" in screen

        again = await rollcall(settings, "batch", "abort", "b", "--error", "disk full", "--yes")
        assert (again.exit_code, again.stdout) == (1, "")
        assert again.stderr == "rollcall: the batch is finalized already, cancelled: there is nothing to abort\n"

        retried = await done(settings, "retry", "b", "--deadline", "2099-01-01T00:00:00Z")
        assert (retried["items"], retried["applied"], retried["refused"]) == (2, True, None)
        new = retried["batch"]
        assert (new["batch_id"], new["retry_of"], new["total"], new["name"]) == ("b-retry-1", "b", 2, "Import")
        assert new["deadline_at"] == "2099-01-01T00:00:00.000Z"
        async with snapshot(settings) as connection:
            assert (await reads.missing(connection, "b-retry-1")).rows == ["y", "z"]
            assert await commanding.free_retry_id(connection, topics, "b") == "b-retry-2"

        strange = await rollcall(settings, "batch", "reopen", "b", "--item", "x", "--item", "Y", "--item", "q", "--yes")
        assert (strange.exit_code, strange.stdout) == (1, "")
        assert '"Y" and 1 more are no items of the batch' in strange.stderr

        reopened = await done(settings, "reopen", "b", "--reason", "file is back")
        assert reopened["items"] == 2
        assert (reopened["batch"]["status"], reopened["batch"]["reason"]) == ("processing", "file is back")
        sent = [json.loads(each.value) for each in await drain(settings.bootstrap_servers, topics.events)]
        [reopening] = [each for each in sent if each.get("type") == "batch.reopened"]
        assert reopening == {"type": "batch.reopened", "batch_id": "b", "revision": 1, "reason": "file is back"}

        for action in ("finalize", "cancel"):
            late = await rollcall(settings, "batch", action, "b", "--revision", "0", "--yes")
            assert (late.exit_code, "the batch is at revision 1, not 0" in late.stderr) == (1, True)

        unknown = await rollcall(settings, "batch", "finalize", "nobody", "--yes")
        assert (unknown.exit_code, unknown.stderr) == (1, 'rollcall: there is no batch "nobody"\n')
        finalized = await done(settings, "finalize", "b")
        assert (finalized["batch"]["status"], finalized["batch"]["finalized_by"]) == ("completed_with_errors", "forced")
        assert finalized["batch"]["revision"] == 2

        chosen = await done(settings, "reopen", "b", "--item", "x", "--item", "z", "--item", "x")
        assert (chosen["items"], chosen["batch"]["status"], chosen["batch"]["missing"]) == (2, "processing", 3)


async def test_whoever_reopens_an_open_ended_batch_is_told_that_it_waits_to_be_sealed(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    async with running(settings, workers=1, relay=False) as product:
        sent = [
            opened("b", sealed=False),
            result("b", "x", "failed"),
            event("b", type="batch.cancelled"),
            event("b", type="batch.sealed", total_items=1),  # changes nothing: it came behind the end
        ]
        await produce(settings.bootstrap_servers, topics.events, sent)
        await product.await_applied(len(sent))
        unasked = await rollcall(settings, "batch", "reopen", "b")
        assert "it ends again with revision 2; it is not sealed, so it waits for batch.sealed, too" in unasked.stderr
        reopened = await done(settings, "reopen", "b")
        assert (reopened["batch"]["status"], reopened["batch"]["sealed"]) == ("processing", False)


async def test_what_became_of_the_batch_while_somebody_was_asked_counts(settings: Settings) -> None:
    await migrate(settings.database_url, settings.database_schema)
    loop = asyncio.get_running_loop()
    async with stored_rows(settings) as rows:

        async def asked(meanwhile: str, answer: bytes, *arguments: str) -> tuple[int, str]:
            def change() -> None:
                changing = rows.connection.execute(f"{meanwhile} WHERE batch_id = $1", arguments[1])
                asyncio.run_coroutine_threadsafe(changing, loop).result(30)

            return await asyncio.to_thread(on_a_terminal, settings, answer, "batch", *arguments, meanwhile=change)

        ended_once_more = "UPDATE batches SET revision = revision + 1"
        await rows.batch("open", total_items=1)
        code, screen = await asked(ended_once_more, b"y", "cancel", "open", "--revision", "0")
        assert (code, "the batch is at revision 1, not 0" in screen) == (1, True), screen
        await rows.finalized("ended", outcome="failed", total_items=1, failed=1)
        code, screen = await asked(ended_once_more, b"y\nn", "reopen", "ended")
        assert (code, "nothing was done" in screen) == (1, True), screen
        assert "ends again with revision 2" in screen
        assert "ends again with revision 3" in screen
        ending = ("outcome", "finalized_by", "finalized_at", "completed_at", "decided_offset")
        reopened = ", ".join(["UPDATE batches SET state = 'processing'", *(f"{each} = NULL" for each in ending)])
        code, screen = await asked(reopened, b"y\nn", "finalize", "ended")
        assert (code, "nothing was done" in screen) == (1, True), screen
        assert "only its summary is computed again" in screen
        assert "it ends as it stands" in screen
        await rows.batch("live", expected=2)
        await rows.manifest("live", "a", "b")
        await ensure_topics(settings.kafka_connection(), Topics(settings.topic_prefix))
        others_missing = "UPDATE expected_items SET item_id = item_id || '-2'"
        code, screen = await asked(others_missing, b"y", "retry", "live", "--no-wait")
        assert code == 0, screen


async def test_where_a_total_alone_is_known_any_item_may_be_the_missing_one(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    async with running(settings, workers=1, relay=False) as product:
        first = [opened("b", total_items=3), result("b", "x"), result("b", "y", "failed")]
        await produce(settings.bootstrap_servers, topics.events, first)
        await product.await_applied(len(first))
        asked = await rollcall(settings, "batch", "retry", "b")
        assert "1 item is asked for again, as batch b-retry-1" in asked.stderr
        assert "; not the missing (1), whom no manifest names" in asked.stderr
        asked = await rollcall(settings, "batch", "retry", "b", "--status", "failed")
        assert "not the missing" not in asked.stderr
        await done(settings, "cancel", "b")
        reopened = await done(settings, "reopen", "b", "--item", "whoever")
        assert (reopened["items"], reopened["batch"]["status"]) == (1, "processing")


async def test_without_a_worker_the_record_is_in_the_log_and_the_command_says_so(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    async with running(settings, workers=1, relay=False) as product:
        await produce(settings.bootstrap_servers, topics.events, [event("b", type="batch.opened", total_items=2)])
        await product.await_applied(1)
        await product.children["worker-0"].stop(15)
        sent = await rollcall(settings, "batch", "abort", "b", "--error", "disk full", "--yes", "--no-wait")
        assert sent.exit_code == 0
        assert sent.stdout.startswith("it is in the log (partition ")
        *_, last = await drain(settings.bootstrap_servers, topics.events)
        aborted = {"type": "batch.aborted", "batch_id": "b", "error": {"message": "disk full"}}
        assert (last.key, json.loads(last.value)) == (b"b", aborted)
        found = await stored(settings, "b")
        assert found is not None
        assert found.outcome is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("retry", "b", "--status", "failed,odd"), "'odd' is none of failed, missing, partial"),
        (("abort", "b"), "Missing option '--error'"),
    ],
)
async def test_wrong_use_is_one_line_before_anything_is_asked(arguments: tuple[str, ...], said: str) -> None:
    away = Settings(bootstrap_servers="127.0.0.1:1", database_url="postgresql+asyncpg://me@127.0.0.1:1/db")
    outcome = await rollcall(away, "batch", *arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert said in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def status(**fields: Any) -> BatchStatus:
    everything: dict[str, Any] = dict.fromkeys(BatchStatus.__annotations__)
    counts = dict.fromkeys(("answered", "failed", "missing", "retrying", "unexpected", "revision"), 0)
    return BatchStatus(**{**everything, **counts, "batch_id": "b", "status": "processing", "sealed": True, **fields})


async def test_a_large_retry_opens_its_batch_in_pieces_that_intake_takes() -> None:
    ids = [f"item-{number:05}" for number in range(25_000)]
    found = status(outcome="failed", status="failed", failed=25_000, policy={"tolerated_failure_count": 1})
    command = commanding.retry(found, ids, statuses=["failed"], batch_id="again")
    kinds = [each["type"] for each in command.events]
    assert kinds == [*["batch.opened"] * 3, "batch.sealed"]
    assert [item_id for each in command.events for item_id in each.get("item_ids", ())] == ids
    first = command.events[0]
    assert (first["retry_of"], first["request_retry"], first["sealed"]) == ("b", True, False)
    assert first["policy"] == {"tolerated_failure_count": 1}
    for each in command.events:
        assert decode(json.dumps(each).encode(), 0, append_time(0)).batch_id == "again"


async def test_a_retry_that_nobody_acknowledged_names_the_id_to_repeat_it_under(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(settings.database_url, settings.database_schema)
    await ensure_topics(settings.kafka_connection(), Topics(settings.topic_prefix))
    monkeypatch.setattr(sending, "SEND_TIMEOUT_S", 0)
    found = status(outcome="failed", status="failed", failed=1)
    retry = commanding.retry(found, ["x"], statuses=["failed"], batch_id="b-retry-1")
    said = r"no answer in time; batch b-retry-1 may be open .* repeat this with --id b-retry-1$"
    with pytest.raises(ServerError, match=said):
        await carried_out("retry", "b", retry, settings, wait=False)
    with pytest.raises(ServerError, match=r"no answer in time$"):
        await carried_out("cancel", "b", commanding.cancel("b", None), settings, wait=False)


async def test_where_there_is_nothing_to_do_it_says_why() -> None:
    finalized = status(outcome="completed", status="completed", revision=3)
    with pytest.raises(NotPossibleError, match="finalized already, completed"):
        commanding.cancel("b", finalized)
    with pytest.raises(NotPossibleError, match="no item failed and none is missing"):
        commanding.reopen(finalized)
    with pytest.raises(NotPossibleError, match="not finalized but processing"):
        commanding.reopen(status())
    with pytest.raises(NotPossibleError, match="no item of the batch is failed or missing"):
        commanding.retry(finalized, [], statuses=["failed", "missing"], batch_id="c")
    with pytest.raises(NotPossibleError, match="no manifest names them"):
        commanding.retry(status(missing=2), [], statuses=["missing"], batch_id="c")
    with pytest.raises(NotPossibleError, match="no failed item of the batch has the error timeout"):
        commanding.retry(status(missing=2), [], error="timeout", batch_id="c")
    pruned = status(outcome="failed", status="failed", failed=1, pruned_at=append_time(0))
    with pytest.raises(NotPossibleError, match="items were pruned"):
        commanding.finalize("b", pruned)
    with pytest.raises(NotPossibleError, match="items were pruned"):
        commanding.reopen(pruned, item_ids=["x"], strange=["x"])
    with pytest.raises(NotPossibleError, match="items were pruned"):
        commanding.retry(pruned, ["x"], batch_id="c")
    assert commanding.finalize("b", finalized).items == 0
    assert commanding.reopen(finalized, item_ids=["x"]).events[0]["revision"] == 3
    assert "nothing is known of this batch" in commanding.cancel("b", None).means


async def test_what_is_wrong_is_named_where_it_is_not_the_state() -> None:
    finalized = status(outcome="completed", status="completed", revision=1)
    with pytest.raises(NotPossibleError, match='"Y" and 1 more are no items of the batch') as refused:
        commanding.reopen(finalized, item_ids=["Y", "q"], strange=["Y", "q"])
    assert refused.value.field == "item_ids"
