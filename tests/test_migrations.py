"""Migrations on a real PostgreSQL: they arrive at the declared schema, back and at once, and say what to run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from migrations import run
from migrations.run import AnotherMigrationError, config, migrate
from migrations.version import (
    MIGRATION_LOCK,
    MINIMUM_SERVER_VERSION,
    SCHEMA_VERSION,
    WrongSchemaError,
    check,
    check_server_version,
)
from rollcall.settings import Settings
from store.connection import Connection, Database
from store.tables import BATCH_STATUS_VIEW, metadata
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Everything pg_catalog says of a schema, with the schema's own name taken out.
CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
               coll.collname, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        LEFT JOIN pg_collation coll ON coll.oid = a.attcollation
        WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'v') AND c.relname <> 'alembic_version'
        ORDER BY 1, a.attnum""",
    "constraints": """
        SELECT c.relname, k.conname, pg_get_constraintdef(k.oid)
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        WHERE c.relnamespace = $1::text::regnamespace AND c.relname <> 'alembic_version' ORDER BY 1, 2""",
    "indexes": """
        SELECT tablename, indexname, replace(indexdef, $1::text || '.', '') FROM pg_indexes
        WHERE schemaname = $1 AND tablename <> 'alembic_version' ORDER BY 1, 2""",
    "options": """
        SELECT relname, reloptions, obj_description(oid) FROM pg_class
        WHERE relnamespace = $1::text::regnamespace AND relkind IN ('r', 'v') AND relname <> 'alembic_version'
        ORDER BY 1""",
    "views": "SELECT viewname, replace(definition, $1::text || '.', '') FROM pg_views WHERE schemaname = $1 ORDER BY 1",
}


async def catalog(connection: Connection, schema: str) -> dict[str, list[tuple[Any, ...]]]:
    return {name: [tuple(row) for row in await connection.fetch(query, schema)] for name, query in CATALOG.items()}


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    yield settings.database()
    connection = await settings.database().connect("test")
    await connection.execute(f"DROP SCHEMA IF EXISTS {settings.database_schema} CASCADE")
    await connection.execute(f"DROP SCHEMA IF EXISTS {settings.database_schema}_declared CASCADE")
    await connection.close()


async def test_the_migrated_schema_is_the_declared_one_to_the_last_comment(database: Database) -> None:
    await migrate(database.url, database.schema)
    declared = Database(database.url, f"{database.schema}_declared")
    connection = await database.connect("test")
    try:
        await connection.execute(f"CREATE SCHEMA {declared.schema}")
        engine = declared.engine("test")
        async with engine.begin() as making:
            await making.run_sync(metadata.create_all)
            await making.execute(text(BATCH_STATUS_VIEW))
        await engine.dispose()
        wanted, found = await catalog(connection, declared.schema), await catalog(connection, database.schema)
    finally:
        await connection.close()
    assert wanted["constraints"], "the comparison sees something"
    for name, rows in wanted.items():
        assert found[name] == rows, name


async def test_alembic_finds_nothing_to_migrate(database: Database) -> None:
    await migrate(database.url, database.schema)

    def differences(connection: SyncConnection) -> list[Any]:
        # Not the defaults: Alembic can't compare json ones, and the catalogue is compared above.
        options = {"compare_type": True, "compare_server_default": False}
        context = MigrationContext.configure(connection, opts=options)
        return [each for each in compare_metadata(context, metadata) if "alembic_version" not in str(each)]

    engine = database.engine("test")
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    assert found == []


async def test_the_codes_version_is_alembics_head_and_versions_are_ordered() -> None:
    scripts = ScriptDirectory.from_config(config())
    assert scripts.get_heads() == [SCHEMA_VERSION]
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)


async def downgrade(database: Database, to: str) -> None:
    def run(connection: SyncConnection) -> None:
        configuration = config()
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, to)

    engine = database.engine("test")
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


