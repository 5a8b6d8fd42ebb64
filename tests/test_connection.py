"""Connections to PostgreSQL end, and in time, whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

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
