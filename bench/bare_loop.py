"""One process of the bare loop: aiokafka, pydantic, COPY, one after the other. No counts, no positions, no duplicates.

What anybody would write first, and the floor for doing this in Python with the usual libraries: it reads its share of
the partitions to their ends and says when it had a tenth of them and when it was through.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from bench.measuring import WARM_UP
from store.connection import Database
from store.rows import ItemRow

TABLE = "bare_items"
MAX_RECORDS = 5_000


class Error(TypedDict, total=False):
    code: str
    message: str
    stack_trace: str


class Result(TypedDict, total=False):
    type: str
    batch_id: str
    item_id: str
    status: str
    attempt: int
    effect: str
    duration_ms: float
    message: str
    error: Error
    output: Any
    metrics: dict[str, float]
    worker: str
    occurred_at: datetime


_RESULT = TypeAdapter(Result)


async def main(bootstrap: str, topic: str, url: str, schema: str, share: int, shares: int) -> None:
    connection = await Database(url, schema).connect("bench", synchronous_commit="off")
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    await consumer.start()
    await consumer._client.force_metadata_update()
    partitions = [
        TopicPartition(topic, number)
        for number in sorted(consumer.partitions_for_topic(topic))
        if number % shares == share
    ]
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    ends = await consumer.end_offsets(partitions)
    total, read, begun, counted = sum(ends.values()), 0, 0.0, 0
    print("ready", flush=True)
    sys.stdin.readline()
    while read < total:
        rows = []
        for records in (await consumer.getmany(timeout_ms=1000, max_records=MAX_RECORDS)).values():
            read += len(records)
            rows += [row for record in records if (row := _row(record)) is not None]
        await connection.copy_records_to_table(TABLE, records=rows, columns=ItemRow._fields)
        if not begun and read >= total * WARM_UP:
            begun, counted = time.monotonic(), read
    timed = {"begun": begun, "ended": time.monotonic(), "records": total, "timed": total - counted}
    print(json.dumps(timed), flush=True)
    await consumer.stop()
    await connection.close()


def _row(record: Any) -> tuple[object, ...] | None:
    event = _RESULT.validate_json(record.value)
    if event.get("type", "item.result") != "item.result":
        return None
    error, output, metrics = event.get("error") or {}, event.get("output"), event.get("metrics")
    return (
        event["batch_id"],
        event["item_id"],
        event["status"],
        event.get("attempt", 1),
        0,
        record.offset,
        datetime.fromtimestamp(record.timestamp / 1000, UTC),
        event.get("effect"),
        event.get("duration_ms"),
        event.get("message"),
        error.get("code"),
        error.get("message"),
        error.get("stack_trace"),
        None if output is None else json.dumps(output),
        None if metrics is None else json.dumps(metrics),
        event.get("worker"),
        event.get("occurred_at"),
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6])))
