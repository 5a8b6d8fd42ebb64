"""The faults: each does its harm to a running round and returns when the harm is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import asyncpg
import psutil
from aiokafka import AIOKafkaProducer

from rollcall.embedded.servers import EmbeddedServerError
from store import failpoints
from store.leadership import database_name
from tests.faults import cluster
from tests.faults.producing import Flow, Message, broken_records, home
from tests.faults.stage import ID_EXPIRATION_MS, PARTITIONS, Installation, Stage
from tests.harness.broken_records import BROKEN, TOO_LARGE
from tests.harness.topics import create_topic
from tests.harness.waiting import eventually

WORKERS = 2
STOP_TIMEOUT_S = 15.0
SESSION_TIMEOUT_S = 10.0
RELAY_SESSION_TIMEOUT_S = 15.0
FAILPOINT_TIMEOUT_S = 60.0
_PUBLISHED = ("outbox", "dead_letters")


@dataclass
class Round:
    """What a fault gets into its hands; the batches it adds are named `<prefix>-...`.

    `notes` are printed with the round's result, `problems` make it wrong. `refused` are batches, `refused_above` is the
    size of dead letters, that the output topics refuse.
    """

    stage: Stage
    product: Installation
    random: Random
    short: bool
    prefix: str
    patience_s: float
    flow: Flow | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    refused_above: int | None = None
    flood: tuple[float, float] | None = None

    @property
    def running(self) -> Flow:
        assert self.flow is not None, "the flow has begun before the fault"
        return self.flow

    def some(self, low: float, high: float) -> float:
        """A random number of seconds."""
        return self.random.uniform(low, high)

    @property
    def away_s(self) -> float:
        return 6.0 if self.short else 20.0


Harm = Callable[[Round], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """`prepare` comes before the flow and may return more messages for it; before the product, where that is its `own`.

    `clustered`: on a Kafka of two brokers. `pace` multiplies how fast results flow, `results` bounds how many,
    `patience_s` is how long it may well be stuck.
    """

    name: str
    group: str
    harm: Harm
    proxied: bool = False
    separate: bool = False
    own: bool = False
    clustered: bool = False
    only_long: bool = False
    pace: float = 1.0
    results: int = 0
    patience_s: float = 0.0
    prepare: Callable[[Round], Awaitable[list[Message]]] | None = None


# --- processes ---------------------------------------------------------------------------------------------------


async def _kill_role(each: Round, role: str) -> None:
    for _ in range(3):
        await asyncio.sleep(each.some(0.1, 1.5))
        if found := each.product.processes(role):
            _signal(each.random.choice(found), signal.SIGKILL)


async def _kill_supervisor(each: Round) -> None:
    for _ in range(2):
        await asyncio.sleep(each.some(0.1, 1.0))
        supervisor = each.product.supervisor
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        await supervisor.wait()
        await each.product.start(WORKERS)
        await each.product.ready(WORKERS)


async def _terminate(each: Round) -> None:
    """SIGTERM in the midst of it: a role drains and ends in time."""
    for name in ("worker-0", "relay", "worker-1"):
        await asyncio.sleep(each.some(0.1, 1.5))
        begun = time.monotonic()
        code = await each.product.roles[name].stop(30)
        took_s = time.monotonic() - begun
        each.notes.append(f"{name} ended in {took_s:.1f} s")
        if code or took_s > STOP_TIMEOUT_S:
            each.problems.append(f"{name} ended with {code} in {took_s:.1f} s")
        await each.product.start_usual(name)


async def _terminate_twice(each: Round) -> None:
    """What PostgreSQL does not answer cannot be drained; a second SIGTERM does not wait for that."""
    each.stage.postgres_proxy.black_hole()
    await asyncio.sleep(each.some(0.2, 1.0))
    for role in ("worker", "relay"):
        for found in each.product.processes(role):
            _signal(found, signal.SIGTERM)
            await asyncio.sleep(each.some(0.3, 1.0))
            begun = time.monotonic()
            _signal(found, signal.SIGTERM)
            try:
                await asyncio.to_thread(found.wait, 30)
            except psutil.TimeoutExpired:
                each.problems.append(f"{role}: not ended by a second SIGTERM within 30 s")
            each.notes.append(f"{role} ended {time.monotonic() - begun:.2f} s after a second SIGTERM")
    each.stage.postgres_proxy.heal()


async def _stop_worker(each: Round) -> None:
    zombie = each.random.choice(each.product.processes("worker"))
    _signal(zombie, signal.SIGSTOP)
    await asyncio.sleep(SESSION_TIMEOUT_S + each.some(1.5, 4))
    _signal(zombie, signal.SIGCONT)


async def _stop_relay(each: Round) -> None:
    """Stopped past its session in PostgreSQL, with another one waiting to lead."""
    zombie = each.random.choice(each.product.processes("relay"))
    await each.product.start_role("relay-2", "relay")
    await asyncio.sleep(each.some(1, 2))
    _signal(zombie, signal.SIGSTOP)
    await asyncio.sleep(RELAY_SESSION_TIMEOUT_S + each.some(1.5, 3))
    _signal(zombie, signal.SIGCONT)


def _signal(process: psutil.Process, signum: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


async def _failpoint(each: Round, names: tuple[str, ...], times: int) -> None:
    """Start a process that will kill itself there, in place of the one that runs; so often for each name."""
    order = list(names)
    each.random.shuffle(order)
    feeding = asyncio.create_task(_feed(each))
    try:
        for name in order:
            for _ in range(times):
                await _die_at(each, name)
    finally:
        feeding.cancel()
    for child_name in ("worker-0", "relay"):
        if each.product.roles[child_name].returncode is not None:
            await each.product.start_usual(child_name)


async def _die_at(each: Round, name: str) -> None:
    child_name = "worker-0" if name in failpoints.WORKER else "relay"
    for other in {"worker-0", "relay"} - {child_name}:
        if each.product.roles[other].returncode is not None:
            await each.product.start_usual(other)
    await each.product.roles[child_name].kill()
    count = 1 if name.startswith(("relay.start", "kafka_commit", "read_back")) else each.random.randint(1, 4)
    child = await each.product.start_usual(child_name, {failpoints.VARIABLE: f"{name}:{count}"})
    try:
        code = await asyncio.wait_for(child.wait(), FAILPOINT_TIMEOUT_S)
        if code != -signal.SIGKILL:
            each.problems.append(f"{name}: ended with {code}")
    except TimeoutError:
        each.problems.append(f"{name}:{count} was not reached in {FAILPOINT_TIMEOUT_S:g} s")


async def _feed(each: Round) -> None:
    """Whatever the flow is doing, there is always something to write, to finalize and to put aside."""
    number = 0
    while True:
        if each.running.has_interjected:
            fed = []
            for _ in range(12):
                number += 1
                batch_id = f"{each.prefix}-fed-{number}"
                opened = {"type": "batch.opened", "batch_id": batch_id, "total_items": 1}
                result = {"batch_id": batch_id, "item_id": "a", "status": "succeeded"}
                fed += [Message(batch_id.encode(), json.dumps(said).encode()) for said in (opened, result)]
                fed.append(Message(batch_id.encode(), f"no JSON {batch_id}".encode(), broken="invalid_json"))
            each.running.interject(fed)
        await asyncio.sleep(0.25)


async def _rebalance_storm(each: Round) -> None:
    for number in range(2 if each.short else 5):
        extra = await each.product.start_role(f"worker-storm-{number}", "worker", "--slot", f"storm-{number}")
        await asyncio.sleep(3)
        if each.random.random() < 0.5:
            await extra.stop(15)
        else:
            await extra.kill()
        await asyncio.sleep(each.some(0, 3))


# --- PostgreSQL --------------------------------------------------------------------------------------------------


async def _kill_postmaster(each: Round) -> None:
    await each.stage.kill_postmaster()
    await _start_again(each.stage.postgres.start)


async def _start_again(start: Callable[[], Awaitable[None]]) -> None:
    """A server killed just now may leave its port or shared memory behind for another moment."""
    for _ in range(20):
        with contextlib.suppress(EmbeddedServerError):
            await start()
            return
        await asyncio.sleep(0.5)
    await start()


async def _immediate_restart(each: Round) -> None:
    child = each.stage.postgres.child
    assert child is not None
    await child.stop(10, signum=signal.SIGQUIT)
    each.stage.postgres.child = None
    await _start_again(each.stage.postgres.start)


async def _fast_restart(each: Round) -> None:
    await each.stage.postgres.stop()
    await _start_again(each.stage.postgres.start)


async def _postgres_away(each: Round) -> None:
    await each.stage.postgres.stop()
    await asyncio.sleep(each.away_s)
    await _start_again(each.stage.postgres.start)


async def _postgres_away_a_minute(each: Round) -> None:
    """All results flow meanwhile: what a worker holds must stay bounded."""
    before_mb = each.product.largest_mb
    await each.stage.postgres.stop()
    each.running.let_go()
    await asyncio.sleep(10 if each.short else 60)
    each.notes.append(f"largest worker before {before_mb} MB, then {each.product.largest_mb} MB")
    await _start_again(each.stage.postgres.start)


async def _outrun(each: Round) -> None:
    """PostgreSQL so slow that it takes about a tenth of what is produced, until all is produced and a while longer."""
    before_mb = each.product.largest_mb
    each.stage.postgres_proxy.delay_s = 0.15
    begun, applied, sent = time.monotonic(), await _applied(each), each.running.sent
    each.running.let_go()
    while not each.running.done:  # noqa: ASYNC110 - a thread sends
        await asyncio.sleep(0.02)
    produced_a_second = (each.running.sent - sent) / (time.monotonic() - begun)
    await asyncio.sleep(each.away_s / 2)
    applied_a_second = (await _applied(each) - applied) / (time.monotonic() - begun)
    each.notes.append(f"produced {produced_a_second:.0f}/s, applied {applied_a_second:.0f}/s")
    each.notes.append(f"largest worker before {before_mb} MB, then {each.product.largest_mb} MB")
    each.stage.postgres_proxy.heal()


async def _applied(each: Round) -> int:
    async with each.product.connection() as connection:
        applied = await connection.fetchval(
            "SELECT sum(next_offset) FROM positions WHERE topic = $1", each.product.topics.events
        )
    return int(applied or 0)


async def _postgres_slow_throughout(each: Round) -> None:
    """Two seconds a message from the start to the end of the round: slow is not away, it must get on."""
    each.stage.postgres_proxy.delay_s = 2.0
    each.running.let_go()
    begun = time.monotonic()
    await each.product.caught_up(await each.product.ends(), each.patience_s)
    each.notes.append(f"applied and published in {time.monotonic() - begun:.0f} s")


async def _postgres_slow(each: Round) -> None:
    each.stage.postgres_proxy.delay_s = 2.0
    await asyncio.sleep(each.away_s)
    each.stage.postgres_proxy.heal()


async def _postgres_cut(each: Round) -> None:
    for _ in range(4):
        each.stage.postgres_proxy.cut()
        each.stage.postgres_proxy.refuse(each.random.random() < 0.5)
        await asyncio.sleep(each.some(0.05, 1.0))
    each.stage.postgres_proxy.heal()


async def _postgres_black_hole(each: Round) -> None:
    each.stage.postgres_proxy.black_hole()
    await asyncio.sleep(each.away_s)
    each.stage.postgres_proxy.heal()


async def _postgres_dead_connections(each: Round) -> None:
    """The connections there are say nothing any more, for ever; new ones work."""
    each.stage.postgres_proxy.stall()
    await asyncio.sleep(0)


async def _deadlocks(each: Round) -> None:
    """A hostile session locks a batch first and positions second: the other way round than workers do."""
    deadlocks, until = 0, time.monotonic() + each.some(6, 9)
    async with each.product.connection() as connection:
        while time.monotonic() < until:
            try:
                async with connection.transaction():
                    await connection.execute(
                        "SELECT FROM batches WHERE state <> 'finalized' ORDER BY random() LIMIT 30 FOR UPDATE"
                    )
                    await asyncio.sleep(each.some(0.0, 0.3))
                    await connection.execute("SELECT FROM positions FOR UPDATE")
            except asyncpg.DeadlockDetectedError:
                deadlocks += 1
        found = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    each.notes.append(f"the hostile session was the victim {deadlocks} times, deadlocks of the run: {found}")


@asynccontextmanager
async def _trigger(each: Round, table: str, condition: str, sqlstate: str) -> AsyncIterator[None]:
    """While open, statements that write `table` fail with this SQLSTATE where the condition holds."""
    async with each.product.connection() as connection:
        await connection.execute(
            f"CREATE FUNCTION test_fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
            f" RAISE EXCEPTION 'test fault' USING ERRCODE = '{sqlstate}'; END IF; RETURN NULL; END $$;"
            f"CREATE TRIGGER test_fault BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION test_fault()"
        )
    yield
    async with each.product.connection() as connection:
        await connection.execute(f"DROP TRIGGER test_fault ON {table}; DROP FUNCTION test_fault()")


async def _serialization_errors(each: Round) -> None:
    for table in ("batches", "positions", "outbox"):
        sqlstate = each.random.choice(("40001", "40P01"))
        async with _trigger(each, table, "random() < 0.4", sqlstate):
            await asyncio.sleep(each.some(1.5, 3))


async def _sessions_terminated(each: Round) -> None:
    async with each.product.connection() as connection:
        for _ in range(6):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND application_name LIKE 'rollcall %' AND application_name <> 'rollcall fault run'"
            )
            await asyncio.sleep(each.some(0.1, 1.2))


async def _disk_full(each: Round) -> None:
    """A tablespace on a file system of a few MB where the machine lets us mount one, else SQLSTATE 53100."""
    directory = Path(each.stage.directory / f"small-{each.prefix}")
    if not await asyncio.to_thread(_mount, directory):
        each.notes.append("disk full by a trigger that raises 53100: no file system can be mounted here")
        async with _trigger(each, "item_results", "true", "53100"):
            await asyncio.sleep(each.away_s)
        return
    name = f"small_{each.product.direct.database_schema}"
    try:
        async with each.product.connection() as connection:
            await connection.execute(f"CREATE TABLESPACE {name} LOCATION '{directory}'")
            for what in ("TABLE item_results", "INDEX item_results_pkey"):
                await connection.execute(f"ALTER {what} SET TABLESPACE {name}")
            used = shutil.disk_usage(directory).used // 1024**2
            await asyncio.to_thread(_resize, directory, f"{used + 2}m")
        until = time.monotonic() + 20
        while shutil.disk_usage(directory).free > 64 * 1024 and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        left = shutil.disk_usage(directory).free // 1024
        each.notes.append(f"disk full: a tmpfs of {used + 2} MB, {left} KB left")
        await asyncio.sleep(each.away_s / 2)
    finally:
        await asyncio.to_thread(_resize, directory, "2g")


def _mount(directory: Path) -> bool:
    if os.geteuid() != 0:
        return False
    directory.mkdir()
    options = "size=1g,mode=0700,uid=65534,gid=65534"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True)
    return mounted.returncode == 0


def _resize(directory: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(directory)], check=True, capture_output=True)


def unmount_all(directory: Path) -> None:
    """What `_disk_full` mounted; once PostgreSQL has ended."""
    for mounted in directory.glob("small-*"):
        subprocess.run(["umount", str(mounted)], check=False, capture_output=True)


# --- Kafka -------------------------------------------------------------------------------------------------------


async def _kill_kafka(each: Round) -> None:
    await each.stage.kafka.kill()
    await _start_again(each.stage.kafka.start)


async def _restart_kafka(each: Round) -> None:
    await each.stage.kafka.stop()
    await _start_again(each.stage.kafka.start)


async def _kafka_away(each: Round) -> None:
    await each.stage.kafka.stop()
    await asyncio.sleep(each.away_s)
    await _start_again(each.stage.kafka.start)


async def _kafka_slow(each: Round) -> None:
    each.stage.kafka_proxy.delay_s = each.some(0.4, 1.0)
    await asyncio.sleep(each.away_s)
    each.stage.kafka_proxy.heal()


async def _kafka_cut(each: Round) -> None:
    for _ in range(4):
        each.stage.kafka_proxy.cut()
        each.stage.kafka_proxy.refuse(each.random.random() < 0.5)
        await asyncio.sleep(each.some(0.05, 1.5))
    each.stage.kafka_proxy.heal()


async def _kafka_black_hole(each: Round) -> None:
    each.stage.kafka_proxy.black_hole()
    await asyncio.sleep(max(12.0, each.away_s))
    each.stage.kafka_proxy.heal()


async def _kafka_late(each: Round) -> None:
    """What was under way on the connections there are arrives long after the product gave it up."""
    for _ in range(3):
        each.stage.kafka_proxy.stall()
        await asyncio.sleep(0.2)
    await asyncio.sleep(each.some(15, 17))
    each.stage.kafka_proxy.heal()


async def _foreign_transaction(each: Round) -> None:
    """Somebody's open transaction holds the last stable offset of the output back, while the relay begins anew."""
    producer = AIOKafkaProducer(
        bootstrap_servers=each.product.direct.bootstrap_servers,
        transactional_id=f"foreign-{each.prefix}",
        transaction_timeout_ms=60_000,
    )
    await producer.start()
    try:
        await producer.begin_transaction()
        for partition in range(3):
            for topic in (each.product.topics.finalized, each.product.topics.dead_letters):
                await producer.send_and_wait(topic, b"{}", key=b"foreign", partition=partition)
        for found in each.product.processes("relay"):
            _signal(found, signal.SIGKILL)
        await asyncio.sleep(each.some(6, 12))
        await producer.abort_transaction()
    finally:
        await producer.stop()


