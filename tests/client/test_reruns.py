"""Running a batch again: only what is missing or failed, and nothing once it is finalized."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sysconfig
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from aiokafka import ConsumerRecord
from rollcall_client import ApiError, Rollcall, listening, publishing
from rollcall_client.api import Api
from rollcall_client.jobs import JobResult, run
from rollcall_client.jobs.prior import prior_of
from rollcall_client.kafka import home_partition

from rollcall.children import Child
from tests.client.sample_jobs import Recorded, every_kind
from tests.harness.commands import Done
from tests.harness.product import Product
from tests.harness.topics import drain
from tests.harness.waiting import eventually

ROLLCALL_JOB = str(Path(sysconfig.get_path("scripts")) / "rollcall-job")


def environment(product: Product, api_url: str | None = None) -> dict[str, str]:
    settings = product.settings
    ours = {"ROLLCALL_BOOTSTRAP_SERVERS": settings.bootstrap_servers, "ROLLCALL_TOPIC_PREFIX": settings.topic_prefix}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ROLLCALL_")}
    return {**inherited, **ours, **({} if api_url is None else {"ROLLCALL_API_URL": api_url})}


async def rollcall_job(product: Product, api_url: str | None, *arguments: str) -> Done:
    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, *arguments),
        env=environment(product, api_url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return Done(process.returncode, stdout.decode(), stderr.decode())


def done_items(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


async def answered(product: Product, batch_id: str) -> set[str]:
    """The items of a batch whose results Kafka has."""
    log = await drain(product.settings.bootstrap_servers, product.topics.events)
    ours = (json.loads(record.value) for record in log if record.key == batch_id.encode())
    return {message["item_id"] for message in ours if "item_id" in message}


async def again(
    asking: Rollcall, batch_id: str, log: Path, rerun: Literal["missing", "all"] = "missing", **params: str
) -> JobResult:
    return await run(
        Recorded,
        rc=asking,
        batch_id=batch_id,
        rerun=rerun,
        params={"log": str(log), **params},
        progress=None,
        wait_timeout_s=60,
    )


@pytest.mark.parametrize("listed", [False, True], ids=["generated items", "listed items"])
async def test_a_killed_job_run_again_does_what_is_left_and_every_item_counts_once(
    product: Product, api_url: str, tmp_path: Path, listed: bool
) -> None:
    batch_id, log = f"killed-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    command = ["run", "tests.client.sample_jobs:Recorded", "--batch-id", batch_id, "--json"]
    if listed:
        rows = [f'["{n:04d}", "{log}", {str(n == 250).lower()}, false]' for n in range(600)]
        (tmp_path / "killing").write_text("\n".join(rows))
        (tmp_path / "items").write_text("\n".join(rows).replace("true", "false"))
        killing, whole = ["--items", str(tmp_path / "killing")], ["--items", str(tmp_path / "items")]
    else:
        whole = ["--param", f"log={log}", "--param", "count=600"]
        killing = [*whole, "--param", "kill_at=250"]
    killed = await rollcall_job(product, api_url, *command, *killing)
    assert killed.exit_code == -signal.SIGKILL, killed.stderr
    before = done_items(log)
    assert 250 <= len(before) < 600
    acknowledged = await answered(product, batch_id)
    assert len(acknowledged) >= 200
    finished = await rollcall_job(product, api_url, *command, *whole)
    assert finished.exit_code == 0, finished.stderr
    assert '"processed": 600' in finished.stdout
    assert '"created": 600' in finished.stdout
    after = done_items(log)
    assert len(after) == 600
    repeated = {item_id for item_id, times in after.items() if times > 1}
    assert repeated == before.keys() - acknowledged, "what was in flight, and nothing else"
    once_more = await rollcall_job(product, api_url, *command, *whole)
    assert once_more.exit_code == 0
    assert done_items(log) == after, "the batch is finalized: nothing to do"


async def test_what_failed_is_tried_again_before_the_batch_ends(asking: Rollcall, tmp_path: Path) -> None:
    batch_id, log = f"again-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    batch = await asking.open(batch_id=batch_id)
    await batch.succeeded("0000", metrics={"letters": 4})
    await batch.failed("0001", "for now", attempt=3)
    await batch.retrying("0002", "for now", attempt=2)
    await batch.partial("0003", "no mail")
    result = await again(asking, batch_id, log, count="6")
    assert (result.processed, result.failed, result.status, result.ran) == (6, 0, "COMPLETED", True)
    assert done_items(log) == Counter(["0001", "0002", "0004", "0005"])
    reported = await again(asking, batch_id, log, count="6")
    assert (reported.ran, reported.processed, reported.status) == (False, 6, "COMPLETED")
    assert (result.metrics, reported.metrics) == ({"letters": 4}, {"letters": 4}), "of the run before, too"
    assert reported.workers == result.workers
    assert sum(done_items(log).values()) == 4


async def known(asking: Rollcall, batch_id: str) -> Mapping[str, Any] | None:
    assert asking.api is not None
    return await asking.api.batch(batch_id)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The batches that the API has been asked about, question by question."""
    questions: list[str] = []
    ask = Api.batch

    async def noted(self: Api, batch_id: str) -> Mapping[str, Any] | None:
        questions.append(batch_id)
        return await ask(self, batch_id)

    monkeypatch.setattr(Api, "batch", noted)
    return questions


