"""Whether a database is of this code's schema version. Apart from the migrations: Alembic takes a second to import."""

from store.connection import Connection

SCHEMA_VERSION = "0010"
"""The newest migration; a test compares it with Alembic's head. Revisions are numbered, so they can be ordered."""

MINIMUM_SERVER_VERSION = 180_000

MIGRATION_LOCK = 0x726F6C6C63616C6C  # "rollcall"
"""One migration at a time on a database, whoever starts it: transaction-scoped, so it goes with the connection."""


class WrongSchemaError(Exception):
    """The database is not one this version can work on; the message says what to run."""


def check_server_version(number: int) -> None:
    """Raise WrongSchemaError where ``server_version_num`` is below PostgreSQL 18."""
    if number < MINIMUM_SERVER_VERSION:
        raise WrongSchemaError(
            f"PostgreSQL 18 or newer is required, this server is {number // 10_000}.{number % 10_000}: upgrade it first"
        )


def check_encoding(encoding: str) -> None:
    """Raise WrongSchemaError where the database cannot hold whatever text a message may have."""
    if encoding != "UTF8":
        raise WrongSchemaError(
            f"the database's encoding is {encoding}, which does not hold every character that a message may have:"
            " create one with ENCODING 'UTF8' (TEMPLATE template0)"
        )


async def check(connection: Connection, schema: str) -> None:
    """Raise WrongSchemaError unless the schema behind the connection is of exactly this version, and in UTF-8."""
    check_server_version(int(await connection.fetchval("SHOW server_version_num")))
    check_encoding(connection.get_settings().server_encoding)
    exists = await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
    current = await connection.fetchval("SELECT version_num FROM alembic_version") if exists else None
    if current == SCHEMA_VERSION:
        return
    if current is None:
        # To whom may not use a schema its tables are not there.
        usable = await connection.fetchval(
            "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1", schema
        )
        if usable is False:
            raise WrongSchemaError(f'this user lacks USAGE on the schema "{schema}": GRANT it (README, what to grant)')
        raise WrongSchemaError(f'the schema "{schema}" is empty or missing: run `rollcall migrate`')
    if current < SCHEMA_VERSION:
        raise WrongSchemaError(
            f'the schema "{schema}" is at version {current}, this Rollcall needs {SCHEMA_VERSION}:'
            " run `rollcall migrate`"
        )
    raise WrongSchemaError(
        f'the schema "{schema}" is at version {current}, which this Rollcall ({SCHEMA_VERSION}) does not know:'
        " it was migrated by a newer one; install that"
    )


async def keep_migrations_off(connection: Connection) -> None:
    """Let nobody migrate any schema of this database until this transaction ends.

    Raises asyncpg.LockNotAvailableError where one is at it for longer than this connection waits for a lock.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)


async def check_still(connection: Connection, *schemas: str) -> None:
    """Raise WrongSchemaError where one of these, which were of this version, was migrated since."""
    for schema in schemas:
        version = await connection.fetchval(f'SELECT version_num FROM "{schema}".alembic_version')
        if version != SCHEMA_VERSION:
            raise WrongSchemaError(
                f'the schema "{schema}" was migrated meanwhile: it is at version {version}, this Rollcall needs'
                f" {SCHEMA_VERSION}"
            )
