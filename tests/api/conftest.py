"""Fixtures: an API on a migrated schema of its own, authentication off, and a way to put rows there."""

from collections.abc import AsyncIterator

import pytest

from migrations.run import migrate
from rollcall.settings import Settings
from tests.harness.api import ServedApi, serving
from tests.harness.stored import StoredRows, stored_rows


@pytest.fixture
async def migrated(settings: Settings) -> Settings:
    await migrate(settings.database_url, settings.database_schema)
    return settings.model_copy(update={"auth": "off"})


@pytest.fixture
async def rows(migrated: Settings) -> AsyncIterator[StoredRows]:
    async with stored_rows(migrated) as stored:
        yield stored


@pytest.fixture
async def api(migrated: Settings) -> AsyncIterator[ServedApi]:
    async with serving(migrated) as served:
        yield served