@contextmanager
def paused(child: Child) -> Iterator[None]:
    child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        child.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("rerun", ["missing", "all"])
async def test_a_run_of_a_reopened_batch_reports_the_new_revision(
    asking: Rollcall, product: Product, tmp_path: Path, rerun: Literal["missing", "all"]
) -> None:
    batch_id, log = f"reopened-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    first = await again(asking, batch_id, log, count="3", fail="0001")
    assert (first.status, first.revision, first.failed_item_ids) == ("PARTIAL", 1, ["0001"])
    await asking.publish({"type": "batch.reopened", "batch_id": batch_id, "revision": 1})

    async def ends_as_revision_2() -> bool:
        found = await known(asking, batch_id)
        return found is not None and (found["revision"], found["outcome"]) == (2, "completed")

    with paused(product.children["relay"]):  # so that only the event before is there when the run has come to its end
        running = asyncio.create_task(again(asking, batch_id, log, rerun, count="3"))
        await eventually(ends_as_revision_2, 60)
    second = await running
    assert (second.status, second.revision, second.processed, second.failed) == ("COMPLETED", 2, 3, 0)
    assert second.ran
    times = 1 if rerun == "missing" else 2
    assert done_items(log) == {"0000": times, "0001": 1, "0002": times}
    reported = await again(asking, batch_id, log, count="3")
    assert (reported.ran, reported.revision) == (False, 2)


async def test_a_run_by_the_same_client_does_not_do_again_what_a_lagging_worker_has_yet_to_read(
    asking: Rollcall, product: Product, tmp_path: Path, asked: list[str]
) -> None:
    batch_id, log = f"lagging-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    batch = await asking.open(batch_id=batch_id)
    await asking.flush()
    await eventually(lambda: known(asking, batch_id))
    asked.clear()
    with paused(product.children["worker-0"]):
        await batch.succeeded("0000")
        await batch.succeeded("0001")
        await asking.flush()
        running = asyncio.create_task(again(asking, batch_id, log, count="3"))
        await eventually(lambda: len(asked) >= 3 or log.exists())
    result = await running
    assert (result.status, result.processed) == ("COMPLETED", 3)
    assert done_items(log) == {"0002": 1}


async def test_a_run_by_the_same_client_sees_the_reopening_that_a_lagging_worker_has_yet_to_read(
    asking: Rollcall, product: Product, tmp_path: Path, asked: list[str]
) -> None:
    batch_id, log = f"reopened-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    first = await again(asking, batch_id, log, count="3", fail="0001")
    assert (first.status, first.revision) == ("PARTIAL", 1)
    asked.clear()
    with paused(product.children["worker-0"]):
        await asking.publish({"type": "batch.reopened", "batch_id": batch_id, "revision": 1})
        running = asyncio.create_task(again(asking, batch_id, log, count="3"))
        await eventually(lambda: len(asked) >= 3 or running.done())
    second = await running
    assert (second.ran, second.status, second.revision) == (True, "COMPLETED", 2)


async def test_who_did_not_open_a_batch_waits_for_what_others_have_just_reported_of_it(
    asking: Rollcall, rc: Rollcall, product: Product, asked: list[str]
) -> None:
    batch = await rc.open(batch_id=f"lagging-{uuid.uuid4().hex[:8]}", items=["0000", "0001"])
    await rc.flush()

    async def nothing_seems_to_be_left() -> bool:
        found = await known(asking, batch.batch_id)
        return found is not None and found["lag"]["records"] == 0

    await eventually(nothing_seems_to_be_left)
    asked.clear()
    with paused(product.children["worker-0"]):
        await batch.succeeded("0000")
        await rc.flush()
        asking_prior = asyncio.create_task(prior_of(asking, batch.batch_id))
        await eventually(lambda: len(asked) >= 3 or asking_prior.done())
    assert (await asking_prior).done == {"0000"}


