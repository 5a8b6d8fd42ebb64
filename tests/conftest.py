"""Fixtures: the run's servers, and a topic prefix and a database schema of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rollcall.settings import Settings
from tests.harness.servers import IN_CONTAINERS, Servers, container_servers, embedded_servers

# Whole installations brought up, killed and brought back; pages in a browser, packages, examples: `make test-long`.
LONG = (
    *("replay", "client/test_reruns.py", "client/test_partitions.py", "client/test_examples.py", "client/test_docs.py"),
    *("client/test_package.py", "test_package.py", "test_pages.py", "test_growth.py", "test_demo.py"),
    *("client/test_outage.py", "test_up.py", "test_why.py", "test_processes_killed.py", "test_batch_actions.py"),
    *("api/test_openapi.py", "api/test_outages.py", "test_operations.py", "test_shutdown.py", "test_doctor.py"),
    "test_poll_failures.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if any(item.path.is_relative_to(here / part) for part in LONG):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    """One Kafka and one PostgreSQL for the run, started when the first test asks."""
    if IN_CONTAINERS:
        async with container_servers() as running:
            yield running
    else:
        async with embedded_servers(tmp_path_factory.mktemp("servers")) as running:
            yield running


@pytest.fixture
def unique() -> str:
    """Six characters that no other test of any run shares: a letter first, then hexadecimal digits."""
    return f"t{uuid.uuid4().hex[:7]}"


@pytest.fixture
def topic_prefix(unique: str) -> str:
    return f"{unique}."


@pytest.fixture
def database_schema(unique: str) -> str:
    return unique


@pytest.fixture
def settings(servers: Servers, topic_prefix: str, database_schema: str) -> Settings:
    return Settings(
        bootstrap_servers=servers.bootstrap_servers,
        database_url=servers.database_url,
        topic_prefix=topic_prefix,
        database_schema=database_schema,
    )
