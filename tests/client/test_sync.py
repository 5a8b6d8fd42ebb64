"""The blocking twin: the same client, from threads without an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Queue
from typing import Any

import pytest
import rollcall_client
from rollcall_client import InvalidMessageError, RollcallError
from rollcall_client.sync import Batch, Rollcall

from tests.harness.product import Product


def publish_and_wait(product: Product) -> None:
    settings = product.settings
    with Rollcall(settings.bootstrap_servers, topic_prefix=settings.topic_prefix) as rc:
        batch = rc.open(name="sync", items=[f"{number}" for number in range(MANY)])

        def work(thread: int) -> None:
            for number in range(thread, MANY, 4):
                batch.succeeded(f"{number}", worker=f"thread-{thread}")

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        event = rc.wait(batch.batch_id, timeout=60)
        assert event.item_counts.succeeded == MANY
        with pytest.raises(InvalidMessageError):
            batch.failed("", error="no id")
        rc.batch("another").batch_id  # noqa: B018 - it can be had
        for heard in rc.finalized():
            if heard.batch_id == batch.batch_id:
                assert heard.ce_id == event.ce_id
                break
    with pytest.raises(RollcallError, match="closed"):
        batch.succeeded("0")


MANY = 20_000
"""More than may be on the way to the loop at a time."""


def start_and_close(product: Product) -> None:
    settings = product.settings
    rc = Rollcall.from_environment(topic_prefix=settings.topic_prefix)
    rc.start()
    batch = rc.open()
    batch.succeeded("a")
    batch.seal()
    assert (batch.wait(timeout=60).item_counts.total, rc.undelivered) == (1, False)
    last = rc.open(total_items=5_000)
    for number in range(5_000):
        last.succeeded(f"{number}")
    rc.close()
    rc.close()
    with Rollcall.from_environment(topic_prefix=settings.topic_prefix) as another:
        assert another.wait(last.batch_id, timeout=60).item_counts.succeeded == 5_000
    with pytest.raises(RollcallError, match="closed"):
        rc.flush()


async def test_the_twin_has_two_ends_where_a_block_does_not_fit(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLCALL_BOOTSTRAP_SERVERS", product.settings.bootstrap_servers)
    await asyncio.wait_for(asyncio.to_thread(start_and_close, product), 120)


async def test_the_twin_publishes_from_many_threads_waits_and_listens(product: Product) -> None:
    await asyncio.wait_for(asyncio.to_thread(publish_and_wait, product), 120)


def close_while_others_listen(product: Product) -> None:
    settings = product.settings
    heard: Queue[str] = Queue()
    rc = Rollcall(settings.bootstrap_servers, topic_prefix=settings.topic_prefix)
    rc.start()

    def listen() -> None:
        for event in rc.finalized(group=f"closing-{uuid.uuid4().hex[:8]}"):
            heard.put(event.batch_id)

    with ThreadPoolExecutor(2) as threads:
        others: list[Future[Any]] = [threads.submit(listen), threads.submit(rc.wait, "never-opened")]
        batch = rc.open(total_items=1)
        batch.succeeded("a")
        while heard.get(timeout=60) != batch.batch_id:
            pass
        last = rc.open(total_items=1)
        last.succeeded("a")
        rc.close()
        for other in others:
            with pytest.raises(RollcallError, match="closed"):
                other.result(60)
    with Rollcall(settings.bootstrap_servers, topic_prefix=settings.topic_prefix) as another:
        assert another.wait(last.batch_id, timeout=60).outcome == "completed"


LISTENING = """
import signal
import sys
from rollcall_client.sync import Rollcall

# Where the tests run in the background of a shell, interruptions are ignored, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
with Rollcall(sys.argv[1], topic_prefix=sys.argv[2]) as rc:
    rc.open(total_items=0)
    for event in rc.finalized():
        print(event.batch_id, flush=True)
"""


async def test_a_listening_program_that_is_interrupted_ends_as_such(product: Product) -> None:
    settings = product.settings
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LISTENING, settings.bootstrap_servers, settings.topic_prefix),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60)
        process.send_signal(signal.SIGINT)
        _, stderr = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert stderr.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert "RuntimeError" not in stderr.decode()


INTERRUPTED = """
import signal
from concurrent.futures import Future
from rollcall_client import sync

class Silent:
    def start_task_soon(self, function):
        return Future()

