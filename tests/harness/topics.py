"""Topics as a test sees them: made, filled, and read to their present end by a plain consumer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code

from tests.harness.waiting import eventually

Record: TypeAlias = ConsumerRecord
Headers = tuple[tuple[str, bytes], ...]


class Message(Protocol):
    """What `produce` takes: a key, a value and headers, as bytes."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


async def create_topic(
    bootstrap: str,
    topic: str,
    *,
    partitions: int = 1,
    replication: int = 1,
    configs: Mapping[str, str] | None = None,
) -> None:
    """Create a topic (append time unless `configs` says otherwise) and wait until every partition has a leader."""
    settings = {"message.timestamp.type": "LogAppendTime", **(configs or {})}
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        new = NewTopic(topic, partitions, replication, topic_configs=settings)
        response = await admin.create_topics([new])
        for name, code, *rest in response.topic_errors:
            if code:
                raise for_code(code)(f"{name}: {rest}")

        async def has_leaders() -> bool:
            [described] = await admin.describe_topics([topic])
            return len(described["partitions"]) == partitions and all(
                partition["leader"] >= 0 for partition in described["partitions"]
            )

        await eventually(has_leaders, message=f"leaders of {topic}")
    finally:
        await admin.close()


async def add_partitions(bootstrap: str, topic: str, partitions: int) -> None:
    """Let a topic have so many partitions, and wait until it has."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(partitions)})
    finally:
        await admin.close()

    async def is_there() -> bool:
        return len(await end_offsets(bootstrap, topic)) == partitions

    await eventually(is_there, 30)


async def delete_topic(bootstrap: str, topic: str) -> None:
    """Delete a topic and wait until it is gone."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic])

        async def is_gone() -> bool:
            return topic not in await admin.list_topics()

        await eventually(is_gone, 30)
    finally:
        await admin.close()


async def produce(
    bootstrap: str, topic: str, messages: Iterable[Message], *, partition: int | None = None
) -> list[tuple[int, int]]:
    """Publish in order with the default (murmur2) partitioner, or to `partition`; (partition, offset) of each."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=256 * 1024,
        # The topic's own limit is the one a test is about.
        max_request_size=8 * 1024 * 1024,
    )
    await producer.start()
    try:
        sent = [
            await producer.send(topic, key=each.key, value=each.value, headers=list(each.headers), partition=partition)
            for each in messages
        ]
        acknowledged = [await future for future in sent]
    finally:
        await producer.stop()
    return [(each.partition, each.offset) for each in acknowledged]


async def drain(
    bootstrap: str,
    topic: str,
    *,
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed",
    since: Mapping[int, int] | None = None,
) -> list[Record]:
    """Every record from the beginning to the end of now, in partition and offset order.

    ``since`` gives offsets to begin at instead, by partition.

    The end is the high watermark, transaction markers included: the consumer's *position* has to reach it, so that
    neither an open transaction nor a gap can cut the answer short. While a transaction is open this waits.
    """
    ends = await end_offsets(bootstrap, topic)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level=isolation,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 * 1024 * 1024,
    )
    await consumer.start()
    try:
        consumer.assign(list(ends))
        await consumer.seek_to_beginning(*ends)
        for partition, offset in (since or {}).items():
            consumer.seek(TopicPartition(topic, partition), offset)
        records: list[Record] = []

        async def at_the_end() -> bool:
            fetched = await consumer.getmany(timeout_ms=200)
            records.extend(record for part in fetched.values() for record in part)
            return all([await consumer.position(partition) >= end for partition, end in ends.items()])

        await eventually(at_the_end, 60, interval_s=0, message=f"position of a {isolation} consumer at {ends}")
    finally:
        await consumer.stop()
    wanted = [record for record in records if record.offset < ends[TopicPartition(topic, record.partition)]]
    return sorted(wanted, key=lambda record: (record.partition, record.offset))


async def end_offsets(bootstrap: str, topic: str) -> dict[Any, int]:
    """The high watermark of each partition of a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_uncommitted")
    await consumer.start()
    try:
        metadata = await consumer._client.fetch_all_metadata()
        partitions = metadata.partitions_for_topic(topic)
        assert partitions, f"there is no topic {topic}"
        ends: dict[Any, int] = await consumer.end_offsets([TopicPartition(topic, each) for each in sorted(partitions)])
        return ends
    finally:
        await consumer.stop()


async def set_config(bootstrap: str, topic: str, configs: Mapping[str, str]) -> None:
    """Set a topic otherwise than it was created: all that is not named goes back to the broker's defaults."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        [response] = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict(configs))])
        [(code, message, *_)] = response.resources
        assert code == 0, message
    finally:
        await admin.close()
