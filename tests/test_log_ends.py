"""Where the input log ends, for all who ask."""

import asyncio

import pytest

from rollcall.settings import Settings
from schemas.topics import Topics
from streams.log_ends import LogEnds
from tests.harness.histories import Message
from tests.harness.topics import create_topic, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_end_goes_up_with_what_is_sent_and_back_where_the_log_has_lost_it(settings: Settings) -> None:
    topic = Topics(settings.topic_prefix).events
    await create_topic(settings.bootstrap_servers, topic)
    log_ends = LogEnds(settings.kafka_connection(), topic, partitions=1)
    looking = asyncio.create_task(log_ends.run())
    try:
        await eventually(lambda: log_ends.of(0) == 0)
        await produce(settings.bootstrap_servers, topic, [Message(b"k", b"{}", "")], partition=0)
        await eventually(lambda: log_ends.of(0) == 1)
        # Of three records that were acknowledged two are lost, as where a broker that lacks them comes to lead.
        log_ends.reaches(0, 3)
        assert log_ends.of(0) == 3
        await eventually(lambda: log_ends.of(0) == 1)
    finally:
        looking.cancel()
        await asyncio.wait([looking], timeout=30)
