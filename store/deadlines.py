"""Statements about deadlines: which open batches are past theirs."""

from datetime import datetime
from typing import NamedTuple

from store.connection import Connection


class PassedDeadline(NamedTuple):
    """An open batch whose deadline has passed, with the generation the deadline is of, and the batch's home."""

    deadline_at: datetime
    batch_id: str
    generation: int
    partition: int


# Open batches whose deadline has passed, of each partition the earliest; the partial index has this order.
# (partitions, now, how many of each)
_PASSED = """
SELECT d.deadline_at, d.batch_id, d.generation, p.number
FROM generate_series(0, $1::int4 - 1) AS p(number) CROSS JOIN LATERAL (
    SELECT deadline_at, batch_id, generation FROM batches
    WHERE partition = p.number AND outcome IS NULL AND deadline_at IS NOT NULL AND deadline_at <= $2
    ORDER BY deadline_at, batch_id LIMIT $3
) d
"""


async def passed(connection: Connection, partitions: int, now: datetime, limit: int) -> list[PassedDeadline]:
    """Open batches whose deadline is not after ``now``: of each of so many partitions the first ``limit`` of them."""
    return [PassedDeadline(*row) for row in await connection.fetch(_PASSED, partitions, now, limit)]
