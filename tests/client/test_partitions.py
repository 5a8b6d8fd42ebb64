"""One batch, several processes: counted from the stream, whatever becomes of a process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sysconfig
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from rollcall_client import Rollcall, RollcallError
from rollcall_client.jobs import Job, JobResult, run
from rollcall_client.jobs.command import STOPPED

from tests.client.sample_jobs import Meeting, Recorded, alone_stops_at_the_third, stops_at_the_third
from tests.client.test_reruns import answered, done_items, environment
from tests.harness.product import Product
from tests.harness.signals import catches
from tests.harness.waiting import eventually

ROLLCALL_JOB = str(Path(sysconfig.get_path("scripts")) / "rollcall-job")


async def in_processes(
    rc: Rollcall, log: Path, partitions: int, job: type[Recorded] = Recorded, **params: str
) -> JobResult:
    return await run(
        job,
        rc=rc,
        batch_id=f"recorded-{uuid.uuid4().hex[:8]}",
        rerun="all",
        partitions=partitions,
        params={"log": str(log), **params},
        worker="here",
        progress=None,
        wait_timeout_s=60,
    )


async def test_processes_share_a_run_and_each_ones_part_is_in_the_result(rc: Rollcall, tmp_path: Path) -> None:
    result = await in_processes(rc, tmp_path / "log", 3, Meeting, count="300", fail="0007,0008")
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(item_id for item_id, _ in lines) == [f"{n:04d}" for n in range(300) if n not in (7, 8)]
    assert (result.processed, result.created, result.failed, result.status) == (300, 298, 2, "PARTIAL")
    assert {each.worker for each in result.workers} == {f"here-{number}of3" for number in (1, 2, 3)}
    assert sum(each.items for each in result.workers) == 300
    assert sum(each.failed for each in result.workers) == 2
    for each in result.workers:
        assert each.duration_ms > 0
        done = sum(worker == each.worker for _, worker in lines)
        assert done == each.items - each.failed


async def test_a_killed_process_is_said_and_the_batch_stays_open(rc: Rollcall, tmp_path: Path) -> None:
    with pytest.raises(RollcallError, match=r"before their time.*-9"):
        await in_processes(rc, tmp_path / "log", 2, count="100", kill_at="50")
    assert multiprocessing.active_children() == []


async def test_a_critical_error_in_one_process_stops_all(rc: Rollcall) -> None:
    result = await run(
        stops_at_the_third,
        (f"{number:02d}" for number in range(2_000)),
        rc=rc,
        partitions=2,
        progress=None,
        wait_timeout_s=60,
    )
    assert (result.status, result.outcome, result.error) == ("FAILED", "failed", "the account is blocked")
    assert result.failed_item_ids == ["03"]
    assert result.processed < 2_000


@pytest.mark.parametrize("stopping", [stops_at_the_third, alone_stops_at_the_third], ids=["two lanes", "one lane"])
async def test_a_critical_error_in_one_process_does_not_wait_for_a_slow_source(rc: Rollcall, stopping: Job) -> None:
    async def that_stalls() -> AsyncIterator[str]:
        for number in range(4):
            yield f"{number:02d}"
        await asyncio.Event().wait()

    async with asyncio.timeout(100):
        result = await run(stopping, that_stalls(), rc=rc, partitions=2, progress=None, wait_timeout_s=60)
    assert (result.status, result.error) == ("FAILED", "the account is blocked")


async def test_shares_on_several_machines_end_in_one_result(product: Product, tmp_path: Path) -> None:
    settings = product.settings
    batch_id = f"shares-{uuid.uuid4().hex[:8]}"
    log = tmp_path / "log"

    async def machine(number: int) -> JobResult:
        async with Rollcall(settings.bootstrap_servers, topic_prefix=settings.topic_prefix) as rc:
            return await run(
                Recorded,
                rc=rc,
                batch_id=batch_id,
                rerun="all",
                partition=(number, 2),
                params={"log": str(log), "count": "120"},
                worker=f"machine-{number}",
                progress=None,
                wait_timeout_s=60,
            )

    one, two = await asyncio.gather(machine(1), machine(2))
    assert (one.processed, one.status) == (120, "COMPLETED")
    assert one == two
    assert {each.worker for each in one.workers} == {"machine-1", "machine-2"}
    assert len(log.read_text().splitlines()) == 120


async def test_a_signal_to_all_processes_loses_nothing_that_was_done(product: Product, tmp_path: Path) -> None:
    batch_id, log = f"stopped-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    parent = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "run", "tests.client.sample_jobs:Recorded", "--all", "--batch-id", batch_id),
        *("--param", f"log={log}", "--param", "count=1000000", "--partitions", "2"),
        env=environment(product),
        start_new_session=True,
    )
    log.touch()
    try:
        await eventually(lambda: len({line.split()[1] for line in log.read_text().splitlines()}) == 2, 60)
        os.killpg(parent.pid, signal.SIGTERM)
        assert await asyncio.wait_for(parent.wait(), 60) == STOPPED
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    assert await answered(product, batch_id) == done_items(log).keys()


NEVER_THROUGH = """
import asyncio
import time
from pathlib import Path
from rollcall_client.jobs import job

