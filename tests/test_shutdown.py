"""SIGTERM: what is in flight is finished, nothing is left behind; a second one does not wait for that."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from migrations.run import migrate
from rollcall.children import Child
from rollcall.embedded.servers import free_port
from rollcall.settings import Settings
from schemas.topics import Topics, home_partition
from store.connection import Connection
from tests.harness import commands
from tests.harness.histories import Message, make_history
from tests.harness.librdkafka import MURMUR2, produce_with_librdkafka
from tests.harness.product import Product, running
from tests.harness.signals import catches, is_stopped
from tests.harness.tables import (
    assert_events_are_the_models,
    assert_tables_are_the_models,
    finalized_events,
    folded_log,
)
from tests.harness.topics import create_topic, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4
# Beside an installation that serves other tests, whose sessions ($1) were there before.
LEFT = """
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE application_name ~ '^rollcall (worker|relay)' AND datname = current_database()
          AND pid <> ALL ($1::int4[])) AS sessions,
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> ALL ($1::int4[])) AS advisory_locks,
       (SELECT count(*) FROM pg_class WHERE relpersistence = 't') AS temporary_tables
"""


async def test_processes_told_to_stop_in_the_midst_of_it_leave_nothing_behind_and_lose_nothing(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    history = make_history(20261210, sizes=(0, 1, 2, 100, 1_000) * 6)
    print(history)
    await produce_with_librdkafka(
        settings.bootstrap_servers, topics.events, history.messages[:-500], partitioner=MURMUR2
    )
    others = await sessions(settings)
    async with running(settings, workers=2) as product:
        await product.await_applied(500)
        # All at once, and once each: a second signal would end them at once.
        codes = await asyncio.gather(*(child.stop(15) for child in product.children.values()))
        assert dict(zip(product.children, codes, strict=True)) == {"relay": 0, "worker-0": 0, "worker-1": 0}
        async with product.connection() as connection:
            await eventually(lambda: nothing_is_left(connection, others))
        await produce_with_librdkafka(
            settings.bootstrap_servers, topics.events, history.messages[-500:], partitioner=MURMUR2
        )
        await product.start_relay()
        await product.start_worker(0)
        await product.settled()
    model = await folded_log(settings, PARTITIONS)
    assert_events_are_the_models(model, await finalized_events(settings), settings, PARTITIONS)
    await assert_tables_are_the_models(model, settings, PARTITIONS)


async def test_a_flush_in_flight_when_sigterm_comes_is_committed_before_the_end(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    messages = make_history(20261212, sizes=(10,)).messages
    async with running(settings, relay=False) as product, product.connection() as connection:
        worker = product.children["worker-0"]
        await eventually(lambda: is_anchored(product))
        before = await product.positions()
        async with connection.transaction():
            await connection.execute("SELECT FROM positions FOR UPDATE")
            await produce_with_librdkafka(settings.bootstrap_servers, topics.events, messages, partitioner=MURMUR2)
            await eventually(lambda: waits_for_a_lock(product, "worker"))
            worker.send_signal(signal.SIGTERM)
            await eventually(lambda: not catches(worker.pid, signal.SIGTERM), message="the signal is heeded")
            assert await product.positions() == before
        assert await asyncio.wait_for(worker.wait(), 15) == 0
        # Nobody else runs: only the transaction that waited can have moved them.
        assert sum((await product.positions()).values()) > sum(before.values())


async def test_a_transaction_in_flight_when_sigterm_comes_is_committed_and_marked_before_the_end(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings, relay=False) as product:
        await produce_with_librdkafka(
            settings.bootstrap_servers, topics.events, make_history(20261214, sizes=(1,)).messages, partitioner=MURMUR2
        )
        await eventually(product._is_caught_up)
        # It stops where the records are sent and the transaction is open: it has the signal when it goes on.
        relay = await product.start_relay(failpoint="send.after:1:stop")
        await eventually(lambda: is_stopped(relay.pid), message="the relay stops at its failpoint")
        relay.send_signal(signal.SIGTERM)
        relay.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(relay.wait(), 15) == 0
        async with product.connection() as connection:
            rows = await connection.fetch("SELECT published_at FROM outbox WHERE channel = 'finalized'")
        assert rows, "the batch is finalized"
        assert all(row[0] for row in rows), "what was sent is committed, and marked"
        assert len(await finalized_events(settings)) == len(rows)


FOLDS_FOR_LONG = """
import sys, time
from handlers import microbatch
from rollcall.cli import main

def fold(*_):
    print("folding", file=sys.stderr, flush=True)
    time.sleep(30)

