"""Statements about open batches for which time alone shows that something is wrong.

Time is counted up to the moment for which a partition is known to be read completely: a worker that lags makes nobody
slow.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from schemas.published import AlertType
from store.connection import Connection


class Overdue(NamedTuple):
    """An open batch, the alert that is due, since when the time counts, and how much of it (seconds) is too much."""

    batch_id: str
    generation: int
    alert: AlertType
    since: datetime
    limit_s: float
    answered: int
    total: int | None
    last_result_at: datetime | None


class Allowed(NamedTuple):
    """Seconds that a batch may take unless its policy says otherwise."""

    slow_after_s: float = 120.0
    stalled_after_s: float = 300.0
    never_opened_after_s: float = 60.0


# How far each partition is applied. One row a partition.
_POSITIONS = "SELECT partition, next_offset FROM positions WHERE topic = $1"

# Alerts that are due and not out yet, in order of the batches, behind a given one. At most three rows a batch.
_OVERDUE = """
SELECT b.batch_id, b.generation, a.alert, a.since, a.limit_s,
       b.succeeded + b.partial + b.failed + b.skipped AS answered,
       coalesce(b.expected, b.total_items) AS total, b.last_result_at
FROM batches b
JOIN unnest($1::int4[], $2::timestamptz[]) AS p(partition, read_up_to) ON p.partition = b.partition
CROSS JOIN LATERAL (VALUES
    ('batch.slow_detected', coalesce(b.reopened_at, b.opened_at, b.first_result_at),
        coalesce((b.policy ->> 'slow_after_s')::float8, $3)),
    ('batch.stall_detected', greatest(b.reopened_at, b.opened_at, b.last_result_at),
        coalesce((b.policy ->> 'stalled_after_s')::float8, $4)),
    ('batch.never_opened', CASE WHEN b.opened_at IS NULL THEN b.first_result_at END, $5::float8)
) AS a(alert, since, limit_s)
WHERE b.outcome IS NULL AND b.batch_id >= $6 AND extract(epoch FROM p.read_up_to - a.since) >= a.limit_s
  -- The id is the one that handlers.overdue gives it.
  AND NOT EXISTS (SELECT FROM outbox o WHERE o.id = a.alert || '/' || b.batch_id || '/' || b.generation)
ORDER BY b.batch_id, a.alert LIMIT $7
"""


async def applied(connection: Connection, topic: str) -> dict[int, int]:
    """The next offset of every partition that was ever read."""
    return {row[0]: row[1] for row in await connection.fetch(_POSITIONS, topic)}


async def overdue(
    connection: Connection, read_up_to: Mapping[int, datetime], allowed: Allowed, begin: str, limit: int
) -> list[Overdue]:
    """Due alerts of open batches from the id ``begin`` on, of partitions that were read up to those moments."""
    partitions, moments = list(read_up_to), list(read_up_to.values())
    rows = await connection.fetch(_OVERDUE, partitions, moments, *allowed, begin, limit)
    return [Overdue(*row) for row in rows]