async def _id_expired(each: Round) -> None:
    """Nothing to publish for longer than the broker remembers an idle transactional id (8 s here)."""
    try:
        each.running.paused.set()
        await asyncio.sleep(8 + each.some(5, 7))
        each.running.paused.clear()
        await asyncio.sleep(each.some(2, 4))
    finally:
        each.stage.kafka.id_expiration_ms = ID_EXPIRATION_MS
        await _restart_kafka(each)


async def _with_expiring_ids(each: Round) -> list[Message]:
    each.stage.kafka.id_expiration_ms = 8_000
    await _restart_kafka(each)
    return []


async def _move_coordinators(each: Round) -> None:
    """Of the workers' group and of the relay's transactional ids, each time to the other broker."""
    kafka, topics = each.stage.cluster, each.product.topics
    async with each.product.connection() as connection:
        database = await database_name(connection)
    both = [
        cluster.group(topics.consumer_group),
        cluster.transactions(topics.relay_transactional_id("events", database)),
    ]
    moves = both * (1 if each.short else 3)
    each.random.shuffle(moves)
    feeding = asyncio.create_task(_feed(each))
    try:
        for coordinated in moves:
            await asyncio.sleep(each.some(0.1, 1.5))
            move = await kafka.move(coordinated, each.random)
            begun = time.monotonic()
            await _used(each)
            each.notes.append(f"{move}, used after {time.monotonic() - begun:.1f} s")
            await kafka.start()
    finally:
        feeding.cancel()
    await kafka.elect(*(coordinated.topic for coordinated in both))


