"""One Rollcall for all of the client's tests: a worker, a relay, a clock and an API on the run's servers."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
from rollcall_client import Rollcall

from rollcall.settings import Settings
from tests.harness.api import serving
from tests.harness.product import Product, running
from tests.harness.servers import Servers


@pytest.fixture(scope="session")
async def product(servers: Servers) -> AsyncIterator[Product]:
    """An installation of its own; batches are told apart by their ids."""
    name = f"client{uuid.uuid4().hex[:6]}"
    settings = Settings(
        bootstrap_servers=servers.bootstrap_servers,
        database_url=servers.database_url,
        topic_prefix=f"{name}.",
        database_schema=name,
    )
    async with running(settings) as product:
        await product.start_clock()
        yield product


@pytest.fixture(scope="session")
async def api_url(product: Product) -> AsyncIterator[str]:
    """Its HTTP API."""
    async with serving(product.settings.model_copy(update={"auth": "off"})) as served:
        yield served.url


@pytest.fixture
async def asking(product: Product, api_url: str) -> AsyncIterator[Rollcall]:
    """A client that can ask the API."""
    settings = product.settings
    async with Rollcall(settings.bootstrap_servers, api_url, topic_prefix=settings.topic_prefix) as client:
        yield client


@pytest.fixture
async def rc(product: Product) -> AsyncIterator[Rollcall]:
    """A client of it."""
    settings = product.settings
    async with Rollcall(settings.bootstrap_servers, topic_prefix=settings.topic_prefix) as client:
        yield client
