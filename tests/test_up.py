"""`rollcall up` as its users meet it: the real command, its one line of JSON, its processes, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from rollcall.settings import Settings
from rollcall.stack import all_assigned
from schemas.topics import Topics
from tests.harness.topics import drain, end_offsets, produce
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Running:
    """A started `rollcall up` and what it said."""

    process: Process
    said: dict[str, Any]

    def pid(self, role: str) -> int:
        return next(int(each["pid"]) for each in self.said["processes"] if each["role"] == role)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def environment(**ours: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ROLLCALL_")}
    return {**inherited, "PYTHONPATH": str(ROOT), **ours}


@asynccontextmanager
async def up(log: Path, *options: str) -> AsyncIterator[Running]:
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "rollcall", "up", "--json", *options),
            stdout=PIPE,
            stderr=stderr,
            env=environment(),
        )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 120)
        assert line, log.read_text()  # noqa: ASYNC240 - a small local file
        yield Running(process, json.loads(line))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 60)


async def interrupt(running: Running, signum: signal.Signals = signal.SIGINT) -> None:
    """Interrupt it: exit code 0, nothing more on stdout, nothing left running."""
    children = running.descendants()
    running.process.send_signal(signum)
    assert await asyncio.wait_for(running.process.wait(), 60) == 0
    assert running.process.stdout is not None
    assert await running.process.stdout.read() == b""
    await eventually(lambda: not any(map(alive, children)), message="all children gone")


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=5)
    try:
        yield connection
    finally:
        await connection.close()


async def answers(url: str) -> bool:
    try:
        async with connected(url) as connection:
            return bool(await connection.fetchval("SELECT true"))
    except (OSError, asyncpg.PostgresError):
        return False


async def test_each_process_that_is_killed_comes_back_the_servers_on_their_ports(tmp_path: Path) -> None:
    async with up(tmp_path / "log", "--workers", "1") as running:
        first = {int(each["pid"]) for each in running.said["processes"]}
        names = {each["role"]: psutil.Process(int(each["pid"])).name() for each in running.said["processes"]}
        for pid in first:
            os.kill(pid, signal.SIGKILL)

        def all_back() -> bool:
            running_names = [child.name() for child in running.descendants() if alive(child) and child.pid not in first]
            return all(running_names.count(name) >= list(names.values()).count(name) for name in names.values())

        await eventually(all_back, 60, message="every killed process started again")

        async def kafka_answers() -> bool:
            try:
                return len(await end_offsets(running.said["bootstrap_servers"], "rollcall.events")) == 12
            except Exception:  # whatever a client says while its broker starts
                return False

        await eventually(kafka_answers, 60, message="Kafka on its old port")
        await eventually(lambda: answers(running.said["database_url"]), 60, message="PostgreSQL on its old port")
        await assert_a_batch_is_finalized(running.said["bootstrap_servers"])
        await interrupt(running)


async def assert_a_batch_is_finalized(bootstrap_servers: str) -> None:
    """All of Rollcall works: a result in, an event out."""
    opened = {"type": "batch.opened", "batch_id": "after", "total_items": 1}
    result = {"type": "item.result", "batch_id": "after", "item_id": "one", "status": "succeeded"}
    messages = [Plain(b"after", json.dumps(each).encode()) for each in (opened, result)]
    await produce(bootstrap_servers, "rollcall.events", messages)

    async def event_is_out() -> bool:
        return any(record.key == b"after" for record in await drain(bootstrap_servers, "rollcall.finalized"))

    await eventually(event_is_out, 60, interval_s=0.5, message="the finalized event")


@dataclass(frozen=True)
class Plain:
    """A message for `produce`."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


async def test_up_says_where_everything_is_and_keeps_its_data_for_the_next_up(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with up(tmp_path / "log", "--workers", "2", "--data-dir", str(data)) as first:
        assert first.said.keys() >= {"bootstrap_servers", "database_url", "api_url", "processes"}
        roles = sorted(each["role"] for each in first.said["processes"])
        assert roles == ["api", "clock", "kafka", "postgres", "relay", "worker", "worker"]
        for role in ("worker", "relay", "clock", "api"):
            assert f"rollcall {role}" in " ".join(psutil.Process(first.pid(role)).cmdline())
        assert len(await end_offsets(first.said["bootstrap_servers"], "rollcall.events")) == 12
        async with httpx.AsyncClient(base_url=first.said["api_url"]) as client:
            assert (await client.get("/api/batches/nobody")).status_code == 404
        assert first.said["database_url"].startswith("postgresql+asyncpg://rollcall@127.0.0.1:")
        async with connected(first.said["database_url"]) as connection:
            await connection.execute("CREATE TABLE public.kept (n int)")
        await refused_where_one_runs_already(data)
        await interrupt(first, signal.SIGTERM)
    async with up(tmp_path / "log", "--workers", "1", "--data-dir", str(data)) as again:
        async with connected(again.said["database_url"]) as connection:
            assert await connection.fetchval("SELECT count(*) FROM public.kept") == 0
        await interrupt(again)


async def refused_where_one_runs_already(data: Path) -> None:
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "rollcall", "up", "--data-dir", str(data)),
        stdout=PIPE,
        stderr=PIPE,
        env=environment(),
    )
    out, err = await asyncio.wait_for(second.communicate(), 60)
    assert (second.returncode, out) == (1, b"")
    assert err.decode().splitlines() == [f"rollcall: another rollcall uses the data directory {data}"]


async def test_run_keeps_all_roles_up_on_the_users_own_servers(settings: Settings) -> None:
    ours = environment(**settings.environment())
    migrate = await asyncio.create_subprocess_exec(sys.executable, "-P", "-m", "rollcall", "migrate", env=ours)
    assert await asyncio.wait_for(migrate.wait(), 60) == 0
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "rollcall", "run", "--workers", "2"), env=ours, stdout=PIPE
    )
    try:
        admin = settings.kafka_connection().admin()
        await admin.start()
        try:
            topics = Topics(settings.topic_prefix)
            await eventually(lambda: all_assigned(admin, topics, workers=2), 60, message="both workers assigned")
        finally:
            await admin.close()
        children = psutil.Process(run.pid).children(recursive=True)
        roles = sorted(child.cmdline()[4] for child in children)
        assert roles == ["api", "clock", "relay", "worker", "worker"]
    finally:
        run.send_signal(signal.SIGINT)
        out, _ = await asyncio.wait_for(run.communicate(), 60)
    assert (run.returncode, out) == (0, b"")
    await eventually(lambda: not any(map(alive, children)), message="all roles gone")


@pytest.mark.parametrize("how", ["a second SIGINT", "SIGKILL"])
async def test_an_abrupt_end_leaves_nothing_running(tmp_path: Path, how: str) -> None:
    async with up(tmp_path / "log", "--workers", "1") as running:
        children = running.descendants()
        if how == "SIGKILL":
            running.process.kill()
        else:
            os.kill(running.pid("worker"), signal.SIGSTOP)  # it will not heed the first
            running.process.send_signal(signal.SIGINT)
            await eventually(lambda: b"stopping" in (tmp_path / "log").read_bytes())
            running.process.send_signal(signal.SIGINT)
        # Well before the 15 s after which the first signal alone would have killed the worker.
        await asyncio.wait_for(running.process.wait(), 10)
        await eventually(lambda: not any(map(alive, children)), message="all children gone")
