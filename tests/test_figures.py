"""What a relay says of the whole installation."""

from __future__ import annotations

import asyncio
import math

import pytest
from prometheus_client import REGISTRY

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from streams import figures
from tests.harness.topics import create_topic
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
async def migrated(settings: Settings) -> Settings:
    await migrate(settings.database_url, settings.database_schema)
    return settings


async def test_figures_of_a_relay_that_no_longer_looks_are_no_figures(migrated: Settings) -> None:
    """Others' are newer, and an alert takes the greatest of all."""
    topics, stop = Topics(migrated.topic_prefix), asyncio.Event()
    await create_topic(migrated.bootstrap_servers, topics.events, partitions=1)
    looking = asyncio.create_task(figures.run(migrated.kafka_connection(), migrated.database(), topics, 1, stop))

    def lag() -> float | None:
        return REGISTRY.get_sample_value("rollcall_lag_records", {"partition": "0"})

    await eventually(lambda: lag() == 0)
    stop.set()
    await looking
    assert lag() is None
    assert math.isnan(REGISTRY.get_sample_value("rollcall_unpublished_dead_letters") or 0.0)
