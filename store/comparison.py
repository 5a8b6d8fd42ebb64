"""Statements that hold the live schema against a shadow folded from the log, and against what the topics hold.

They run in the shadow (its search path), inside one REPEATABLE READ transaction; the live schema is named. What the
relay's clock and the broker decide (``published_*``, ``seq``) is no part of the state and is not compared.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import JSON

from store import copying, tables
from store.connection import Connection

FETCH = 500

# What the log decides alone; other events it cannot know: alerts that time or a setting raises, summaries, job runs.
_FOLDED = ("batch.finalized", "batch.retry_requested", "batch.first_failure", "batch.failure_threshold_exceeded")
_IS_FOLDED = f"split_part(id, '/', 1) IN {_FOLDED}"


@dataclass(frozen=True, slots=True)
class Compared:
    """A table, its key, and the columns that the log decides."""

    table: Table
    keys: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Differing:
    """A row that is not as the log has it; None where there is none."""

    table: str
    key: dict[str, Any]
    live: dict[str, Any] | None
    log: dict[str, Any] | None


def _compared(table: Table, *but: str) -> Compared:
    keys = tuple(column.name for column in table.primary_key.columns)
    return Compared(table, keys, tuple(column.name for column in table.columns if column.name not in {*keys, *but}))


STATE = (
    _compared(tables.batches, "published_at"),
    _compared(tables.item_results),
    _compared(tables.late_results),
    _compared(tables.expected_items),
    Compared(tables.summaries, ("batch_id",), ("revision", "requested_at", "requested_offset")),
    Compared(tables.dead_letters, ("topic", "partition", "record_offset"), ("reason", "key", "value", "headers")),
)

# When the rows of what the log says is pruned go, is not the log's to say.
_ITEMS = (tables.item_results, tables.late_results, tables.expected_items)
_IS_KEPT = " AND NOT EXISTS (SELECT FROM batches p WHERE p.batch_id = s.batch_id AND p.pruned_at IS NOT NULL)"

# Of dead letters those of records that were read for both; the log's own place is the only one that all of them have.
_IS_READ = """ AND EXISTS (
    SELECT FROM spans p WHERE (p.topic, p.partition) = (s.topic, s.partition)
                          AND s.record_offset >= p.first_offset AND s.record_offset < p.end_offset)"""

# What only the log has and is older than dead letters are kept, was deleted for that.
_IS_NOT_TRIMMED = """ AND (s.appended_at >= (SELECT max(letters_kept_since) FROM spans) OR EXISTS (
    SELECT FROM {live}.dead_letters k
    WHERE (k.topic, k.partition, k.record_offset) = (s.topic, s.partition, s.record_offset)))"""

_MAKE_SPANS = """
CREATE TABLE spans (
    topic text NOT NULL, partition int4 NOT NULL, first_offset int8 NOT NULL, end_offset int8 NOT NULL,
    letters_kept_since timestamptz NOT NULL
)
"""
_NOTE_SPANS = "INSERT INTO spans SELECT $1, v.*, $5 FROM unnest($2::int4[], $3::int8[], $4::int8[]) v"

# Batches that are left out: those whose beginning the log no longer holds, or, where some were chosen, all others.
_UNVERIFIABLE = """
INSERT INTO incomplete_history
SELECT batch_id FROM {live}.batches
WHERE partition = $1 AND coalesce(least(opened_at, first_result_at, finalized_at) <= $2, true)
ON CONFLICT DO NOTHING
"""

_TOUCHED = "greatest(opened_at, first_result_at, last_result_at, finalized_at, reopened_at) >= $1"

_CHOOSE = f"""
INSERT INTO chosen
SELECT batch_id FROM {{live}}.batches WHERE {_TOUCHED} UNION SELECT batch_id FROM batches WHERE {_TOUCHED}
"""

# What the topics hold, scanned. ``digest``: md5 of the value.
_MAKE_SCANNED = """
CREATE TABLE scanned (
    channel text NOT NULL, id text COLLATE "C" NOT NULL, batch_id text COLLATE "C", revision int4,
    partition int4 NOT NULL, record_offset int8 NOT NULL, digest text NOT NULL
)
"""
_SCANNED_COLUMNS = ("channel", "id", "batch_id", "revision", "partition", "record_offset", "digest")

_DUPLICATED = """
SELECT channel, id, max(batch_id) AS batch_id, array_agg(partition || ':' || record_offset ORDER BY record_offset) AS at
FROM scanned s WHERE {counts} GROUP BY channel, id HAVING count(*) > 1 ORDER BY channel, id
"""

# Newest events whose bytes are not what the log gives; of superseded ones the topic may hold what was said before.
_CONTRADICTING = """
SELECT s.channel, s.id, s.batch_id, s.partition, s.record_offset
FROM scanned s JOIN outbox o USING (id)
WHERE {folded} AND {counts} AND md5(o.value) <> s.digest AND NOT EXISTS (
    SELECT FROM scanned n WHERE n.channel = 'finalized' AND s.channel = 'finalized' AND n.batch_id = s.batch_id
                            AND n.revision > s.revision)
