"""The embedded servers: started, stopped, killed, started again where they were, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import pytest

from rollcall.children import Child
from rollcall.embedded import kafka_jars, servers
from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.embedded.servers import EmbeddedServerError
from tests.harness.servers import Servers
from tests.harness.topics import create_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Message:
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    opened = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield opened
    finally:
        await opened.close()


async def test_postgresql_18_runs_for_the_session(servers: Servers) -> None:
    async with connection(servers.database_url) as database:
        assert await database.fetchval("SELECT current_setting('server_version_num')::int / 10000") == 18
        assert await database.fetchval("SHOW fsync") == "on"
        assert await database.fetchval("SELECT current_database()") == "rollcall"


async def test_kafka_keeps_what_is_published_and_makes_no_topics_by_itself(servers: Servers, topic_prefix: str) -> None:
    topic = f"{topic_prefix}kept"
    await create_topic(servers.bootstrap_servers, topic, partitions=3)
    sent = [Message(b"%d" % number, b"value %d" % number, (("h", b"\xff"),)) for number in range(100)]
    await produce(servers.bootstrap_servers, topic, sent)
    records = await drain(servers.bootstrap_servers, topic)
    assert {(record.key, record.value) for record in records} == {(each.key, each.value) for each in sent}
    assert {record.partition for record in records} == {0, 1, 2}
    with pytest.raises(AssertionError, match="there is no topic"):
        await end_offsets(servers.bootstrap_servers, f"{topic_prefix}never-made")


async def test_postgresql_comes_back_on_the_same_port_with_its_data_after_stop_and_after_kill(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    try:
        url = server.database_url
        async with connection(url) as database:
            await database.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
        await server.stop()
        await server.start()
        async with connection(url) as database:
            await database.execute("INSERT INTO kept VALUES (2)")
        await server.kill()
        await server.start()
        async with connection(url) as database:
            assert await database.fetchval("SELECT array_agg(n ORDER BY n) FROM kept") == [1, 2]
        assert server.database_url == url
    finally:
        await server.stop()


async def test_kafka_comes_back_on_the_same_port_with_its_data_after_stop_and_after_kill(tmp_path: Path) -> None:
    server = EmbeddedKafka(tmp_path / "kafka")
    await server.start()
    try:
        bootstrap = server.bootstrap_servers
        await create_topic(bootstrap, "kept")
        await produce(bootstrap, "kept", [Message(None, b"1")])
        await server.stop()
        await server.start()
        await produce(bootstrap, "kept", [Message(None, b"2")])
        await server.kill()
        await server.start()
        assert [record.value for record in await drain(bootstrap, "kept")] == [b"1", b"2"]
        assert server.bootstrap_servers == bootstrap
    finally:
        await server.stop()


async def test_a_kept_data_directory_starts_on_new_ports(tmp_path: Path) -> None:
    first = EmbeddedKafka(tmp_path / "kafka")
    await first.start()
    try:
        await create_topic(first.bootstrap_servers, "kept")
        await produce(first.bootstrap_servers, "kept", [Message(None, b"1")])
    finally:
        await first.stop()
    second = EmbeddedKafka(tmp_path / "kafka")
    await second.start()
    try:
        assert second.port != first.port
        assert [record.value for record in await drain(second.bootstrap_servers, "kept")] == [b"1"]
    finally:
        await second.stop()


async def test_kafkas_two_listeners_get_two_ports_whatever_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.sample", lambda ports, count: list(ports)[:count])
    assert servers.free_port() == servers.free_port(), "nobody listens on it yet"
    server = EmbeddedKafka(tmp_path / "kafka")
    try:
        await server.start()
        assert server.port != server.controller_port
    finally:
        await server.stop()


async def test_a_server_that_cannot_start_says_why_with_the_end_of_its_log(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    await server.stop()
    (tmp_path / "pg" / "cluster" / "postgresql.conf").write_text("no such setting = 1\n")
    with pytest.raises(RuntimeError, match=r"PostgreSQL did not start .*exit code 1(.|\n)*syntax error"):
        await server.start()


async def test_what_prepares_a_server_and_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PREPARE_TIMEOUT_S", 0.2)
    child = await Child.spawn(["sleep", "600"], name="sleep")
    with pytest.raises(EmbeddedServerError, match=r"^sleep failed \(it did not answer in time\):"):
        await servers.await_prepared(child, "sleep failed", tmp_path / "log", 0)
    assert child.returncode == -signal.SIGKILL


def test_a_download_that_another_process_never_ends_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kafka_jars, "LOCK_TIMEOUT_S", 0.2)
    directory = kafka_jars.cache_directory()
    directory.parent.mkdir(parents=True)
    with (directory.parent / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedServerError, match="another process has been downloading Kafka"):
            kafka_jars.kafka_classpath(print)


async def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio
        from pathlib import Path
        from tests.harness.servers import embedded_servers

        async def main() -> None:
            async with embedded_servers(Path({str(tmp_path)!r})) as servers:
                print(servers.bootstrap_servers, flush=True)
                await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", program),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    assert await asyncio.wait_for(parent.stdout.readline(), 60)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert {"postgres", "java"} <= {child.name() for child in children}
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await eventually(lambda: not any(map(alive, children)), message="children of a killed parent gone")


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
