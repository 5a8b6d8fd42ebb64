"""Clients whose brokers are gone, and come back."""

import asyncio

import pytest
import uvloop
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

from rollcall.embedded.servers import free_port
from rollcall.settings import Settings
from streams import reconnecting
from streams.kafka import started


async def test_a_client_whose_known_brokers_are_all_gone_asks_the_bootstrap_servers_again(settings: Settings) -> None:
    async with started(settings.kafka_connection().producer()) as producer:
        cluster = producer.client.cluster
        cluster._brokers = {99: BrokerMetadata(99, "127.0.0.1", free_port(), None)}
        assert await producer.client.force_metadata_update()
        found = {broker.nodeId for broker in cluster.brokers()}
    assert found, "brokers are known again"
    assert found <= {1, 2, 3}, "and none but those that the cluster names"


async def test_brokers_that_take_connections_and_never_answer_keep_nobody_from_the_bootstrap_servers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "UPDATE_TIMEOUT_S", 1.0)
    silent = [await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0) for _ in range(5)]
    ports = [server.sockets[0].getsockname()[1] for server in silent]
    async with started(settings.kafka_connection().producer()) as producer:
        cluster = producer.client.cluster
        cluster._brokers = {n: BrokerMetadata(n, "127.0.0.1", port, None) for n, port in enumerate(ports, 90)}
        assert await producer.client.force_metadata_update()
        assert not {broker.nodeId for broker in cluster.brokers()} & set(range(90, 95))
    for server in silent:
        server.close()


async def test_what_a_broker_is_too_old_for_is_no_lost_connection(settings: Settings) -> None:
    class TooNew:
        def prepare(self, versions: object) -> None:
            raise IncompatibleBrokerVersion("too old")

    async with started(settings.kafka_connection().producer()) as producer:
        connection = next(iter(producer.client._conns.values()))
        with pytest.raises(IncompatibleBrokerVersion):
            connection.send(TooNew())
        assert connection.connected()


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
