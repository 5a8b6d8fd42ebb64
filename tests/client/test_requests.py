"""`rollcall-job listen`: runs and retries that are asked for over HTTP are taken up, and come to their end."""

from __future__ import annotations

import asyncio
import json
import signal
import sysconfig
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from rollcall_client import Rollcall
from rollcall_client.api import ATTEMPTS, Api
from rollcall_client.jobs import Job, job
from rollcall_client.jobs.job import as_job
from rollcall_client.jobs.requests import listen
from structlog.testing import capture_logs

from tests.client.sample_jobs import Recorded
from tests.client.test_publishing import a_broker_of_ones_own, item_ids
from tests.client.test_reruns import done_items, environment
from tests.harness.events import Event
from tests.harness.product import Product
from tests.harness.topics import create_topic, produce
from tests.harness.waiting import eventually

ROLLCALL_JOB = str(Path(sysconfig.get_path("scripts")) / "rollcall-job")


@pytest.fixture
def own_job() -> type[Recorded]:
    """A job that no other test's listener takes up."""

    class Own(Recorded):
        name = f"own-{uuid.uuid4().hex[:6]}"

    return Own


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where retries in this process write down what they do, too."""
    path = tmp_path / "log"
    monkeypatch.setenv("RECORDED_LOG", str(path))
    return path


@asynccontextmanager
async def listening(product: Product, api_url: str, log: Path, group: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "listen", "tests.client.sample_jobs", "--group", group),
        env={**environment(product, api_url), "RECORDED_LOG": str(log)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_requested_run_and_a_requested_retry_are_taken_up(
    asking: Rollcall, product: Product, api_url: str, tmp_path: Path
) -> None:
    log, group = tmp_path / "log", f"listeners-{uuid.uuid4().hex[:6]}"
    params = {"count": "30", "log": str(log), "fail": "0003,0004"}
    async with httpx.AsyncClient(base_url=f"{api_url}/api", timeout=30) as http:
        asked = await http.post("/jobs/recorded/runs", json={"params": params})
        assert asked.status_code == 202, asked.text
        assert (await http.post("/jobs/somebody-elses/runs")).status_code == 202
        async with listening(product, api_url, log, group):
            event = await asking.wait(asked.json()["run_id"], timeout=90)
            assert (event.outcome, event.failed_item_ids) == ("completed_with_errors", ["0003", "0004"])
            assert event.metadata is not None
            assert event.metadata["job"] == "recorded"
            runs = (await http.get("/jobs/recorded/runs")).json()["runs"]
            assert event.batch_id in [each["batch_id"] for each in runs]
        retried = await http.post(f"/batches/{event.batch_id}/retry", json={})
        assert retried.status_code in (201, 202), retried.text
        # Another listener of the group: the run is not done again, the retry is.
        async with listening(product, api_url, log, group):
            again = await asking.wait(retried.json()["batch_id"], timeout=90)
    assert (again.outcome, again.item_counts.succeeded, again.retry_of) == ("completed", 2, event.batch_id)
    assert set(done_items(log).values()) == {1}
    assert len(done_items(log)) == 30


class Door:
    """What stands before an API, and closes every connection while it is shut."""

    def __init__(self, api_url: str) -> None:
        self._there = httpx.URL(api_url)
        self.open = False
        self.refused = 0

    @asynccontextmanager
    async def standing(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._met, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            if not self.open:
                self.refused += 1
                return
            there, to_there = await asyncio.open_connection(self._there.host, self._there.port)
            with closing(to_there):
                there_and_back = (_passed_on(reader, to_there), _passed_on(there, writer))
                await asyncio.wait(
                    [asyncio.ensure_future(each) for each in there_and_back], return_when=asyncio.FIRST_COMPLETED
                )


async def _passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def taking_up(job: Job | type[Job], client: Rollcall, group: str) -> AsyncIterator[asyncio.Event]:
    """A listener in this process; ends it as a signal would, by the event that it gives."""
    stop = asyncio.Event()
    listener = asyncio.create_task(listen({str(job.name): as_job(job)}, client, group=group, stop=stop))
    try:
        yield stop
        assert stop.is_set() or not listener.done()
    finally:
        stop.set()
        await asyncio.wait_for(listener, 30)


async def test_requests_are_not_passed_over_while_the_api_is_away(
    asking: Rollcall, product: Product, api_url: str, own_job: type[Recorded], log: Path
) -> None:
    group, settings = f"{own_job.name}-listeners", product.settings
    door = Door(api_url)

    async def refused_twice() -> None:
        enough = door.refused + ATTEMPTS + 1
        await eventually(lambda: door.refused >= enough, 120)

    async with httpx.AsyncClient(base_url=f"{api_url}/api", timeout=30) as http, door.standing() as by_the_door:

        def client() -> Rollcall:
            return Rollcall(settings.bootstrap_servers, by_the_door, topic_prefix=settings.topic_prefix)

        params = {"count": "5", "log": str(log), "fail": "0003"}
        asked = (await http.post(f"/jobs/{own_job.name}/runs", json={"params": params})).json()
        async with client() as rc, taking_up(own_job, rc, group):
            await refused_twice()
            door.open = True
            event = await asking.wait(asked["run_id"], timeout=90)
            assert event.failed_item_ids == ["0003"]
        door.open = False
        retried = (await http.post(f"/batches/{event.batch_id}/retry", json={})).json()
        async with client() as rc:
            async with taking_up(own_job, rc, group):
                await refused_twice()
            door.open = True
            async with taking_up(own_job, rc, group):
                again = await asking.wait(retried["batch_id"], timeout=90)
    assert (again.outcome, again.item_counts.succeeded) == ("completed", 1)
    assert done_items(log) == {f"{number:04d}": 1 for number in range(5)}


async def test_a_retry_is_not_passed_over_where_the_address_of_the_api_is_wrong(
    asking: Rollcall, product: Product, api_url: str, own_job: type[Recorded], log: Path
) -> None:
    group, settings = f"{own_job.name}-listeners", product.settings
    before = await asking.open(name=own_job.name, items=["0001"], metadata={"job": own_job.name})
    await before.cancel()
    batch = await asking.open(name=own_job.name, items=["0001"], retry_of=before.batch_id)
    await asking.flush()
    retry = {"batch_id": batch.batch_id, "retry_of": before.batch_id, "item_ids": ["0001"]}
    requests = [requested("batch.retry_requested", **retry)]
    await produce(settings.bootstrap_servers, product.topics.requests, requests)
    misled = Rollcall(settings.bootstrap_servers, f"{api_url}/elsewhere", topic_prefix=settings.topic_prefix)
    with capture_logs() as logs:
        async with misled, taking_up(own_job, misled, group):
            await eventually(lambda: any(each["event"] == "a request is tried again" for each in logs), 60)
    async with taking_up(own_job, asking, group):
        assert (await asking.wait(batch.batch_id, timeout=90)).outcome == "completed"
    assert done_items(log) == {"0001": 1}


async def test_a_retry_of_a_batch_that_rollcall_has_not_read_yet_waits_until_it_has(
    asking: Rollcall, product: Product, own_job: type[Recorded], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its database is restored, or fails over to a replica that lags."""
    is_asked, ask, before_id = asyncio.Event(), Api.batch, f"{own_job.name}-before"

    async def asked(self: Api, batch_id: str) -> object:
        found = await ask(self, batch_id)
        if batch_id == before_id:
            is_asked.set()
        return found

    monkeypatch.setattr(Api, "batch", asked)
    async with taking_up(own_job, asking, f"{own_job.name}-listeners"):
        with workers_stopped(product):
            metadata = {"job": own_job.name}
            before = await asking.open(name=own_job.name, batch_id=before_id, items=["0001"], metadata=metadata)
            await before.cancel()
            batch = await asking.open(name=own_job.name, items=["0001"], retry_of=before_id)
            await asking.flush()
            retry = {"batch_id": batch.batch_id, "retry_of": before_id, "item_ids": ["0001"]}
            requests = [requested("batch.retry_requested", **retry)]
            await produce(product.settings.bootstrap_servers, product.topics.requests, requests)
            await asyncio.wait_for(is_asked.wait(), 60)
        assert (await asking.wait(batch.batch_id, timeout=90)).outcome == "completed"
    assert done_items(log) == {"0001": 1}


