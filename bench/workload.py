"""The benchmark's input: results as upstream services send them, 220 bytes each, already in the topic."""

import json
from collections.abc import Iterator

from confluent_kafka import Producer

MESSAGE_BYTES = 220


def batch_id(number: int) -> str:
    return f"bench-batch-{number:05d}"


def results(batches: int, items: int) -> Iterator[tuple[str, bytes]]:
    """(batch id, value) of every result, the batches taking turns."""
    for item in range(items):
        for batch in range(batches):
            yield batch_id(batch), result(batch_id(batch), item)


def result(batch: str, item: int) -> bytes:
    event: dict[str, object] = {
        "type": "item.result",
        "batch_id": batch,
        "item_id": f"item-{item:07d}",
        "status": "failed" if item % 50 == 7 else "succeeded",
        "effect": ("created", "updated", "unchanged")[item % 3],
        "duration_ms": round(3.0 + item % 97 / 8, 3),
        "worker": f"worker-{item % 8}",
    }
    if event["status"] == "failed":
        event["error"] = {"code": "timeout", "message": "upstream took too long"}
    value = json.dumps(event, separators=(",", ":"))
    padding = MESSAGE_BYTES - len(value) - len(',"message":""')
    if padding > 0:
        value = f'{value[:-1]},"message":"{"x" * padding}"}}'
    return value.encode()


def fill(bootstrap_servers: str, topic: str, *, batches: int, items: int) -> int:
    """Open the batches and publish all their results; returns how many records that were."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.size": 512 * 1024,
            "queue.buffering.max.messages": 500_000,
        }
    )
    records = 0
    for batch in range(batches):
        opened = {"type": "batch.opened", "batch_id": batch_id(batch), "total_items": items, "name": "bench"}
        producer.produce(topic, json.dumps(opened).encode(), batch_id(batch).encode())
        records += 1
    for key, value in results(batches, items):
        while True:
            try:
                producer.produce(topic, value, key.encode())
                break
            except BufferError:
                producer.poll(0.1)
        records += 1
        if records % 10_000 == 0:
            producer.poll(0)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} records were not acknowledged")
    return records
