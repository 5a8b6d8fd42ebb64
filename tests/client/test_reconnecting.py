"""The client finds brokers again that have all moved, and does not wait for ever for one connection."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.structs import BrokerMetadata
from rollcall_client import Rollcall, publishing
from rollcall_client.kafka import Kafka
from rollcall_client.listening import records

from rollcall.embedded.servers import free_port
from streams import reconnecting
from tests.client.test_publishing import item_ids
from tests.harness.events import Event
from tests.harness.servers import Servers
from tests.harness.topics import create_topic, produce


@pytest.fixture(autouse=True)
def without_the_services_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service does about it holds for all of its process, and so for these tests."""
    monkeypatch.setattr(AIOKafkaClient, "_metadata_update", reconnecting._ask_known)


def nobody_known_is_there(client: AIOKafkaClient) -> None:
    client.cluster._brokers = {99: BrokerMetadata(99, "127.0.0.1", free_port(), None)}
    for connection in client._conns.values():
        connection.close()


async def test_a_listener_whose_known_brokers_are_all_gone_asks_the_bootstrap_servers_again(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, topic = servers.bootstrap_servers, f"{topic_prefix}finalized"
    await create_topic(here, topic, partitions=1)
    await produce(here, topic, [Event(b"k", b"before")])
    consumers: list[AIOKafkaConsumer] = []
    start = AIOKafkaConsumer.start

    async def noted(self: AIOKafkaConsumer) -> None:
        consumers.append(self)
        await start(self)

    monkeypatch.setattr(AIOKafkaConsumer, "start", noted)
    async with aclosing(records(Kafka(here), topic, group=None, start="earliest", max_body_s=600)) as stream:
        assert (await asyncio.wait_for(anext(stream), 60)).value == b"before"
        nobody_known_is_there(consumers[-1]._client)
        await produce(here, topic, [Event(b"k", b"after")])
        assert (await asyncio.wait_for(anext(stream), 60)).value == b"after"


async def test_what_a_connection_does_not_acknowledge_goes_out_through_another(
    servers: Servers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_topic(servers.bootstrap_servers, f"{topic_prefix}events")
    monkeypatch.setattr(publishing, "ATTEMPT_S", 2.0, raising=False)
    send, silent = AIOKafkaProducer.send_batch, iter([asyncio.get_running_loop().create_future()])

    async def silent_at_first(self: AIOKafkaProducer, *arguments: Any, **options: Any) -> Any:
        return next(silent, None) or await send(self, *arguments, **options)

    monkeypatch.setattr(AIOKafkaProducer, "send_batch", silent_at_first)
    async with Rollcall(servers.bootstrap_servers, topic_prefix=topic_prefix, delivery_timeout_s=60) as rc:
        await rc.batch("b").succeeded("one")
        await asyncio.wait_for(rc.flush(), 90)
    assert await item_ids(servers.bootstrap_servers, f"{topic_prefix}events") == {"one"}
