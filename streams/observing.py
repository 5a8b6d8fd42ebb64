"""Looks at Kafka without changing anything there: where the logs begin and end, and who reads the input log."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError, for_code
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_fixed

from schemas.topics import Topics
from store import positions
from store.connection import Connection
from streams.kafka import KafkaConnection, started

COORDINATOR_TIMEOUT_S = 10.0


class NoTopicError(LookupError):
    """A topic isn't there; the message is one line and says what makes it."""


@dataclass(frozen=True, slots=True)
class LogRange:
    """What a partition holds: offsets from ``start`` up to ``end``, which is the next one to be written.

    A read_committed reader gets no further than ``stable``: below ``end`` where a transaction is open.
    """

    start: int
    stable: int
    end: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a consumer group and the partitions it holds."""

    client_id: str
    host: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group: ``Stable``, or on its way there, or ``Empty`` or ``Dead`` where it has no members."""

    state: str
    members: tuple[Member, ...]

    def holder(self, partition: int) -> Member | None:
        """Who reads a partition."""
        return next((member for member in self.members if partition in member.partitions), None)


@asynccontextmanager
async def administering(kafka: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client, started. Raises KafkaError."""
    async with started(kafka.admin()) as admin:
        yield admin


@asynccontextmanager
async def looking(kafka: KafkaConnection, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group, started; it leaves no trace. Raises KafkaError."""
    consumer = kafka.consumer(enable_auto_commit=False, auto_offset_reset="earliest", **options)
    async with started(consumer):
        # aiokafka 0.14 cancels, and then awaits, a task that may not have begun: stopping at once would cancel us.
        await asyncio.sleep(0)
        yield consumer


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> list[int]:
    """The numbers of a topic's partitions. Raises NoTopicError, KafkaError."""
    # Asked for by name, a broker that creates topics by itself would make it.
    if topic not in await admin.list_topics():
        raise NoTopicError(
            f"there is no topic {topic} on this Kafka: workers and relay make it when they start;"
            " else look at ROLLCALL_TOPIC_PREFIX"
        )
    [described] = await admin.describe_topics([topic])
    if described["error_code"] != 0:
        raise for_code(described["error_code"])(topic)
    return sorted(partition["partition"] for partition in described["partitions"])


async def log_ranges(kafka: KafkaConnection, topic: str, partitions: Sequence[int]) -> dict[int, LogRange]:
    """What each of a topic's partitions holds at this moment. Raises KafkaError."""
    tps = [TopicPartition(topic, partition) for partition in partitions]
    async with looking(kafka, isolation_level="read_committed") as consumer:
        starts, stables = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    # Last, so that no end lies before what was seen of the log before.
    async with looking(kafka, isolation_level="read_uncommitted") as consumer:
        ends = await consumer.end_offsets(tps)
    return {tp.partition: LogRange(starts[tp], stables[tp], ends[tp]) for tp in tps}


def until_coordinated() -> AsyncRetrying:
    """Attempts at asking about a group: a new Kafka has no coordinator of groups until the first one who asks."""
    return AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, KafkaError) and error.retriable),
        stop=stop_after_delay(COORDINATOR_TIMEOUT_S),
        wait=wait_fixed(0.2),
        reraise=True,
    )


async def group(admin: AIOKafkaAdminClient, group_id: str, topic: str) -> Group:
    """A consumer group with its members' partitions of a topic. Raises KafkaError."""
    return await until_coordinated()(_group, admin, group_id, topic)


async def _group(admin: AIOKafkaAdminClient, group_id: str, topic: str) -> Group:
    [response] = await admin.describe_consumer_groups([group_id])
    # error_code, group, state, protocol_type, protocol, members, ...
    error_code, _, state, _, _, members, *_ = response.groups[0]
    if error_code != 0:
        raise for_code(error_code)(group_id)
    return Group(state, tuple(Member(each[1], each[2].lstrip("/"), _held_partitions(each, topic)) for each in members))


def _held_partitions(member: tuple[Any, ...], topic: str) -> tuple[int, ...]:
    # member_id, client_id, client_host, member_metadata, member_assignment
    assignment = bytes(member[-1])
    if not assignment:
        return ()
    decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    return tuple(each.partition for each in decoded.partitions() if each.topic == topic)


async def home_partition_count(connection: Connection, kafka: KafkaConnection, topics: Topics) -> int:
    """Among how many partitions batches have homes: as many as stored at the first start; before it, as there are.

    Raises NoTopicError where the input topic is not there, ForeignLogError, KafkaError and asyncpg's errors.
    """
    async with administering(kafka) as admin:
        present = await partitions_of(admin, topics.events)
    return await positions.partition_count(connection, topics.events) or len(present)
