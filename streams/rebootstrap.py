"""Has every client ask the bootstrap servers again where none of the brokers it knows answers any more.

aiokafka 0.14 asks them once, at its start, and then only the brokers that the last answer named. An answer given while
one broker of two was away names the other alone; once that one goes as well, the client would ask nobody else until
it is back, for ever where it comes back elsewhere, although the first has long returned.
"""

from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.structs import BrokerMetadata

_ask_known = AIOKafkaClient._metadata_update


async def _ask_known_then_given(client: AIOKafkaClient, cluster_metadata: Any, topics: Any) -> bool:
    if await _ask_known(client, cluster_metadata, topics):
        return True
    given = {f"bootstrap-{n}": (host, port) for n, (host, port, _) in enumerate(client.hosts)}
    known = client.cluster._brokers
    if given.keys() <= known.keys():
        return False
    # Beside the others, which may be the ones to return; the next answer takes the place of all of them.
    client.cluster._brokers = {**known, **{name: BrokerMetadata(name, *at, None) for name, at in given.items()}}
    return bool(await _ask_known(client, cluster_metadata, topics))


def ask_again() -> None:
    """Have every client of this process do so."""
    AIOKafkaClient._metadata_update = _ask_known_then_given
