"""Has every client of this process find its way back to the brokers, where aiokafka 0.14 by itself would not.

It asks the bootstrap servers once, at its start, and then only the brokers that the last answer named. An answer given
while one broker of two was away names the other alone; once that one goes as well, the client would ask nobody else
until it is back, for ever where it comes back elsewhere, although the first has long returned.

And it takes what a lost connection raises for an OSError. uvloop raises RuntimeError for a write to a closed transport
(aiokafka's issue 1038): that would end the one task that updates metadata, for which others wait without a time-out.
"""

import asyncio
from typing import Any

import structlog
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.structs import BrokerMetadata

UPDATE_TIMEOUT_S = 60.0

log = structlog.get_logger(__name__)

_send = AIOKafkaConnection.send
_ask_known = AIOKafkaClient._metadata_update


def _send_or_close(connection: AIOKafkaConnection, *request: Any, **options: Any) -> Any:
    try:
        return _send(connection, *request, **options)
    except KafkaError:
        raise
    except RuntimeError as error:
        if not connection._writer.transport.is_closing():
            raise
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {connection.host}:{connection.port} is closed: {error}") from error


async def _ask(client: AIOKafkaClient, cluster_metadata: Any, topics: Any) -> bool:
    """Whether metadata were updated. It neither raises nor lasts, whatever else may go wrong, for the reason above."""
    if await _asked(client, cluster_metadata, topics):
        return True
    known = client.cluster._brokers
    given = {f"{host}:{port}": (host, port) for host, port, _ in client.hosts}
    # An answer takes the place of all of them. Without one the next update asks the known again: they may be the first
    # to return.
    client.cluster._brokers = {name: BrokerMetadata(name, *at, None) for name, at in given.items()}
    try:
        return await _asked(client, cluster_metadata, topics)
    finally:
        if client.cluster._brokers.keys() == given.keys():
            client.cluster._brokers = known
        for name in given:
            if (connection := client._conns.pop((name, ConnectionGroup.DEFAULT), None)) is not None:
                connection.close()


async def _asked(client: AIOKafkaClient, cluster_metadata: Any, topics: Any) -> bool:
    try:
        async with asyncio.timeout(UPDATE_TIMEOUT_S):
            return bool(await _ask_known(client, cluster_metadata, topics))
    except Exception as error:
        log.warning("metadata not updated", error=repr(error))
        return False


def find_brokers_again() -> None:
    """Have every client of this process do so."""
    AIOKafkaConnection.send = _send_or_close
    AIOKafkaClient._metadata_update = _ask
