"""Brings a database to this version's schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text

from migrations.version import MIGRATION_LOCK, check_server_version
from store.connection import Database

STATEMENT_TIMEOUT_S = 6 * 3600.0
"""An index on a large table takes its time."""
LOCK_TIMEOUT = "10s"
"""Whoever comes behind a statement that waits for its lock waits as well: workers give up after 30 s."""


def config() -> Config:
    """Alembic's configuration; it lives in code, since it is one line."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return configuration


async def migrate(url: str, schema: str) -> None:
    """Create the schema where it is missing and migrate it to the newest version; harmless when repeated.

    Raises WrongSchemaError (PostgreSQL too old), OSError, TimeoutError or asyncpg.PostgresError; nothing has changed
    then.
    """
    engine = Database(url, schema).engine("migrate", command_timeout=STATEMENT_TIMEOUT_S)
    try:
        async with engine.connect() as connection:
            number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
            await connection.rollback()
            check_server_version(number)
            async with connection.begin():
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
                await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
                await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade(connection: SyncConnection) -> None:
    configuration = config()
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")