class Interruption(BaseException):
    pass

def interrupt(*_):
    global waiting
    if waiting:
        waiting = False
        raise Interruption

waiting, silent = False, Silent()
signal.signal(signal.SIGALRM, interrupt)
for number in range(20_000):
    signal.setitimer(signal.ITIMER_REAL, (10 + number % 100) / 1e6, 0.002)  # again: one before it waits is not heard
    try:
        waiting = True
        sync._called(silent, None)
    except Interruption:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
"""


async def test_an_interruption_is_told_as_such_whenever_it_comes() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", INTERRUPTED, stderr=asyncio.subprocess.PIPE)
    _, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert (process.returncode, stderr.decode()) == (0, "")


SIGNALLED = """
import itertools
import signal
import sys
from rollcall_client.sync import Rollcall

def publish():
    batch.succeeded(str(next(numbers)))

def on_signal(*_):
    publish()
    signal.setitimer(signal.ITIMER_REAL, 0.0005)

with Rollcall(sys.argv[1], topic_prefix=sys.argv[2]) as rc:
    batch, numbers = rc.open(), itertools.count()
    signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    for _ in range(20_000):
        publish()
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    total = next(numbers)
    batch.seal(total)
    print(total > 20_000, rc.wait(batch.batch_id, timeout=60).item_counts.succeeded == total)
"""


async def test_a_signals_handler_may_publish_in_the_midst_of_a_call(product: Product) -> None:
    settings = product.settings
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SIGNALLED, settings.bootstrap_servers, settings.topic_prefix),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        stdout, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert stdout.decode() == "True True\n"


FORKING = """
import os
import sys
from rollcall_client import RollcallError
from rollcall_client.sync import Rollcall

with Rollcall(sys.argv[1], topic_prefix=sys.argv[2]) as rc:
    batch = rc.open(total_items=1)
    child = os.fork()
    if child == 0:
        events = rc.finalized()
        for call in (lambda: batch.succeeded("a"), rc.flush, lambda: rc.wait(batch.batch_id), lambda: next(events)):
            try:
                call()
            except RollcallError as error:
                print(error, flush=True)
        rc.close()
        sys.exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    batch.succeeded("a")
    print(rc.wait(batch.batch_id, timeout=60).outcome)
"""


FORKING_ITS_LOOP = """
import asyncio
import os
import sys
from rollcall_client import Rollcall, RollcallError

async def not_its_own(rc, batch):
    async def listen():
        await anext(rc.finalized())
    for call in (lambda: batch.succeeded("a"), rc.flush, lambda: rc.wait(batch.batch_id), listen):
        try:
            await call()
        except RollcallError as error:
            print(error, flush=True)
    await rc.close()

async def main():
    async with Rollcall(sys.argv[1], topic_prefix=sys.argv[2]) as rc:
        batch = await rc.open(total_items=1)
        child = os.fork()
        if child == 0:
            asyncio.run(not_its_own(rc, batch))
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        await batch.succeeded("a")
        print((await rc.wait(batch.batch_id, timeout=60)).outcome)

asyncio.run(main())
"""


@pytest.mark.parametrize("program", [FORKING, FORKING_ITS_LOOP], ids=["without asyncio", "with asyncio"])
async def test_a_forked_process_is_told_that_the_client_is_not_its_own(product: Product, program: str) -> None:
    settings = product.settings
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", program, settings.bootstrap_servers, settings.topic_prefix),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    told = "this client was started before this process was forked: make a new one here"
    assert stdout.decode().splitlines() == [*[told] * 4, "completed"]


async def test_closing_ends_what_other_threads_listen_to(product: Product) -> None:
    await asyncio.wait_for(asyncio.to_thread(close_while_others_listen, product), 120)


def test_the_twin_has_every_method_of_its_original() -> None:
    def public(of: type) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")}

    assert public(rollcall_client.Batch) - {"published_by"} <= public(Batch)
    inner = {"api", "kafka", "publish", "publish_encoded", "appended_last", "options", "check_opened"}
    assert public(rollcall_client.Rollcall) - inner <= public(Rollcall)
    assert Batch.failed.__doc__ == rollcall_client.Batch.failed.__doc__


def test_the_twin_says_that_it_is_not_started() -> None:
    with pytest.raises(RollcallError, match="not started"):
        Rollcall("localhost:1").open(total_items=1)
