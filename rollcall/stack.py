"""All of Rollcall in one process tree: `rollcall up` with servers of its own, `rollcall run` on the user's."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import itertools
import json
import os
import platform
import re
import select
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import structlog
import typer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from rollcall.children import kill_all_children
from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.kafka_jars import Progress
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.embedded.servers import EmbeddedServerError, free_port, is_free
from rollcall.interrupting import call_in, heeding
from rollcall.operations import serving, watching
from rollcall.readiness import READY_FILE, announced
from rollcall.settings import ENV_PREFIX, Settings, load_settings
from rollcall.supervisor import Role, Supervisor
from schemas.topics import Topics
from streams.observing import NoTopicError, administering, group, partitions_of

_log = structlog.get_logger(__name__)

READY_TIMEOUT_S = 60.0

# Held until this process ends.
_slot_locks: list[IO[str]] = []


class StackError(RuntimeError):
    """The processes could not be brought up; the message is one line."""


@dataclass(frozen=True)
class Stack:
    """Kafka, PostgreSQL and all of Rollcall's processes, up and ready."""

    settings: Settings
    supervisor: Supervisor

    @property
    def bootstrap_servers(self) -> str:
        """Where Kafka is."""
        return self.settings.bootstrap_servers

    @property
    def database_url(self) -> str:
        """Where PostgreSQL is: `postgresql+asyncpg://user@127.0.0.1:port/db`."""
        return self.settings.database_url

    @property
    def api_url(self) -> str:
        """Where the HTTP API is: `http://127.0.0.1:port`."""
        return f"http://{self.settings.api_host}:{self.settings.api_port}"

    def description(self) -> dict[str, Any]:
        """What `rollcall up --json` prints."""
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "database_url": self.database_url,
            "api_url": self.api_url,
            "processes": self.supervisor.processes(),
        }


@asynccontextmanager
async def embedded_stack(
    *, workers: int, data_dir: Path | None = None, progress: Progress | None = None
) -> AsyncIterator[Stack]:
    """Everything, ready when the context opens and gone when it closes.

    Data is kept in `data_dir`, or thrown away where there is none. `progress` is given a line when Kafka has to be
    downloaded first. Raises `EmbeddedServerError`, `RoleRefusedError` and `StackError`.
    """
    with _directory(data_dir) as directory:
        kafka = EmbeddedKafka(directory / "kafka", progress=progress)
        postgres = EmbeddedPostgres(directory / "postgres")
        async with Supervisor() as supervisor:
            await supervisor.keep(kafka, postgres)
            settings = _settings_for(kafka, postgres)
            await _migrate(settings)
            with tempfile.TemporaryDirectory(prefix="rollcall-ready-") as ready:
                ready_files = await _start_roles(supervisor, settings, workers, Path(ready))
                await supervisor.unless_refused(_until_ready(settings, workers, ready_files))
            yield Stack(settings, supervisor)


async def up(*, workers: int, data_dir: Path | None, as_json: bool) -> None:
    """Bring everything up, say on stdout where it is, and keep it up until cancelled."""
    async with embedded_stack(workers=workers, data_dir=data_dir) as stack:
        typer.echo(json.dumps(stack.description()) if as_json else _for_people(stack))
        sys.stdout.flush()
        await asyncio.Event().wait()


async def run(settings: Settings, *, workers: int) -> None:
    """Keep all roles up against the Kafka and PostgreSQL of `settings` until cancelled.

    Raises `RoleRefusedError` as soon as one says that it cannot run at all.
    """
    async with serving(settings), Supervisor() as supervisor:
        await _start_roles(supervisor, settings, workers)
        _log.info("running", processes=supervisor.processes())
        async with watching(settings, supervisor):
            await supervisor.unless_refused(asyncio.Event().wait())


STOP_TIMEOUT_S = 30.0
"""For processes, and then servers; blocked by a log line that nobody takes, it would stop none of them."""


