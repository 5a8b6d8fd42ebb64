"""Statements that make a shadow the live schema, all in one transaction: what stays of the old one, then two renamings.

Every writer's first statement touches a table that this transaction has locked: it waits, and when the names have
changed hands PostgreSQL looks its table up anew. So nobody writes into the old schema behind what was copied from it,
and no micro-batch is half in one and half in the other (its first statement locks its rows of ``positions``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from store import tables
from store.connection import Connection
from store.outbox import WITHHELD
from store.rights import take_rights
from store.statements import column_list

# In the order in which a micro-batch touches them, so that nobody waits for us while we wait for them.
_LOCKED = (
    *("positions", "batches", "expected_items", "item_results", "late_results", "summaries", "outbox"),
    *("dead_letters", "incomplete_history"),
)

# Made from the log; every other table (keys, what was done by whom) is nowhere else and moves over.
DERIVED = frozenset({*_LOCKED, "logs", "alembic_version"})

_OTHERS = """
SELECT c.relname, EXISTS (
    SELECT FROM pg_class s WHERE s.relname = c.relname AND s.relnamespace = to_regnamespace(quote_ident($2))
) AS is_in_shadow
FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind IN ('r', 'p')
ORDER BY c.relname
"""

_OUTBOX = column_list(column.name for column in tables.outbox.columns if column.name != "seq")
_MARKS = ("published_at", "published_partition", "published_offset", "refused")
_LETTER_MARKS = (*_MARKS, "redriven_at", "discarded_at", "discard_reason")


def _take_marks(table: str, keys: Sequence[str], marks: Sequence[str]) -> str:
    same = " AND ".join(f"s.{key} = l.{key}" for key in keys)
    return f"""
UPDATE {{shadow}}.{table} s SET {", ".join(f"{mark} = l.{mark}" for mark in marks)}
FROM {{live}}.{table} l WHERE {same}
  AND ({column_list(marks, "l.")}) IS DISTINCT FROM ({column_list(marks, "s.")})
"""


# What is published, refused or done with, is so in the new schema as well.
_MARK_EVENTS = _take_marks("outbox", ("id",), _MARKS)
_MARK_LETTERS = _take_marks("dead_letters", ("topic", "partition", "record_offset"), _LETTER_MARKS)

_MARK_BATCHES = """
UPDATE {shadow}.batches s SET published_at = l.published_at FROM {live}.batches l
WHERE s.batch_id = l.batch_id AND s.revision = l.revision AND s.published_at IS DISTINCT FROM l.published_at
"""

# Events that only the old schema has; but not those still unpublished that the log, folded anew, does not give.
_COPY_EVENTS = f"""
INSERT INTO {{shadow}}.outbox ({_OUTBOX})
SELECT {_OUTBOX} FROM {{live}}.outbox l
WHERE NOT EXISTS (SELECT FROM {{shadow}}.outbox s WHERE s.id = l.id)
  AND (l.published_at IS NOT NULL OR split_part(l.id, '/', 1) NOT IN ('batch.finalized', 'batch.retry_requested')
       OR EXISTS (SELECT FROM {{shadow}}.carried c WHERE c.batch_id = l.batch_id))
ORDER BY l.seq
"""

# Dead letters that no replay can give: of records that it has not folded (before where it began; or, found on the topic
# after a loss of the database, yet to be read), of batches that are carried, and of forwards that the broker refused,
# which only a worker tries. Those name no batch, as all others that are too large do.
_COPY_LETTERS = """
INSERT INTO {shadow}.dead_letters ({columns})
SELECT {columns} FROM {live}.dead_letters l
WHERE NOT EXISTS (
        SELECT FROM {shadow}.dead_letters s
        WHERE s.topic = l.topic AND s.partition = l.partition AND s.record_offset = l.record_offset)
  AND (NOT EXISTS (
        SELECT FROM {shadow}.positions p WHERE p.topic = l.topic AND p.partition = l.partition
                                           AND p.first_offset <= l.record_offset AND p.next_offset > l.record_offset)
       OR EXISTS (SELECT FROM {shadow}.carried c WHERE c.batch_id = l.batch_id)
       OR l.reason = 'too_large' AND l.batch_id IS NULL)
