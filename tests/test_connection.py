"""Connections to PostgreSQL end, and in time, whatever happens."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import pytest

from migrations.run import migrate
from migrations.version import WrongSchemaError
from rollcall.settings import Settings
from streams.applying import connect_to_apply
from tests.harness.servers import IN_CONTAINERS
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.skipif(IN_CONTAINERS, reason="the server's processes are another machine's")
async def test_a_connection_whose_server_has_frozen_is_cut_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind what one that answers takes, and far below the time-out of a command.
    monkeypatch.setattr("store.connection.CLOSE_TIMEOUT_S", 0.5)
    connection = await settings.database().connect("test")
    backend = connection.get_server_pid()
    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            await connection.close()
        assert connection.is_closed()
    finally:
        os.kill(backend, signal.SIGCONT)


async def test_time_outs_that_somebody_has_set_for_the_role_do_not_count(settings: Settings, unique: str) -> None:
    administering = await settings.database().connect("test")
    role, url = f"limited_{unique}", urlsplit(settings.database_url)
    password = secrets.token_hex(16)
    limits = ("statement_timeout", "transaction_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    try:
        await administering.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        for name in limits:
            await administering.execute(f"ALTER ROLE {role} SET {name} = '5s'")
        host = url.netloc.rpartition("@")[2]
        limited = replace(settings.database(), url=urlunsplit(url._replace(netloc=f"{role}:{password}@{host}")))
        connection = await limited.connect("test")
        try:
            for name in limits:
                assert await connection.fetchval(f"SHOW {name}") == "0"
        finally:
            await connection.close()
    finally:
        await administering.execute(f"DROP ROLE {role}")
        await administering.close()


async def test_a_schema_that_is_not_there_costs_no_connection(settings: Settings, unique: str) -> None:
    # Whoever holds the error holds all that its traceback does: nothing is left to the collector of garbage.
    with pytest.raises(WrongSchemaError) as held:
        await connect_to_apply(settings.database(), unique)
    looking = await settings.database().connect("test")

    async def is_gone() -> bool:
        name = f"rollcall {unique}"
        found = await looking.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name)
        return bool(found == 0)

    await eventually(is_gone, 10, message=f"no connection after {held.value}")
    await looking.close()


async def test_a_connection_given_up_inside_a_long_copy_holds_no_locks_until_its_end(settings: Settings) -> None:
    """The server has taken in less than was sent, so the end of the connection waits behind the rest."""
    await migrate(settings.database_url, settings.database_schema)
    connection = await connect_to_apply(settings.database(), "worker")
    await connection.execute("CREATE TABLE big (value text)")
    await connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON big FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    backend = connection.get_server_pid()
    records = [("x" * 100_000,)] * 50
    await connection.transaction().start()
    copying = asyncio.create_task(connection.copy_records_to_table("big", records=records))
    looking = await settings.database().connect("test")

    async def is_at_work() -> bool:
        return bool(
            await looking.fetchval("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1", backend)
        )

    async def is_gone() -> bool:
        return not await looking.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend)

    await eventually(is_at_work, 10, message="a row that is being taken")
    connection.terminate()
    await eventually(is_gone, 10, message="no session left")
    copying.cancel()  # nothing wakes asyncpg where it waits for room in the socket
    await asyncio.gather(copying, return_exceptions=True)
    await looking.close()