@contextmanager
def workers_stopped(product: Product) -> Iterator[None]:
    workers = [child for name, child in product.children.items() if name.startswith("worker")]
    assert workers
    for each in workers:
        each.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for each in workers:
            each.send_signal(signal.SIGCONT)


async def test_a_retry_of_a_batch_that_nobody_knows_is_passed_over(
    asking: Rollcall, product: Product, own_job: type[Recorded], log: Path
) -> None:
    batch = await asking.open(name=own_job.name, items=["0001"], metadata={"job": own_job.name})
    await batch.cancel()
    again = await asking.open(name=own_job.name, items=["0001"], retry_of=batch.batch_id)
    await asking.flush()
    requests = [
        requested("batch.retry_requested", batch_id=again.batch_id, retry_of=retry_of, item_ids=["0001"])
        for retry_of in (f"{own_job.name}-never", batch.batch_id)
    ]
    await produce(product.settings.bootstrap_servers, product.topics.requests, requests)
    with capture_logs() as logs:
        async with taking_up(own_job, asking, f"{own_job.name}-listeners"):
            assert (await asking.wait(again.batch_id, timeout=90)).outcome == "completed"
    assert "a retry of a batch that Rollcall does not know" in [each["event"] for each in logs]
    assert done_items(log) == {"0001": 1}