ORDER BY l.seq
"""

_IS_NEW_LETTER = """s.published_at IS NULL AND s.refused IS NULL AND NOT EXISTS (
    SELECT FROM {live}.dead_letters l
    WHERE l.topic = s.topic AND l.partition = s.partition AND l.record_offset = s.record_offset)"""

# Dead letters that the old schema had too, long ago: they are published, and their rows were trimmed. (kept since)
_DROP_TRIMMED_LETTERS = f"DELETE FROM {{shadow}}.dead_letters s WHERE s.appended_at < $1 AND {_IS_NEW_LETTER}"

# An event that the old schema decided too, long ago: it is published, and its row was trimmed.
_MARK_TRIMMED = """
UPDATE {shadow}.outbox s SET published_at = coalesce(l.published_at, l.finalized_at, now())
FROM {live}.batches l
WHERE s.channel = 'finalized' AND s.published_at IS NULL AND s.refused IS NULL
  AND l.batch_id = s.batch_id AND l.revision >= s.revision
  AND NOT EXISTS (SELECT FROM {live}.outbox o WHERE o.id = s.id)
"""

# A summary that the old schema published, and whose row was trimmed: what is computed anew would go out under its id,
# which has the offset it was asked for only where that is not the deciding record's.
_NOTE_TRIMMED_SUMMARIES = """
INSERT INTO {shadow}.outbox (id, channel, batch_id, published_at)
SELECT id, 'summaries', batch_id, requested_at FROM (
    SELECT 'batch.summarized/' || s.batch_id || '/' || s.revision
           || CASE WHEN s.requested_offset = n.decided_offset THEN '' ELSE '/' || s.requested_offset END AS id,
           s.batch_id, s.requested_at
    FROM {shadow}.summaries s JOIN {shadow}.batches n USING (batch_id) JOIN {live}.summaries l USING (batch_id)
    WHERE s.state = 'pending' AND (l.revision > s.revision OR l.revision = s.revision AND l.state = 'ready')
      AND (s.requested_offset = n.decided_offset OR s.requested_offset = l.requested_offset)
) told WHERE NOT EXISTS (SELECT FROM {live}.outbox o WHERE o.id = told.id)
ON CONFLICT (id) DO NOTHING
"""

# Alerts about time of batches that are open after all, which the old schema may have raised, and whose rows were
# trimmed once these had ended there, or gone on to another generation: one that it has not raised stays unsaid.
# (kept since)
_NOTE_TRIMMED_ALERTS = """
INSERT INTO {shadow}.outbox (id, channel, batch_id, published_at)
SELECT a.alert || '/' || s.batch_id || '/' || s.generation, 'alerts', s.batch_id, $1
FROM {shadow}.batches s JOIN {live}.batches l USING (batch_id)
CROSS JOIN unnest(ARRAY['batch.slow_detected', 'batch.stall_detected', 'batch.never_opened']) AS a(alert)
WHERE s.outcome IS NULL AND coalesce(s.reopened_at, least(s.opened_at, s.first_result_at)) < $1
  AND (l.generation > s.generation OR l.generation = s.generation AND l.outcome IS NOT NULL)
ON CONFLICT (id) DO NOTHING
"""

# What an earlier promotion withheld, where it is asked for now; but no outcome that has been replaced since.
_RELEASE_EVENTS = f"""
UPDATE {{shadow}}.outbox s SET refused = NULL
WHERE s.channel = 'finalized' AND s.published_at IS NULL AND s.refused = '{WITHHELD}'
  AND NOT EXISTS (SELECT FROM {{live}}.batches l WHERE l.batch_id = s.batch_id AND l.revision > s.revision)
"""
_RELEASE_LETTERS = f"""
UPDATE {{shadow}}.dead_letters SET refused = NULL WHERE published_at IS NULL AND refused = '{WITHHELD}'
"""

# What only the log folded anew gives, and nobody was ever told. (whether finalized events may go out)
_WITHHOLD = f"""
UPDATE {{shadow}}.outbox s SET refused = '{WITHHELD}'
WHERE s.published_at IS NULL AND s.refused IS NULL AND NOT ($1 AND s.channel = 'finalized')
  AND NOT EXISTS (SELECT FROM {{live}}.outbox o WHERE o.id = s.id)