async def _used(each: Round) -> None:
    """Wait until workers have committed to, and the relay has published by, the coordinators that there are now."""
    kafka, group_id = each.stage.cluster, each.product.topics.consumer_group
    committed = await eventually(lambda: kafka.committed(group_id), message="what the workers have committed") or 0
    async with each.product.connection() as connection:
        written = {table: await connection.fetchval(f"SELECT max(seq) FROM {table}") for table in _PUBLISHED}

        async def is_used() -> bool:
            published = [
                await connection.fetchval(
                    f"SELECT count(*) FROM {table} WHERE published_at IS NOT NULL AND seq > $1", seq
                )
                for table, seq in written.items()
            ]
            return all(published) and (await kafka.committed(group_id) or 0) > committed

        await eventually(is_used, each.patience_s, message="workers and relay use the coordinators after a move")


# --- records -----------------------------------------------------------------------------------------------------


async def _poison_flood(each: Round) -> None:
    count = 20_000 if each.short else 100_000
    begun = time.time()
    each.running.interject(list(broken_records(each.random, count, prefix=f"{each.prefix}-flood")))
    while not each.running.has_interjected:  # noqa: ASYNC110 - a thread sends them
        await asyncio.sleep(0.02)
    await each.product.caught_up(await each.product.ends(), 120)
    each.flood = (begun * 1000, time.time() * 1000)
    each.notes.append(f"{count} broken records in a row, worked off and published in {time.time() - begun:.1f} s")


