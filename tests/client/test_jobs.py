"""Jobs on real servers: every way an item or a run can go, as the finalized event has it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from rollcall_client import ConfigurationError, DeliveryError, InvalidMessageError, Rollcall
from rollcall_client.errors import RollcallError, UnreachableError
from rollcall_client.jobs import (
    Created,
    CriticalError,
    DependencyError,
    Job,
    JobResult,
    JobStoppedError,
    Progress,
    Retry,
    current,
    job,
    memory,
    run,
)
from rollcall_client.jobs.job import Items
from rollcall_client.jobs.progress import shown
from rollcall_client.publishing import Publisher

from tests.client.sample_jobs import InThreads, every_kind, first_step, second_step, stops_at_the_third
from tests.harness.product import Product
from tests.harness.servers import Servers
from tests.harness.topics import create_topic, drain
from tests.harness.waiting import eventually


async def quietly(job_: Any, items: Any, rc: Rollcall, **options: Any) -> JobResult:
    return await run(job_, items, rc=rc, progress=None, wait_timeout_s=60, **options)


async def results_of(product: Product, batch_id: str) -> dict[str, list[dict[str, Any]]]:
    """What was published of each item, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in await drain(product.settings.bootstrap_servers, product.topics.events):
        if record.key == batch_id.encode() and (item := json.loads(record.value)).get("item_id"):
            found.setdefault(item["item_id"], []).append(item)
    return found


async def test_every_item_answers_in_its_own_way(rc: Rollcall, product: Product) -> None:
    kinds = ["created", "updated", "unchanged", "skipped", "partial", "refused", "broken", "hopeless", "slow", "flaky"]
    kinds += ["given", "none", "unstorable", "wrong"]
    result = await quietly(every_kind, [f"{kind}-{n}" for kind in kinds for n in range(2)], rc)
    assert result.payload().keys() == {
        "processed", "created", "updated", "skipped", "failed", "duration_ms", "metrics", "status",
    }  # fmt: skip
    assert (result.processed, result.created, result.updated, result.skipped) == (28, 4, 2, 4)
    assert (result.failed, result.missing, result.status, result.ran) == (8, 0, "PARTIAL", True)
    assert result.outcome == "completed_with_errors"
    assert result.error == "8 of 28 failed"
    assert result.metrics["seen"] >= 14
    said = await results_of(product, result.batch_id)
    assert [(each["status"], each["attempt"]) for each in said["flaky-0"]] == [
        ("retrying", 1), ("retrying", 2), ("succeeded", 3),
    ]  # fmt: skip
    assert [each["status"] for each in said["hopeless-1"]] == ["retrying", "retrying", "failed"]
    assert said["broken-0"][0]["error"]["code"] == "ValueError"
    assert "cannot do broken-0" in said["broken-0"][0]["error"]["stack_trace"]
    assert said["slow-0"][0]["error"] == {"code": "ItemTimeoutError", "message": "took longer than 0.5 s"}
    assert said["refused-0"][0]["error"] == {"message": "not a customer"}
    assert said["partial-0"][0]["error"]["code"] == "smtp"
    assert said["given-0"][0]["output"] == {"price": 12}
    assert said["created-0"][0]["metrics"] == {"bytes": 10}
    assert "could be kept" in said["unstorable-0"][0]["message"]
    assert (said["wrong-0"][0]["status"], said["wrong-0"][0]["error"]) == ("partial", {"message": "404"})
    assert all(each["duration_ms"] >= 0 and each["worker"] for item in said.values() for each in item)


async def test_the_result_is_what_the_stream_counted_not_what_the_job_believes(rc: Rollcall) -> None:
    @job
    async def believing(item: str) -> Created:
        if item == "b":
            await rc.batch(current().batch_id).failed(item, "taken back by somebody else", attempt=2)
        return Created()

    result = await quietly(believing, ["a", "b", "c"], rc)
    assert (result.status, result.created, result.failed, result.failed_item_ids) == ("PARTIAL", 2, 1, ["b"])


