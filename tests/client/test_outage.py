"""A job whose broker goes away in the middle waits, goes on, and loses nothing."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from rollcall_client import Rollcall
from rollcall_client.jobs import Created, job, run
from rollcall_client.sync import Rollcall as BlockingRollcall

from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.settings import Settings
from tests.client.test_publishing import a_broker_of_ones_own, item_ids
from tests.harness.product import running
from tests.harness.servers import Servers
from tests.harness.waiting import eventually

OUTAGE_S = float(os.environ.get("ROLLCALL_TEST_OUTAGE_S", "5"))
ITEMS = 1_500


async def test_a_job_outlives_its_broker(
    servers: Servers, tmp_path_factory: pytest.TempPathFactory, database_schema: str
) -> None:
    kafka = EmbeddedKafka(tmp_path_factory.mktemp("kafka"))
    await kafka.start()
    settings = Settings(
        bootstrap_servers=kafka.bootstrap_servers, database_url=servers.database_url, database_schema=database_schema
    )
    handled: list[int] = []

    @job(name="outlives", concurrency=8)
    async def slowly(item: int) -> Created:
        await asyncio.sleep(0.02)
        handled.append(item)
        return Created()

    try:
        async with (
            running(settings),
            # Small enough to fill: the job has to wait for the broker, not only its results.
            Rollcall(settings.bootstrap_servers, buffer_bytes=20_000) as rc,
        ):
            going = asyncio.create_task(run(slowly, range(ITEMS), rc=rc, progress=None, wait_timeout_s=240))
            await eventually(lambda: len(handled) > 300, 60)
            await kafka.stop()
            await asyncio.sleep(OUTAGE_S)  # the outage
            assert not going.done()
            began = time.monotonic()
            await kafka.start()
            result = await asyncio.wait_for(going, 300)
            print(f"away for {OUTAGE_S:g} s, done {time.monotonic() - began:.1f} s after it was back")
    finally:
        await kafka.stop()
    assert sorted(handled) == list(range(ITEMS)), "each was handled once"
    assert (result.status, result.processed, result.created, result.failed) == ("COMPLETED", ITEMS, ITEMS, 0)


async def test_waiting_takes_no_longer_than_it_is_told_while_kafka_is_away(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with (
        a_broker_of_ones_own(tmp_path_factory) as kafka,
        Rollcall(kafka.bootstrap_servers, delivery_timeout_s=60) as rc,
    ):
        await kafka.stop()
        batch = await rc.open()
        for wait, missed in ((rc.wait, "finalized"), (rc.summary, "summarized")):
            with pytest.raises(TimeoutError, match=f"{batch.batch_id} was not {missed} within 1 s"):
                await wait(batch.batch_id, timeout=1)
        await kafka.start()


async def test_a_program_without_asyncio_waits_no_longer_than_it_is_told_either(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with a_broker_of_ones_own(tmp_path_factory) as kafka:
        rc = BlockingRollcall(kafka.bootstrap_servers, delivery_timeout_s=60, buffer_bytes=1_000)
        await asyncio.to_thread(rc.start)
        batch = await asyncio.to_thread(rc.open)
        await kafka.stop()
        for number in range(100):  # more than there is room for: some is still on its way to the client's own thread
            await asyncio.to_thread(batch.succeeded, f"{number}", message="m" * 100)
        for wait, missed in ((rc.wait, "finalized"), (rc.summary, "summarized")):
            with pytest.raises(TimeoutError, match=f"{batch.batch_id} was not {missed} within 1 s"):
                await asyncio.to_thread(wait, batch.batch_id, timeout=1)
        await kafka.start()
        await asyncio.to_thread(rc.close)
        assert await item_ids(kafka.bootstrap_servers, "rollcall.events") >= {f"{number}" for number in range(100)}
