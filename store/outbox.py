"""Statements on ``outbox`` and ``dead_letters``: what leaves, under deterministic ids, so that it leaves once."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Table

from store.connection import Connection
from store.rows import DeadLetterRow, OutboxRow
from store.statements import Rows, column_list, types_of
from store.tables import dead_letters, outbox

WITHHELD = "withheld when this schema was promoted"
"""What ``refused`` says of events and dead letters that a promotion keeps from being told."""

_EVENTS = Rows(types_of(outbox, OutboxRow._fields), large=("value",))
_LETTERS = Rows(types_of(dead_letters, DeadLetterRow._fields), large=("message",))
_MARKS = ("published_at", "published_partition", "published_offset")
_KEY = ("topic", "partition", "record_offset")
_FOUND = (*_KEY, "appended_at", "reason", "message", "key", "value", "headers", *_MARKS)
_PUBLISHED = Rows(types_of(outbox, ("id", "channel", "batch_id", "revision", *_MARKS)))
_PUBLISHED_LETTERS = Rows(types_of(dead_letters, (*_KEY, *_MARKS)))
_FOUND_LETTERS = Rows(types_of(dead_letters, _FOUND), large=("reason", "message"))  # a topic may hold anything

# Events in their order; one already known (a replay, a repeated fold) stays as it is, but for what only its topic knew.
_INSERT = f"""
INSERT INTO outbox ({_EVENTS.columns})
SELECT {_EVENTS.columns} FROM {_EVENTS.source}
ON CONFLICT (id) DO UPDATE SET value = EXCLUDED.value, headers = EXCLUDED.headers WHERE outbox.value IS NULL
RETURNING batch_id, revision, published_at
"""

# One already known was redriven and refused again, or its topic had it before the database: why is known better now.
_INSERT_DEAD_LETTERS = f"""
INSERT INTO dead_letters ({_LETTERS.columns})
SELECT {_LETTERS.columns} FROM {_LETTERS.source}
ON CONFLICT (topic, partition, record_offset)
DO UPDATE SET reason = EXCLUDED.reason, message = EXCLUDED.message, batch_id = EXCLUDED.batch_id, redriven_at = NULL
"""

SUMMARIES_TOO = (
    "({0}.id >= 'batch.summarized/' || o.batch_id || '/' AND {0}.id < 'batch.summarized/' || o.batch_id || '0')"
)
"""Whether a row is a summary of the batch that ``o`` is of, by a stretch of the key: "0" is what comes behind "/"."""

# (revision, the record that asked again or 0); null of an id that is none of ours: a topic may hold anything.
_SUMMARY_OF = (
    "(SELECT CASE WHEN asked ~ '^[0-9]{{1,9}}(/[0-9]{{1,18}})?$'"
    " THEN (split_part(asked, '/', 1)::int8, coalesce(nullif(split_part(asked, '/', 2), ''), '0')::int8) END"
    " FROM substr({0}.id, length('batch.summarized/' || {0}.batch_id || '/') + 1) AS asked)"
)

# What is to be published, in order. Not "seq above the last one": rows commit out of order.
# Of the first $1, those before which there are fewer than $2 bytes (of what is not bounded by itself).
# A revision not above the highest published one of its batch has been said already (its topic is compacted); so has a
# summary of one, or one asked for earlier: its id names the revision and, where asked for again, by which record.
_UNPUBLISHED = f"""
SELECT {column_list(OutboxRow._fields, "o.")}, CASE o.channel WHEN 'finalized' THEN EXISTS (
    SELECT FROM outbox p
    WHERE p.channel = 'finalized' AND p.batch_id = o.batch_id AND p.revision >= o.revision
      AND p.published_at IS NOT NULL
) WHEN 'summaries' THEN EXISTS (
    SELECT FROM outbox p
    WHERE {SUMMARIES_TOO.format("p")} AND p.batch_id = o.batch_id
      AND p.published_at IS NOT NULL AND {_SUMMARY_OF.format("p")} >= {_SUMMARY_OF.format("o")}
) ELSE false END AS said
FROM (
    SELECT *, sum(octet_length(value)) OVER (ORDER BY seq) - octet_length(value) AS bytes_before
    FROM (SELECT * FROM outbox WHERE published_at IS NULL AND refused IS NULL ORDER BY seq LIMIT $1) next
) o
WHERE bytes_before < $2 ORDER BY o.seq
"""

_UNPUBLISHED_DEAD_LETTERS = f"""
SELECT {column_list(DeadLetterRow._fields)} FROM (
    SELECT *, sum(bytes) OVER (ORDER BY seq) - bytes AS bytes_before
    FROM (
        SELECT *, octet_length(coalesce(value, '')) + octet_length(coalesce(key, ''))
            + octet_length(headers::text) AS bytes
        FROM dead_letters WHERE published_at IS NULL AND refused IS NULL ORDER BY seq LIMIT $1
    ) next
) d
WHERE bytes_before < $2 ORDER BY seq
"""

# Marks events as published, those found on a topic that the database does not know included.
_MARK = f"""
INSERT INTO outbox ({_PUBLISHED.columns})
SELECT {_PUBLISHED.columns} FROM {_PUBLISHED.source} ORDER BY id
ON CONFLICT (id) DO UPDATE SET published_at = EXCLUDED.published_at,
    published_partition = EXCLUDED.published_partition, published_offset = EXCLUDED.published_offset
WHERE outbox.published_at IS NULL
"""

# Marks dead letters as published that the broker has acknowledged. One row a key.
_MARK_DEAD_LETTERS = f"""
UPDATE dead_letters d SET published_at = v.published_at, published_partition = v.published_partition,
    published_offset = v.published_offset