def requested(kind: str, **fields: object) -> Event:
    header = ("ce_type", f"rollcall.{kind}.v1".encode())
    return Event(b"one partition", json.dumps(fields).encode(), (header,))


async def test_a_retry_of_a_batch_that_has_ended_meanwhile_is_not_done(
    asking: Rollcall, product: Product, own_job: type[Recorded], log: Path
) -> None:
    settings = product.settings
    before = await asking.open(name=own_job.name, items=["0001", "0002"], metadata={"job": own_job.name})
    await before.cancel()
    batch = await asking.open(name=own_job.name, items=["0001", "0002"], retry_of=before.batch_id)
    await batch.cancel()
    await asking.wait(batch.batch_id, timeout=60)

    retry = {"batch_id": batch.batch_id, "retry_of": before.batch_id, "item_ids": ["0001", "0002"]}
    next_one = {"job": own_job.name, "run_id": f"{own_job.name}-next", "params": {"count": "1", "log": str(log)}}
    requests = [requested("batch.retry_requested", **retry), requested("job.run_requested", **next_one)]
    await produce(settings.bootstrap_servers, product.topics.requests, requests)
    async with taking_up(own_job, asking, f"{own_job.name}-listeners"):
        await asking.wait(f"{own_job.name}-next", timeout=90)
    assert done_items(log) == {"0000": 1}, "of the request behind it"


async def test_a_mistake_of_the_jobs_own_is_not_taken_for_one_of_the_request(
    asking: Rollcall, product: Product, unique: str
) -> None:
    called: list[int] = []
    stopping: list[asyncio.Event] = []

    def items(number: int) -> list[str]:
        called.append(number)
        if number == 0:
            raise ValueError("never")
        if called == [0, 1]:
            stopping[0].set()
            raise KeyError("as it was interrupted")
        return ["a"]

    careless = job(name=unique, items=items)(lambda item: None)
    runs = [requested("job.run_requested", job=unique, run_id=f"{unique}-{n}", params={"number": n}) for n in (0, 1)]
    unfit = requested("job.run_requested", job=unique)
    await produce(product.settings.bootstrap_servers, product.topics.requests, [unfit, *runs])
    with capture_logs() as logs:
        async with taking_up(careless, asking, unique) as stop:
            stopping.append(stop)
            await asyncio.wait_for(stop.wait(), 60)
        async with taking_up(careless, asking, unique):
            assert (await asking.wait(f"{unique}-1", timeout=90)).outcome == "completed"
    assert called == [0, 1, 1]
    said = [each["event"] for each in logs if each["event"].startswith("a request")]
    assert said == ["a request that cannot be understood", "a request went wrong"]


