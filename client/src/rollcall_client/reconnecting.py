"""Has aiokafka's clients find their way back to the brokers, where aiokafka 0.14 by itself would not.

It asks the bootstrap servers once, at its start, and then only the brokers that the last answer named. An answer given
while one broker of two was away names the other alone; once that one goes as well, the client would ask nobody else
until it is back, although the first has long returned.

And it takes what a lost connection raises for an OSError. uvloop raises RuntimeError for a write to a closed transport
(aiokafka's issue 1038): that would end the one task that updates metadata, for which others wait without a time-out.

Only the clients of this package: how others in the process use aiokafka is theirs to say.
"""

import asyncio
from typing import Any

import structlog
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.structs import BrokerMetadata

UPDATE_TIMEOUT_S = 60.0

_log = structlog.get_logger(__name__)


def find_brokers_again(client: AIOKafkaClient) -> None:
    """Have this client do so; it is not started yet."""
    ask_known, send = client._metadata_update, client.send

    async def asked(cluster_metadata: Any, topics: Any) -> bool:
        try:
            async with asyncio.timeout(UPDATE_TIMEOUT_S):
                return bool(await ask_known(cluster_metadata, topics))
        except Exception as error:
            _log.warning("metadata not updated", error=repr(error))
            return False

    async def ask(cluster_metadata: Any, topics: Any) -> bool:
        """Whether metadata were updated. It neither raises nor lasts: the task that asks must not end."""
        if await asked(cluster_metadata, topics):
            return True
        known = client.cluster._brokers
        given = {f"{host}:{port}": (host, port) for host, port, _ in client.hosts}
        # An answer takes the place of all of them. Without one the next update asks the known again: they may be the
        # first to return.
        client.cluster._brokers = {name: BrokerMetadata(name, *at, None) for name, at in given.items()}
        try:
            return await asked(cluster_metadata, topics)
        finally:
            if client.cluster._brokers.keys() == given.keys():
                client.cluster._brokers = known
            for name in given:
                if (connection := client._conns.pop((name, ConnectionGroup.DEFAULT), None)) is not None:
                    connection.close()

    async def send_or_lose(node_id: Any, request: Any, **options: Any) -> Any:
        try:
            return await send(node_id, request, **options)
        except KafkaError:  # these are RuntimeErrors, too
            raise
        except RuntimeError as error:
            raise KafkaConnectionError(f"the connection to node {node_id} is closed: {error}") from error

    client._metadata_update, client.send = ask, send_or_lose