async def _with_oversize(each: Round) -> list[Message]:
    messages = [
        Message(defect.key, defect.value, broken=defect.reason)
        for defect in BROKEN
        if defect.reason == TOO_LARGE and defect.key and not defect.headers and len(defect.value or b"") < 1_000_000
    ]
    for number in range(60):
        batch_id = f"{each.prefix}-large-{number}"
        opened = {"type": "batch.opened", "batch_id": batch_id, "total_items": 2}
        messages.append(Message(batch_id.encode(), json.dumps(opened).encode()))
        for item in range(2):
            result = {"batch_id": batch_id, "item_id": str(item), "status": "succeeded", "x_note": "x" * 200_000}
            messages.append(Message(batch_id.encode(), json.dumps(result).encode()))
        if number % 10 == 0:
            # Fits the topic, but not with the headers that a forward needs.
            astray = (home(batch_id.encode(), PARTITIONS) + 1) % PARTITIONS
            result = {"batch_id": batch_id, "item_id": "huge", "status": "failed", "x_note": "x" * 1_048_350}
            messages.append(Message(batch_id.encode(), json.dumps(result).encode(), astray, TOO_LARGE))
    return messages


async def _with_refused_events(each: Round) -> list[Message]:
    """The topic of finalized events takes 12 kB at most; some batches' metadata are larger."""
    await create_topic(
        each.product.direct.bootstrap_servers,
        each.product.topics.finalized,
        partitions=3,
        configs={"max.message.bytes": "12000", "cleanup.policy": "compact"},
    )
    messages = []
    for number in range(5):
        batch_id = f"{each.prefix}-refused-{number}"
        each.refused.append(batch_id)
        opened = {"type": "batch.opened", "batch_id": batch_id, "total_items": 1, "metadata": {"x": "x" * 14_000}}
        result = {"batch_id": batch_id, "item_id": "a", "status": "succeeded"}
        messages += [Message(batch_id.encode(), json.dumps(said).encode()) for said in (opened, result)]
    return messages