async def test_a_run_whose_results_were_given_up_is_not_sealed_though_another_flush_was_told(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic)
    client = Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix, delivery_timeout_s=5)

    class Told(Job):
        name = "told"
        concurrency = 1

        async def handle(self, item: str) -> None:
            if item == "2":
                monkeypatch.setattr(Publisher, "_attempt", takes_nothing)
                await client.batch(current().batch_id).retrying(item)
                await eventually(lambda: client.undelivered)

        async def end(self) -> None:  # stands for any other task with the same client
            monkeypatch.undo()
            with pytest.raises(DeliveryError):
                await client.flush()

    async def takes_nothing(_: object, chunks: list[Any], *__: object) -> list[Any]:
        return chunks

    async with client:
        with pytest.raises(UnreachableError, match="batch told-1 stays open"):
            await quietly(Told, map(str, range(5)), client, batch_id="told-1", rerun="all")
    kinds = [json.loads(record.value)["type"] for record in await drain(servers.bootstrap_servers, topic)]
    assert "batch.opened" in kinds
    assert "batch.sealed" not in kinds


async def test_a_critical_error_stops_the_job_and_the_rest_is_named_missing(rc: Rollcall) -> None:
    result = await quietly(stops_at_the_third, [f"{number:02d}" for number in range(40)], rc)
    assert (result.status, result.outcome, result.error) == ("FAILED", "failed", "the account is blocked")
    assert result.failed_item_ids == ["03"]
    assert result.processed < 10
    assert result.missing == 40 - result.processed
    assert "39" in result.missing_item_ids


async def test_a_critical_error_with_nothing_left_to_miss_is_still_named(rc: Rollcall) -> None:
    result = await quietly(stops_at_the_third, ["02", "03"], rc)
    assert (result.status, result.missing, result.failed_item_ids) == ("PARTIAL", 0, ["03"])
    assert result.error == "the account is blocked"


async def test_a_job_without_items_is_completed_at_once(rc: Rollcall) -> None:
    nothing: Iterable[str]
    for nothing in ([], iter(())):
        result = await quietly(every_kind, nothing, rc)
        assert (result.status, result.processed, result.outcome) == ("COMPLETED", 0, "completed")


async def test_a_blocking_function_runs_in_threads_in_chunks(rc: Rollcall) -> None:
    result = await quietly(InThreads, range(100), rc)
    assert (result.processed, result.created, result.failed, result.status) == (100, 95, 5, "PARTIAL")
    assert result.failed_item_ids == ["113", "13", "33", "53", "73", "93"][1:]


@pytest.mark.parametrize("chunk_size", [1, 3])
async def test_work_that_a_plain_function_returns_as_a_coroutine_is_done(rc: Rollcall, chunk_size: int) -> None:
    done: list[int] = []

    async def work(item: int) -> Created:
        await asyncio.sleep(0)
        if item == 3:
            raise ValueError("three")
        if item == 4:
            raise asyncio.CancelledError("what it waited for was")
        assert current().item_id == str(item)
        done.append(item)
        return Created()

    returning = job(name="returning", chunk_size=chunk_size, concurrency=2)(lambda item: work(item))
    result = await quietly(returning, range(8), rc)
    assert (result.created, result.failed_item_ids) == (6, ["3", "4"])
    assert sorted(done) == [0, 1, 2, 5, 6, 7]


async def test_an_item_whose_handle_is_a_generator_has_failed(rc: Rollcall, product: Product) -> None:
    @job(concurrency=1)
    def yields(item: str) -> Iterator[str]:
        yield item

    @job(concurrency=1)
    async def yields_asynchronously(item: str) -> AsyncIterator[str]:
        yield item

    for each in (yields, yields_asynchronously):
        result = await quietly(each, ["a"], rc)
        assert (result.status, result.failed_item_ids) == ("FAILED", ["a"])
        assert "no yield in handle" in (await results_of(product, result.batch_id))["a"][0]["error"]["message"]


