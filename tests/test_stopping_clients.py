"""Clients that are stopped while their broker is away."""

from pathlib import Path

import pytest

from rollcall.embedded.kafka import EmbeddedKafka
from streams import kafka
from streams.kafka import KafkaConnection, started, stop
from tests.harness.servers import running_broker
from tests.harness.topics import create_topic, drain
from tests.harness.waiting import eventually

TOPIC = "results"


async def test_what_a_stopped_producer_could_not_send_is_never_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "STOP_TIMEOUT_S", 1.0)
    async with running_broker(EmbeddedKafka(tmp_path / "kafka")) as broker:
        await create_topic(broker.bootstrap_servers, TOPIC, partitions=1)
        connection = KafkaConnection(broker.bootstrap_servers)
        producer = connection.producer()
        await producer.start()
        await producer.send_and_wait(TOPIC, b"first")
        await broker.kill()
        late = await producer.send(TOPIC, b"late")
        await stop(producer)
        await eventually(lambda: producer._sender.sender_task.done())
        await broker.start()
        async with started(connection.producer()) as other:
            await other.send_and_wait(TOPIC, b"second")
        assert [record.value for record in await drain(broker.bootstrap_servers, TOPIC)] == [b"first", b"second"]
        assert not late.done() or late.cancelled() or late.exception() is not None