microbatch.MANY_REGISTERS = 0
microbatch._step_each = fold
main()
"""


async def test_a_worker_that_folds_in_a_thread_ends_in_time_too(settings: Settings, tmp_path: Path) -> None:
    topics, log = Topics(settings.topic_prefix), tmp_path / "log"
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    messages = make_history(20261213, sizes=(10,)).messages
    await produce_with_librdkafka(settings.bootstrap_servers, topics.events, messages, partitioner=MURMUR2)
    async with running(settings, workers=0, relay=False) as product:
        worker = await Child.spawn(
            [sys.executable, "-P", "-c", FOLDS_FOR_LONG, "worker"],
            name="worker",
            env=os.environ | settings.environment(),
            log=log,
        )
        product.children["worker"] = worker
        await eventually(lambda: b"folding" in log.read_bytes(), 60)
        assert await worker.stop(15) == 0, "killed, as a supervisor would have"


async def sessions(settings: Settings) -> list[int]:
    connection = await settings.database().connect("test")
    try:
        return [row[0] for row in await connection.fetch("SELECT pid FROM pg_stat_activity")]
    finally:
        await connection.close()


async def nothing_is_left(connection: Connection, others: list[int]) -> bool:
    left = dict(await connection.fetchrow(LEFT, others) or {})
    assert not any(left.values()), left
    return True


async def is_anchored(product: Product) -> bool:
    return len(await product.positions()) == PARTITIONS


async def waits_for_a_lock(product: Product, session: str) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = $1"
    async with product.connection() as observer:
        return bool(await observer.fetchval(waiting, f"rollcall {session}"))


async def assert_the_second_sigterm_ends(child: Child) -> None:
    child.send_signal(signal.SIGTERM)
    await eventually(lambda: not catches(child.pid, signal.SIGTERM), message="the first one is heeded")
    child.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 5) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "twice", "code"),
    [
        ("worker", False, 0),
        ("worker", True, -signal.SIGTERM),
        ("run", False, 0),
    ],
)
async def test_processes_whose_log_nobody_reads_end_in_time_and_by_a_second_sigterm_at_once(
    settings: Settings, command: str, twice: bool, code: int
) -> None:
    topic = Topics(settings.topic_prefix).events
    await create_topic(settings.bootstrap_servers, topic, partitions=2)
    await migrate(settings.database_url, settings.database_schema)
    reading_end, writing_end = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *commands.argv(command), env=commands.environment(settings), stdout=writing_end, stderr=writing_end
    )
    filling = None

    def read_past(said: bytes) -> None:
        found = b""
        while said not in found:
            found += os.read(reading_end, 4096)

    def waits_to_write(pid: int) -> bool:
        return "pipe_write" in Path(f"/proc/{pid}/wchan").read_text()

    try:
        await eventually(lambda: catches(process.pid, signal.SIGTERM), 60, message="it heeds signals")
        if command == "run":
            await asyncio.wait_for(asyncio.to_thread(read_past, b"processes="), 60)
        filling = await asyncio.create_subprocess_exec("yes", stdout=writing_end)
        await eventually(lambda: waits_to_write(filling.pid), message="nothing more can be written")
        astray = Message(b"b", b'{"batch_id": "b", "item_id": "a", "status": "succeeded"}', "b")
        await produce(settings.bootstrap_servers, topic, [astray], partition=1 - home_partition("b", 2))
        if command == "worker":
            await eventually(lambda: waits_to_write(process.pid), 60, message="its line about a record astray waits")
        process.terminate()
        if twice:
            await eventually(lambda: not catches(process.pid, signal.SIGTERM), message="the signal is heeded")
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 15) == code
    finally:
        for each in (process, filling):
            if each is not None and each.returncode is None:
                each.kill()
                await each.wait()
        os.close(reading_end)
        os.close(writing_end)


FAILS_AND_LEAVES_A_TASK = """
import asyncio
from rollcall import processes

async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def fails(*_):
    global task
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    raise ValueError("a bug")

processes.EXIT_TIMEOUT_S = 1.0
processes._prepare_and_run = fails
asyncio.run(processes._until_stopped(None, None))
"""


async def test_a_role_that_fails_ends_though_a_task_that_it_leaves_does_not_heed_being_cancelled() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FAILS_AND_LEAVES_A_TASK),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert b"ending without them" in said
        assert b"a bug" in said
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_second_sigterm_does_not_wait_for_a_transaction_that_cannot_end(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    history = make_history(20261211, sizes=(10,))
    async with running(settings, relay=False) as product, product.connection() as connection:
        await eventually(lambda: is_anchored(product))
        async with connection.transaction():
            await connection.execute("SELECT FROM positions FOR UPDATE")
            await produce_with_librdkafka(
                settings.bootstrap_servers, topics.events, history.messages, partitioner=MURMUR2
            )
            await eventually(lambda: waits_for_a_lock(product, "worker"))
            await assert_the_second_sigterm_ends(product.children["worker-0"])
        await product.start_relay()
        await product.start_worker(0)
        await product.settled()
    await assert_tables_are_the_models(await folded_log(settings, PARTITIONS), settings, PARTITIONS)


@pytest.mark.parametrize(("role", "session"), [("relay", "relay events"), ("clock", "clock deadlines"), ("api", "api")])
async def test_a_second_sigterm_ends_the_other_roles_at_once_too(settings: Settings, role: str, session: str) -> None:
    settings = settings.model_copy(update={"auth": "off", "api_port": free_port()})
    async with running(settings, workers=0, relay=False) as product, product.connection() as connection:
        start = {"relay": product.start_relay, "clock": product.start_clock, "api": product.start_api}[role]
        async with connection.transaction(), asking_the_api(settings):
            await connection.execute("LOCK TABLE outbox, batches IN ACCESS EXCLUSIVE MODE")
            child = await start()
            await eventually(lambda: waits_for_a_lock(product, session))
            await assert_the_second_sigterm_ends(child)


@asynccontextmanager
async def asking_the_api(settings: Settings) -> AsyncIterator[None]:
    """Ask for a batch all the time, also while nobody listens yet."""

    async def asks() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                with suppress(httpx.TransportError):
                    await client.get(f"http://{settings.api_host}:{settings.api_port}/api/batches/b")
                await asyncio.sleep(0.05)

    asking = asyncio.create_task(asks())
    try:
        yield
    finally:
        asking.cancel()