async def test_what_is_done_of_a_chunk_is_reported_before_another_of_its_items_is_tried_again(
    rc: Rollcall, product: Product
) -> None:
    order: list[tuple[str, int]] = []

    @job(concurrency=1, chunk_size=3, retries=Retry(attempts=2, initial_s=0.01))
    def first_fails(item: int) -> None:
        order.append((str(item), current().attempt))
        if item == 0 and current().attempt == 1:
            raise ValueError("at first")

    result = await quietly(first_fails, [0, 1, 2], rc)
    assert (result.status, result.processed) == ("COMPLETED", 3)
    assert order == [("0", 1), ("1", 1), ("2", 1), ("0", 2)]
    log = await drain(product.settings.bootstrap_servers, product.topics.events)
    ours = [json.loads(record.value) for record in log if record.key == result.batch_id.encode()]
    said = [(each["item_id"], each["status"]) for each in ours if "item_id" in each]
    assert said == [("0", "retrying"), ("1", "succeeded"), ("2", "succeeded"), ("0", "succeeded")]


async def test_items_may_come_from_generators_and_a_source_that_breaks_leaves_the_batch_open(rc: Rollcall) -> None:
    def generated() -> Iterator[str]:
        yield from (f"created-{number}" for number in range(1_000))

    async def slowly() -> AsyncIterator[str]:
        for number in range(50):
            await asyncio.sleep(0)
            yield f"updated-{number}"

    def broken() -> Iterator[str]:
        yield "created-0"
        raise OSError("the list is gone")

    assert (await quietly(every_kind, generated(), rc)).created == 1_000
    assert (await quietly(every_kind, slowly(), rc)).updated == 50
    batch_id = f"broken-{uuid.uuid4().hex[:6]}"
    with pytest.raises(OSError, match="the list is gone"):
        await quietly(every_kind, broken(), rc, batch_id=batch_id, rerun="all")
    again = await quietly(every_kind, ["created-0", "created-1"], rc, batch_id=batch_id, rerun="all")
    assert (again.created, again.status) == (2, "COMPLETED")


async def test_a_source_that_is_cancelled_breaks_and_does_not_seal_the_batch(rc: Rollcall) -> None:
    async def cancelled() -> AsyncIterator[str]:
        yield "created-0"
        raise asyncio.CancelledError

    with pytest.raises(RollcallError, match="something that its items come from was cancelled"):
        await asyncio.wait_for(quietly(every_kind, cancelled(), rc), 60)


async def test_items_that_could_be_awaited_as_well_are_iterated(rc: Rollcall) -> None:
    class Cursor:
        """As asyncpg's: what it gives when it is awaited cannot be iterated."""

        def __await__(self) -> Iterator[None]:
            yield from ()

        async def __aiter__(self) -> AsyncIterator[str]:
            yield "created-0"

    assert (await quietly(every_kind, Cursor(), rc)).created == 1


async def test_a_job_that_forgets_to_return_its_items_opens_no_batch(rc: Rollcall, product: Product) -> None:
    forgetful = job(name="forgetful", items=lambda: None)(lambda item: None)
    batch_id = f"forgetful-{uuid.uuid4().hex[:6]}"
    with pytest.raises(ConfigurationError, match=r"forgetful: None is no list of items"):
        await quietly(forgetful, None, rc, batch_id=batch_id, rerun="all")
    log = await drain(product.settings.bootstrap_servers, product.topics.events)
    assert batch_id.encode() not in [record.key for record in log]


async def test_items_may_be_had_of_a_coroutine_function(rc: Rollcall) -> None:
    async def fetched() -> list[str]:
        return ["created-1", "created-2"]

    fetching = job(name="fetching", items=fetched)(every_kind.function)
    result = await quietly(fetching, None, rc)
    assert (result.status, result.created) == ("COMPLETED", 2)


async def test_what_is_no_id_is_said_before_the_items_work_is_done(rc: Rollcall) -> None:
    handled: list[str] = []

    @job(concurrency=2)
    async def noting(item: str) -> None:
        handled.append(item)

    with pytest.raises(InvalidMessageError, match="item id"):
        await quietly(noting, iter(["a", "b\n", "c"]), rc)
    assert handled == ["a"]


