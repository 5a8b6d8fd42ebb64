"""Has every client ask the bootstrap servers again where none of the brokers it knows answers any more.

aiokafka 0.14 asks them once, at its start, and then only the brokers that the last answer named. An answer given while
one broker of two was away names the other alone; once that one goes as well, the client would ask nobody else until
it is back, for ever where it comes back elsewhere, although the first has long returned.
"""

import asyncio
from typing import Any

import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.structs import BrokerMetadata

UPDATE_TIMEOUT_S = 60.0

log = structlog.get_logger(__name__)

_ask_known = AIOKafkaClient._metadata_update


async def _ask(client: AIOKafkaClient, cluster_metadata: Any, topics: Any) -> bool:
    """Whether metadata were updated. It neither raises nor lasts: that would end the one task that updates them.

    Whoever needs an update waits for that task, without a time-out.
    """
    try:
        async with asyncio.timeout(UPDATE_TIMEOUT_S):
            return await _ask_known(client, cluster_metadata, topics) or await _ask_given(
                client, cluster_metadata, topics
            )
    except Exception as error:
        log.warning("metadata not updated", error=repr(error))
        return False


async def _ask_given(client: AIOKafkaClient, cluster_metadata: Any, topics: Any) -> bool:
    given = {f"bootstrap-{n}": (host, port) for n, (host, port, _) in enumerate(client.hosts)}
    known = client.cluster._brokers
    if given.keys() <= known.keys():
        return False
    # Beside the others, which may be the ones to return; the next answer takes the place of all of them.
    client.cluster._brokers = {**known, **{name: BrokerMetadata(name, *at, None) for name, at in given.items()}}
    return bool(await _ask_known(client, cluster_metadata, topics))


def ask_again() -> None:
    """Have every client of this process do so."""
    AIOKafkaClient._metadata_update = _ask
