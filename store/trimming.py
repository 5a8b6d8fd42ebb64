"""Statements that delete what has left and is old. In chunks, so that nobody waits for their locks."""

from collections.abc import Mapping
from datetime import datetime

from store.connection import Connection
from store.outbox import SUMMARIES_TOO, WITHHELD

_IS_WITHHELD = f"published_at IS NULL AND refused = '{WITHHELD}'"

# Published events, the oldest first. What stays although it is old:
# - what only the topic knows (value null): the fold may yet produce it, and must find it published then;
# - revisions and summaries of a batch of which another is unpublished: that one may be older, and then counts as said;
# - alerts of open batches: they are what keeps an alert from being raised twice;
# - the newest: with no mark at all, the relay would read its topics from their beginning.
# ($1: published before, $2: how many)
_EVENTS = f"""
WITH old AS MATERIALIZED (
    SELECT o.id FROM outbox o
    WHERE o.published_at < $1 AND o.value IS NOT NULL
      AND NOT (o.channel = 'finalized' AND EXISTS (
          SELECT FROM outbox u WHERE u.channel = 'finalized' AND u.batch_id = o.batch_id AND u.published_at IS NULL
            AND u.refused IS DISTINCT FROM '{WITHHELD}'))
      AND NOT (o.channel = 'summaries' AND EXISTS (
          SELECT FROM outbox u WHERE {SUMMARIES_TOO.format("u")} AND u.published_at IS NULL
            AND u.refused IS DISTINCT FROM '{WITHHELD}'))
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
# - what was redriven since: its record may be yet to be read, and, refused again, would be a new one;
# - the newest: as above.
# ($1: published before, $2: how many)
_DEAD_LETTERS = """
WITH old AS MATERIALIZED (
    SELECT d.topic, d.partition, d.record_offset
    FROM dead_letters d
    JOIN positions p ON p.topic = d.topic AND p.partition = d.partition AND p.next_offset > d.record_offset
    WHERE d.published_at < $1 AND (d.redriven_at IS NULL OR d.redriven_at < $1)
      AND d.seq <> (SELECT seq FROM dead_letters WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT 1)
    ORDER BY d.published_at LIMIT $2 FOR UPDATE OF d SKIP LOCKED
)
DELETE FROM dead_letters d USING old
WHERE d.topic = old.topic AND d.partition = old.partition AND d.record_offset = old.record_offset
"""

# Dead letters that a promotion withheld. ($1: appended before, $2: how many)
_WITHHELD_DEAD_LETTERS = f"""
WITH old AS MATERIALIZED (
    SELECT topic, partition, record_offset FROM dead_letters
    WHERE {_IS_WITHHELD} AND appended_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
)
DELETE FROM dead_letters d USING old
WHERE d.topic = old.topic AND d.partition = old.partition AND d.record_offset = old.record_offset
"""

_HAS_WITHHELD = f"SELECT EXISTS (SELECT FROM outbox WHERE {_IS_WITHHELD})"

# Events that a promotion withheld, once the log does not give them any more: until then their rows are what tells
# `rollcall verify` that they are not lost.
# (partitions, when the first record that each still holds was appended, how many)
_WITHHELD_EVENTS = f"""
WITH old AS MATERIALIZED (
    SELECT o.id FROM outbox o
    JOIN batches b USING (batch_id)
    JOIN unnest($1::int4[], $2::timestamptz[]) AS p(partition, first_time) USING (partition)
    WHERE o.published_at IS NULL AND o.refused = '{WITHHELD}' AND (o.headers ->> 'ce_time')::timestamptz < p.first_time
    LIMIT $3 FOR UPDATE OF o SKIP LOCKED
)
DELETE FROM outbox o USING old WHERE o.id = old.id
"""


async def trim_events(connection: Connection, published_before: datetime, limit: int) -> int:
    """Delete the oldest published events; returns how many."""
    return _deleted(await connection.execute(_EVENTS, published_before, limit))


async def trim_dead_letters(connection: Connection, published_before: datetime, limit: int) -> int:
    """Delete the oldest published dead letters; returns how many."""
    return _deleted(await connection.execute(_DEAD_LETTERS, published_before, limit))


async def trim_withheld_dead_letters(connection: Connection, appended_before: datetime, limit: int) -> int:
    """Delete dead letters of old records that a promotion withheld; returns how many."""
    return _deleted(await connection.execute(_WITHHELD_DEAD_LETTERS, appended_before, limit))


async def has_withheld_events(connection: Connection) -> bool:
    """Whether there are events that a promotion withheld."""
    return bool(await connection.fetchval(_HAS_WITHHELD))


async def trim_withheld_events(connection: Connection, first_times: Mapping[int, datetime], limit: int) -> int:
    """Delete withheld events caused before what each partition's log still holds; returns how many."""
    return _deleted(await connection.execute(_WITHHELD_EVENTS, list(first_times), list(first_times.values()), limit))


def _deleted(status: str) -> int:
    return int(status.removeprefix("DELETE "))