async def test_no_more_items_are_handled_or_drawn_at_a_time_than_the_job_says(rc: Rollcall) -> None:
    running: Counter[str] = Counter()
    most = 0
    drawn = 0

    @job(concurrency=5)
    async def busy(item: int) -> None:
        nonlocal most
        running["now"] += 1
        most = max(most, running["now"])
        assert drawn - running["done"] <= 5 + 1
        await asyncio.sleep(0)
        running["now"] -= 1
        running["done"] += 1

    def counted() -> Iterator[int]:
        nonlocal drawn
        for number in range(200):
            drawn += 1
            yield number

    result = await quietly(busy, counted(), rc)
    assert (result.processed, result.failed) == (200, 0)
    assert most == 5


async def test_a_stopped_job_leaves_its_batch_open_for_the_next_run(rc: Rollcall) -> None:
    stop = asyncio.Event()

    @job(concurrency=1, name="stopped")
    async def stopped(item: int) -> None:
        if item == 10:
            stop.set()

    batch_id = f"stopped-{uuid.uuid4().hex[:6]}"
    with pytest.raises(JobStoppedError, match=batch_id):
        await quietly(stopped, range(30), rc, batch_id=batch_id, rerun="all", stop=stop)
    stop.clear()
    assert (await quietly(stopped, range(30), rc, batch_id=batch_id, rerun="all")).processed == 30


async def test_a_job_that_waits_for_its_rate_or_its_next_item_can_be_stopped(rc: Rollcall) -> None:
    ended: list[str] = []

    async def slowly() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            ended.append("source")

    async def stops(decorate: Callable[..., Job], items: Items) -> list[str]:
        stop, handled = asyncio.Event(), list[str]()
        running = asyncio.create_task(quietly(decorate(handled.append), items, rc, stop=stop))
        await eventually(lambda: handled)
        stop.set()
        with pytest.raises(JobStoppedError, match="was stopped"):
            await asyncio.wait_for(running, 30)
        return handled

    assert await stops(job(name="rated", concurrency=3, rate="1 per 1 h"), ["a", "b", "c"]) == ["a"]
    assert await stops(job(name="fed", concurrency=3), slowly()) == ["a"]
    assert ended == ["source"]


async def test_a_job_that_is_stopped_when_all_is_done_is_sealed(rc: Rollcall) -> None:
    stop, all_drawn = asyncio.Event(), asyncio.Event()

    def items() -> Iterator[int]:
        yield from range(5)
        all_drawn.set()

    @job(concurrency=2)
    async def stopped_at_the_end(item: int) -> None:
        if item == 4:
            await all_drawn.wait()
            stop.set()
            await asyncio.sleep(0.01)

    batch_id = f"stopped-{uuid.uuid4().hex[:6]}"
    with pytest.raises(JobStoppedError, match="waiting for the end"):
        await quietly(stopped_at_the_end, items(), rc, batch_id=batch_id, rerun="all", stop=stop)
    assert (await rc.wait(batch_id, timeout=60)).outcome == "completed"


async def test_a_job_that_only_waits_can_be_stopped_too(rc: Rollcall, product: Product) -> None:
    before = await rc.open(total_items=1)
    stop = asyncio.Event()
    waiting = asyncio.create_task(quietly(every_kind, [], rc, stop=stop, after_batch_id=before.batch_id))
    stop.set()
    with pytest.raises(JobStoppedError, match="waiting for what every-kind is to come after"):
        await asyncio.wait_for(waiting, 60)
    stop.clear()
    # Nobody does the other share: this one has nothing left but to wait for it.
    batch_id = f"shared-{uuid.uuid4().hex[:6]}"
    progress = Progress()

    def tell(told: Progress) -> None:
        nonlocal progress
        progress = told

    items = [f"created-{number}" for number in range(20)]
    options: dict[str, Any] = {"rc": rc, "rerun": "all", "progress": tell, "stop": stop, "batch_id": batch_id}
    waiting = asyncio.create_task(run(every_kind, items, partition=(1, 2), **options))

    async def published() -> bool:
        return 0 < progress.done == len(await results_of(product, batch_id))

    await eventually(published, 60)
    stop.set()
    with pytest.raises(JobStoppedError):
        await asyncio.wait_for(waiting, 60)


