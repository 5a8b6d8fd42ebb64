"""A worker whose polls fail for ever ends, so that another one takes its place; one whose Kafka is away waits."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, ResourceType  # type: ignore[attr-defined]  # there, but not marked

from migrations.run import migrate
from rollcall.children import Child
from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness.commands import environment
from tests.harness.events import result
from tests.harness.product import Product
from tests.harness.servers import running_broker
from tests.harness.strict_kafka import StrictKafka
from tests.harness.topics import produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

IMPATIENT_WORKER = """
import sys
from rollcall.cli import main
from streams import intake
intake.POLL_FAILURE_LIMIT_S = float(sys.argv.pop(1))
main()
"""


@asynccontextmanager
async def worker(settings: Settings, log: Path, *, limit_s: float) -> AsyncIterator[Child]:
    """A worker process in slot 0 that has applied a result; it ends after so many seconds of polls that only fail."""
    argv = [sys.executable, "-P", "-c", IMPATIENT_WORKER, str(limit_s), "worker", "--slot", "0"]
    child = await Child.spawn(argv, name="worker-0", env=environment(settings), log=log)
    try:
        await Product(settings).assigned(1)
        await applied(settings, "before")
        yield child
    finally:
        await child.stop(15)


@pytest.fixture
async def migrated(settings: Settings) -> Settings:
    await migrate(settings.database_url, settings.database_schema)
    return settings


async def applied(settings: Settings, batch_id: str) -> None:
    product = Product(settings)
    sent = await produce(settings.bootstrap_servers, product.topics.events, [result(batch_id, "i")])

    async def is_applied() -> bool:
        stored = await product.positions()
        return all(stored.get(partition, 0) > offset for partition, offset in sent)

    await eventually(is_applied, 60, message=f"the result of {batch_id} is applied")


async def test_a_worker_that_lost_its_group_for_good_says_so_and_ends_and_the_next_one_goes_on(
    migrated: Settings, tmp_path: Path
) -> None:
    async with running_broker(StrictKafka(tmp_path / "kafka")) as kafka:
        settings = migrated.model_copy(update={"bootstrap_servers": kafka.bootstrap_servers})
        log, group = tmp_path / "worker.log", Topics(settings.topic_prefix).consumer_group
        async with worker(settings, log, limit_s=1.0) as child:
            kafka.grant(ResourceType.GROUP, group, AclOperation.READ, to="User:somebody-else")
            await eventually(lambda: "a poll failed, trying again" in log.read_text())
            # aiokafka tells of its failed heartbeat at each poll from now on, whatever is granted.
            kafka.grant(ResourceType.GROUP, group, AclOperation.READ)
            assert await asyncio.wait_for(child.wait(), 30) == 1, "what a supervisor starts again"
        [last] = [line for line in log.read_text().splitlines() if line.startswith("rollcall: ")]
        assert last == (
            f"rollcall: Kafka at {kafka.bootstrap_servers} (ROLLCALL_BOOTSTRAP_SERVERS) says: KafkaError: every poll"
            f" failed for 1 s: GroupAuthorizationFailedError('{group}')"
        )
        assert "Traceback" not in log.read_text()
        async with worker(settings, log, limit_s=1.0):
            await applied(settings, "after")


async def test_while_kafka_is_away_no_poll_fails(migrated: Settings, tmp_path: Path) -> None:
    async with running_broker(EmbeddedKafka(tmp_path / "kafka")) as kafka:
        settings = migrated.model_copy(update={"bootstrap_servers": kafka.bootstrap_servers})
        log = tmp_path / "worker.log"
        async with worker(settings, log, limit_s=0.0) as child:
            await kafka.kill()
            await eventually(lambda: log.read_text().count("Failed fetch messages") >= 50, 60)
            await kafka.start()
            await applied(settings, "after")
            assert child.returncode is None
        assert "a poll failed" not in log.read_text()
