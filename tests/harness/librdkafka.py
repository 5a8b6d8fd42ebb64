"""librdkafka's producer, as services not written in Java use it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Producer

from tests.harness.topics import Message


async def produce_with_librdkafka(
    bootstrap: str, topic: str, messages: Iterable[Message], *, partitioner: str | None = None, **config: Any
) -> None:
    """Publish in order; returns once each is acknowledged. Without `partitioner`, librdkafka's own default chooses."""
    chosen = {} if partitioner is None else {"partitioner": partitioner}
    settings = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, **chosen, **config}
    await asyncio.to_thread(_produce, settings, topic, messages)


def _produce(settings: Mapping[str, Any], topic: str, messages: Iterable[Message]) -> None:
    refused: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            refused.append(str(error))

    producer = Producer({**settings, "queue.buffering.max.messages": 1_000_000})
    for each in messages:
        producer.produce(
            topic, key=each.key, value=each.value, headers=list(each.headers) or None, on_delivery=delivered
        )
        producer.poll(0)
    left = producer.flush(60)
    assert not refused, refused[:5]
    assert left == 0, f"{left} messages not acknowledged"
