"""Where rounds are played: Kafka and PostgreSQL behind proxies, or a Kafka of two brokers, and the product on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from migrations.run import migrate
from rollcall.children import Child
from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.embedded.servers import free_port
from rollcall.settings import ENV_PREFIX, Settings
from rollcall.stack import all_assigned
from schemas.topics import Topics
from store.connection import Connection
from streams.observing import group
from tests.faults.cluster import Cluster
from tests.faults.proxy import Proxy
from tests.harness.topics import end_offsets
from tests.harness.waiting import eventually

PARTITIONS = 6
ID_EXPIRATION_MS = 7 * 24 * 3600 * 1000
"""Kafka's default."""

LEADER = """
pg_stat_activity JOIN pg_locks USING (pid)
WHERE application_name = 'rollcall relay leader' AND locktype = 'advisory' AND granted
"""
"""The session that the leading relay leads by."""
_AT_WORK = {
    "worker": "SELECT client_port FROM pg_stat_activity WHERE application_name = 'rollcall worker'",
    "relay": f"SELECT client_port FROM {LEADER}",
}
"""The ports from which they are connected."""
_PUBLISHED = ("outbox", "dead_letters")

OTHER_SESSIONS = 30
"""Of the API's pool, and of those who ask for health, at most."""
LEAKED_TIMEOUT_S = 30.0
_UNREACHABLE = (OSError, TimeoutError, KafkaError, asyncpg.PostgresError, asyncpg.InterfaceError)


class ProxiedKafka(EmbeddedKafka):
    """A broker with a second listener that is advertised at a proxy's port.

    After `id_expiration_ms` without a transaction it forgets a transactional id; a change takes a restart.
    """

    id_expiration_ms = ID_EXPIRATION_MS

    def __init__(self, data_dir: Path, proxy_port: int) -> None:
        super().__init__(data_dir)
        self._proxy_port = proxy_port
        self.proxied_port = free_port()

    def _write_properties(self) -> None:
        super()._write_properties()
        here = "PLAINTEXT://127.0.0.1:"
        changed = []
        for line in self._properties.read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "listeners":
                value = f"{value},PROXIED://127.0.0.1:{self.proxied_port}"
            elif name == "advertised.listeners":
                value = f"{value},PROXIED://127.0.0.1:{self._proxy_port}"
            elif name == "listener.security.protocol.map":
                value = f"{value},PROXIED:PLAINTEXT"
            changed.append(f"{name}={value}")
        assert any(here in line and "PROXIED" in line for line in changed)
        changed += [f"transactional.id.expiration.ms={self.id_expiration_ms}"]
        changed += ["transaction.remove.expired.transaction.cleanup.interval.ms=1000"]
        changed += ["transaction.abort.timed.out.transaction.cleanup.interval.ms=1000"]
        self._properties.write_text("\n".join(changed) + "\n")


@dataclass
class Stage:
    """The servers of a run. Whoever plays a fault goes through the proxies, whoever watches does not.

    The cluster runs only while rounds are played on it.
    """

    kafka: ProxiedKafka
    cluster: Cluster
    postgres: EmbeddedPostgres
    kafka_proxy: Proxy
    postgres_proxy: Proxy
    directory: Path

    @property
    def dsn(self) -> str:
        return self.postgres.database_url.replace("postgresql+asyncpg://", "postgresql://")

    async def restore(self) -> None:
        """Start again what a broken round has left dead."""
        for server in (self.postgres, self.kafka):
            if server.child is None or server.child.returncode is not None:
                await server.start()
        if self.cluster.started:
            await self.cluster.start()
        self.kafka_proxy.heal()
        self.postgres_proxy.heal()

    async def kill_postmaster(self) -> None:
        """SIGKILL the postmaster alone, as the kernel's out-of-memory killer would."""
        child = self.postgres.child
        if child is not None:
            os.kill(child.pid, signal.SIGKILL)
            await child.wait()
            self.postgres.child = None


@asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    """Servers and proxies, up."""
    postgres = EmbeddedPostgres(directory / "postgres")
    postgres_proxy = Proxy(lambda: postgres.port)
    kafka_proxy = Proxy(lambda: kafka.proxied_port)
    await asyncio.gather(postgres_proxy.start(), kafka_proxy.start())
    kafka, cluster = ProxiedKafka(directory / "kafka", kafka_proxy.port), Cluster(directory / "cluster")
    try:
        await asyncio.gather(postgres.start(), kafka.start())
        yield Stage(kafka, cluster, postgres, kafka_proxy, postgres_proxy, directory)
    finally:
        await asyncio.gather(kafka.stop(), cluster.stop(), postgres.stop(), kafka_proxy.stop(), postgres_proxy.stop())


def _local_ports(process: psutil.Process) -> set[int]:
    try:
        return {each.laddr.port for each in process.net_connections("tcp4") if each.laddr}
    except psutil.Error:
        return set()


@dataclass
class Installation:
    """The product in some rounds: `rollcall run`, or (`separate`) roles one by one where their environments differ.

    `clustered`: on the Kafka of two brokers.
    """

    stage: Stage
    direct: Settings
    log: Path
    proxied: bool = False
    separate: bool = False
    clustered: bool = False
    rounds: int = 0
    supervisor: Child | None = None
    largest_mb: int = 0
    roles: dict[str, Child] = field(default_factory=dict)

    @property
    def topics(self) -> Topics:
        return Topics(self.direct.topic_prefix)

    async def migrate(self) -> None:
        await migrate(self.direct.database_url, self.direct.database_schema)

    async def start(self, workers: int) -> None:
        """All of it, under the supervisor."""
        self.supervisor = await self._spawn("run", "run", "--workers", str(workers))

    async def start_role(
        self, name: str, *role: str, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Child:
        """One process of its own, kept by name."""
        self.roles[name] = child = await self._spawn(name, *role, env=env, log=log)
        return child

    async def start_all(self, workers: int) -> None:
        """What a round begins with; what runs already is left alone, what a fault has added is stopped."""
        usual = {"relay", *(f"worker-{slot}" for slot in range(workers))} if self.separate else set()
        for name in self.roles.keys() - usual:
            await self.roles.pop(name).stop(20)
        if not self.separate:
            if self.supervisor is None or self.supervisor.returncode is not None:
                await self.start(workers)
            return
        for name in sorted(usual):
            if name not in self.roles or self.roles[name].returncode is not None:
                await self.start_usual(name)

    async def start_usual(self, name: str, env: Mapping[str, str] | None = None, log: Path | None = None) -> Child:
        """`relay` or `worker-<slot>`, without a supervisor; it logs where all do, or where it is told to."""
        if name == "relay":
            return await self.start_role("relay", "relay", env=env, log=log)
        return await self.start_role(name, "worker", "--slot", f"s{name.removeprefix('worker-')}", env=env, log=log)

    async def _spawn(
        self, name: str, *command: str, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Child:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        environment |= self._settings().environment() | dict(env or {})
        return await Child.spawn(
            [sys.executable, "-P", "-m", "rollcall", *command], name=name, env=environment, log=log or self.log
        )

    def _settings(self) -> Settings:
        if not self.proxied:
            return self.direct
        return self.direct.model_copy(
            update={
                "bootstrap_servers": f"127.0.0.1:{self.stage.kafka_proxy.port}",
                "database_url": self.proxied_database_url,
            }
        )

    @property
    def proxied_database_url(self) -> str:
        """Of PostgreSQL through the proxy."""
        return self.direct.database_url.replace(f":{self.stage.postgres.port}/", f":{self.stage.postgres_proxy.port}/")

    def processes(self, role: str) -> list[psutil.Process]:
        """The processes of a role ("worker", "relay") that run now."""
        found: list[psutil.Process] = []
        if self.supervisor is not None and self.supervisor.returncode is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(self.supervisor.pid).children():
                    with contextlib.suppress(psutil.Error):
                        if role in process.cmdline():
                            found.append(process)
        for name, child in self.roles.items():
            if name.startswith(role) and child.returncode is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(child.pid))
        return found

    async def at_work(self, role: str) -> list[psutil.Process]:
        """The processes of a role that do its work: workers that are connected to apply, the relay that leads.

        Not where they go through the proxies.
        """
        async with self.connection() as connection:
            ports = {row[0] for row in await connection.fetch(_AT_WORK[role])}
        return [process for process in self.processes(role) if ports & _local_ports(process)]

    async def held(self) -> dict[str, tuple[int, ...]]:
        """The partitions that each member of the workers' group holds, by client id; of no one while it settles."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.direct.bootstrap_servers)
        await admin.start()
        try:
            found = await group(admin, self.topics.consumer_group, self.topics.events)
        finally:
            await admin.close()
        return {each.client_id: each.partitions for each in found.members} if found.state == "Stable" else {}

    async def written(self) -> dict[str, int]:
        """The last row of each table that is published from, by table."""
        async with self.connection() as connection:
            return {
                table: await connection.fetchval(f"SELECT coalesce(max(seq), 0) FROM {table}") for table in _PUBLISHED
            }

    async def behind(self, written: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """How many rows there are behind these, and how many of them are published, by table."""
        counted = "SELECT count(*), count(published_at) FROM"
        async with self.connection() as connection:
            rows = {
                table: await connection.fetchrow(f"{counted} {table} WHERE seq > $1", seq)
                for table, seq in written.items()
            }
        return {table: (row[0], row[1]) for table, row in rows.items() if row is not None}

    async def publishes_behind(self, written: Mapping[str, int]) -> bool:
        """Whether some of what was written behind these rows is published, of each table."""
        return all(published for _, published in (await self.behind(written)).values())

    async def watch_memory(self) -> None:
        """Until cancelled, keep note of the largest worker; see `largest_mb`."""
        while True:
            for process in self.processes("worker"):
                with contextlib.suppress(psutil.Error):
                    self.largest_mb = max(self.largest_mb, process.memory_info().rss // 1024**2)
            await asyncio.sleep(0.3)

    async def ready(self, workers: int, timeout_s: float = 60) -> None:
        """Wait until the workers share the partitions."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.direct.bootstrap_servers)
        await admin.start()
        try:
            await eventually(lambda: all_assigned(admin, self.topics, workers), timeout_s, message="workers assigned")
        finally:
            await admin.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """To PostgreSQL, not through the proxy."""
        connection = await self.direct.database().connect("fault run")
        try:
            yield connection
        finally:
            connection.terminate()

    async def applied(self) -> int:
        """How many records of the input log are applied."""
        async with self.connection() as connection:
            applied = await connection.fetchval(
                "SELECT sum(next_offset) FROM positions WHERE topic = $1", self.topics.events
            )
        return int(applied or 0)

    async def ends(self) -> dict[int, int]:
        """Where the input log ends, by partition."""
        return await self._ends_of(self.topics.events)

    async def all_ends(self) -> dict[str, dict[int, int]]:
        """Where input and outputs end, by topic (without its prefix) and partition."""
        return {
            topic: await self._ends_of(f"{self.direct.topic_prefix}{topic}")
            for topic in ("events", "finalized", "dead-letters", "alerts", "requests")
        }

    async def _ends_of(self, topic: str) -> dict[int, int]:
        async def asked() -> dict[Any, int]:
            try:
                return await end_offsets(self.direct.bootstrap_servers, topic)
            except KafkaError as error:  # a busy broker may break a connection off, and the round is not about this one
                raise AssertionError(f"where {topic} ends: {error!r}") from error

        found = await eventually(asked, 60)
        return {tp.partition: end for tp, end in found.items()}

    async def caught_up(self, ends: Mapping[int, int], timeout_s: float) -> None:
        """Wait until all that lies before `ends` is applied, and what has come of it till then is published."""
        deadline = time.monotonic() + timeout_s
        await self._until(lambda connection: self._applied(connection, ends), deadline)
        last = await self.written()
        await self._until(lambda connection: self._published(connection, last), deadline)

    async def _until(self, condition: Any, deadline: float) -> None:
        problem = "PostgreSQL cannot be reached"
        while time.monotonic() < deadline:
            try:
                async with self.connection() as connection:
                    while time.monotonic() < deadline:
                        problem = await condition(connection)
                        if not problem:
                            return
                        await asyncio.sleep(0.05)
            except _UNREACHABLE as error:
                problem = repr(error)
                await asyncio.sleep(0.1)
        raise TimeoutError(problem)

    async def _applied(self, connection: Connection, ends: Mapping[int, int]) -> str:
        rows = await connection.fetch(
            "SELECT partition, next_offset FROM positions WHERE topic = $1", self.topics.events
        )
        stored = {row[0]: row[1] for row in rows}
        behind = {number: (stored.get(number, 0), end) for number, end in ends.items() if stored.get(number, 0) < end}
        return f"not applied, by partition (stored, end): {behind}" if behind else ""

    async def _published(self, connection: Connection, last: Mapping[str, int]) -> str:
        left = {
            table: await connection.fetchval(
                f"SELECT count(*) FROM {table} WHERE published_at IS NULL AND refused IS NULL AND seq <= $1", seq
            )
            for table, seq in last.items()
        }
        return f"not published: {left}" if any(left.values()) else ""

    async def settled(self, timeout_s: float) -> None:
        """Wait until the whole log is applied; what is forwarded meanwhile makes the log longer."""
        deadline = time.monotonic() + timeout_s
        ends: dict[int, int] = {}
        while ends != (now := await self.ends()):
            ends = now
            await self.caught_up(ends, deadline - time.monotonic())

    async def stop(self) -> float:
        """SIGTERM; returns how long it took, in seconds. What does not end in 20 s is killed."""
        begun = time.monotonic()
        children = [child for child in (self.supervisor, *self.roles.values()) if child is not None]
        for child in children:
            child.send_signal(signal.SIGCONT)
        await asyncio.gather(*(child.stop(20) for child in children))
        self.supervisor = None
        self.roles.clear()
        return time.monotonic() - begun

    async def leaked(self) -> list[str]:
        """Database sessions beyond what the processes that run need: of a connection given up, and not let go."""

        async def beyond() -> list[str]:
            allowed = {role: len(self.processes(role)) for role in ("worker", "relay", "clock")}
            allowed["figures"] = allowed["relay"]
            async with self.connection() as connection:
                rows = await connection.fetch(
                    "SELECT application_name, count(*) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'rollcall %' AND application_name <> 'rollcall fault run' GROUP BY 1"
                )
            found = {name: (count, allowed.get(name.split()[1], OTHER_SESSIONS)) for name, count in rows}
            return [f"{count} sessions of {name!r}" for name, (count, most) in found.items() if count > max(most, 1)]

        deadline = time.monotonic() + LEAKED_TIMEOUT_S
        while (left := await beyond()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        return left

    async def left_behind(self) -> list[str]:
        """Database sessions, and advisory locks and temporary tables of theirs, that have outlived the processes."""

        async def sessions() -> list[str]:
            async with self.connection() as connection:
                rows = await connection.fetch(
                    "SELECT application_name FROM pg_stat_activity"
                    " WHERE application_name LIKE 'rollcall %' AND pid <> pg_backend_pid()"
                    " AND application_name <> 'rollcall fault run'"
                )
                locks = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
                temporary = await connection.fetchval("SELECT count(*) FROM pg_class WHERE relpersistence = 't'")
            return [
                *(row[0] for row in rows),
                *([f"{locks} advisory locks"] if locks else []),
                *([f"{temporary} temporary tables"] if temporary else []),
            ]

        deadline = time.monotonic() + 3
        while (left := await sessions()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return left
