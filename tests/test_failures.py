"""Which of PostgreSQL's failures are waited out: those of connections, and none that is a bug of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from rollcall.settings import Settings
from store.connection import Connection
from store.failures import is_transient

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    connection = await settings.database().connect("test")
    yield connection
    connection.terminate()


async def test_a_connection_that_was_closed_is_opened_again(connection: Connection) -> None:
    await connection.close()
    for use in (connection.fetchval, connection.execute):
        with pytest.raises(asyncpg.InterfaceError) as raised:
            await use("SELECT 1")
        assert is_transient(raised.value), raised.value


async def test_a_connection_that_ends_under_a_statement_is_opened_again(
    connection: Connection, settings: Settings
) -> None:
    other = await settings.database().connect("test")
    sleeping = asyncio.create_task(connection.fetch("SELECT pg_sleep(60)"))
    await asyncio.sleep(0)
    await other.fetch("SELECT pg_terminate_backend($1)", connection.get_server_pid())
    with pytest.raises(asyncpg.PostgresError) as raised:
        await sleeping
    assert is_transient(raised.value), raised.value
    await other.close()


async def test_a_connection_that_is_busy_with_what_was_given_up_is_waited_for(connection: Connection) -> None:
    sleeping = asyncio.create_task(connection.fetch("SELECT pg_sleep(60)"))
    await asyncio.sleep(0)
    with pytest.raises(asyncpg.InterfaceError) as raised:
        await connection.fetch("SELECT 1")
    assert is_transient(raised.value), raised.value
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping


async def test_wrong_use_of_the_driver_is_not_tried_again(connection: Connection) -> None:
    wrong: list[tuple[object, ...]] = [(1, 2), ("one",), (2**40,)]
    for arguments in wrong:
        with pytest.raises((asyncpg.InterfaceError, asyncpg.DataError)) as raised:
            await connection.fetch("SELECT $1::int", *arguments)
        assert not is_transient(raised.value), raised.value
