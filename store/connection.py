"""How to reach PostgreSQL: every connection of ours is opened here, with a time-out on every command."""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection


CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 60.0

# For connections all of whose statements are by key: a plan made while a table was small, or over arrays whose length
# the planner guesses, must not scan it once it is large.
BY_KEY = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

# For connections of processes that serve: were one cut off or stopped between two statements of a transaction, its
# locks would stand in others' way for as long as the connection does, which may be hours. In milliseconds.
SERVING = {"idle_in_transaction_session_timeout": "10000"}

_AT_ONCE = pack("ii", 1, 0)
_DRIVER = "postgresql+asyncpg://"
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class LostSettingsError(asyncpg.InterfaceError):
    """The connection does not look into our schema: whoever is between us and the server has dropped what was asked."""


class _Closing(Connection):
    """A connection that is closed within a time, also where the server has stopped to answer."""

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:
        """Close it; where the server does not take leave in time, it is cut off."""
        with suppress(TimeoutError):
            await super().close(timeout=timeout or CLOSE_TIMEOUT_S)

    async def _cleanup_stmts(self) -> None:
        """Close statements that SQLAlchemy has forgotten, which asyncpg awaits without a time-out."""
        try:
            async with asyncio.timeout(self._config.command_timeout):  # type: ignore[attr-defined]
                await super()._cleanup_stmts()  # type: ignore[misc]
        except TimeoutError:
            self.terminate()
            raise

    def terminate(self) -> None:
        """Cut it off. With a reset where it holds locks: a stream's end waits behind what is unread of a COPY."""
        if not self.is_closed() and self.is_in_transaction():
            socket = self._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # the stubs leave it out
            if socket is not None:
                with suppress(OSError, ValueError):  # it is closed already
                    socket.setsockopt(SOL_SOCKET, SO_LINGER, _AT_ONCE)
        super().terminate()


async def driver(connection: "AsyncConnection") -> Connection:
    """asyncpg's connection under SQLAlchemy's, for statements that are written as text."""
    under = (await connection.get_raw_connection()).driver_connection
    assert under is not None
    found: Connection = under
    return found


@dataclass(frozen=True)
class Database:
    """A database URL (``postgresql+asyncpg://...``; libpq's ``?sslmode=...`` works) and the schema Rollcall lives in.

    Raises ValueError where either is malformed.
    """

    url: str
    schema: str = "rollcall"

    def __post_init__(self) -> None:
        if not self.url.startswith(_DRIVER):
            raise ValueError(f"the database URL must begin with {_DRIVER}")
        try:
            urlsplit(self.url).port  # noqa: B018 (it raises where it is no number)
        except ValueError:
            # Its message may quote the password, of which an unescaped "/" makes a port.
            raise ValueError(
                "the database URL is malformed: it is postgresql+asyncpg://user:password@host:port/database, with user"
                " and password percent-encoded"
            ) from None
        if not _SCHEMA_NAME.fullmatch(self.schema):
            raise ValueError(f"not a schema name (a-z, 0-9, _; at most 63 characters): {self.schema!r}")

    @property
    def dsn(self) -> str:
        """The URL as asyncpg takes it."""
        return "postgresql://" + self.url.removeprefix(_DRIVER)

    async def connect(self, role: str, *, command_timeout: float = COMMAND_TIMEOUT_S, **settings: str) -> Connection:
        """A connection whose unqualified names are those of our schema; ``role`` shows in pg_stat_activity.

        Raises OSError, asyncpg.PostgresError, LostSettingsError or TimeoutError.
        """
        connection = await asyncpg.connect(
            self.dsn,
            connection_class=_Closing,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=command_timeout,
            # Else each is closed after five minutes, which asyncpg awaits without a time-out. There are a few dozen.
            max_cached_statement_lifetime=0,
            server_settings=self._settings(role, settings),
        )
        # The server says so by itself (PostgreSQL 18). Else a replay beside the live tables would be one into them.
        found = getattr(connection.get_settings(), "search_path", self.schema)
        if found != self.schema:
            connection.terminate()
            raise LostSettingsError(
                f"the connection's search_path is {found!r}, not {self.schema!r}: a pooler that drops what is asked"
                " cannot be used; go past it, or let it pass them on"
            )
        return connection

    def engine(
        self, role: str, connections: int = 4, *, command_timeout: float = COMMAND_TIMEOUT_S, **settings: str
    ) -> "AsyncEngine":
        """A SQLAlchemy engine over the same connections, for migrations and composed reads.

        At most so many, and kept: one above the pool's size would be opened anew for each use.
        """
        from sqlalchemy.ext.asyncio import create_async_engine  # workers do without

        async def creator() -> Any:
            return await self.connect(role, command_timeout=command_timeout, **settings)

        return create_async_engine(
            "postgresql+asyncpg://", async_creator=creator, pool_size=connections, max_overflow=0
        )

    def _settings(self, role: str, settings: dict[str, str]) -> dict[str, str]:
        return {
            "application_name": f"rollcall {role}",
            "search_path": self.schema,
            "timezone": "UTC",
            # Rows are given as literals of arrays, in which null is none (store.statements).
            "array_nulls": "on",
            # Short keyed statements: compiling them costs more than running them.
            "jit": "off",
            # A verification idles here for hours, while it folds.
            "idle_session_timeout": "0",
            # Whoever waits has a limit of its own, and takes on less, or waits longer, where that is too short. One
            # that somebody has set for the role or the database would be met again and again.
            "statement_timeout": "0",
            "transaction_timeout": "0",
            "lock_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            # How soon it notices in the midst of a statement that its client is gone, whose locks it would else hold
            # until the statement ends.
            "client_connection_check_interval": "1000",
            **settings,
        }
