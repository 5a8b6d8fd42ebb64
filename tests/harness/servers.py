"""One real Kafka and one real PostgreSQL for a whole test run."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres

Kafka = TypeVar("Kafka", bound=EmbeddedKafka)

IN_CONTAINERS = os.environ.get("ROLLCALL_TEST_CONTAINERS") == "1"


@dataclass(frozen=True)
class Servers:
    """Where the run's servers are."""

    bootstrap_servers: str
    database_url: str


@asynccontextmanager
async def embedded_servers(data_dir: Path) -> AsyncIterator[Servers]:
    """The embedded servers: children of this process, which the kernel ends with it even on SIGKILL."""
    kafka = EmbeddedKafka(data_dir / "kafka")
    postgres = EmbeddedPostgres(data_dir / "postgres")
    try:
        await postgres.start()
        await kafka.start()
        yield Servers(kafka.bootstrap_servers, postgres.database_url)
    finally:
        await kafka.stop()
        await postgres.stop()


@asynccontextmanager
async def running_broker(kafka: Kafka) -> AsyncIterator[Kafka]:
    """One test's own, which it may take away and give back."""
    await kafka.start()
    try:
        yield kafka
    finally:
        await kafka.stop()


@asynccontextmanager
async def container_servers() -> AsyncIterator[Servers]:
    """The same two by testcontainers, whose Ryuk container ends them with this process."""
    from testcontainers.community.kafka import KafkaContainer
    from testcontainers.community.postgres import PostgresContainer

    postgres = PostgresContainer("postgres:18", username="rollcall", password="rollcall", dbname="rollcall")
    kafka = KafkaContainer("confluentinc/cp-kafka:8.0.0").with_kraft()
    for name, value in {
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    }.items():
        kafka.with_env(name, value)
    with postgres, kafka:
        url = postgres.get_connection_url(driver="asyncpg")
        yield Servers(kafka.get_bootstrap_server(), url)
