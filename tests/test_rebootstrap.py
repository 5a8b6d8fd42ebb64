"""Clients that know only brokers that are gone."""

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
