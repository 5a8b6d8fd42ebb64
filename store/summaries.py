"""Statements on ``summaries``: statistics of finalized batches, computed on their own after the finalized event."""

from collections.abc import Mapping

from store.connection import Connection
from store.rows import SummaryRequest

# What is to be summarized, or once more: a new revision, or somebody asked. Sorted: rows are locked in one order.
# (batch ids, revisions, times, offsets)
_REQUEST = """
INSERT INTO summaries (batch_id, revision, state, requested_at, requested_offset)
SELECT batch_id, revision, 'pending', requested_at, requested_offset
FROM unnest($1::text[], $2::int4[], $3::timestamptz[], $4::int8[])
     AS v(batch_id, revision, requested_at, requested_offset) ORDER BY batch_id
ON CONFLICT (batch_id) DO UPDATE SET revision = EXCLUDED.revision, state = 'pending', attempts = 0, retry_at = NULL,
    problem = NULL, requested_at = EXCLUDED.requested_at, requested_offset = EXCLUDED.requested_offset
"""


async def request(connection: Connection, requests: Mapping[str, SummaryRequest]) -> None:
    """Ask for the summaries of these batches."""
    if requests:
        columns = zip(*requests.values(), strict=True)
        await connection.execute(_REQUEST, list(requests), *map(list, columns))