"""
_WITHHOLD_LETTERS = f"UPDATE {{shadow}}.dead_letters s SET refused = '{WITHHELD}' WHERE {_IS_NEW_LETTER}"

# Of a partition whose replay began midway, batches that the old schema has known since before. (partition, since when)
_MARK_INCOMPLETE = """
INSERT INTO {shadow}.incomplete_history
SELECT s.batch_id FROM {shadow}.batches s JOIN {live}.batches l USING (batch_id)
WHERE s.partition = $1 AND coalesce(least(l.opened_at, l.first_result_at, l.finalized_at) <= $2, true)
ON CONFLICT DO NOTHING
"""

_CARRY = """
CREATE TABLE {shadow}.carried AS
SELECT l.batch_id FROM {live}.batches l
JOIN {shadow}.positions p ON p.topic = $1 AND p.partition = l.partition AND p.first_offset > 0
WHERE EXISTS (SELECT FROM {shadow}.incomplete_history i WHERE i.batch_id = l.batch_id)
   OR NOT EXISTS (SELECT FROM {shadow}.batches s WHERE s.batch_id = l.batch_id)
"""

_COUNTS = (
    *("outcome", "revision", "total_items", "expected", "matched", "succeeded", "partial", "failed", "skipped"),
    *("retrying", "created", "updated", "unchanged", "late", "last_result_offset", "decided_offset"),
)

# Summaries of batches that are as they were need no computing again.
_TAKE_SUMMARIES = f"""
UPDATE {{shadow}}.summaries s SET state = l.state, attempts = l.attempts, retry_at = l.retry_at, problem = l.problem,
    summary = l.summary
FROM {{live}}.summaries l, {{live}}.batches b, {{shadow}}.batches n
WHERE s.batch_id = l.batch_id AND b.batch_id = l.batch_id AND n.batch_id = l.batch_id
  AND (s.revision, s.requested_offset) = (l.revision, l.requested_offset)
  AND s.state = 'pending' AND l.state <> 'pending'
  AND ({column_list(_COUNTS, "b.")}) IS NOT DISTINCT FROM ({column_list(_COUNTS, "n.")})
"""

# The old schema's places in all topics; where reading of the log began is the replay's own.
_TAKE_POSITIONS = """
MERGE INTO {shadow}.positions s USING {live}.positions l ON s.topic = l.topic AND s.partition = l.partition
WHEN MATCHED THEN UPDATE SET next_offset = l.next_offset, last_offset = l.last_offset, taken = l.taken,
    last_timestamp = l.last_timestamp, last_checksum = l.last_checksum
WHEN NOT MATCHED THEN INSERT (topic, partition, next_offset, last_offset, last_timestamp, last_checksum, taken,
                              first_offset)
VALUES (l.topic, l.partition, l.next_offset, l.last_offset, l.last_timestamp, l.last_checksum, l.taken, l.first_offset)
"""

# What people were told of batches, and what the log gives, where that is another outcome or number. They were told
# nothing where every revision is still withheld.
_CHANGED = f"""
SELECT l.batch_id, l.partition, l.revision AS old_revision, l.outcome AS old_outcome,
       s.revision AS new_revision, s.outcome AS new_outcome, s.pruned_at IS NOT NULL AS is_pruned,
       l.revision > (SELECT count(*) FROM {{live}}.outbox o
                     WHERE o.channel = 'finalized' AND o.batch_id = l.batch_id AND o.refused = '{WITHHELD}') AS is_told
FROM {{live}}.batches l JOIN {{shadow}}.batches s USING (batch_id)
WHERE (l.outcome, l.revision) IS DISTINCT FROM (s.outcome, s.revision) ORDER BY batch_id
"""

# Batches that the log, read from its beginning, does not know.
_DROPPED = """
SELECT l.batch_id FROM {live}.batches l WHERE NOT EXISTS (
    SELECT FROM {shadow}.batches s WHERE s.batch_id = l.batch_id) ORDER BY l.batch_id
