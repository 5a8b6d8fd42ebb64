"""Forwards: in order and without a gap, whatever the broker refuses in between."""

from __future__ import annotations

import random
import time

import pytest
from aiokafka.errors import KafkaError
from structlog.testing import capture_logs

from rollcall.settings import Settings
from schemas.headers import FORWARDED_LOG, FORWARDED_OFFSET, FORWARDED_TIMESTAMP
from streams.fetched import FetchedRecord
from streams.forwarding import Forward, Forwarder
from tests.harness.topics import create_topic, drain

pytestmark = pytest.mark.asyncio(loop_scope="session")

LARGE = b"x" * (1024 * 1024 - 120)
"""The topic takes it, but not with the headers of a forward, unless that is compressed."""
HUGE = random.Random(4).randbytes(len(LARGE))
"""That cannot be compressed."""


LONG_AGO = 1_000


def forward(home: int, offset: int, value: bytes | None = None, *, at: int = LONG_AGO) -> Forward:
    return Forward(home, FetchedRecord("t", 2, offset, at, b"k", value or b"y" * 300, ()))


async def arrived(settings: Settings, topic: str) -> dict[int, list[int]]:
    """The original offsets of the forwards on each partition, in their order there."""
    found: dict[int, list[int]] = {0: [], 1: []}
    for record in await drain(settings.bootstrap_servers, topic):
        headers = dict(record.headers)
        assert headers[FORWARDED_LOG] == b"log"
        found[record.partition].append(int(headers[FORWARDED_OFFSET]))
    return found


@pytest.fixture
async def topic(settings: Settings) -> str:
    name = f"{settings.topic_prefix}events"
    await create_topic(settings.bootstrap_servers, name, partitions=3, configs={"max.message.bytes": str(1024 * 1024)})
    return name


async def test_what_is_too_large_to_be_forwarded_holds_up_nothing_behind_it(settings: Settings, topic: str) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    chance = random.Random(seed)
    huge = set(chance.sample(range(400), 3)) | {400, 401, 899}
    forwarder = Forwarder(settings.kafka_connection(), topic, "log")
    try:
        for first, last in ((0, 100), (100, 600), (600, 900)):
            part = [forward(offset % 2, offset, HUGE if offset in huge else None) for offset in range(first, last)]
            refused = await forwarder.send(part)
            assert sorted(each.record.offset for each in refused) == [
                each for each in sorted(huge) if first <= each < last
            ]
    finally:
        await forwarder.close()
    wanted = [offset for offset in range(900) if offset not in huge]
    assert await arrived(settings, topic) == {home: [each for each in wanted if each % 2 == home] for home in (0, 1)}


async def test_what_was_compressed_when_it_came_is_forwarded_whatever_its_size(settings: Settings, topic: str) -> None:
    forwarder = Forwarder(settings.kafka_connection(), topic, "log")
    larger = LARGE * 9  # more than is ever sent as it is
    try:
        part = [forward(0, 0), forward(0, 1, LARGE), forward(0, 2), forward(1, 3, larger), forward(1, 4)]
        assert await forwarder.send(part) == []
    finally:
        await forwarder.close()
    assert await arrived(settings, topic) == {0: [0, 1, 2], 1: [3, 4]}


async def test_nothing_to_forward_is_sent_nowhere_and_not_spoken_of(settings: Settings, topic: str) -> None:
    forwarder = Forwarder(settings.kafka_connection(), topic, "log")
    with capture_logs() as said:
        assert await forwarder.send([]) == []
    assert said == []


async def test_a_topic_that_takes_little_at_once_gets_all_forwards_one_by_one_if_need_be(
    settings: Settings, topic: str
) -> None:
    small = f"{settings.topic_prefix}small"
    await create_topic(settings.bootstrap_servers, small, partitions=2, configs={"max.message.bytes": "1200"})
    forwarder = Forwarder(settings.kafka_connection(), small, "log")
    try:
        assert await forwarder.send([forward(0, offset) for offset in range(20)]) == []
        assert await forwarder.send([forward(0, offset) for offset in range(20, 40)]) == []
    finally:
        await forwarder.close()
    assert (await arrived(settings, small))[0] == list(range(40))


async def test_forwards_that_failed_are_left_and_may_all_be_sent_again(settings: Settings, topic: str) -> None:
    forwarder = Forwarder(settings.kafka_connection(), topic, "log")
    part = [forward(0, 1), forward(9, 2), forward(1, 3)]  # there is no partition 9
    first, nowhere, third = part
    try:
        with pytest.raises((KafkaError, TimeoutError, AssertionError)):
            await forwarder.send(part)
        assert nowhere in part
        assert await forwarder.send([first, third]) == []
    finally:
        await forwarder.close()
    found = await arrived(settings, topic)
    assert (found[0][-1], found[1][-1]) == (1, 3)


async def test_where_times_are_the_producers_a_forward_keeps_its_records(settings: Settings, unique: str) -> None:
    topic, theirs = f"{unique}.producers", {"message.timestamp.type": "CreateTime"}
    await create_topic(settings.bootstrap_servers, topic, partitions=2, configs=theirs)
    forwarder = Forwarder(settings.kafka_connection(), topic, "log")
    try:
        assert await forwarder.send([forward(offset % 2, offset, at=LONG_AGO + offset) for offset in range(10)]) == []
    finally:
        await forwarder.close()
    for record in await drain(settings.bootstrap_servers, topic):
        assert record.timestamp == LONG_AGO + int(dict(record.headers)[FORWARDED_OFFSET])


async def test_records_that_have_become_too_old_for_the_topic_are_forwarded_as_of_now(
    settings: Settings, unique: str
) -> None:
    topic, begun = f"{unique}.strict", int(time.time() * 1000)
    strict = {"message.timestamp.type": "CreateTime", "message.timestamp.before.max.ms": "3600000"}
    await create_topic(settings.bootstrap_servers, topic, partitions=2, configs=strict)
    at = {offset: LONG_AGO if offset in (7, 8, 40) else begun for offset in range(100)}
    forwarder = Forwarder(settings.kafka_connection(), topic, "log")
    try:
        for part in (range(50), range(50, 100)):
            assert await forwarder.send([forward(offset % 2, offset, at=at[offset]) for offset in part]) == []
    finally:
        await forwarder.close()
    assert await arrived(settings, topic) == {home: list(range(home, 100, 2)) for home in (0, 1)}
    for record in await drain(settings.bootstrap_servers, topic):
        headers = dict(record.headers)
        assert record.timestamp >= begun
        assert int(headers[FORWARDED_TIMESTAMP]) == at[int(headers[FORWARDED_OFFSET])], "its dead letter would say so"
