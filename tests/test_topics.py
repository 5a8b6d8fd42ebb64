"""Topics: made with explicit settings, checked where they are there already."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.offset import OffsetRequest
from structlog.testing import capture_logs

from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.settings import Settings
from schemas.topics import Topics
from streams.kafka import KafkaConnection
from streams.retrying import may_pass
from streams.topics import UnusableTopicError, ensure_topics, wanted
from tests.harness.topics import create_topic

pytestmark = pytest.mark.asyncio(loop_scope="session")

DAYS_30 = str(30 * 24 * 3600 * 1000)


@pytest.fixture
def topics(settings: Settings) -> Topics:
    return Topics(settings.topic_prefix)


@pytest.fixture
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await client.start()
    yield client
    await client.close()


async def settings_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [(code, _, _, _, entries)] = response.resources
    assert code == 0
    return {entry[0]: entry[1] for entry in entries}


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> int:
    [described] = await admin.describe_topics([topic])
    return len(described["partitions"])


async def test_whoever_publishes_once_topics_are_ensured_finds_each_partition_led(
    settings: Settings, admin: AIOKafkaAdminClient
) -> None:
    # Without waiting for the leaders seven in ten are not led by then: a producer may lose its first records for good.
    client = AIOKafkaClient(bootstrap_servers=settings.bootstrap_servers)
    await client.bootstrap()
    [broker] = client.cluster.brokers()
    try:
        for number in range(10):
            topics = Topics(f"{settings.topic_prefix}{number}.")
            await ensure_topics(settings.kafka_connection(), topics)
            ends = OffsetRequest(-1, 0, [(topics.events, [(partition, -1) for partition in range(12)])])
            [(_, answers)] = (await client.send(broker.nodeId, ends)).topics
            assert {for_code(code) for _, code, *_ in answers} == {NoError}
            await admin.delete_topics(list(wanted(topics)))
    finally:
        await client.close()


async def test_missing_topics_are_created_with_the_designs_settings(
    settings: Settings, topics: Topics, admin: AIOKafkaAdminClient
) -> None:
    assert await ensure_topics(settings.kafka_connection(), topics) == 12
    assert await partitions_of(admin, topics.events) == 12
    events = await settings_of(admin, topics.events)
    for name, value in {
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "delete",
        "retention.ms": DAYS_30,
        "max.message.bytes": str(1024 * 1024),
    }.items():
        assert events[name] == value
    policies = {}
    for topic in (topics.finalized, topics.summaries, topics.alerts, topics.requests, topics.dead_letters):
        found = await settings_of(admin, topic)
        policies[topic] = found["cleanup.policy"]
        assert found["message.timestamp.type"] == "LogAppendTime"
    assert list(policies.values()) == ["compact", "compact", "delete", "delete", "delete"]
    assert (await settings_of(admin, topics.dead_letters))["max.message.bytes"] == str(2 * 1024 * 1024)


async def test_a_second_time_nothing_is_done_and_nothing_said(settings: Settings, topics: Topics) -> None:
    await ensure_topics(settings.kafka_connection(), topics)
    with capture_logs() as logs:
        assert await ensure_topics(settings.kafka_connection(), topics) == 12
    assert logs == []


async def test_a_topic_that_is_there_keeps_its_partitions(settings: Settings, topics: Topics) -> None:
    await create_topic(settings.bootstrap_servers, topics.events, partitions=5)
    assert await ensure_topics(settings.kafka_connection(), topics) == 5


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("events", "results would vanish"),
        ("requests", "only the last of what is asked"),
        ("dead-letters", "without a key could never be published"),
    ],
)
async def test_a_topic_that_must_not_be_compacted_is_refused(
    settings: Settings, topics: Topics, name: str, cost: str, policy: str
) -> None:
    topic = f"{topics.prefix}{name}"
    await create_topic(settings.bootstrap_servers, topic, configs={"cleanup.policy": policy})
    with pytest.raises(UnusableTopicError, match=f"{topic} is compacted: .*{cost}.*; set cleanup.policy=delete"):
        await ensure_topics(settings.kafka_connection(), topics)


class FewBrokers(EmbeddedKafka):
    """One broker of a cluster that wants each topic on two."""

    def _write_properties(self) -> None:
        super()._write_properties()
        with self._properties.open("a") as properties:
            properties.write("default.replication.factor=2\n")


async def test_brokers_that_are_not_there_yet_are_waited_for(topics: Topics, tmp_path: Path) -> None:
    kafka = FewBrokers(tmp_path / "kafka")
    await kafka.start()
    try:
        with pytest.raises(KafkaError, match=r"cannot be created.*only 1 broker") as raised:
            await ensure_topics(KafkaConnection(kafka.bootstrap_servers), topics)
        assert may_pass(raised.value)
    finally:
        await kafka.stop()


async def test_topics_that_no_waiting_creates_are_refused(settings: Settings) -> None:
    with pytest.raises(UnusableTopicError, match=r"topic not allowed!events cannot be created: .*invalid"):
        await ensure_topics(settings.kafka_connection(), Topics("not allowed!"))


async def test_what_is_set_otherwise_is_said_with_what_it_costs(settings: Settings, topics: Topics) -> None:
    bootstrap = settings.bootstrap_servers
    await create_topic(bootstrap, topics.events, configs={"message.timestamp.type": "CreateTime"})
    await create_topic(bootstrap, topics.finalized, configs={"cleanup.policy": "delete"})
    await create_topic(bootstrap, topics.dead_letters, configs={"max.message.bytes": "1000000"})
    with capture_logs() as logs:
        await ensure_topics(settings.kafka_connection(), topics)
    said = {
        (line["topic"], line["setting"]): (line["is_"], line["wanted"], line["cost"])
        for line in logs
        if line["log_level"] == "warning"
    }
    assert said.keys() == {
        (topics.events, "message.timestamp.type"),
        (topics.events, "retention.ms"),
        (topics.finalized, "cleanup.policy"),
        (topics.dead_letters, "max.message.bytes"),
    }
    assert said[topics.events, "message.timestamp.type"] == (
        "CreateTime",
        "LogAppendTime",
        "times of batches are then the producers' clocks, which may be wrong",
    )


async def test_larger_dead_letters_than_wanted_are_no_reason_to_warn(settings: Settings, topics: Topics) -> None:
    await create_topic(settings.bootstrap_servers, topics.dead_letters, configs={"max.message.bytes": "8000000"})
    with capture_logs() as logs:
        await ensure_topics(settings.kafka_connection(), topics)
    assert [line for line in logs if line["log_level"] == "warning"] == []


async def test_all_topics_of_an_installation_begin_with_its_prefix() -> None:
    topics = Topics("my-team.")
    assert all(name.startswith("my-team.") for name in wanted(topics))
    assert topics.consumer_group == "my-team.workers"
    assert topics.source == "/my-team"
