"""Kafka as this client uses it: names of topics, a batch's home partition, how producers and consumers are built."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2

from rollcall_client.errors import ConfigurationError
from rollcall_client.reconnecting import find_brokers_again

REQUEST_TIMEOUT_MS = 15_000


@dataclass(frozen=True)
class Kafka:
    """Where Kafka is and how to talk to it; ``options`` are aiokafka's own (``security_protocol``, ``ssl_context``,
    ``sasl_mechanism`` ...)."""

    bootstrap_servers: str
    topic_prefix: str = "rollcall."
    options: Mapping[str, Any] = field(default_factory=dict)

    def topic(self, name: str) -> str:
        """A topic of this installation: ``events``, ``finalized``, ``requests`` ..."""
        return f"{self.topic_prefix}{name}"

    def producer(self, **options: Any) -> AIOKafkaProducer:
        """An idempotent producer that waits for all replicas, not started."""
        producer = AIOKafkaProducer(**{**self._common(), "enable_idempotence": True, "acks": "all", **options})
        find_brokers_again(producer.client)
        return producer

    def consumer(self, *topics: str, **options: Any) -> AIOKafkaConsumer:
        """A read-committed consumer that commits nothing by itself, not started."""
        ours = {"isolation_level": "read_committed", "enable_auto_commit": False}
        consumer = AIOKafkaConsumer(*topics, **{**self._common(), **ours, **options})
        find_brokers_again(consumer._client)
        return consumer

    def _common(self) -> dict[str, Any]:
        servers = [each.strip() for each in self.bootstrap_servers.split(",")]
        return {"bootstrap_servers": servers, "request_timeout_ms": REQUEST_TIMEOUT_MS, **self.options}


def home_partition(batch_id: str, partitions: int) -> int:
    """The partition that Java's and aiokafka's default partitioner give a batch's key."""
    return int(murmur2(batch_id.encode()) & 0x7FFFFFFF) % partitions


async def partitions_of(client: AIOKafkaProducer | AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """A topic's partitions. Raises ConfigurationError where there is no such topic.

    Asked for with all others: to ask for one by name may create it, on brokers that do.
    """
    connection = client.client if isinstance(client, AIOKafkaProducer) else client._client
    found = (await connection.fetch_all_metadata()).partitions_for_topic(topic)
    if not found:
        raise ConfigurationError(
            f"there is no topic {topic}: Rollcall creates it when it first starts; is topic_prefix right?"
        )
    return [TopicPartition(topic, partition) for partition in sorted(found)]
