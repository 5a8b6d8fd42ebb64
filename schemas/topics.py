"""Topic names and a batch's home partition."""

from dataclasses import dataclass
from functools import lru_cache

import rollcall_native
from aiokafka import partitioner

murmur2 = rollcall_native.hashing.murmur2 if rollcall_native.compiled else partitioner.murmur2

MAX_RECORD_BYTES = 1024 * 1024
"""What the input topic takes of one record."""
MAX_EVENT_BYTES = MAX_RECORD_BYTES - 2 * 1024
"""Of an event as JSON; the rest is for its key, a traceparent, and what Kafka puts around them."""


@dataclass(frozen=True)
class Topics:
    """The topics of one installation; all names begin with ``prefix`` (by default ``rollcall.``)."""

    prefix: str = "rollcall."

    @property
    def events(self) -> str:
        """The one input log: results and lifecycle, keyed by batch id."""
        return f"{self.prefix}events"

    @property
    def finalized(self) -> str:
        """One record a revision of a batch; compacted, keyed by batch id."""
        return f"{self.prefix}finalized"

    @property
    def summaries(self) -> str:
        """Statistics of finalized batches; compacted, keyed by batch id."""
        return f"{self.prefix}summaries"

    @property
    def alerts(self) -> str:
        """What an operator should look at."""
        return f"{self.prefix}alerts"

    @property
    def requests(self) -> str:
        """Retries and job runs asked of upstream services."""
        return f"{self.prefix}requests"

    @property
    def dead_letters(self) -> str:
        """Records that could not be taken, with their original bytes and the reason."""
        return f"{self.prefix}dead-letters"

    @property
    def consumer_group(self) -> str:
        """The workers' consumer group."""
        return f"{self.prefix}workers"

    def relay_transactional_id(self, channel: str, database: str) -> str:
        """The Kafka transactional id under which one of the relay's queues is published."""
        return f"{self.prefix}relay.{channel}.{database}"

    @property
    def source(self) -> str:
        """The CloudEvents source of everything that Rollcall sends from here."""
        return f"/{self.prefix.rstrip('.')}"


@lru_cache(100_000)  # where it isn't compiled, hashing costs more than decoding a result
def home_partition(batch_id: str, partitions: int) -> int:
    """The partition a batch lives on: what Java's and aiokafka's default partitioner do with its key.

    Source: ``org.apache.kafka.clients.producer.internals.BuiltInPartitioner.partitionForKey``,
    ``toPositive(murmur2(key)) % partitions``.
    """
    return key_hash(batch_id.encode()) % partitions


@lru_cache(10_000)
def key_hash(key: bytes) -> int:
    """A key's hash; modulo the number of partitions it is the key's partition, as Java's default partitioner has it."""
    return int(murmur2(key)) & 0x7FFFFFFF