@pytest.fixture
def partitions_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients publish to another partition than a batch's home, as where partitions were added to the topic."""

    def elsewhere(batch_id: str, partitions: int) -> int:
        return (home_partition(batch_id, partitions) + 1) % partitions

    for module in (publishing, listening):
        monkeypatch.setattr(module, "home_partition", elsewhere)


@pytest.mark.usefixtures("partitions_added")
@pytest.mark.parametrize("opened_here", [True, False])
async def test_what_is_yet_to_be_forwarded_is_waited_for_where_partitions_were_added(
    asking: Rollcall, rc: Rollcall, product: Product, opened_here: bool
) -> None:
    batch = await rc.open(batch_id=f"forwarded-{uuid.uuid4().hex[:8]}", items=["0000", "0001"])
    await rc.flush()
    await eventually(lambda: known(asking, batch.batch_id))
    with paused(product.children["worker-0"]):
        await batch.succeeded("0000")
        await rc.flush()
        if opened_here:
            await asking.open(batch_id=batch.batch_id, items=["0000", "0001"])
        asking_prior = asyncio.create_task(prior_of(asking, batch.batch_id))
        await asyncio.wait({asking_prior}, timeout=5)
        assert not asking_prior.done()
    assert (await asking_prior).done == {"0000"}


@pytest.mark.usefixtures("partitions_added")
async def test_an_old_batch_that_was_forwarded_is_reported_without_reading_all_that_came_since(
    asking: Rollcall, rc: Rollcall, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    is_forward = listening._is_forward

    def looking(record: ConsumerRecord[bytes, bytes], partition: int, offset: int) -> Literal[True] | None:
        looked_at.append(int(dict(record.headers)[listening.FORWARDED_OFFSET]))
        return is_forward(record, partition, offset)

    batch = await rc.open(batch_id=f"old-{uuid.uuid4().hex[:8]}", items=["0000"])
    await batch.succeeded("0000")
    await rc.flush()

    async def is_finalized() -> bool:
        found = await known(asking, batch.batch_id)
        return found is not None and found["outcome"] is not None

    await eventually(is_finalized, 60)
    monkeypatch.setattr(listening, "_is_forward", looking)
    monkeypatch.setattr(listening, "CLOCKS_DIFFER", timedelta(0))
    await asking.open(batch_id=batch.batch_id, items=["0000"])
    prior = await prior_of(asking, batch.batch_id)
    own = asking.appended_last(batch.batch_id)
    assert own is not None
    assert (prior.finalized, looked_at) == (True, [own.offset])


async def test_a_service_older_than_the_client_is_said_to_be(asking: Rollcall, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Api.batch

    async def older(self: Api, batch_id: str) -> Mapping[str, Any] | None:
        found = await ask(self, batch_id)
        if found is None:
            return None
        return {**found, "lag": {name: each for name, each in found["lag"].items() if name != "next_offset"}}

    monkeypatch.setattr(Api, "batch", older)
    with pytest.raises(ApiError, match=r"does not say 'next_offset' .* older than this client") as told:
        await run(every_kind, ["created-1"], rc=asking, batch_id=f"older-{uuid.uuid4().hex[:6]}", progress=None)
    assert told.value.may_pass


async def test_a_run_again_needs_an_api_that_answers(product: Product) -> None:
    settings = product.settings
    async with Rollcall(settings.bootstrap_servers, "http://127.0.0.1:1", topic_prefix=settings.topic_prefix) as rc:
        with pytest.raises(ApiError, match=r"127\.0\.0\.1:1 does not answer"):
            await run(every_kind, ["a"], rc=rc, batch_id=f"b-{uuid.uuid4().hex[:6]}", progress=None)


async def test_waiting_asks_the_api_where_to_begin(asking: Rollcall, rc: Rollcall) -> None:
    batch = await rc.open(total_items=0)
    event = await batch.wait(timeout=60)
    assert (await asking.wait(batch.batch_id, timeout=60)).ce_id == event.ce_id
    begin = await asking._since(batch.batch_id)
    assert begin == event.opened_at
    unknown = f"unknown-{uuid.uuid4().hex[:6]}"
    waiting = asyncio.create_task(asking.wait(unknown, timeout=60))
    await asyncio.sleep(0.5)
    await rc.open(total_items=0, batch_id=unknown)
    await rc.flush()
    assert (await waiting).batch_id == unknown


async def test_an_address_where_no_api_is_does_not_say_that_a_batch_is_unknown(
    rc: Rollcall, product: Product, api_url: str
) -> None:
    batch = await rc.open(total_items=0)
    event = await batch.wait(timeout=60)
    settings, elsewhere = product.settings, f"{api_url}/elsewhere"
    async with Rollcall(settings.bootstrap_servers, elsewhere, topic_prefix=settings.topic_prefix) as misled:
        assert (await misled.wait(batch.batch_id, timeout=60)).ce_id == event.ce_id
        with pytest.raises(ApiError, match=r"elsewhere says 404 to /batches: there is no such path"):
            await known(misled, batch.batch_id)


@pytest.mark.parametrize("batch_id", [".", "..", "a b?c=%2F&d#é"])
async def test_the_api_is_asked_about_batches_of_any_id(asking: Rollcall, batch_id: str) -> None:
    assert asking.api is not None
    assert await asking.api.batch(batch_id) is None
    batch = await asking.open(batch_id=batch_id, total_items=1)
    await batch.succeeded("one")
    await batch.wait(timeout=60)
    found = await asking.api.batch(batch_id)
    assert found is not None
    assert (found["batch_id"], found["outcome"]) == (batch_id, "completed")
    assert [item["item_id"] async for item in asking.api.items(batch_id)] == ["one"]


async def test_a_terminal_shows_a_bar_and_log_lines_above_it(product: Product, tmp_path: Path) -> None:
    (tmp_path / "items").write_text("\n".join([*(f"created-{number}" for number in range(199)), "broken-1"]))
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "run", "tests.client.sample_jobs:every_kind", "--items", str(tmp_path / "items")),
        env={**environment(product), "TERM": "xterm", "COLUMNS": "120"},
        stdout=asyncio.subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)

    def shown() -> bytes:
        seen = b""
        with suppress(OSError):  # how a terminal says that nobody writes to it any more
            while some := os.read(ours, 4096):
                seen += some
        return seen

    (stdout, _), seen = await asyncio.wait_for(asyncio.gather(process.communicate(), asyncio.to_thread(shown)), 120)
    os.close(ours)
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen).decode()
    assert "200/200 199 ok 1 failed" in text
    assert re.search(r"\d:\d\d:\d\d \d:\d\d:\d\d", text), "how long it took, and will take"
    assert "cannot do broken-1" in text
    assert (process.returncode, b"PARTIAL" in stdout) == (1, True)


