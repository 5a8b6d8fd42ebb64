"""Statements on ``summaries``: statistics of finalized batches, computed on their own after the finalized event."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from store.connection import Connection
from store.rows import SummaryRequest
from store.statements import Rows, types_of
from store.tables import summaries


class PendingSummary(NamedTuple):
    """A finalized batch's revision that is to be summarized; ``items`` says how many rows that means to read."""

    batch_id: str
    revision: int
    requested_at: datetime
    requested_offset: int
    attempts: int
    items: int


_REQUESTS = Rows(types_of(summaries, ("batch_id", "revision", "requested_at", "requested_offset")))
_COMPUTED = Rows(types_of(summaries, ("batch_id", "revision", "requested_offset", "summary")))

# What is to be summarized, or once more: a new revision, or somebody asked. Sorted: rows are locked in one order.
_REQUEST = f"""
INSERT INTO summaries (batch_id, revision, state, requested_at, requested_offset)
SELECT batch_id, revision, 'pending', requested_at, requested_offset
FROM {_REQUESTS.source} ORDER BY batch_id
ON CONFLICT (batch_id) DO UPDATE SET revision = EXCLUDED.revision, state = 'pending', attempts = 0, retry_at = NULL,
    problem = NULL, requested_at = EXCLUDED.requested_at, requested_offset = EXCLUDED.requested_offset
"""

# What is to be summarized now, the longest waiting first. Not while the batch is open again: its rows are then those of
# no revision, and the next one will be asked for.
_PENDING = """
SELECT s.batch_id, s.revision, s.requested_at, s.requested_offset, s.attempts,
       b.succeeded + b.partial + b.failed + b.skipped + b.retrying AS items
FROM summaries s JOIN batches b ON b.batch_id = s.batch_id AND b.revision = s.revision AND b.outcome IS NOT NULL
WHERE s.state = 'pending' AND (s.retry_at IS NULL OR s.retry_at <= $1)
ORDER BY s.requested_at, s.batch_id LIMIT $2
"""

# What was computed, unless something else was asked for meanwhile. Locked in the order of the micro-batches.
_READY = f"""
WITH asked AS MATERIALIZED (
    SELECT s.batch_id, v.summary
    FROM {_COMPUTED.source}
    JOIN summaries s USING (batch_id, revision, requested_offset)
    WHERE s.state = 'pending'
    ORDER BY s.batch_id FOR NO KEY UPDATE OF s
)
UPDATE summaries s SET state = 'ready', summary = a.summary, retry_at = NULL, problem = NULL
FROM asked a WHERE s.batch_id = a.batch_id
RETURNING s.batch_id
"""

# An attempt that failed, unless something else was asked for meanwhile. At most one row.
_FAILED = """
UPDATE summaries SET attempts = attempts + $6::bool::int, problem = $4, retry_at = $5,
    state = CASE WHEN $5::timestamptz IS NULL THEN 'failed' ELSE 'pending' END
WHERE batch_id = $1 AND revision = $2 AND requested_offset = $3 AND state = 'pending'
RETURNING batch_id
"""


async def request(connection: Connection, requests: Mapping[str, SummaryRequest]) -> None:
    """Ask for the summaries of these batches."""
    if requests:
        rows = ((batch_id, *asked) for batch_id, asked in requests.items())
        await connection.execute(_REQUEST, *_REQUESTS.parameters(rows))


async def pending(connection: Connection, now: datetime, limit: int) -> list[PendingSummary]:
    """What is to be summarized at this moment, the longest waiting first."""
    return [PendingSummary(*row) for row in await connection.fetch(_PENDING, now, limit)]


async def ready(connection: Connection, computed: Sequence[tuple[PendingSummary, str]]) -> set[str]:
    """Store what was computed (JSON); returns the batches for which it still was what was asked for."""
    rows = [(each.batch_id, each.revision, each.requested_offset, summary) for each, summary in computed]
    return {row[0] for row in await connection.fetch(_READY, *_COMPUTED.parameters(rows))} if rows else set()


async def failed(
    connection: Connection, each: PendingSummary, problem: str, retry_at: datetime | None, *, counts: bool
) -> bool:
    """Note a failed attempt, the last one without ``retry_at``. False: something else was asked for meanwhile."""
    key = each.batch_id, each.revision, each.requested_offset
    return await connection.fetchval(_FAILED, *key, problem, retry_at, counts) is not None
