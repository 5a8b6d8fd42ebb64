"""Brings a database to this version's schema, and says whether it is there."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text

from store.connection import Connection, Database

MINIMUM_SERVER_VERSION = 180_000

# One migration at a time on a database, whoever starts it: transaction-scoped, so it goes with the connection.
_MIGRATION_LOCK = 0x726F6C6C63616C6C  # "rollcall"


class WrongSchemaError(Exception):
    """The database is not one this version can work on; the message says what to run."""


def config() -> Config:
    """Alembic's configuration; it lives in code, since it is one line."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return configuration


def head() -> str:
    """The revision this version of the code works on."""
    revision = ScriptDirectory.from_config(config()).get_current_head()
    assert revision is not None
    return revision


async def migrate(url: str, schema: str) -> None:
    """Create the schema where it is missing and migrate it to the newest version; harmless when repeated.

    Raises WrongSchemaError (PostgreSQL too old), OSError, TimeoutError or asyncpg.PostgresError.
    """
    engine = Database(url, schema).engine("migrate")
    try:
        async with engine.connect() as connection:
            number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
            await connection.rollback()
            check_server_version(number)
            async with connection.begin():
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
                await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def check_server_version(number: int) -> None:
    """Raise WrongSchemaError where ``server_version_num`` is below PostgreSQL 18."""
    if number < MINIMUM_SERVER_VERSION:
        raise WrongSchemaError(
            f"PostgreSQL 18 or newer is required, this server is {number // 10_000}.{number % 10_000}: upgrade it first"
        )


async def check(connection: Connection, schema: str) -> None:
    """Raise WrongSchemaError unless the schema behind the connection is of exactly this version."""
    check_server_version(int(await connection.fetchval("SHOW server_version_num")))
    exists = await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
    current = await connection.fetchval("SELECT version_num FROM alembic_version") if exists else None
    if current == (wanted := head()):
        return
    if current is None:
        raise WrongSchemaError(f'the schema "{schema}" is empty or missing: run `rollcall migrate`')
    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    if current in known:
        raise WrongSchemaError(
            f'the schema "{schema}" is at version {current}, this Rollcall needs {wanted}: run `rollcall migrate`'
        )
    raise WrongSchemaError(
        f'the schema "{schema}" is at version {current}, which this Rollcall ({wanted}) does not know:'
        " it was migrated by a newer one; install that"
    )


def _upgrade(connection: SyncConnection) -> None:
    configuration = config()
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")
