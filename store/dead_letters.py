"""Statements for operators on ``dead_letters``: look at them, note that one was sent again, or give it up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from store.connection import Connection

Status = Literal["open", "redriven", "discarded"]


class Key(NamedTuple):
    """Where a dead letter's record was first read."""

    topic: str
    partition: int
    record_offset: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be taken, and what became of it. ``headers`` are JSON, see ``streams.reading``."""

    key: Key
    seq: int
    appended_at: datetime
    reason: str
    message: str
    batch_id: str | None
    record_key: bytes | None
    value: bytes | None
    headers: str
    published_at: datetime | None
    redriven_at: datetime | None
    discarded_at: datetime | None
    discard_reason: str | None

    @property
    def bytes(self) -> int:
        """How large its record is, about."""
        return len(self.value or b"") + len(self.record_key or b"") + len(self.headers)

    @property
    def status(self) -> Status:
        """What became of it: ``open`` until somebody does something."""
        if self.discarded_at is not None:
            return "discarded"
        return "open" if self.redriven_at is None else "redriven"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which dead letters are meant; None: whichever."""

    status: Status | None = "open"
    reason: str | None = None
    batch_id: str | None = None


_COLUMNS = (
    "topic, partition, record_offset, seq, appended_at, reason, message, batch_id, {record},"
    " published_at, redriven_at, discarded_at, discard_reason"
)
_WITH_RECORD = _COLUMNS.format(record="key, value, headers")
_WITHOUT_RECORD = _COLUMNS.format(record="NULL, NULL, '[]'")

_CHOSEN = """
($1::text IS NULL OR $1 = CASE WHEN discarded_at IS NOT NULL THEN 'discarded'
                               WHEN redriven_at IS NOT NULL THEN 'redriven' ELSE 'open' END)
AND ($2::text IS NULL OR reason = $2) AND ($3::text IS NULL OR batch_id = $3)
"""

# A page, oldest first, behind a sequence number. (at most so many, and bytes: the last may exceed them)
_LIST = f"""
SELECT {{columns}} FROM (
    SELECT *, sum(bytes) OVER (ORDER BY seq) - bytes AS bytes_before
    FROM (
        SELECT *, octet_length(coalesce(value, '')) + octet_length(coalesce(key, ''))
            + octet_length(headers::text) AS bytes
        FROM dead_letters WHERE {_CHOSEN} AND seq > $4 ORDER BY seq LIMIT $5
    ) next
) d
WHERE $6::int8 IS NULL OR bytes_before < $6 ORDER BY seq
"""

_COUNT = f"SELECT count(*) FROM dead_letters WHERE {_CHOSEN}"

# At most one row.
_ONE = f"SELECT {_WITH_RECORD} FROM dead_letters WHERE topic = $1 AND partition = $2 AND record_offset = $3"

_KEYS = "unnest($1::text[], $2::int4[], $3::int8[]) AS v(topic, partition, record_offset)"

_HOLD = f"""
SELECT d.topic, d.partition, d.record_offset FROM dead_letters d, {_KEYS}
WHERE d.topic = v.topic AND d.partition = v.partition AND d.record_offset = v.record_offset FOR UPDATE OF d
"""

# The log has them again.
_NOTE_REDRIVEN = f"""
UPDATE dead_letters d SET redriven_at = now(), discarded_at = NULL, discard_reason = NULL FROM {_KEYS}
WHERE d.topic = v.topic AND d.partition = v.partition AND d.record_offset = v.record_offset
"""

_DISCARD = f"""
UPDATE dead_letters d SET discarded_at = now(), discard_reason = $4 FROM {_KEYS}
WHERE d.topic = v.topic AND d.partition = v.partition AND d.record_offset = v.record_offset
"""


async def page(
    connection: Connection,
    chosen: Chosen,
    *,
    after: int = -1,
    limit: int,
    max_bytes: int | None = None,
    records: bool = True,
) -> list[DeadLetter]:
    """The next ones in the order in which they were found; the last may exceed ``max_bytes``.

    Without ``records``, each of which may have a megabyte, their key, value and headers are left out.
    """
    listed = _LIST.format(columns=_WITH_RECORD if records else _WITHOUT_RECORD)
    rows = await connection.fetch(listed, chosen.status, chosen.reason, chosen.batch_id, after, limit, max_bytes)
    return [DeadLetter(Key(*row[:3]), *row[3:]) for row in rows]


async def count(connection: Connection, chosen: Chosen) -> int:
    """How many there are."""
    return int(await connection.fetchval(_COUNT, chosen.status, chosen.reason, chosen.batch_id))


async def find(connection: Connection, key: Key) -> DeadLetter | None:
    """The dead letter of that record; None where there is none."""
    row = await connection.fetchrow(_ONE, *key)
    return None if row is None else DeadLetter(Key(*tuple(row)[:3]), *tuple(row)[3:])


async def hold(connection: Connection, keys: Sequence[Key]) -> set[Key]:
    """Let nobody else change these until this transaction ends; returns those that are still there."""
    return {Key(*row) for row in await connection.fetch(_HOLD, *_columns(keys))}


async def note_redriven(connection: Connection, keys: Sequence[Key]) -> None:
    """Note that the log has these again."""
    await connection.execute(_NOTE_REDRIVEN, *_columns(keys))


async def discard(connection: Connection, keys: Sequence[Key], why: str) -> None:
    """Give these up, for a reason."""
    await connection.execute(_DISCARD, *_columns(keys), why)


def _columns(keys: Sequence[Key]) -> tuple[list[str], list[int], list[int]]:
    return [key.topic for key in keys], [key.partition for key in keys], [key.record_offset for key in keys]
