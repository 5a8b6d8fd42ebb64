"""Where everything is measured: one Kafka, one PostgreSQL, and child processes beside them."""

import asyncio
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog

from rollcall.children import Child
from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.settings import Settings

# A broker as one runs in production, not the small one of `rollcall up`: the peers that write much to it need that.
BROKER_JVM = ["-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-Dorg.apache.logging.log4j.level=WARN"]

# How many of a log's records are applied, where it has no holes. Not those of the output topics, which the relay keeps
# in the same table.
APPLIED = "SELECT coalesce(sum(next_offset), 0)::int8 FROM positions WHERE topic = $1"


@asynccontextmanager
async def servers(directory: Path) -> AsyncIterator[tuple[EmbeddedKafka, EmbeddedPostgres]]:
    kafka, postgres = EmbeddedKafka(directory / "kafka", jvm=BROKER_JVM), EmbeddedPostgres(directory / "postgres")
    try:
        await kafka.start()
        await postgres.start()
        yield kafka, postgres
    finally:
        await kafka.stop()
        await postgres.stop()


@asynccontextmanager
async def bed() -> AsyncIterator["Bed"]:
    """Servers with a directory of their own, gone when the context closes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-", ignore_cleanup_errors=True) as directory:
        async with servers(Path(directory)) as (kafka, postgres):
            yield Bed(Path(directory), kafka, postgres)


class Bed:
    """The servers of one run, and names that are used once."""

    def __init__(self, directory: Path, kafka: EmbeddedKafka, postgres: EmbeddedPostgres) -> None:
        self.directory = directory
        self.kafka = kafka
        self.postgres = postgres
        self._named = 0

    def new_name(self, stem: str) -> str:
        self._named += 1
        return f"{stem}{self._named}"

    @property
    def processes(self) -> dict[str, list[int]]:
        """The servers' process ids."""
        assert self.kafka.child is not None
        assert self.postgres.child is not None
        return {"PostgreSQL": [self.postgres.child.pid], "Kafka": [self.kafka.child.pid]}

    def settings(self, prefix: str, schema: str) -> Settings:
        return Settings(
            bootstrap_servers=self.kafka.bootstrap_servers,
            database_url=self.postgres.database_url,
            topic_prefix=prefix,
            database_schema=schema,
            log_level="warning",
        )


async def spawn(settings: Settings, *role: str) -> Child:
    argv = [sys.executable, "-P", "-m", "rollcall", *role]
    return await Child.spawn(argv, name=" ".join(role), env=settings.environment())


async def stop_all(children: list[Child]) -> None:
    await asyncio.gather(*(child.stop(15) for child in children))


def say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", flush=True)
