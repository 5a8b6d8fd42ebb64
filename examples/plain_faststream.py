"""A service that publishes results with FastStream alone, in ten lines: the key is the batch id, the value is JSON.

KAFKA=localhost:9092 faststream run examples.plain_faststream:app
"""

import json
import os

from faststream import FastStream
from faststream.kafka import KafkaBroker

broker = KafkaBroker(os.environ.get("KAFKA", "localhost:9092"), enable_idempotence=True, acks="all")
app = FastStream(broker)
PREFIX = os.environ.get("ROLLCALL_TOPIC_PREFIX", "rollcall.")


@broker.subscriber(f"{PREFIX}thumbnails", auto_offset_reset="earliest", group_id=f"{PREFIX}thumbnails")
async def make_thumbnail(picture: dict[str, str]) -> None:
    result = {"batch_id": picture["album"], "item_id": picture["name"], "status": "succeeded"}
    await broker.publish(json.dumps(result).encode(), f"{PREFIX}events", key=picture["album"].encode())