ORDER BY s.channel, s.id
"""

# Events on a topic, or in the live outbox, that the log does not give.
_UNKNOWN = """
SELECT coalesce(s.channel, l.channel) AS channel, id, coalesce(s.batch_id, l.batch_id) AS batch_id,
       s.partition, s.record_offset, l.id IS NOT NULL AS is_known
FROM (SELECT * FROM scanned s WHERE {counts}) s
FULL JOIN (SELECT * FROM {live}.outbox s WHERE s.value IS NOT NULL AND {counts}) l USING (id)
WHERE {folded} AND NOT EXISTS (SELECT FROM outbox o WHERE o.id = coalesce(s.id, l.id))
ORDER BY channel, id
"""

# Rows of the live outbox that are not what the log gives; where the topic has the same, it is named there.
_ALTERED = """
SELECT l.channel, l.id, l.batch_id FROM {live}.outbox l JOIN outbox s USING (id)
WHERE {folded} AND {counts} AND l.value IS NOT NULL
  AND (l.value, l.channel, l.revision) IS DISTINCT FROM (s.value, s.channel, s.revision)
  AND NOT EXISTS (SELECT FROM scanned f WHERE f.id = l.id AND f.digest <> md5(s.value))
ORDER BY l.channel, l.id
"""

# Events that the log gives and their topic lacks, though nothing is left that would publish them.
_MISSING = """
SELECT s.channel, s.id, s.batch_id, s.headers::json ->> 'ce_time' AS time,
       l.id IS NULL AS is_lost, l.published_partition AS partition, l.published_offset AS record_offset,
       (s.value::json #>> '{{as_of,offset}}')::int8 AS decided_offset
FROM outbox s LEFT JOIN {live}.outbox l USING (id)
WHERE {folded} AND {counts} AND (l.id IS NULL OR l.published_at IS NOT NULL)
  AND NOT EXISTS (SELECT FROM scanned f WHERE f.id = s.id)
  AND NOT EXISTS (SELECT FROM scanned n WHERE s.channel = 'finalized' AND n.channel = 'finalized'
                                          AND n.batch_id = s.batch_id AND n.revision > s.revision)
  AND NOT EXISTS (SELECT FROM {live}.outbox n WHERE s.channel = 'finalized' AND n.channel = 'finalized'
                                          AND n.batch_id = s.batch_id AND n.revision > s.revision
                                          AND n.published_at IS NOT NULL)
ORDER BY s.channel, s.id
"""

_MISSING_LETTERS = """
SELECT 'dead-letters' AS channel, s.topic || '-' || s.partition || '@' || s.record_offset AS id, s.batch_id,
       to_char(s.appended_at, 'YYYY-MM-DD"T"HH24:MI:SS.USOF') AS time,
       l.published_partition AS partition, l.published_offset AS record_offset
FROM dead_letters s
JOIN {live}.dead_letters l
    ON l.topic = s.topic AND l.partition = s.partition AND l.record_offset = s.record_offset
WHERE {counts} AND l.published_at IS NOT NULL AND NOT EXISTS (
    SELECT FROM scanned f WHERE f.id = s.topic || '-' || s.partition || '@' || s.record_offset)
ORDER BY s.seq
"""

_ARE_KNOWN = "SELECT id FROM outbox WHERE id = ANY($1::text[])"


@dataclass(frozen=True, slots=True)
class Event:
    """An event that something is wrong with.

    ``at``: partitions and offsets on its topic, as far as known; ``decided_offset``: of the record that decided.
    """

    channel: str
    id: str
    batch_id: str | None
    at: tuple[tuple[int, int], ...] = ()
    time: datetime | None = None
    is_lost: bool = False
    is_known: bool = False
    decided_offset: int | None = None


class Comparison:
    """Compares within the transaction of a connection whose search path is the shadow's."""

    def __init__(self, connection: Connection, live: str, *, is_chosen: bool) -> None:
        self._connection = connection
        self._live = f'"{live}"'
        self._is_chosen = is_chosen

    async def prepare(self, batch_id: str | None, since: datetime | None) -> None:
        """Make the tables that only a comparison needs, and choose the batches."""
        await self._connection.execute('CREATE TABLE chosen (batch_id text COLLATE "C" PRIMARY KEY)')
        await self._connection.execute(_MAKE_SCANNED)
        await self._connection.execute(_MAKE_SPANS)
        if batch_id is not None:
            await self._connection.execute("INSERT INTO chosen VALUES ($1)", batch_id)
        if since is not None:
            await self._connection.execute(self._sql(_CHOOSE), since)

    async def note_spans(
        self, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], letters_kept_since: datetime
    ) -> None:
        """Compare dead letters of records from where each partition's log begins to before what is compared ends."""
        firsts = [starts[partition] for partition in ends]
        await self._connection.execute(_NOTE_SPANS, topic, list(ends), firsts, list(ends.values()), letters_kept_since)

    async def leave_out(self, partition: int, first_time: datetime | None) -> None:
        """Leave out batches of a partition that began before its log does (None: the log holds nothing of it)."""
        moment = first_time or datetime.max.replace(tzinfo=UTC)
        await self._connection.execute(self._sql(_UNVERIFIABLE), partition, moment)

    async def count(self) -> tuple[int, int]:
        """How many batches are compared, and how many are left out because their beginning is gone."""
        compared = await self._connection.fetchval(
            f"SELECT count(*) FROM (SELECT batch_id FROM {self._live}.batches UNION SELECT batch_id FROM batches) s"
            f" WHERE {self._counts()}"
        )
        left_out = await self._connection.fetchval(
            "SELECT count(*) FROM incomplete_history s"
            + (" WHERE EXISTS (SELECT FROM chosen c WHERE c.batch_id = s.batch_id)" if self._is_chosen else "")
        )
        return int(compared), int(left_out)

    async def state(self) -> AsyncIterator[Differing]:
        """Rows that differ, table by table, in the order of their keys."""
        for compared in STATE:
            async for row in self._connection.cursor(self._differing(compared), prefetch=FETCH):
                live, log = _object(row["live"]), _object(row["log"])
                key = {name: row[name] for name in compared.keys}
                yield Differing(compared.table.name, key, live, log)

    async def note_scanned(self, found: Sequence[tuple[Any, ...]]) -> None:
        """Add records of the output topics: channel, id, batch id, revision, partition, offset, md5 of the value."""
        await copying.within_time(
            self._connection,
            self._connection.copy_records_to_table("scanned", records=found, columns=_SCANNED_COLUMNS),
        )

    async def duplicated(self) -> AsyncIterator[Event]:
        """Events that are on their topic more than once."""
        async for row in self._connection.cursor(self._sql(_DUPLICATED), prefetch=FETCH):
            yield Event(row["channel"], row["id"], row["batch_id"], tuple(map(_place, row["at"])))

    def contradicting(self) -> AsyncIterator[Event]:
        """Events whose bytes on the topic are not those that the log gives."""
        return self._events(_CONTRADICTING)

    def altered(self) -> AsyncIterator[Event]:
        """Events whose row in the live outbox is not what the log gives."""
        return self._events(_ALTERED)

    def unknown(self) -> AsyncIterator[Event]:
        """Events on a topic or in the live outbox that the log does not give (or, with ``is_known`` false, not yet)."""
        return self._events(_UNKNOWN)

    def missing(self) -> AsyncIterator[Event]:
        """Events that the log gives, that count as published (or are lost), and that their topic does not hold."""
        return self._events(_MISSING, _MISSING_LETTERS)

    async def _events(self, *statements: str) -> AsyncIterator[Event]:
        for statement in statements:
            async for record in self._connection.cursor(self._sql(statement), prefetch=FETCH):
                row = dict(record)
                yield Event(
                    row["channel"],
                    row["id"],
                    row["batch_id"],
                    ((row["partition"], row["record_offset"]),) if row.get("record_offset") is not None else (),
                    datetime.fromisoformat(row["time"]) if row.get("time") else None,
                    bool(row.get("is_lost")),
                    bool(row.get("is_known")),
                    row.get("decided_offset"),
                )

    def _differing(self, compared: Compared) -> str:
        counts, not_trimmed = self._counts() + (_IS_KEPT if compared.table in _ITEMS else ""), ""
        if compared.table is tables.dead_letters:
            counts, not_trimmed = counts + _IS_READ, _IS_NOT_TRIMMED.format(live=self._live)
        keys, name = ", ".join(compared.keys), compared.table.name
        columns = ", ".join(f"{_comparable(compared.table, column)} AS {column}" for column in compared.columns)
        fields = f"{keys}, {columns}" if columns else keys
        first = compared.keys[0]
        differ = " OR ".join(f"l.{column} IS DISTINCT FROM s.{column}" for column in compared.columns)
        return f"""
SELECT {keys}, CASE WHEN l.{first} IS NOT NULL THEN to_jsonb(l) END AS live,
       CASE WHEN s.{first} IS NOT NULL THEN to_jsonb(s) END AS log
FROM (SELECT {fields} FROM {self._live}.{name} s WHERE {counts}) l
FULL JOIN (SELECT {fields} FROM {name} s WHERE {counts}{not_trimmed}) s USING ({keys})
WHERE l.{first} IS NULL OR s.{first} IS NULL {f"OR {differ}" if differ else ""}
ORDER BY {keys}
"""

    def _sql(self, statement: str) -> str:
        return statement.format(live=self._live, counts=self._counts(), folded=_IS_FOLDED)

    def _counts(self) -> str:
        """Whether the batch of a row ``s`` is compared."""
        seen = "NOT EXISTS (SELECT FROM incomplete_history u WHERE u.batch_id = s.batch_id)"
        return f"({seen} AND EXISTS (SELECT FROM chosen c WHERE c.batch_id = s.batch_id))" if self._is_chosen else seen


async def are_known(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Which of these events the outbox has by now."""
    rows = await connection.fetch(_ARE_KNOWN, list(ids))
    return {row[0] for row in rows}


def differing_columns(differing: Differing) -> list[str]:
    """The columns in which the two rows differ."""
    live, log = differing.live or {}, differing.log or {}
    return [name for name in {**live, **log} if live.get(name) != log.get(name)]


def _comparable(table: Table, column: str) -> str:
    return f"{column}::text" if isinstance(table.c[column].type, JSON) else column


def _object(row: str | None) -> dict[str, Any] | None:
    return None if row is None else json.loads(row)


def _place(text: str) -> tuple[int, int]:
    partition, offset = text.split(":")
    return int(partition), int(offset)