@job(items=lambda: ["a"])
async def never_through(item):
    (Path(__file__).parent / "begun").touch()
    WAITS
"""


@pytest.mark.parametrize(
    "waits", ["await asyncio.sleep(600)", "time.sleep(600)"], ids=["waiting", "holding the loop up"]
)
async def test_a_second_signal_ends_a_job_at_once_also_where_it_is_another_one(
    product: Product, tmp_path: Path, waits: str
) -> None:
    (tmp_path / "never.py").write_text(NEVER_THROUGH.replace("WAITS", waits))
    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "--path", str(tmp_path), "run", "never:never_through"), env=environment(product)
    )
    try:
        await eventually((tmp_path / "begun").exists, 60)
        process.send_signal(signal.SIGINT)
        await eventually(lambda: not catches(process.pid, signal.SIGTERM), message="the first one is heeded")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == -signal.SIGTERM
    finally:
        with suppress(ProcessLookupError):
            process.kill()


LEAVES_A_PROGRAM = """
import os
import signal
from rollcall_client.jobs import job

@job(items=lambda: ["a"])
def leaves_a_program(item):
    os.system("sleep 600 > /dev/null 2>&1 & echo $! > left")
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_killed_process_is_noticed_though_a_program_that_it_started_lives_on(
    product: Product, tmp_path: Path
) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES_A_PROGRAM)
    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "--path", str(tmp_path), "run", "leaves:leaves_a_program", "--partitions", "2"),
        env=environment(product),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert b"processes ended before their time" in said
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)


SLOW_TO_IMPORT = """
import multiprocessing
import os
import time
from pathlib import Path
from rollcall_client.jobs import job

HERE = Path(__file__).parent
if multiprocessing.current_process().name != "MainProcess":
    (HERE / f"{os.getpid()}.importing").touch()
    while not (HERE / "go").exists():
        time.sleep(0.02)

@job(items=lambda: map(str, range(1_000_000)))
def slow_to_import(item):
    time.sleep(0.01)
"""


async def test_a_signal_while_processes_import_the_job_stops_it_in_order(product: Product, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_TO_IMPORT)
    parent = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "--path", str(tmp_path), "run", "slow:slow_to_import", "--partitions", "2"),
        env=environment(product),
        start_new_session=True,
    )
    try:
        await eventually(lambda: len(list(tmp_path.glob("*.importing"))) == 2, 60)
        os.killpg(parent.pid, signal.SIGTERM)
        (tmp_path / "go").touch()
        assert await asyncio.wait_for(parent.wait(), 60) == STOPPED
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


async def test_children_end_with_their_parent(product: Product, tmp_path: Path) -> None:
    settings = product.settings
    parent = await asyncio.create_subprocess_exec(
        *(
            ROLLCALL_JOB,
            "run",
            "tests.client.sample_jobs:Recorded",
            "--all",
            "--batch-id",
            f"orphans-{uuid.uuid4().hex[:8]}",
        ),
        *("--param", f"log={tmp_path / 'log'}", "--param", "count=1000000", "--partitions", "2"),
        env=os.environ
        | {"ROLLCALL_BOOTSTRAP_SERVERS": settings.bootstrap_servers, "ROLLCALL_TOPIC_PREFIX": settings.topic_prefix},
    )
    await eventually(lambda: (tmp_path / "log").exists(), 60)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.kill()
    await parent.wait()
    await eventually(lambda: not any(child.is_running() for child in children), 60)