async def test_a_job_starts_after_another_and_not_where_that_one_failed(rc: Rollcall) -> None:
    # Buckets give the same ids to all of the run: a time of this test's own.
    now = datetime(2020, 1, 1, tzinfo=UTC).replace(year=1990 + uuid.uuid4().int % 1000)
    waiting = asyncio.create_task(quietly(second_step, ["a"], rc, now=now, rerun="all"))
    first = await quietly(first_step, ["a", "b"], rc, now=now, rerun="all")
    second = await asyncio.wait_for(waiting, 60)
    assert first.batch_id == f"first-step-{now:%Y%m%dT%H%M%SZ}"
    assert (first.status, second.status) == ("COMPLETED", "COMPLETED")
    later = now.replace(month=2)
    await quietly(first_step, ["a", "bad"], rc, now=later, rerun="all")
    with pytest.raises(DependencyError, match="ended completed_with_errors, accepted is completed"):
        await quietly(second_step, ["a"], rc, now=later, rerun="all")


async def test_a_job_starts_after_a_batch_that_is_named(rc: Rollcall) -> None:
    before = await rc.open(total_items=1)
    await rc.flush()
    going = asyncio.create_task(quietly(every_kind, ["created-1"], rc, after_batch_id=before.batch_id))
    await before.succeeded("one")
    assert (await asyncio.wait_for(going, 60)).status == "COMPLETED"
    failed = await rc.open(total_items=1)
    await failed.failed("one", "no")
    with pytest.raises(DependencyError, match="ended failed"):
        await quietly(every_kind, ["created-1"], rc, after_batch_id=failed.batch_id)


async def test_what_cannot_work_is_said_before_anything_is_published(rc: Rollcall) -> None:
    with pytest.raises(ConfigurationError, match="api_url"):
        await quietly(first_step, ["a"], rc)
    with pytest.raises(ConfigurationError, match="does not say what its items are"):
        await quietly(every_kind, None, rc)
    with pytest.raises(ConfigurationError, match="item_id"):
        await quietly(every_kind, [object()], rc)
    with pytest.raises(ConfigurationError, match="not both"):
        await quietly(every_kind, ["a"], rc, partitions=2, partition=(1, 2), batch_id="b")
    with pytest.raises(ConfigurationError, match="one batch_id"):
        await quietly(every_kind, ["a"], rc, partition=(1, 2))
    with pytest.raises(ConfigurationError, match="needs a bucket"):
        await quietly(job(after=every_kind)(lambda item: None), ["a"], rc)
    with pytest.raises(ConfigurationError, match="not concurency"):
        job(concurency=3)(lambda item: None)
    for worker, partitions in (("w" * 201, 1), ("w" * 198, 2)):
        with pytest.raises(InvalidMessageError, match="a worker's name"):
            await quietly(every_kind, ["created-1"], rc, worker=worker, partitions=partitions)


async def test_no_new_item_starts_above_the_memory_limit(rc: Rollcall, monkeypatch: pytest.MonkeyPatch) -> None:
    used = 100.0
    monkeypatch.setattr(memory, "resident_mb", lambda: used)
    monkeypatch.setattr(memory, "WAIT_S", 0.01)
    handled: list[int] = []

    @job(concurrency=1, memory_limit_mb=200)
    async def hungry(item: int) -> None:
        nonlocal used
        handled.append(item)
        if item == 5:
            used = 300.0
        await asyncio.sleep(0.02)

    running = asyncio.create_task(quietly(hungry, range(20), rc))
    await eventually(lambda: 5 in handled)
    await asyncio.sleep(0.3)  # in which all the others would have been handled
    assert handled == [0, 1, 2, 3, 4, 5]
    used = 100.0
    assert (await asyncio.wait_for(running, 60)).processed == 20

    monkeypatch.setattr(memory, "PATIENCE_S", 0.1)
    used = 300.0
    result = await quietly(hungry, range(20), rc)
    assert result.status == "FAILED"
    assert result.error is not None
    assert "raise memory_limit_mb" in result.error


