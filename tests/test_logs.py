"""What reaches the one stream of log lines."""

import asyncio
import gc
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, GroupCoordinatorNotAvailableError, ProducerFenced

from migrations.run import migrate
from rollcall.logs import configure_logging
from rollcall.settings import Settings
from schemas.topics import Topics
from streams.channels import Events
from streams.kafka import stop
from streams.relay import Publisher
from streams.topics import ensure_topics

COORDINATOR = "aiokafka.consumer.group_coordinator"


@contextmanager
def configured() -> Iterator[None]:
    """Logging as a process has it."""
    root = logging.getLogger()
    level, filtered = root.level, [logging.getLogger(name) for name in ("asyncio", COORDINATOR)]
    with pytest.MonkeyPatch.context() as patch:
        for log in filtered:
            patch.setattr(log, "filters", [])
        patch.setattr(root, "handlers", root.handlers)
        try:
            configure_logging()
            yield
        finally:
            root.setLevel(level)


def test_a_coordinator_that_is_waited_for_is_no_error_and_one_that_refuses_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger(COORDINATOR)
    with configured():
        log.error("Group Coordinator Request failed: %s", GroupCoordinatorNotAvailableError())
        log.error("Group Coordinator Request failed: %s", GroupAuthorizationFailedError("rollcall.workers"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "GroupAuthorizationFailed" in lines[0]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_relay_that_is_fenced_is_told_so_and_logs_nothing_of_its_clients_insides(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka, topics = settings.kafka_connection(), Topics(settings.topic_prefix)
    await migrate(settings.database_url, settings.database_schema)
    await ensure_topics(kafka, topics)
    connection = await settings.database().connect("test")
    await connection.execute(
        "INSERT INTO outbox (id, channel, batch_id, revision, value, headers)"
        " SELECT 'batch.finalized/' || n || '/1', 'finalized', n, 1, '{}', $1 FROM generate_series(1, 90) n",
        json.dumps({"ce_time": "2026-01-01T00:00:00Z"}),
    )
    publisher = Publisher(kafka, settings.database(), Events(topics))
    overtaken = await publisher._fencing_producer(connection)
    overtaking = await publisher._fencing_producer(connection)
    with configured():
        with pytest.raises(ProducerFenced):
            await publisher._publish_round(connection, overtaken)
        await stop(overtaken)
        del overtaken
        gc.collect()
    await stop(overtaking)
    await connection.close()
    assert "never retrieved" not in capsys.readouterr().err


@pytest.mark.asyncio(loop_scope="session")
async def test_errors_of_ours_that_nobody_looks_at_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail(error: Exception) -> None:
        raise error

    with configured():
        await asyncio.wait({asyncio.create_task(fail(ProducerFenced("a task's")))})
        asyncio.get_running_loop().create_future().set_exception(ValueError("a future's"))
        gc.collect()
    said = capsys.readouterr().err
    assert "a task's" in said
    assert "a future's" in said
