"""A table, or a state store, that holds many items before anything is measured."""

import asyncio
import json
import time

from aiokafka.admin import NewTopic
from confluent_kafka import Producer

from bench.running import Bed
from bench.workload import result
from migrations.run import migrate
from rollcall.settings import Settings
from streams.kafka import KafkaConnection
from streams.topics import EVENTS_PARTITIONS

ITEMS_A_BATCH = 10_000


async def postgres(settings: Settings, rows: int) -> None:
    """Rows like the pipeline's own, of batches long finalized, on both sides of the new ones in the index."""
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("bench", command_timeout=1200)
    example = json.loads(result("bench-batch-00000", 0))
    await connection.execute(
        """
        INSERT INTO item_results
            (batch_id, item_id, status, attempt, generation, version, received_at, effect, duration_ms, message, worker)
        SELECT CASE WHEN batch % 2 = 0 THEN 'archive-' ELSE 'old-batch-' END || lpad(batch::text, 7, '0'),
               'item-' || lpad(item::text, 7, '0'), 'succeeded', 1, 0, batch::int8 * $2::int + item, now(),
               'updated', 3.5, $3, 'worker-1'
        FROM generate_series(0, $1::int / $2::int - 1) batch, generate_series(0, $2::int - 1) item
        """,
        rows,
        ITEMS_A_BATCH,
        example["message"],
    )
    await connection.execute("VACUUM (ANALYZE) item_results")
    await connection.close()


async def topic(bed: Bed, rows: int) -> str:
    """A second input topic for Kafka Streams: each record of it stands for a batch of items.

    They are a day older than the others, and Kafka Streams takes the oldest record of a task's partitions first.
    """
    name = bed.new_name("prefill-")
    admin = KafkaConnection(bed.kafka.bootstrap_servers).admin()
    await admin.start()
    await admin.create_topics([NewTopic(name, EVENTS_PARTITIONS, 1)])
    await admin.close()
    producer = Producer({"bootstrap.servers": bed.kafka.bootstrap_servers, "partitioner": "murmur2_random"})
    example = json.loads(result("bench-batch-00000", 0))
    day_before = int(time.time() * 1000) - 24 * 3600 * 1000
    for batch in range(rows // ITEMS_A_BATCH):
        value = {**example, "type": "bench.prefill", "batch_id": "old", "from": 0, "to": ITEMS_A_BATCH}
        key = f"{'archive' if batch % 2 else 'old-batch'}-{batch:07d}"
        producer.produce(name, json.dumps(value).encode(), key, timestamp=day_before)
    await asyncio.to_thread(producer.flush, 60)
    return name
