"""What is measured with: results as upstream services send them, in shapes that ask different things."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from schemas.topics import home_partition
from streams.kafka import KafkaConnection, high_watermarks

MESSAGE_BYTES = 220
_MANIFEST_CHUNK = 10_000
_BY_KEY = -1
_SEED = 20_251_124

Record = tuple[str, bytes]
"""Key (the batch id) and value."""


@dataclass(frozen=True)
class Shape:
    """Batches and results. ``window`` batches take turns, result by result; without it all do."""

    name: str
    title: str
    batches: int
    items: int
    window: int | None = None
    duplicates: float = 0.0
    retries: float = 0.0
    manifest: bool = False
    output_bytes: int = 0
    rows_before: int = 0
    misplaced: bool = False

    @property
    def total(self) -> int:
        """Distinct items, all of which are answered."""
        return self.batches * self.items


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("100x10000", "100 x 10,000", 100, 10_000),
        Shape("200000x5", "200,000 x 5", 200_000, 5, window=100),
        Shape("1x1000000", "1 x 1,000,000", 1, 1_000_000),
        Shape("duplicates", "100 x 10,000, 30% duplicates, 10% retries", 100, 10_000, duplicates=0.3, retries=0.1),
        Shape("manifests", "100 x 10,000 with manifests", 100, 10_000, manifest=True),
        Shape("outputs", "100 x 2,000, outputs of 2 kB", 100, 2_000, output_bytes=2_000),
        Shape("20000000rows", "100 x 10,000 on 20,000,000 rows", 100, 10_000, rows_before=20_000_000),
        Shape("200000open", "200,000 x 5, all open at once", 200_000, 5),
        Shape("misplaced", "100 x 5,000, every record on a wrong partition", 100, 5_000, misplaced=True),
    )
}


def batch_id(number: int) -> str:
    return f"bench-batch-{number:05d}"


def records(shape: Shape) -> Iterator[Record]:
    """All records of a shape in the order in which they are sent; the same in every run."""
    window = shape.window or shape.batches
    for first in range(0, shape.batches, window):
        names = [batch_id(number) for number in range(first, min(first + window, shape.batches))]
        for name in names:
            yield from _openings(shape, name)
        choose = random.Random(_SEED + first)
        for item in range(shape.items):
            for name in names:
                value = result(name, item, output_bytes=shape.output_bytes)
                if shape.retries and choose.random() < shape.retries:
                    yield name, result(name, item, status="retrying")
                    value = result(name, item, attempt=2)
                yield name, value
                # At once or a little later, but before the batch ends: what comes behind its end is late, not doubled.
                if shape.duplicates and choose.random() < shape.duplicates and item < shape.items - 1:
                    yield name, value


def _openings(shape: Shape, name: str) -> Iterator[Record]:
    opened: dict[str, object] = {"type": "batch.opened", "batch_id": name, "name": "bench"}
    if not shape.manifest:
        yield name, _json(opened | {"total_items": shape.items})
        return
    chunks = [
        [item_id(item) for item in range(first, min(first + _MANIFEST_CHUNK, shape.items))]
        for first in range(0, shape.items, _MANIFEST_CHUNK)
    ]
    yield name, _json(opened | {"item_ids": chunks[0], "sealed": len(chunks) == 1})
    for chunk in chunks[1:]:
        yield name, _json({"type": "batch.items_expected", "batch_id": name, "item_ids": chunk})
    if len(chunks) > 1:
        yield name, _json({"type": "batch.sealed", "batch_id": name})


def item_id(item: int) -> str:
    return f"item-{item:07d}"


def fails(item: int) -> bool:
    """Whether this item of a batch ends as failed."""
    return item % 50 == 7


def result(batch: str, item: int, *, status: str | None = None, attempt: int = 1, output_bytes: int = 0) -> bytes:
    event: dict[str, object] = {
        "type": "item.result",
        "batch_id": batch,
        "item_id": item_id(item),
        "status": status or ("failed" if fails(item) else "succeeded"),
        "effect": ("created", "updated", "unchanged")[item % 3],
        "duration_ms": round(3.0 + item % 97 / 8, 3),
        "worker": f"worker-{item % 8}",
    }
    if attempt > 1:
        event["attempt"] = attempt
    if event["status"] == "failed":
        event["error"] = {"code": "timeout", "message": "upstream took too long"}
    if output_bytes:
        event["output"] = {"transaction": f"{batch}/{item}", "body": "y" * (output_bytes - 60)}
    value = json.dumps(event, separators=(",", ":"))
    padding = MESSAGE_BYTES - len(value) - len(',"message":""')
    if padding > 0:
        value = f'{value[:-1]},"message":"{"x" * padding}"}}'
    return value.encode()


def fill(bootstrap_servers: str, topic: str, *, batches: int, items: int) -> int:
    """Publish the results of plain batches; returns how many records that were."""
    return publish(bootstrap_servers, topic, Shape("plain", f"{batches} x {items:,}", batches, items))


def publish(bootstrap_servers: str, topic: str, shape: Shape) -> int:
    """Publish all records of a shape; returns how many that were. Raises RuntimeError where the topic lacks some.

    It blocks, so from an event loop it is called in a thread.
    """
    before = _records_in(bootstrap_servers, topic)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.size": 512 * 1024,
            "queue.buffering.max.messages": 500_000,
            # It says that a broker just started loads its coordinators.
            "log_level": 3,
        }
    )
    partitions = _partitions(bootstrap_servers, topic) if shape.misplaced else 0
    sent = 0
    refused: list[object] = []

    def note(error: object, _: object) -> None:
        if error is not None:
            refused.append(error)

    for key, value in records(shape):
        partition = (home_partition(key, partitions) + 1) % partitions if shape.misplaced else _BY_KEY
        while True:
            try:
                producer.produce(topic, value, key.encode(), partition, on_delivery=note)
                break
            except BufferError:
                producer.poll(0.1)
        sent += 1
        if sent % 10_000 == 0:
            producer.poll(0)
    left = producer.flush(120)
    if left or refused:
        raise RuntimeError(f"{left} records were not acknowledged, {len(refused)} refused: {refused[:1]}")
    # What librdkafka says was delivered need not be there (KAFKA-15591).
    if (there := _records_in(bootstrap_servers, topic) - before) != sent:
        raise RuntimeError(f"{there:,} of {sent:,} records are on {topic}")
    return sent


def _records_in(bootstrap_servers: str, topic: str) -> int:
    return sum(asyncio.run(high_watermarks(KafkaConnection(bootstrap_servers), [topic])).values())


def _partitions(bootstrap_servers: str, topic: str) -> int:
    found = AdminClient({"bootstrap.servers": bootstrap_servers}).list_topics(topic, timeout=30)
    return len(found.topics[topic].partitions)


def _json(event: dict[str, object]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()
