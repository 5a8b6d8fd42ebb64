"""A database full of batches, made by SQL: what the API's speed and plans are looked at on."""

from store.connection import Connection

ITEMS_PER_BATCH = 100

# Batches of all ages and ends, most of them long done, as a year leaves behind.
_BATCHES = """
INSERT INTO batches (batch_id, partition, state, outcome, finalized_by, revision, sealed, expected, matched,
                     succeeded, failed, name, metadata, opened_at, first_result_at, last_result_at, completed_at,
                     finalized_at, decided_offset)
SELECT batch_id, n % 12, CASE WHEN open THEN 'processing' ELSE 'finalized' END,
       CASE WHEN NOT open THEN CASE WHEN n % 10 = 3 THEN 'completed_with_errors' ELSE 'completed' END END,
       CASE WHEN NOT open THEN 'all_items_in' END, CASE WHEN open THEN 0 ELSE 1 END, true, items,
       CASE WHEN open THEN items / 2 ELSE items END,
       CASE WHEN open THEN items / 2 ELSE items END - items / 50, items / 50,
       'job ' || n % 20, json_build_object('team', 'team ' || n % 7),
       opened_at, opened_at, opened_at, CASE WHEN NOT open THEN opened_at END, CASE WHEN NOT open THEN opened_at END,
       CASE WHEN NOT open THEN n END
FROM (
    SELECT n, CASE WHEN n = 0 THEN 'big' ELSE 'batch-' || to_char(n, 'FM0000000') END AS batch_id, n % 100 = 7 AS open,
           CASE WHEN n = 0 THEN $2::int ELSE $3::int END AS items,
           timestamptz '2026-01-01Z' + n * interval '5 minutes' AS opened_at
    FROM generate_series(0, $1::int - 1) n
) made
"""

_EXPECTED = """
INSERT INTO expected_items (batch_id, item_id)
SELECT b.batch_id, 'item-' || to_char(i, 'FM0000000') FROM batches b, generate_series(1, b.expected) i
WHERE b.batch_id = 'big' OR b.state <> 'finalized'
"""

_ITEMS = """
INSERT INTO item_results (version, received_at, attempt, generation, batch_id, item_id, status, effect, duration_ms,
                          error_code, error_message, worker)
SELECT i, b.opened_at, 1, 0, b.batch_id, 'item-' || to_char(i, 'FM0000000'),
       CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'succeeded' END, 'created', i % 97,
       CASE WHEN i % 50 = 0 THEN 'timeout' END, CASE WHEN i % 50 = 0 THEN 'after ' || i || ' ms' END, 'worker-' || i % 8
FROM batches b, generate_series(1, b.matched) i
"""

# What went out about the ended ones.
_OUTBOX = """
INSERT INTO outbox (id, channel, batch_id, revision, value, headers, published_at, published_partition,
                    published_offset)
SELECT kind.id || '/' || b.batch_id || '/1', kind.channel, b.batch_id, CASE WHEN kind.channel = 'finalized' THEN 1 END,
       json_build_object('batch_id', b.batch_id, 'revision', 1, 'outcome', b.outcome, 'finalized_by', b.finalized_by,
                         'finalized_at', b.finalized_at, 'as_of', json_build_object(
                             'topic', 'rollcall.events', 'partition', b.partition, 'offset', b.decided_offset)),
       '{}', b.finalized_at, b.partition, b.decided_offset
FROM batches b, (VALUES ('batch.finalized', 'finalized'), ('batch.summarized', 'summaries')) kind (id, channel)
WHERE b.outcome IS NOT NULL
"""


async def fill(connection: Connection, batches: int, timeout_s: float = 1800) -> int:
    """That many batches of 100 items, one of them a tenth of all; returns how many items. Analyzed."""
    big = batches * ITEMS_PER_BATCH // 10
    filled = ((_BATCHES, (batches, big, ITEMS_PER_BATCH)), (_EXPECTED, ()), (_ITEMS, ()), (_OUTBOX, ()))
    for statement, arguments in filled:
        await connection.execute(statement, *arguments, timeout=timeout_s)
    await connection.execute(
        "INSERT INTO positions (topic, partition, next_offset)"
        " SELECT topic, n, $1 FROM logs, generate_series(0, partition_count - 1) n",
        batches,
    )
    for table in ("batches", "item_results", "expected_items", "outbox"):
        await connection.execute(f"VACUUM (ANALYZE) {table}", timeout=timeout_s)
    count: int = await connection.fetchval("SELECT count(*) FROM item_results", timeout=timeout_s)
    return count