async def _with_refused_dead_letters(each: Round) -> list[Message]:
    """The topic of dead letters takes 3 kB at most; some broken records are larger."""
    await create_topic(
        each.product.direct.bootstrap_servers,
        each.product.topics.dead_letters,
        partitions=3,
        configs={"max.message.bytes": "3000"},
    )
    each.refused_above = 2_500
    return [
        Message(f"{each.prefix}-{number}".encode(), f"no JSON {number} {'x' * 5_000}".encode(), broken="invalid_json")
        for number in range(20)
    ]


async def _nothing(each: Round) -> None:
    """The harm is in the messages."""


FAULTS = [
    Fault("none", "none", _nothing),
    Fault("kill-worker", "processes", partial(_kill_role, role="worker")),
    Fault("kill-relay", "processes", partial(_kill_role, role="relay")),
    Fault("kill-supervisor", "processes", _kill_supervisor),
    Fault("terminate", "shutdown", _terminate, separate=True),
    Fault("terminate-twice", "shutdown", _terminate_twice, proxied=True),
    Fault("stop-worker", "zombies", _stop_worker),
    Fault("stop-relay", "zombies", _stop_relay),
    Fault("failpoints-worker", "failpoints", partial(_failpoint, names=failpoints.WORKER, times=1), separate=True),
    Fault("failpoints-relay", "failpoints", partial(_failpoint, names=failpoints.RELAY, times=1), separate=True),
    *(
        Fault(
            f"failpoint-{name}",
            "each-failpoint",
            partial(_failpoint, names=(name,), times=3),
            separate=True,
            only_long=True,
        )
        for name in (*failpoints.WORKER, *failpoints.RELAY)
    ),
    Fault("postgres-kill", "postgres-restarts", _kill_postmaster),
    Fault("postgres-immediate", "postgres-restarts", _immediate_restart),
    Fault("postgres-fast", "postgres-restarts", _fast_restart),
    Fault("postgres-away", "postgres-restarts", _postgres_away),
    Fault("postgres-away-a-minute", "bounds", _postgres_away_a_minute),
    Fault("postgres-outrun", "bounds", _outrun, proxied=True, pace=2.0),
    Fault("postgres-slow", "postgres-network", _postgres_slow, proxied=True),
    Fault(
        "postgres-slow-throughout",
        "bounds",
        _postgres_slow_throughout,
        proxied=True,
        only_long=True,
        results=10_000,
        patience_s=900.0,
    ),
    Fault("postgres-cut", "postgres-network", _postgres_cut, proxied=True),
    Fault("postgres-black-hole", "postgres-network", _postgres_black_hole, proxied=True),
    Fault("postgres-dead-connections", "postgres-network", _postgres_dead_connections, proxied=True),
    Fault("postgres-deadlocks", "postgres-errors", _deadlocks),
    Fault("postgres-serialization", "postgres-errors", _serialization_errors),
    Fault("postgres-terminated", "postgres-errors", _sessions_terminated),
    Fault("postgres-full", "postgres-full", _disk_full, own=True),
    Fault("kafka-kill", "kafka-restarts", _kill_kafka),
    Fault("kafka-restart", "kafka-restarts", _restart_kafka),
    Fault("kafka-away", "kafka-restarts", _kafka_away),
    Fault("kafka-slow", "kafka-network", _kafka_slow, proxied=True),
    Fault("kafka-cut", "kafka-network", _kafka_cut, proxied=True),
    Fault("kafka-black-hole", "kafka-network", _kafka_black_hole, proxied=True),
    Fault("kafka-late", "kafka-network", _kafka_late, proxied=True),
    Fault("kafka-foreign-transaction", "kafka-transactions", _foreign_transaction),
    Fault("kafka-id-expired", "kafka-transactions", _id_expired, own=True, prepare=_with_expiring_ids),
    Fault("kafka-coordinator-moved", "kafka-coordinators", _move_coordinators, clustered=True, pace=0.5),
    Fault("rebalance-storm", "rebalances", _rebalance_storm),
    Fault("poison-flood", "records", _poison_flood, pace=0.3),
    Fault("oversize", "records", _nothing, prepare=_with_oversize),
    Fault("refused-dead-letter", "records", _nothing, own=True, prepare=_with_refused_dead_letters),
    Fault("refused-event", "records", _nothing, own=True, prepare=_with_refused_events),
]
"""`none` shows that the checker is content where nothing happens; it also catches bugs that need no fault."""