FROM {_PUBLISHED_LETTERS.source}
WHERE d.topic = v.topic AND d.partition = v.partition AND d.record_offset = v.record_offset AND d.published_at IS NULL
"""

# Marks, or inserts, dead letters found on their topic: the database may not know them.
_INSERT_PUBLISHED_DEAD_LETTERS = f"""
INSERT INTO dead_letters ({_FOUND_LETTERS.columns})
SELECT {_FOUND_LETTERS.columns} FROM {_FOUND_LETTERS.source} ORDER BY topic, partition, record_offset
ON CONFLICT (topic, partition, record_offset) DO UPDATE SET published_at = EXCLUDED.published_at,
    published_partition = EXCLUDED.published_partition, published_offset = EXCLUDED.published_offset
WHERE dead_letters.published_at IS NULL
"""

# Whether anything is marked as published at all; the first row found answers it.
_HAS_MARKS = {
    table.name: f"SELECT EXISTS (SELECT FROM {table.name} WHERE published_at IS NOT NULL)"
    for table in (outbox, dead_letters)
}

# The broker refuses it for good: kept, with the reason, out of the way of the rest.
_REFUSE = "UPDATE outbox SET refused = $2 WHERE id = $1"
_REFUSE_DEAD_LETTER = """
UPDATE dead_letters SET refused = $4 WHERE topic = $1 AND partition = $2 AND record_offset = $3
"""


class PublishedEvent(NamedTuple):
    """An event seen on, or acknowledged by, its topic."""

    id: str
    channel: str
    batch_id: str | None
    revision: int | None
    published_at: datetime
    partition: int | None
    offset: int | None


class PublishedDeadLetter(NamedTuple):
    """A dead letter seen on, or acknowledged by, its topic."""

    letter: DeadLetterRow
    published_at: datetime
    partition: int
    offset: int


async def insert(connection: Connection, events: Sequence[OutboxRow]) -> list[tuple[str, int, datetime]]:
    """Put events into the outbox, in the order given; returns (batch id, revision, time) of those found published."""
    if not events:
        return []
    rows = await connection.fetch(_INSERT, *_EVENTS.parameters(events))
    return [(row[0], row[1], row[2]) for row in rows if row["published_at"] is not None]


async def insert_dead_letters(connection: Connection, letters: Sequence[DeadLetterRow]) -> None:
    """Put records that can't be taken aside, in the order given; one repeated is as if it had come by itself."""
    distinct: dict[Any, DeadLetterRow] = {}
    for each in letters:
        first = distinct.setdefault(each[:3], each)
        if each is not first:
            distinct[each[:3]] = first._replace(reason=each.reason, message=each.message, batch_id=each.batch_id)
    if letters:
        await connection.execute(_INSERT_DEAD_LETTERS, *_LETTERS.parameters(distinct.values()))


async def unpublished(connection: Connection, limit: int, max_bytes: int) -> list[tuple[OutboxRow, bool]]:
    """The next events to publish, each with whether it counts as published; the last may exceed ``max_bytes``."""
    rows = await connection.fetch(_UNPUBLISHED, limit, max_bytes)
    return [(OutboxRow(*row[:6]), row["said"]) for row in rows]


async def unpublished_dead_letters(connection: Connection, limit: int, max_bytes: int) -> list[DeadLetterRow]:
    """The next dead letters to publish; the last may exceed ``max_bytes``."""
    return [DeadLetterRow(*row) for row in await connection.fetch(_UNPUBLISHED_DEAD_LETTERS, limit, max_bytes)]


async def mark_published(connection: Connection, events: Sequence[PublishedEvent]) -> None:
    """Mark or insert events as published; what was marked before stays as it is."""
    if events:
        await connection.execute(_MARK, *_PUBLISHED.parameters(events))


async def mark_dead_letters_published(connection: Connection, published: Sequence[PublishedDeadLetter]) -> None:
    """Mark dead letters as published; what was marked before stays as it is."""
    rows = [
        (letter.topic, letter.partition, letter.record_offset, published_at, partition, offset)
        for letter, published_at, partition, offset in published
    ]
    if rows:
        await connection.execute(_MARK_DEAD_LETTERS, *_PUBLISHED_LETTERS.parameters(rows))


async def insert_published_dead_letters(connection: Connection, published: Sequence[PublishedDeadLetter]) -> None:
    """Mark or insert dead letters as published; what was marked before stays as it is."""
    rows = [
        (
            *(letter.topic, letter.partition, letter.record_offset, letter.appended_at, letter.reason),
            *(letter.message, letter.key, letter.value, letter.headers, published_at, partition, offset),
        )
        for letter, published_at, partition, offset in published
    ]
    if rows:
        await connection.execute(_INSERT_PUBLISHED_DEAD_LETTERS, *_FOUND_LETTERS.parameters(rows))


async def has_marks(connection: Connection, table: Table) -> bool:
    """Whether any row of ``outbox`` or ``dead_letters`` is marked as published."""
    return bool(await connection.fetchval(_HAS_MARKS[table.name]))


async def refuse(connection: Connection, event_id: str, why: str) -> None:
    """Quarantine an event."""
    await connection.execute(_REFUSE, event_id, why)


async def refuse_dead_letter(connection: Connection, letter: DeadLetterRow, why: str) -> None:
    """Quarantine a dead letter."""
    await connection.execute(_REFUSE_DEAD_LETTER, letter.topic, letter.partition, letter.record_offset, why)
