"""Connections to PostgreSQL end in time, whatever the server does."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from rollcall.settings import Settings
from tests.harness.servers import IN_CONTAINERS

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
