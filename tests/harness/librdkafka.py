"""librdkafka's producer, as services not written in Java use it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import Producer

from tests.harness.topics import Message

MURMUR2 = "murmur2_random"
"""The partitioner of Java and aiokafka; librdkafka's own default is another one."""


async def produce_with_librdkafka(
    bootstrap: str, topic: str, messages: Sequence[Message], *, partitioner: str | None = None
) -> list[tuple[int, int]]:
    """Publish in order, with librdkafka's default partitioner unless told; (partition, offset) of each.

    Unlike aiokafka's producer it sends what has neither key nor value.
    """
    chosen = {} if partitioner is None else {"partitioner": partitioner}
    settings = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, **chosen}
    return await asyncio.to_thread(_produce, settings, topic, messages)


def _produce(settings: Mapping[str, Any], topic: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
    refused: list[str] = []
    places: dict[int, tuple[int, int]] = {}

    def delivered(number: int, error: Any, sent: Any) -> None:
        if error is not None:
            refused.append(str(error))
        places[number] = (sent.partition(), sent.offset())

    # The topic's own limit is the one a test is about.
    limits = {"queue.buffering.max.messages": 1_000_000, "message.max.bytes": 8 * 1024 * 1024}
    producer = Producer({**settings, **limits})
    for number, each in enumerate(messages):
        headers: list[tuple[str, str | bytes | None]] = [*each.headers]
        producer.produce(topic, key=each.key, value=each.value, headers=headers, on_delivery=partial(delivered, number))
        producer.poll(0)
    left = producer.flush(60)
    assert not refused, refused[:5]
    assert left == 0, f"{left} messages not acknowledged"
    return [places[number] for number in range(len(messages))]
