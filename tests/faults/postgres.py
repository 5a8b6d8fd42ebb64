"""Harm to PostgreSQL, and to the way there."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from tests.faults.round import Round, restart, start_again

FULL_KB = 128
"""PostgreSQL lets tables grow by as much at once."""


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
    """All results flow meanwhile: what a worker holds must stay bounded."""
    before_mb = each.product.largest_mb
    await each.stage.postgres.stop()
    each.running.let_go()
    await asyncio.sleep(10 if each.short else 60)
    each.notes.append(f"largest worker before {before_mb} MB, then {each.product.largest_mb} MB")
    await start_again(each.stage.postgres.start)


async def outrun(each: Round) -> None:
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
    if produced_a_second < 10 * applied_a_second:
        each.problems.append("PostgreSQL was not outrun ten times over")
    each.notes.append(f"largest worker before {before_mb} MB, then {each.product.largest_mb} MB")
    each.stage.postgres_proxy.heal()


async def _applied(each: Round) -> int:
    async with each.product.connection() as connection:
        applied = await connection.fetchval(
            "SELECT sum(next_offset) FROM positions WHERE topic = $1", each.product.topics.events
        )
    return int(applied or 0)


async def slow_throughout(each: Round) -> None:
    """Two seconds a message from the start to the end of the round: slow is not away, it must get on."""
    each.stage.postgres_proxy.delay_s = 2.0
    each.running.let_go()
    begun = time.monotonic()
    await each.product.caught_up(await each.product.ends(), each.patience_s)
    each.notes.append(f"applied and published in {time.monotonic() - begun:.0f} s")


async def slow(each: Round) -> None:
    each.stage.postgres_proxy.delay_s = 2.0
    await asyncio.sleep(each.away_s)
    each.stage.postgres_proxy.heal()


async def cut(each: Round) -> None:
    for _ in range(4):
        each.stage.postgres_proxy.cut()
        each.stage.postgres_proxy.refuse(each.random.random() < 0.5)
        await asyncio.sleep(each.some(0.05, 1.0))
    each.stage.postgres_proxy.heal()


async def black_hole(each: Round) -> None:
    each.stage.postgres_proxy.black_hole()
    await asyncio.sleep(each.away_s)
    each.stage.postgres_proxy.heal()


async def dead_connections(each: Round) -> None:
    """The connections there are say nothing any more, for ever; new ones work."""
    each.stage.postgres_proxy.stall()
    await asyncio.sleep(0)


async def deadlocks(each: Round) -> None:
    """A hostile session locks a batch first and positions second: the other way round than workers do."""
    victim, until = 0, time.monotonic() + each.some(6, 9)
    count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    async with each.product.connection() as connection:
        before = await connection.fetchval(count)
        while time.monotonic() < until:
            try:
                async with connection.transaction():
                    await connection.execute(
                        "SELECT FROM batches WHERE state <> 'finalized' ORDER BY random() LIMIT 30 FOR UPDATE"
                    )
                    await asyncio.sleep(each.some(0.0, 0.3))
                    await connection.execute("SELECT FROM positions FOR UPDATE")
            except asyncpg.DeadlockDetectedError:
                victim += 1
        # A worker's are counted when it reports its statistics, up to a second later.
        found = max(victim, await connection.fetchval(count) - before)
    each.notes.append(f"{found} deadlocks, the hostile session was the victim of {victim}")
    if not found:
        each.problems.append("there was no deadlock")


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


async def serialization_errors(each: Round) -> None:
    for table in ("batches", "positions", "outbox"):
        sqlstate = each.random.choice(("40001", "40P01"))
        async with _trigger(each, table, "random() < 0.4", sqlstate):
            await asyncio.sleep(each.some(1.5, 3))


async def sessions_terminated(each: Round) -> None:
    async with each.product.connection() as connection:
        for _ in range(6):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND application_name LIKE 'rollcall %' AND application_name <> 'rollcall fault run'"
            )
            await asyncio.sleep(each.some(0.1, 1.2))


async def disk_full(each: Round) -> None:
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
        while shutil.disk_usage(directory).free > FULL_KB * 1024 and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        left = shutil.disk_usage(directory).free // 1024
        each.notes.append(f"disk full: a tmpfs of {used + 2} MB, {left} KB left")
        if left > FULL_KB:
            each.problems.append(f"the disk did not get full: {left} KB are left")
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
    """What `disk_full` mounted; once PostgreSQL has ended."""
    for mounted in directory.glob("small-*"):
        subprocess.run(["umount", str(mounted)], check=False, capture_output=True)