def until_interrupted(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`; SIGINT and SIGTERM cancel it and this returns when it has cleaned up, a second one ends at once."""
    asyncio.run(_interruptible(main))


async def _interruptible(main: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(main)
    interrupted = False

    def interrupt(_: signal.Signals) -> None:
        nonlocal interrupted
        interrupted = True
        task.cancel()
        if _is_read(sys.stderr):
            _log.info("stopping; once more to stop at once")

    def end(*_: Any) -> None:
        kill_all_children()
        os._exit(1)

    with heeding((signal.SIGINT, signal.SIGTERM), interrupt, at_once=call_in(STOP_TIMEOUT_S, end), again=end):
        try:
            await task
        except asyncio.CancelledError:
            if not interrupted:
                raise


def _is_read(output: IO[str]) -> bool:
    """Whether a line can be written without waiting until somebody reads what was written before."""
    return bool(select.select([], [output], [], 0)[1])


async def _start_roles(
    supervisor: Supervisor, settings: Settings, workers: int, ready_dir: Path | None = None
) -> list[Path]:
    """Start all roles and `workers` workers; the files by which those announce themselves that were asked to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    environment |= settings.environment()
    ports, ready_files = _metrics_ports(settings), []
    for role in ("relay", "clock", "api"):
        role_environment = environment | next(ports)
        if ready_dir is not None:
            ready_files.append(ready_dir / role)
            role_environment = {**role_environment, READY_FILE: str(ready_files[-1])}
        await supervisor.keep(Role(role, _command(role), role_environment))
    for slot in _free_slots(settings, workers):
        await supervisor.keep(Role("worker", _command("worker", "--slot", slot), environment | next(ports)))
    return ready_files


def _metrics_ports(settings: Settings) -> Iterator[dict[str, str]]:
    """The setting of each process in turn: ports behind our own, or any free ones where ours is any."""
    for port in itertools.count(settings.metrics_port + 1):
        yield {f"{ENV_PREFIX}METRICS_PORT": str(port if settings.metrics_port else 0)}


def _free_slots(settings: Settings, count: int) -> Iterator[str]:
    """Slots of this host that no other process tree has taken, the same again after a restart.

    Two workers in one slot would throw each other out of the group for ever. The locks go with this process; hosts
    (and containers) are told apart by their names, which must differ.
    """
    host = re.sub(r"[^a-zA-Z0-9._-]", "-", platform.node())[:100] or "host"
    installation = hashlib.sha256(f"{settings.bootstrap_servers} {settings.topic_prefix}".encode()).hexdigest()[:12]
    for number in itertools.count():
        if count == 0:
            return
        lock = (Path(tempfile.gettempdir()) / f"rollcall-slot-{os.getuid()}-{installation}-{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _slot_locks.append(lock)
        count -= 1
        yield f"{host}-{number}"


def _command(*role: str) -> list[str]:
    # -P: the current directory may hold an `api` of its own. To be seen in `ps` as "... -m rollcall worker ...".
    return [sys.executable, "-P", "-m", "rollcall", *role]


def _settings_for(kafka: EmbeddedKafka, postgres: EmbeddedPostgres) -> Settings:
    # What the environment says about reaching other servers must not leak in here.
    return load_settings(
        bootstrap_servers=kafka.bootstrap_servers,
        database_url=postgres.database_url,
        security_protocol="PLAINTEXT",
        sasl_username=None,
        sasl_password=None,
        ssl_cafile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        # Nobody but this machine's users gets here.
        auth="off",
        api_host="127.0.0.1",
        api_port=_free_port(load_settings(bootstrap_servers="-", database_url="postgresql+asyncpg://-").api_port),
    )


def _free_port(wanted: int) -> int:
    """The port that is wanted where nobody has it, else any other; to be the same when the API is started again."""
    return wanted if wanted and is_free(wanted) else free_port()


async def _migrate(settings: Settings) -> None:
    from migrations.run import migrate

    await migrate(settings.database_url, settings.database_schema)


async def _until_ready(settings: Settings, workers: int, ready_files: list[Path]) -> None:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await asyncio.gather(
                _until_assigned(settings, workers), *(announced(ready_file) for ready_file in ready_files)
            )
    except TimeoutError:
        raise StackError(f"the processes were not ready within {READY_TIMEOUT_S:g} s") from None


async def _until_assigned(settings: Settings, workers: int) -> None:
    topics = Topics(settings.topic_prefix)
    async with administering(settings.kafka_connection()) as admin:
        while not await all_assigned(admin, topics, workers):  # noqa: ASYNC110 - the broker doesn't tell by itself
            await asyncio.sleep(0.05)


async def all_assigned(admin: AIOKafkaAdminClient, topics: Topics, workers: int) -> bool:
    """Whether the workers' group is settled: at least `workers` members that hold every partition of the input."""
    try:
        partitions = set(await partitions_of(admin, topics.events))
        found = await group(admin, topics.consumer_group, topics.events)
    except (KafkaError, NoTopicError):
        return False
    held = {partition for member in found.members for partition in member.partitions}
    return bool(partitions) and found.state == "Stable" and len(found.members) >= workers and held == partitions


@contextmanager
def _directory(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is None:
        with tempfile.TemporaryDirectory(prefix="rollcall-", ignore_cleanup_errors=True) as throw_away:
            yield Path(throw_away)
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "in-use.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedServerError(f"another rollcall uses the data directory {data_dir}") from None
        yield data_dir


def _for_people(stack: Stack) -> str:
    rows = [("Kafka", stack.bootstrap_servers), ("PostgreSQL", stack.database_url), ("API", stack.api_url)]
    rows += [(str(process["role"]), f"pid {process['pid']}") for process in stack.supervisor.processes()]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)