"""


@dataclass(frozen=True, slots=True)
class Changed:
    """A batch whose outcome, or number of revisions, is not what it was."""

    batch_id: str
    partition: int
    old_revision: int
    old_outcome: str | None
    new_revision: int
    new_outcome: str | None
    is_pruned: bool
    is_told: bool

    @property
    def needs_correction(self) -> bool:
        """Whether what was published is wrong, and nothing that waits to be published says so.

        Nothing is said any more of a batch that is pruned.
        """
        return self.is_told and self.new_revision <= self.old_revision and not self.is_pruned

    @property
    def is_open(self) -> bool:
        """Whether it has not ended after all: correcting its number then tells nobody anything."""
        return self.new_outcome is None

    @property
    def would_repeat_a_number(self) -> bool:
        """Whether what it ends as next would go by a number that was published, and so be taken for published."""
        return self.is_told and self.new_revision < self.old_revision and not self.is_pruned


# A promotion then comes wholly before or wholly behind this transaction. Were we cut off then, it would wait for us:
# asyncpg may be in the midst of preparing a statement, which counts as no idleness.
_KEEP_OFF = "LOCK TABLE positions IN ROW SHARE MODE; SET LOCAL transaction_timeout TO '30s'"


async def keep_off(connection: Connection) -> None:
    """Let no promotion happen until this transaction ends, which it does in 30 s; the first statement of one.

    A statement whose first table is only read does not wait for one, and would look for the places of one schema's rows
    in the other's.
    """
    await connection.execute(_KEEP_OFF)


async def identity(connection: Connection, live: str) -> int | None:
    """Which schema has the live one's name now: another one after each promotion, also to a transaction begun before.

    Its rows would be those of its snapshot, though, which a replay may have written since: half of both.
    """
    found: int | None = await connection.fetchval("SELECT to_regnamespace(quote_ident($1))::oid::int8", live)
    return found


class Promotion:
    """The statements, on a connection within a transaction, for these two schemas."""

    def __init__(self, connection: Connection, live: str, shadow: str) -> None:
        self._connection = connection
        self._live, self.shadow = live, shadow

    async def prepare(self, letters_kept_since: datetime) -> None:
        """Do before the pause what can be done before it, and let the planner know what the shadow is like then."""
        await self._clean()
        await self.take_marks()
        await self._execute(_DROP_TRIMMED_LETTERS, letters_kept_since)
        await self._clean()

    async def _clean(self) -> None:
        for name in ("batches", "outbox", "summaries", "dead_letters", "incomplete_history"):
            await self._execute(f"VACUUM (ANALYZE) {{shadow}}.{name}")

    async def take_marks(self) -> None:
        """Note in the shadow what is published and summarized; what was noted before costs little again."""
        for statement in (_MARK_EVENTS, _MARK_LETTERS, _MARK_BATCHES, _TAKE_SUMMARIES):
            await self._execute(statement)

    async def mark_incomplete(self, begins: Mapping[int, datetime | None]) -> None:
        """Mark batches that the live schema has known since before where the replay of a partition began.

        ``begins`` are the append times of the last records before that (None: all of the partition's batches).
        """
        for partition, time in begins.items():
            await self._execute(_MARK_INCOMPLETE, partition, time or datetime.max.replace(tzinfo=UTC))

    async def lock(self) -> None:
        """Let all writers wait until this transaction ends, and readers of what is moved: keys, who did what.

        Those first: moving wants them for itself, which a dump stands in the way of, and who acts over HTTP writes
        down that before the outbox.
        """
        moved = [f'{{live}}."{name}"' for name, _ in await self._others()]
        if moved:
            await self._execute(f"LOCK TABLE {', '.join(moved)} IN ACCESS EXCLUSIVE MODE")
        await self._execute(f"LOCK TABLE {', '.join(f'{{live}}.{table}' for table in _LOCKED)} IN EXCLUSIVE MODE")

    async def take_over(
        self,
        topic: str,
        begins: Mapping[int, datetime | None],
        *,
        events_kept_since: datetime,
        letters_kept_since: datetime,
        emit_changes: bool,
    ) -> tuple[list[Changed], list[str], int]:
        """Bring into the shadow all that is not made from the log, or lies before where the replay began.

        Events published before ``events_kept_since``, and dead letters from before ``letters_kept_since``, may have
        been trimmed. Returns the batches that are not what they were, those that the log does not know, and how many
        were carried.
        """
        await self.mark_incomplete(begins)
        await self._execute(_CARRY, topic)
        carried = await self._carry()
        await self._execute(_COPY_EVENTS)
        await self.take_marks()
        columns = column_list(column.name for column in tables.dead_letters.columns if column.name != "seq")
        await self._execute(_COPY_LETTERS.replace("{columns}", columns))
        await self._execute(_MARK_TRIMMED)
        await self._execute(_NOTE_TRIMMED_SUMMARIES)
        await self._execute(_NOTE_TRIMMED_ALERTS, events_kept_since)
        await self._execute(_DROP_TRIMMED_LETTERS, letters_kept_since)
        await self._execute(_WITHHOLD, emit_changes)
        for statement in (_RELEASE_EVENTS, _RELEASE_LETTERS) if emit_changes else (_WITHHOLD_LETTERS,):
            await self._execute(statement)
        await self._execute(_TAKE_POSITIONS)
        changed = [Changed(*row) for row in await self._connection.fetch(self._sql(_CHANGED))]
        dropped = [row[0] for row in await self._connection.fetch(self._sql(_DROPPED))]
        await self._execute("DROP TABLE {shadow}.carried")
        return changed, dropped, carried

    async def rename(self, now: datetime) -> str:
        """Give the shadow the live schema's rights and its name, and that another; returns that one."""
        for name, is_in_shadow in await self._others():
            if is_in_shadow:
                await self._execute(f'DROP TABLE {{shadow}}."{name}"')
            await self._execute(f'ALTER TABLE {{live}}."{name}" SET SCHEMA {{shadow}}')
        await take_rights(self._connection, self._live, self.shadow)
        old = f"{self._live[:40]}_until_{now:%Y%m%d_%H%M%S}"
        for statement in (
            f'ALTER SCHEMA {{live}} RENAME TO "{old}"',
            f'ALTER SCHEMA {{shadow}} RENAME TO "{self._live}"',
            f'COMMENT ON SCHEMA "{self._live}" IS NULL',
            f"COMMENT ON SCHEMA \"{old}\" IS 'Rollcall''s \"{self._live}\" until {now.isoformat()}; nothing uses it'",
        ):
            await self._execute(statement)
        return old

    async def _others(self) -> list[tuple[str, bool]]:
        """Tables of the live schema that are not made from the log, and whether the shadow has them too."""
        rows = await self._connection.fetch(_OTHERS, self._live, self.shadow)
        return [(row[0], row[1]) for row in rows if row[0] not in DERIVED]

    async def _carry(self) -> int:
        number = int(await self._connection.fetchval(self._sql("SELECT count(*) FROM {shadow}.carried")))
        if not number:
            return 0
        names = ("batches", "item_results", "late_results", "expected_items", "summaries", "incomplete_history")
        for name in names:
            columns = column_list(tables.metadata.tables[name].columns.keys())
            await self._execute(f"DELETE FROM {{shadow}}.{name} WHERE batch_id IN (SELECT * FROM {{shadow}}.carried)")
            await self._execute(
                f"INSERT INTO {{shadow}}.{name} ({columns}) SELECT {columns} FROM {{live}}.{name}"
                " WHERE batch_id IN (SELECT * FROM {shadow}.carried)"
            )
        # What their events were is in the old outbox; what half of their history gave is not what they are.
        await self._execute(
            "DELETE FROM {shadow}.outbox WHERE batch_id IN (SELECT * FROM {shadow}.carried) AND value IS NOT NULL"
        )
        # Half of a history also refuses what the whole one took, and takes what that refused: `_COPY_LETTERS`.
        await self._execute("DELETE FROM {shadow}.dead_letters WHERE batch_id IN (SELECT * FROM {shadow}.carried)")
        return number

    async def _execute(self, statement: str, *arguments: object) -> None:
        await self._connection.execute(self._sql(statement), *arguments)

    def _sql(self, statement: str) -> str:
        return statement.format(live=f'"{self._live}"', shadow=f'"{self.shadow}"')