async def test_a_migration_that_has_to_wait_for_a_table_gives_up_before_the_workers_behind_it_do(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations.run.LOCK_TIMEOUT", "200ms")
    await migrate(database.url, database.schema)
    await downgrade(database, "0005")
    reader = await database.connect("test")
    try:
        async with reader.transaction():
            await reader.fetch("SELECT FROM batches")
            with pytest.raises(DBAPIError, match="lock timeout"):
                await migrate(database.url, database.schema)
        await migrate(database.url, database.schema)
        await check(reader, database.schema)
    finally:
        await reader.close()


async def test_a_migration_that_another_one_holds_up_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations.run.TURN_TIMEOUT_S", 0.2)
    other = await database.connect("test")
    try:
        async with other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
            with pytest.raises(AnotherMigrationError, match="another migration, or a promotion, has been at work"):
                await migrate(database.url, database.schema)
        await migrate(database.url, database.schema)
    finally:
        await other.close()


async def test_a_migration_that_is_stopped_between_two_statements_lets_go_of_its_locks(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations.run.IDLE_IN_TRANSACTION_TIMEOUT_MS", "200")
    upgrade = run._upgrade

    def stopped(connection: SyncConnection) -> None:
        upgrade(connection)
        time.sleep(1)
        connection.execute(text("SELECT 1"))

    monkeypatch.setattr(run, "_upgrade", stopped)
    with pytest.raises(DBAPIError, match="idle-in-transaction timeout"):
        await migrate(database.url, database.schema)
    monkeypatch.setattr(run, "_upgrade", upgrade)
    await migrate(database.url, database.schema)


@pytest.mark.parametrize("answers", range(3))
async def test_a_migration_that_gets_no_answer_at_first_gives_up_soon(
    database: Database, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    monkeypatch.setattr("migrations.run.ANSWER_TIMEOUT_S", 2.0)
    monkeypatch.setattr("migrations.run.TURN_TIMEOUT_S", 0.1)
    where = urlsplit(database.url)
    proxy = Proxy(lambda: where.port)
    await proxy.start()
    proxied = urlunsplit(where._replace(netloc=where.netloc.replace(f":{where.port}", f":{proxy.port}")))
    silenced_at = ("SELECT pg_catalog.version()", "SHOW server_version_num", "SELECT pg_advisory_xact_lock")[answers]
    prepare = asyncpg.Connection.prepare

    async def prepared(connection: Connection, query: str, **options: Any) -> Any:
        if query.lower().startswith(silenced_at.lower()):
            proxy.black_hole()
        return await prepare(connection, query, **options)

    monkeypatch.setattr(asyncpg.Connection, "prepare", prepared)
    try:
        async with asyncio.timeout(30):
            with pytest.raises(TimeoutError):
                await migrate(proxied, database.schema)
        assert proxy.harmed
    finally:
        await proxy.stop()


async def test_downgrading_to_the_beginning_leaves_nothing(database: Database) -> None:
    await migrate(database.url, database.schema)
    await downgrade(database, "base")
    connection = await database.connect("test")
    try:
        left = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace", database.schema
        )
        assert {row[0] for row in left} == {"alembic_version", "alembic_version_pkc"}
    finally:
        await connection.close()
    await migrate(database.url, database.schema)


async def test_several_migrations_at_once_all_succeed(database: Database) -> None:
    await asyncio.gather(*(migrate(database.url, database.schema) for _ in range(4)))
    connection = await database.connect("test")
    try:
        await check(connection, database.schema)
    finally:
        await connection.close()


async def test_a_wrong_schema_is_refused_with_what_to_do(database: Database) -> None:
    connection = await database.connect("test")
    try:
        with pytest.raises(WrongSchemaError, match="empty or missing: run `rollcall migrate`"):
            await check(connection, database.schema)
        await migrate(database.url, database.schema)
        await check(connection, database.schema)
        await connection.execute("UPDATE alembic_version SET version_num = '0000'")
        with pytest.raises(
            WrongSchemaError, match=f"at version 0000, .* needs {SCHEMA_VERSION}: run `rollcall migrate`"
        ):
            await check(connection, database.schema)
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(WrongSchemaError, match="does not know: it was migrated by a newer one; install that"):
            await check(connection, database.schema)
        await connection.execute("DELETE FROM alembic_version")
        with pytest.raises(WrongSchemaError, match="empty or missing"):
            await check(connection, database.schema)
    finally:
        await connection.close()


async def test_a_forgotten_grant_is_not_taken_for_a_missing_schema(database: Database) -> None:
    await migrate(database.url, database.schema)
    schema, role = database.schema, f"{database.schema}_app"
    connection = await database.connect("test")
    try:
        await connection.execute(f"CREATE ROLE {role}")
        await connection.execute(f"SET ROLE {role}")
        with pytest.raises(WrongSchemaError) as refused:
            await check(connection, schema)
        assert str(refused.value) == f'this user lacks USAGE on the schema "{schema}": GRANT it (README, what to grant)'
        await connection.execute("RESET ROLE")
        await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        await connection.execute(f"SET ROLE {role}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="alembic_version"):
            await check(connection, schema)
        await connection.execute("RESET ROLE")
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
        await connection.execute(f"SET ROLE {role}")
        await check(connection, schema)
    finally:
        await connection.execute("RESET ROLE")
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


async def test_an_old_server_is_refused_by_name_of_its_version() -> None:
    check_server_version(MINIMUM_SERVER_VERSION)
    with pytest.raises(WrongSchemaError, match=r"PostgreSQL 18 or newer is required, this server is 17\.6: upgrade"):
        check_server_version(170_006)


async def test_a_database_that_does_not_hold_every_character_is_refused(database: Database) -> None:
    connection = await database.connect("test")
    name = f"latin_{database.schema}"
    url = database.url.rpartition("/")[0] + f"/{name}"
    try:
        await connection.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
        )
        with pytest.raises(WrongSchemaError, match="the database's encoding is LATIN1"):
            await migrate(url, database.schema)
        latin = await Database(url, database.schema).connect("test")
        try:
            with pytest.raises(WrongSchemaError, match="the database's encoding is LATIN1"):
                await check(latin, database.schema)
        finally:
            await latin.close()
    finally:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.close()


# Rows whose state contradicts their timestamps.
SOUND: dict[str, Any] = {"batch_id": "b", "partition": 0, "state": "pending", "sealed": False}
FINAL = {
    "state": "finalized",
    "outcome": "completed",
    "finalized_by": "all_items_in",
    "decided_offset": 1,
    "revision": 1,
    "finalized_at": "2026-01-01T00:00:00Z",
}
MOMENT = "2026-01-01T00:00:00Z"
CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "an unknown state": {"state": "done"},
    "finalized without a time": FINAL | {"finalized_at": None},
    "finalized without an outcome": FINAL | {"outcome": None},
    "finalized by nothing": FINAL | {"finalized_by": None},
    "finalized by no record": FINAL | {"decided_offset": None},
    "a final time in processing": {"state": "processing", "first_result_at": MOMENT, "finalized_at": MOMENT},
    "an outcome while pending": {"outcome": "completed"},
    "an unknown outcome": FINAL | {"outcome": "done"},
    "finalized by an unknown means": FINAL | {"finalized_by": "magic"},
    "a result while pending": {"first_result_at": MOMENT},
    "processing without a result": {"state": "processing"},
    "completed but not finalized": {"completed_at": MOMENT},
    "published without a revision": {"published_at": MOMENT},
    "more matched than expected": {"expected": 1, "matched": 2},
    "matched without a manifest": {"matched": 1},
}


async def insert(connection: Connection, row: dict[str, Any]) -> None:
    columns = ", ".join(row)
    values = ", ".join("NULL" if value is None else f"'{value}'" for value in row.values())
    await connection.execute(f"INSERT INTO batches ({columns}) VALUES ({values})")


async def test_a_state_and_its_timestamps_cannot_contradict_each_other(database: Database) -> None:
    await migrate(database.url, database.schema)
    connection = await database.connect("test")
    try:
        sound = (SOUND, SOUND | FINAL, SOUND | FINAL | {"published_at": MOMENT, "completed_at": MOMENT})
        for number, row in enumerate((*sound, SOUND | {"state": "processing", "first_result_at": MOMENT})):
            await insert(connection, row | {"batch_id": f"sound-{number}"})
        for name, contradiction in CONTRADICTIONS.items():
            try:
                await insert(connection, SOUND | contradiction)
            except asyncpg.CheckViolationError:
                continue
            pytest.fail(f"{name} was taken")
    finally:
        await connection.close()
