"""How to reach Kafka: one place for the options every client of ours is built with."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, RecordListTooLargeError
from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from streams import fetched, reconnecting

REQUEST_TIMEOUT_MS = 15_000
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 4.0
"""Behind the 7 s that a process drains for; what is left at 9 s is cut."""

# Not among them: a time that the topic refuses is this host's clock, which will be set right.
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""What a topic, or aiokafka itself, refuses records by for good; it may be that of several together."""

Client = TypeVar("Client", AIOKafkaConsumer, AIOKafkaProducer, AIOKafkaAdminClient)

fetched.hand_over()
reconnecting.find_brokers_again()

log = structlog.get_logger(__name__)

_stopping: set[asyncio.Task[None]] = set()
"""The loop itself keeps no task from being collected."""

_SASL = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


@dataclass(frozen=True)
class KafkaConnection:
    """Bootstrap servers and security; ``security`` holds aiokafka's own option names (``security_protocol``, ...)."""

    bootstrap_servers: str
    security: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Options common to all clients."""
        return {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            **self.security,
        }

    def faststream_security(self) -> BaseSecurity | None:
        """The same security as FastStream takes it."""
        protocol = self.security.get("security_protocol", "PLAINTEXT")
        context = self.security.get("ssl_context")
        if protocol == "PLAINTEXT":
            return None
        if protocol == "SSL":
            return BaseSecurity(ssl_context=context, use_ssl=True)
        return _SASL[self.security["sasl_mechanism"]](
            username=self.security["sasl_plain_username"],
            password=self.security["sasl_plain_password"],
            ssl_context=context,
            use_ssl=protocol == "SASL_SSL",
        )

    def consumer(self, *topics: str, **options: Any) -> AIOKafkaConsumer:
        """A consumer, not started."""
        return AIOKafkaConsumer(*topics, **{**self.options(), **options})

    def producer(self, **options: Any) -> AIOKafkaProducer:
        """An idempotent producer waiting for all replicas, not started."""
        return AIOKafkaProducer(**{**self.options(), "enable_idempotence": True, "acks": "all", **options})

    def admin(self) -> AIOKafkaAdminClient:
        """An admin client, not started."""
        return AIOKafkaAdminClient(**self.options())


@asynccontextmanager
async def started(client: Client) -> AsyncIterator[Client]:
    """A client while it is in use. Its own requests have time-outs, starting and stopping get theirs here.

    Raises KafkaError where it cannot be started, also where that takes too long.
    """
    try:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await client.start()
        except TimeoutError:
            raise KafkaConnectionError(f"no answer in {START_TIMEOUT_S:g} s") from None  # says whose time-out it was
        yield client
    finally:
        await stop(client)


async def topic_partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """A topic's partitions, for a started consumer that has not heard of the topic yet. Raises KafkaError."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            numbers = await consumer._client._wait_on_metadata(topic)
    except TimeoutError:
        raise KafkaConnectionError(f"nothing heard of topic {topic} in {START_TIMEOUT_S:g} s") from None
    return [TopicPartition(topic, number) for number in sorted(numbers)]


async def high_watermarks(kafka: KafkaConnection, topics: Iterable[str]) -> dict[TopicPartition, int]:
    """Where logs end for a read_uncommitted reader; each partition's leader answers for it. Raises KafkaError."""
    async with started(kafka.consumer(isolation_level="read_uncommitted", enable_auto_commit=False)) as consumer:
        partitions = [tp for topic in topics for tp in await topic_partitions(consumer, topic)]
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        return ends


async def stop(client: Client | KafkaBroker) -> None:
    """Stop a client, started or not, whose state no longer matters; one that does not stop in time is left alone.

    In a task of its own: aiokafka swallows a cancellation while it closes, and that may be its caller's.
    """
    end = client.close if isinstance(client, AIOKafkaAdminClient) else client.stop
    stopping = asyncio.create_task(end(), name="stop a client")
    _stopping.add(stopping)
    stopping.add_done_callback(_stopped)
    _, late = await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S)
    if late:
        stopping.cancel()
        _abandon(client)


def _abandon(client: Client | KafkaBroker) -> None:
    """End what a client that did not stop in time does in the background: a producer would still send what it has."""
    if isinstance(client, AIOKafkaProducer):
        if (sending := client._sender.sender_task) is not None:
            sending.cancel()
        for connection in list(client.client._conns.values()):
            connection.close()


def _stopped(task: asyncio.Task[None]) -> None:
    _stopping.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("a client did not stop cleanly", error=repr(error))


def tls_context(
    *, cafile: str | None, certfile: str | None, keyfile: str | None, check_hostname: bool
) -> ssl.SSLContext:
    """A client context; raises OSError or ssl.SSLError where a file cannot be read."""
    context = ssl.create_default_context(cafile=cafile)
    context.check_hostname = check_hostname
    if certfile is not None:
        context.load_cert_chain(certfile, keyfile)
    return context
