"""Brings a database to this version's schema."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from migrations.version import MIGRATION_LOCK, check_encoding, check_server_version
from store.connection import COMMAND_TIMEOUT_S, Database

STATEMENT_TIMEOUT_S = 6 * 3600.0
"""An index on a large table takes its time."""
ANSWER_TIMEOUT_S = COMMAND_TIMEOUT_S
"""What is asked before a migration takes none."""
TURN_TIMEOUT_S = 60.0
"""Most migrations and promotions are done by then; whoever meets one that is not would rather know."""
LOCK_TIMEOUT = "10s"
"""Whoever comes behind a statement that waits for its lock waits as well: workers give up after 30 s."""
IDLE_IN_TRANSACTION_TIMEOUT_MS = "60000"
"""Were we stopped or cut off between two statements, everybody would wait for the first one's locks."""


class AnotherMigrationError(RuntimeError):
    """Somebody else migrates a schema of this database; the message is one line."""


def config() -> Config:
    """Alembic's configuration; it lives in code, since it is one line."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return configuration


async def migrate(url: str, schema: str) -> None:
    """Create the schema where it is missing and migrate it to the newest version; harmless when repeated.

    Raises WrongSchemaError (PostgreSQL too old, not in UTF-8), AnotherMigrationError, OSError, TimeoutError or
    asyncpg.PostgresError; nothing has changed then.
    """
    engine = Database(url, schema).engine(
        "migrate",
        command_timeout=STATEMENT_TIMEOUT_S,
        idle_in_transaction_session_timeout=IDLE_IN_TRANSACTION_TIMEOUT_MS,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        # Not the driver's time-out: after that the ROLLBACK would wait as well, for as long as a statement may take.
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            connection = await stack.enter_async_context(engine.connect())
            number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
            encoding = (await connection.execute(text("SHOW server_encoding"))).scalar_one()
            await connection.rollback()
        check_server_version(number)
        check_encoding(encoding)
        async with connection.begin():
            async with asyncio.timeout(TURN_TIMEOUT_S + ANSWER_TIMEOUT_S):
                await _take_turn(connection)
            await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
            await connection.run_sync(_upgrade)


async def _take_turn(connection: AsyncConnection) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = '{TURN_TIMEOUT_S:g}s'"))
    try:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    except DBAPIError as error:
        if error.orig is None or not isinstance(error.orig.__cause__, asyncpg.LockNotAvailableError):
            raise
        raise AnotherMigrationError(
            f"another migration, or a promotion, has been at work on this database for more than {TURN_TIMEOUT_S:g} s:"
            " wait for its end, then try again"
        ) from None
    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))


def _upgrade(connection: SyncConnection) -> None:
    configuration = config()
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")
