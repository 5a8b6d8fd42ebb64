"""`python -m bench.load BOOTSTRAP TOPIC RATE`: so many results a second, in batches of 10,000, until it is ended."""

import itertools
import json
import sys
import time

from confluent_kafka import Producer

from bench.workload import result

ITEMS = 10_000
TICK_S = 0.01
TOGETHER = 20
"""Batches whose results are mixed."""


def main(bootstrap: str, topic: str, rate: int) -> None:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "enable.idempotence": True, "linger.ms": 5}
    )
    sent, begun = 0, time.monotonic()
    for group in itertools.count():
        names = [f"load-{group:06d}-{number}" for number in range(TOGETHER)]
        for name in names:
            opened = {"type": "batch.opened", "batch_id": name, "total_items": ITEMS}
            producer.produce(topic, json.dumps(opened), name)
        for item in range(ITEMS):
            for name in names:
                producer.produce(topic, result(name, item), name)
            sent += TOGETHER
            producer.poll(0)
            if (ahead := sent / rate - (time.monotonic() - begun)) > TICK_S:
                time.sleep(ahead)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
