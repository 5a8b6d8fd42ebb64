"""Statements that delete what has left and is old. In chunks, so that nobody waits for their locks."""

from datetime import datetime

from store.connection import Connection

# Published events, the oldest first. What stays although it is old:
# - what only the topic knows (value null): the fold may yet produce it, and must find it published then;
# - revisions of a batch of which another is unpublished: that one may be older, and then counts as said;
# - alerts of open batches: they are what keeps an alert from being raised twice;
# - the newest: with no mark at all, the relay would read its topics from their beginning.
# ($1: published before, $2: how many)
_EVENTS = """
WITH old AS MATERIALIZED (
    SELECT o.id FROM outbox o
    WHERE o.published_at < $1 AND o.value IS NOT NULL
      AND NOT (o.channel = 'finalized' AND EXISTS (
          SELECT FROM outbox u WHERE u.channel = 'finalized' AND u.batch_id = o.batch_id AND u.published_at IS NULL))
      AND NOT (o.channel = 'alerts' AND EXISTS (
          SELECT FROM batches b WHERE b.batch_id = o.batch_id AND b.outcome IS NULL))
      AND o.id <> (
          SELECT id FROM outbox WHERE published_at IS NOT NULL AND value IS NOT NULL
          ORDER BY published_at DESC LIMIT 1)
    ORDER BY o.published_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
DELETE FROM outbox o USING old WHERE o.id = old.id
"""

# Published dead letters, the oldest first. What stays although it is old:
# - what lies behind the position: it is known from the topic, and its record will be read again;
# - the newest: as above.
# ($1: published before, $2: how many)
_DEAD_LETTERS = """
WITH old AS MATERIALIZED (
    SELECT d.topic, d.partition, d.record_offset
    FROM dead_letters d
    JOIN positions p ON p.topic = d.topic AND p.partition = d.partition AND p.next_offset > d.record_offset
    WHERE d.published_at < $1
      AND d.seq <> (SELECT seq FROM dead_letters WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT 1)
    ORDER BY d.published_at LIMIT $2 FOR UPDATE OF d SKIP LOCKED
)
DELETE FROM dead_letters d USING old
WHERE d.topic = old.topic AND d.partition = old.partition AND d.record_offset = old.record_offset
"""


async def trim_events(connection: Connection, published_before: datetime, limit: int) -> int:
    """Delete the oldest published events; returns how many."""
    return _deleted(await connection.execute(_EVENTS, published_before, limit))


async def trim_dead_letters(connection: Connection, published_before: datetime, limit: int) -> int:
    """Delete the oldest published dead letters; returns how many."""
    return _deleted(await connection.execute(_DEAD_LETTERS, published_before, limit))


def _deleted(status: str) -> int:
    return int(status.removeprefix("DELETE "))
