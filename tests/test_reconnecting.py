"""Clients whose brokers are gone, and come back."""

import asyncio

import pytest
import uvloop
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

from rollcall.embedded.servers import free_port
from rollcall.settings import Settings
from streams.kafka import started


async def test_a_client_whose_known_brokers_are_all_gone_asks_the_bootstrap_servers_again(settings: Settings) -> None:
    async with started(settings.kafka_connection().producer()) as producer:
        cluster = producer.client.cluster
        cluster._brokers = {99: BrokerMetadata(99, "127.0.0.1", free_port(), None)}
        assert await producer.client.force_metadata_update()
        found = {broker.nodeId for broker in cluster.brokers()}
    assert found, "brokers are known again"
    assert not found & {99, "bootstrap-0"}, "and none but those that the cluster names"


def test_a_request_on_a_connection_that_uvloop_has_closed_fails_as_one_on_any_lost_connection(
    settings: Settings,
) -> None:
    async def close_and_send() -> None:
        async with started(settings.kafka_connection().producer()) as producer:
            connection = next(iter(producer.client._conns.values()))
            connection._read_task.cancel()  # it would find out and say so
            connection._writer.transport.abort()
            await connection._closed_fut
            await asyncio.sleep(0)
            with pytest.raises(KafkaConnectionError):
                await connection.send(MetadataRequest([]))
            assert not connection.connected()
            assert await producer.client.force_metadata_update()

    uvloop.run(close_and_send())