async def test_memory_that_items_hold_stays_near_its_limit(rc: Rollcall) -> None:
    begin = memory.resident_mb()
    assert begin is not None
    most = 0.0
    held: list[bytes] = []

    @job(concurrency=50, memory_limit_mb=begin + 150)
    async def holding(item: int) -> None:
        nonlocal most
        held.append(b"x" * (10 * 2**20))
        most = max(most, memory.resident_mb() or 0)
        await asyncio.sleep(0.05)
        held.pop()

    result = await quietly(holding, range(60), rc)
    assert (result.status, result.processed) == ("COMPLETED", 60)
    # All fifty at a time would hold 500 MiB.
    assert begin + 100 < most < begin + 300


async def test_an_item_whose_work_is_cancelled_fails_and_the_others_go_on(rc: Rollcall) -> None:
    @job(concurrency=2)
    async def waits_for_the_cancelled(item: int) -> None:
        if item % 10 == 3:
            waited_for = asyncio.ensure_future(asyncio.sleep(30))
            waited_for.cancel()
            await waited_for

    result = await quietly(waits_for_the_cancelled, range(40), rc)
    assert (result.processed, result.failed) == (40, 4)


async def test_a_cancelled_item_of_a_chunk_fails_and_the_others_are_reported(rc: Rollcall) -> None:
    @job(concurrency=2, chunk_size=5)
    def cancelled(item: int) -> None:
        if item % 10 == 3:
            raise asyncio.CancelledError("what it waited for was")

    result = await quietly(cancelled, range(40), rc)
    assert (result.processed, result.failed) == (40, 4)


async def test_a_run_can_be_cancelled(rc: Rollcall) -> None:
    started = asyncio.Event()

    @job(concurrency=2)
    async def forever(item: int) -> None:
        started.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(quietly(forever, range(4), rc))
    await asyncio.wait_for(started.wait(), 60)
    running.cancel()
    await asyncio.wait({running}, timeout=60)
    assert running.cancelled()


async def test_ids_that_are_there_twice_are_refused_or_asked_about(rc: Rollcall) -> None:
    with pytest.raises(InvalidMessageError, match="twice"):
        await quietly(every_kind, ["created-1", "created-1"], rc)
    with pytest.raises(TimeoutError, match="it has 2 items: are their ids distinct"):
        await run(every_kind, iter(["created-1", "created-1"]), rc=rc, progress=None, wait_timeout_s=2)


async def test_a_metric_of_the_job_that_is_no_number_is_left_out(rc: Rollcall) -> None:
    @job
    async def measuring(item: int) -> None:
        current().job_metrics |= {"rows": 3, "text": "x", "inf": float("inf")}  # type: ignore[dict-item]

    assert (await quietly(measuring, [1], rc)).metrics == {"rows": 3}


@pytest.mark.parametrize("listed", [True, False])
async def test_progress_is_told_and_its_last_word_is_the_whole(rc: Rollcall, listed: bool) -> None:
    told: list[tuple[int | None, int, int]] = []

    def tell(progress: Progress) -> None:
        told.append((progress.total, progress.done, progress.failed))

    items = [f"created-{n}" for n in range(500)] + ["broken-1"]
    await run(every_kind, items if listed else iter(items), rc=rc, progress=tell, wait_timeout_s=60)
    assert told[-1] == (501 if listed else None, 501, 1)


async def test_a_job_is_not_lost_over_what_shows_its_progress(rc: Rollcall) -> None:
    def broken(progress: Progress) -> None:
        raise OSError("the screen is gone")

    result = await run(every_kind, ["created-1"], rc=rc, progress=broken, wait_timeout_s=60)
    assert result.status == "COMPLETED"


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("name", "auto") as tell:
        tell(Progress(total=1, done=1, succeeded=1))
    assert capsys.readouterr() == ("", "")


def test_a_decorated_function_can_still_be_called_and_current_needs_a_job() -> None:
    @job
    def doubled(item: int) -> int:
        """Twice."""
        return item * 2

    assert (doubled(4), doubled.name, doubled.__doc__) == (8, "doubled", "Twice.")
    with pytest.raises(LookupError):
        current()
    assert issubclass(CriticalError, Exception)
    assert Job().name == "job"