async def test_a_listener_that_is_stopped_starts_no_more_items_of_a_retry_and_the_next_does_the_rest(
    asking: Rollcall, product: Product, unique: str
) -> None:
    started, go = asyncio.Event(), asyncio.Event()
    handled: list[str] = []

    @job(name=unique, concurrency=1)
    async def waiting(item: str) -> None:
        handled.append(item)
        started.set()
        await go.wait()

    batch_id = await retry_of_all(asking, product, unique, ["0", "1", "2"])
    async with taking_up(waiting, asking, unique) as stop:
        await asyncio.wait_for(started.wait(), 60)
        stop.set()
        go.set()
    assert handled == ["0"]
    async with taking_up(waiting, asking, unique):
        assert (await asking.wait(batch_id, timeout=90)).outcome == "completed"
    assert handled == ["0", "1", "2"]


async def test_a_retry_that_is_taken_up_again_does_not_end_with_what_it_is_about_to_try_again(
    asking: Rollcall, product: Product, unique: str
) -> None:
    batch_id = await retry_of_all(asking, product, unique, ["a", "b"])
    await asking.batch(batch_id).failed("a", "by a listener that then died")
    await asking.flush()

    async def b_is_in() -> bool:
        assert asking.api is not None
        found = await asking.api.batch(batch_id)
        return found is not None and found["succeeded"] == 1

    @job(name=unique, concurrency=2)
    async def one_after_the_other(item: str) -> None:
        if item == "a":
            await eventually(b_is_in, 60)

    async with taking_up(one_after_the_other, asking, unique):
        event = await asking.wait(batch_id, timeout=90)
    assert (event.revision, event.outcome, event.item_counts.succeeded) == (1, "completed", 2)


async def test_what_one_request_of_a_retry_left_failed_is_not_taken_back_by_the_next(
    asking: Rollcall, product: Product, unique: str
) -> None:
    """Of many items there are several requests."""

    @job(name=unique, concurrency=1)
    async def failing(item: str) -> None:
        if item == "a":
            raise ValueError("told to fail")

    batch_id = await retry_of_all(asking, product, unique, ["a", "b"], at_once=1)
    async with taking_up(failing, asking, unique):
        event = await asking.wait(batch_id, timeout=90)
    assert (event.outcome, event.failed_item_ids) == ("completed_with_errors", ["a"])


async def retry_of_all(
    asking: Rollcall, product: Product, job_name: str, items: list[str], *, at_once: int = 1_000
) -> str:
    """A batch for which all items of one that was cancelled are asked for again, so many by each request."""
    before = await asking.open(name=job_name, items=items, metadata={"job": job_name})
    await before.cancel()
    batch = await asking.open(name=job_name, items=items, retry_of=before.batch_id)
    await asking.flush()
    retry = {"batch_id": batch.batch_id, "retry_of": before.batch_id}
    requests = [
        requested("batch.retry_requested", **retry, item_ids=items[begin : begin + at_once])
        for begin in range(0, len(items), at_once)
    ]
    await produce(product.settings.bootstrap_servers, product.topics.requests, requests)
    return batch.batch_id


async def test_a_request_whose_results_kafka_did_not_take_is_done_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with a_broker_of_ones_own(tmp_path_factory) as kafka:
        for topic in ("rollcall.requests", "rollcall.finalized"):
            await create_topic(kafka.bootstrap_servers, topic, partitions=1)
        handled: list[str] = []

        async def handle(item: str) -> None:
            handled.append(item)
            if len(handled) == 1:
                await kafka.stop()

        unlucky = job(name="unlucky", items=lambda: ["a"])(handle)
        request = json.dumps({"job": "unlucky", "run_id": "unlucky-1"}).encode()
        kind = (("ce_type", b"rollcall.job.run_requested.v1"),)
        await produce(kafka.bootstrap_servers, "rollcall.requests", [Event(b"unlucky", request, kind)])
        with capture_logs() as logs:
            async with (
                Rollcall(kafka.bootstrap_servers, delivery_timeout_s=2) as rc,
                taking_up(unlucky, rc, "listeners"),
            ):
                await eventually(lambda: any(each["event"] == "a request is tried again" for each in logs), 60)
                await kafka.start()
                await eventually(lambda: len(handled) == 2, 90)
        assert "a" in await item_ids(kafka.bootstrap_servers, "rollcall.events")