HANGING = """
import atexit
from threading import Event
from rollcall_client.jobs import job

atexit.register(print, "the end")

@job(items=lambda: ["a"], item_timeout_s=0.2)
def hangs(item):
    Event().wait()
"""


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_thread_that_hangs_does_not_keep_the_command_from_ending(
    product: Product, tmp_path: Path, processes: str
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    run_it = ("run", "hanging:hangs", "--partitions", processes)
    done = await asyncio.wait_for(rollcall_job(product, None, "--path", str(tmp_path), *run_it), 60)
    assert done.exit_code == 1
    assert "failed 1" in done.stdout
    assert done.stdout.endswith("the end\n")
    assert "threads hang in the handle" in done.stderr


async def test_the_command_can_be_stopped_while_it_waits_for_its_items(product: Product, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def read() -> int:
        with suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # which takes somebody who reads
        return 0

    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "run", "tests.client.sample_jobs:every_kind", "--items", str(pipe)), env=environment(product)
    )
    try:
        writing = await eventually(read, 60)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGTERM
        os.close(writing)
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["tests.client.sample_jobs:nothing"], "has no nothing"),
        (["tests.client.sample_jobs:every_kind", "--param", "a"], "NAME=VALUE"),
        (["tests.client.sample_jobs:every_kind", "--partition", "a"], "K/N"),
    ],
)
async def test_wrong_use_is_told_before_the_items_are_read(product: Product, wrong: list[str], says: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "run", *wrong, "--items", "-"),
        env=environment(product),
        stdin=asyncio.subprocess.PIPE,  # where nothing comes, nor an end
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        assert says in (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        assert await asyncio.wait_for(process.wait(), 60) == 2
    finally:
        if process.returncode is None:
            process.kill()


async def test_wrong_use_is_one_line_and_exit_code_2(product: Product) -> None:
    for arguments, says in (
        (["run", "tests.client.sample_jobs:nothing"], "has no nothing"),
        (["run", "json"], "module:job"),
        (["run", "tests.client.sample_jobs:every_kind"], "does not say what its items are"),
        (["run", "tests.client.sample_jobs:every_kind", "--items", "/nowhere"], "cannot be read"),
        (["run", "tests.client.sample_jobs:Recorded"], "ROLLCALL_API_URL"),
        (["run", "tests.client.sample_jobs:second_step", "--items", __file__], "ROLLCALL_API_URL"),
        (["run", "tests.client.sample_jobs:every_kind", "--items", __file__, "--batch-id", "a/b"], "without control"),
    ):
        done = await rollcall_job(product, None, *arguments)
        assert done.exit_code == 2, done
        assert says in done.stderr.splitlines()[-1], done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
