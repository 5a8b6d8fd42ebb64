"""Statements about deadlines: which open batches are past theirs."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from store.connection import Connection


class PassedDeadline(NamedTuple):
    """An open batch whose deadline has passed, with the generation the deadline is of, and the batch's home."""

    deadline_at: datetime
    batch_id: str
    generation: int
    partition: int


# Open batches whose deadline has passed, the earliest first, behind a given one; the partial index has this order.
_PASSED = """
SELECT deadline_at, batch_id, generation, partition FROM batches
WHERE outcome IS NULL AND deadline_at IS NOT NULL AND deadline_at <= $1 AND (deadline_at, batch_id) > ($2, $3)
  AND partition <> ALL ($5::int4[])
ORDER BY deadline_at, batch_id LIMIT $4
"""

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


async def passed(
    connection: Connection, now: datetime, after: PassedDeadline | None, limit: int, but: Collection[int] = ()
) -> list[PassedDeadline]:
    """The next open batches whose deadline is not after ``now``, behind ``after`` in order of deadline and id.

    ``but`` are partitions whose batches are left out.
    """
    since, batch_id = (_BEFORE_ALL, "") if after is None else (after.deadline_at, after.batch_id)
    rows = await connection.fetch(_PASSED, now, since, batch_id, limit, list(but))
    return [PassedDeadline(*row) for row in rows]
