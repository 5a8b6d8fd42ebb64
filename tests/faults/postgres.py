"""Harm to PostgreSQL, and to the way there."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from rollcall.embedded.servers import log_since, log_size
from tests.faults.round import (
    BACKLOG_BATCHES,
    LARGE_BYTES,
    LARGE_RESULTS,
    Round,
    during,
    feed,
    large_results,
    restart,
    start_again,
    until,
)
from tests.harness.waiting import eventually

FULL_KB = 128
"""PostgreSQL lets tables grow by as much at once."""
DISK_FULL = asyncpg.DiskFullError.__name__
MET_DISK_FULL = f"the product logs {DISK_FULL} (53100)"
BACKLOG_MB = BACKLOG_BATCHES * LARGE_RESULTS * LARGE_BYTES // 1_000_000
MIN_WAITING_MB = 300
AWAY_WITH_ALL_S = 20.0
COPY_DELAY_S = 0.3
UNREAD_BYTES = 1024 * 1024
COPY_TIMEOUT_S = 180.0
DEADLOCK_TIMEOUT_S = 60.0
OUTRUN_TIMEOUT_S = 120.0
MUST_BE_TERMINATED = (
    "rollcall worker",
    "rollcall relay leader",
    "rollcall relay events",
    "rollcall relay dead-letters",
)


async def kill_postmaster(each: Round) -> None:
    await each.stage.kill_postmaster()
    await start_again(each.stage.postgres.start)


async def immediate_restart(each: Round) -> None:
    child = each.stage.postgres.child
    assert child is not None
    await child.stop(10, signum=signal.SIGQUIT)
    each.stage.postgres.child = None
    await start_again(each.stage.postgres.start)


async def fast_restart(each: Round) -> None:
    await restart(each.stage.postgres)


async def away(each: Round) -> None:
    await restart(each.stage.postgres, each.away_s)


async def away_a_minute(each: Round) -> None:
    """All results and a large backlog flow meanwhile: what a worker holds must stay bounded."""
    before_mb, begun = each.product.largest_mb, time.monotonic()
    backlog = large_results(each, BACKLOG_BATCHES)
    await each.stage.postgres.stop()
    each.running.interject(backlog)  # before the rest, without which the flow would end
    each.running.let_go()
    await each.running.await_interjected()
    await each.running.acknowledged()
    assert each.running.has_interjected, "the large results are in the log"
    # Long enough for a worker to read all of that; on a busy machine it takes longer, as it did to write it.
    written_s = time.monotonic() - begun
    await asyncio.sleep(max(AWAY_WITH_ALL_S, written_s, 0 if each.short else 60 - written_s))
    each.notes.append(f"away for {time.monotonic() - begun:.0f} s, {BACKLOG_MB} MB of large results in the log")
    each.notes.append(f"largest worker before {before_mb} MB, then {each.product.largest_mb} MB")
    await start_again(each.stage.postgres.start)


async def outrun(each: Round) -> None:
    """PostgreSQL so slow that it takes about a tenth of what is produced, until all is produced and a while longer.

    Far more than a worker may hold waits then, in bytes, too.
    """
    before_mb, backlog = each.product.largest_mb, large_results(each, BACKLOG_BATCHES)
    each.stage.postgres_proxy.delay_s = 0.5
    begun, applied, sent = time.monotonic(), await each.product.applied(), each.running.sent
    each.running.interject(backlog)
    each.running.let_go()
    while not each.running.done:  # noqa: ASYNC110 - a thread sends
        await asyncio.sleep(0.02)
    produced_a_second = (each.running.sent - sent) / (time.monotonic() - begun)
    await asyncio.sleep(each.away_s / 2)

    async def takes_something() -> bool:
        return await each.product.applied() > applied

    await until(takes_something, "PostgreSQL takes something", OUTRUN_TIMEOUT_S)
    applied_a_second = (await each.product.applied() - applied) / (time.monotonic() - begun)
    each.notes.append(f"produced {produced_a_second:.0f}/s, applied {applied_a_second:.0f}/s")
    if produced_a_second < 10 * applied_a_second:
        each.problems.append("PostgreSQL was not outrun ten times over")
    waiting_mb = BACKLOG_MB - await _large_applied_mb(each)
    each.notes.append(f"{waiting_mb} of {BACKLOG_MB} MB of large results not applied yet")
    if waiting_mb < MIN_WAITING_MB:
        each.problems.append(f"of large results less than {MIN_WAITING_MB} MB were waiting for PostgreSQL")
    each.notes.append(f"largest worker before {before_mb} MB, then {each.product.largest_mb} MB")
    each.stage.postgres_proxy.heal()


async def _large_applied_mb(each: Round) -> int:
    async with each.product.connection() as connection:
        counted = "SELECT count(*) FROM item_results WHERE starts_with(batch_id, $1)"
        return int(await connection.fetchval(counted, f"{each.prefix}-large-")) * LARGE_BYTES // 1_000_000


async def slow_throughout(each: Round) -> None:
    """Two seconds a message from the start to the end of the round: slow is not away, it must get on."""
    each.stage.postgres_proxy.delay_s = 2.0
    each.running.let_go()
    while not each.running.done:  # noqa: ASYNC110 - a thread sends
        await asyncio.sleep(0.02)


async def slow(each: Round) -> None:
    """In the midst of large COPYs, too."""
    each.stage.postgres_proxy.delay_s = 2.0
    each.running.interject(large_results(each))
    await asyncio.sleep(each.away_s)
    each.stage.postgres_proxy.heal()


async def cut(each: Round) -> None:
    for _ in range(4):
        each.stage.postgres_proxy.cut()
        each.stage.postgres_proxy.refuse(each.random.random() < 0.5)
        await asyncio.sleep(each.some(0.05, 1.0))
    each.stage.postgres_proxy.heal()


async def black_hole(each: Round) -> None:
    await _amid_a_large_copy(each)
    each.stage.postgres_proxy.black_hole()
    await asyncio.sleep(each.away_s)
    each.stage.postgres_proxy.heal()


async def dead_connections(each: Round) -> None:
    """The connections there are say nothing any more, for ever; new ones work."""
    await _amid_a_large_copy(each)
    each.stage.postgres_proxy.stall()
    each.stage.postgres_proxy.delay_s = 0.0


async def _amid_a_large_copy(each: Round) -> None:
    """Return while a worker copies more than sockets hold: it has to wait until somebody reads what it has written."""
    proxy = each.stage.postgres_proxy
    proxy.delay_s = COPY_DELAY_S
    each.running.interject(large_results(each))

    async def is_waiting() -> int:
        waiting = await asyncio.to_thread(_unread_bytes, proxy.port)
        return waiting if waiting > UNREAD_BYTES else 0

    waiting = await eventually(is_waiting, COPY_TIMEOUT_S, interval_s=0.01, message="a worker that waits to write")
    each.notes.append(f"{waiting // 1024} KB of a COPY waited in a socket")


def _unread_bytes(port: int) -> int:
    """How many bytes the kernel holds, at most, of a connection to this port that the other side has not taken yet."""
    waiting = [0]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        # number, local address, remote address, state, bytes to be sent:received, all in hexadecimal digits
        _, _, remote, _, queues, *_ = line.split()
        if int(remote.split(":")[1], 16) == port:
            waiting.append(int(queues.split(":")[0], 16))
    return max(waiting)


async def deadlocks(each: Round) -> None:
    """A hostile session locks a batch first and positions second: the other way round than workers do.

    It looks for deadlocks after workers do, which are the victims therefore; but not for ever, since they look only
    once while they wait, and a deadlock may close behind that.
    """
    hostile, end = 0, time.monotonic() + each.some(6, 9)
    counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    async with during(feed(each)), each.product.connection() as connection, each.product.connection() as observer:
        await connection.execute("SET deadlock_timeout = '3s'")
        before = await observer.fetchval(counted)

        async def of_workers() -> int:
            # They are counted when a worker reports its statistics, up to a second later.
            return int(await observer.fetchval(counted) - before - hostile)

        while time.monotonic() < end or (not await of_workers() and time.monotonic() < end + DEADLOCK_TIMEOUT_S):
            try:
                async with connection.transaction():
                    await connection.execute(
                        "SELECT FROM batches WHERE state <> 'finalized' ORDER BY random() LIMIT 30 FOR UPDATE"
                    )
                    await asyncio.sleep(each.some(0.0, 0.3))
                    await connection.execute("SELECT FROM positions FOR UPDATE")
            except asyncpg.DeadlockDetectedError:
                hostile += 1
        found = await of_workers()
    each.notes.append(f"{found} deadlocks of which the product was the victim, {hostile} of the hostile session")
    if found < 1:
        each.problems.append("there was no deadlock of which the product was the victim")


@asynccontextmanager
async def _trigger(
    each: Round, table: str, condition: str, sqlstate: str
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """While open, statements that write `table` fail with this SQLSTATE where the condition holds.

    Gives what says how many did: a sequence counts them, which no rollback takes back.
    """
    async with each.product.connection() as connection:
        await connection.execute(
            "CREATE SEQUENCE test_fault_raised;"
            f"CREATE FUNCTION test_fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
            " PERFORM nextval('test_fault_raised');"
            f" RAISE EXCEPTION 'test fault' USING ERRCODE = '{sqlstate}'; END IF; RETURN NULL; END $$;"
            f"CREATE TRIGGER test_fault BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION test_fault()"
        )

    async def raised() -> int:
        async with each.product.connection() as connection:
            count = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM test_fault_raised"
            return int(await connection.fetchval(count))

    try:
        yield raised
    finally:
        async with each.product.connection() as connection:
            await connection.execute(
                f"DROP TRIGGER test_fault ON {table}; DROP FUNCTION test_fault(); DROP SEQUENCE test_fault_raised"
            )


async def serialization_errors(each: Round) -> None:
    async with during(feed(each)):  # so that each of the tables is written
        for table in ("batches", "positions", "outbox"):
            for sqlstate in each.random.sample(("40001", "40P01"), 2):
                async with _trigger(each, table, "random() < 0.4", sqlstate) as raised:
                    await asyncio.sleep(each.some(0.8, 1.5))
                    count = await until(raised, f"statements that write {table} fail with {sqlstate}")
                each.notes.append(f"{sqlstate} {count} times on {table}")


async def sessions_terminated(each: Round) -> None:
    terminated: Counter[str] = Counter()
    async with each.product.connection() as connection:
        for _ in range(6):
            rows = await connection.fetch(
                "SELECT application_name, pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid()"
                " AND application_name LIKE 'rollcall %' AND application_name <> 'rollcall fault run'"
            )
            terminated.update(name for name, done in rows if done)
            await asyncio.sleep(each.some(0.1, 1.2))
    each.notes.append(f"{terminated.total()} sessions terminated, {terminated['rollcall worker']} of workers")
    never = [name for name in MUST_BE_TERMINATED if not terminated[name]]
    each.problems += [f"no session of {name!r} was there to be terminated" for name in never]


async def disk_full(each: Round) -> None:
    """A tablespace on a file system of a few MB where the machine lets us mount one, else SQLSTATE 53100."""
    directory = Path(each.stage.directory / f"small-{each.prefix}")
    since = log_size(each.product.log)
    if not await asyncio.to_thread(_mount, directory):
        each.notes.append("disk full by a trigger that raises 53100: no file system can be mounted here")
        async with _trigger(each, "item_results", "true", "53100") as raised:
            await asyncio.sleep(each.away_s)
            await until(raised, "statements that write results fail")
            await until(lambda: _met_disk_full(each, since), MET_DISK_FULL)
        return
    name = f"small_{each.product.direct.database_schema}"
    try:
        async with each.product.connection() as connection:
            await connection.execute(f"CREATE TABLESPACE {name} LOCATION '{directory}'")
            for what in ("TABLE item_results", "INDEX item_results_pkey"):
                await connection.execute(f"ALTER {what} SET TABLESPACE {name}")
            used = shutil.disk_usage(directory).used // 1024**2
            await asyncio.to_thread(_resize, directory, f"{used + 2}m")
        end = time.monotonic() + 20
        while shutil.disk_usage(directory).free > FULL_KB * 1024 and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        left = shutil.disk_usage(directory).free // 1024
        each.notes.append(f"disk full: a tmpfs of {used + 2} MB, {left} KB left")
        if left > FULL_KB:
            each.problems.append(f"the disk did not get full: {left} KB are left")
        await asyncio.sleep(each.away_s / 2)
        met = await until(lambda: _met_disk_full(each, since), MET_DISK_FULL)
        each.notes.append(f"the product met it {met} times")
    finally:
        await asyncio.to_thread(_resize, directory, "2g")


async def _met_disk_full(each: Round, since: int) -> int:
    """How often the product has logged SQLSTATE 53100 by the name that its driver gives it."""
    return log_since(each.product.log, since).count(DISK_FULL)


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
    """What `disk_full` mounted; once PostgreSQL has ended."""
    for mounted in directory.glob("small-*"):
        subprocess.run(["umount", str(mounted)], check=False, capture_output=True)
