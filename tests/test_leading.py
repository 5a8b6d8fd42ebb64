"""Who leads, and what becomes of its duties when the lead is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from store.leadership import is_led, try_lead
from streams.kafka import stop as stop_client
from streams.leading import Duty, lead

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def swallow_a_cancellation() -> None:
    """What aiokafka does while it closes a client."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def test_a_duty_that_loses_a_cancellation_keeps_nobody_from_leading_again(settings: Settings) -> None:
    await migrate(settings.database_url, settings.database_schema)
    stop, begun, ended = asyncio.Event(), 0, 0

    async def lost_connection() -> None:
        raise ConnectionResetError("as when PostgreSQL is killed")

    async def deaf() -> None:
        nonlocal ended
        try:
            await swallow_a_cancellation()
            await asyncio.Event().wait()
        finally:
            ended += 1

    def duties() -> list[Duty]:
        nonlocal begun
        begun += 1
        if begun == 3:
            stop.set()
        return [deaf(), lost_connection()]

    topics = Topics(settings.topic_prefix)
    async with asyncio.timeout(60):
        await lead("relay", settings.database(), topics, stop, lambda: None, duties, drain_s=0.1)
    assert (begun, ended) == (3, 3)


async def test_installations_in_schemas_of_one_database_have_leaders_each(settings: Settings) -> None:
    own = settings.database()
    other = replace(own, schema=f"{own.schema}_other")
    connections = [await database.connect("test") for database in (own, own, other)]
    try:
        first, second, others = connections
        assert await try_lead(first, "relay", settings.topic_prefix, own.schema)
        assert not await try_lead(second, "relay", settings.topic_prefix, own.schema)
        assert not await is_led(others, "relay", settings.topic_prefix, other.schema)
        assert await try_lead(others, "relay", settings.topic_prefix, other.schema)
        assert await is_led(second, "relay", settings.topic_prefix, other.schema)
    finally:
        for connection in connections:
            await connection.close()


async def test_who_is_cancelled_while_stopping_a_client_hears_of_it() -> None:
    class Client:
        async def stop(self) -> None:
            await swallow_a_cancellation()

    client: Any = Client()
    stopping = asyncio.create_task(stop_client(client))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
