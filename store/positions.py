"""Statements on ``positions`` and ``logs``: how far each partition is applied, and the compare-and-set that fences.

The compare-and-set is the first statement of every micro-batch's transaction. Its row lock orders the writers of a
partition, its condition lets only the one pass whose reading began where the last one's ended: a paused or zombie
worker changes no row and rolls back.
"""

import json
from collections.abc import Iterable, Sequence

from asyncpg import Record

from store.connection import Connection
from store.rows import Position

# The positions of one topic's partitions. At most one row a partition.
_LOAD = """
SELECT partition, next_offset, last_offset, last_timestamp, last_checksum, taken
FROM positions WHERE topic = $1 AND partition = ANY($2::int4[])
"""

# A partition is read for the first time; whoever comes first, wins.
_CREATE = """
INSERT INTO positions (topic, partition, next_offset, first_offset)
SELECT $1, v.partition, v.next_offset, v.next_offset FROM unnest($2::int4[], $3::int8[]) AS v(partition, next_offset)
ORDER BY v.partition
ON CONFLICT DO NOTHING
"""

# Where reading of each partition began; unknown of those that were begun before this was noted.
_FIRST_OFFSETS = """
SELECT partition, first_offset FROM positions
WHERE topic = $1 AND partition = ANY($2::int4[]) AND first_offset IS NOT NULL
"""

# All positions of a topic, in the schema named.
_ALL = """
SELECT partition, next_offset, last_offset, last_timestamp, last_checksum, taken
FROM "{schema}".positions WHERE topic = $1 ORDER BY partition
"""

# Locks the rows that still stand where expected, in order of partition. Fewer rows than asked for: a lost race.
_LOCK = """
SELECT p.partition FROM unnest($2::int4[], $3::int8[]) AS v(partition, expected)
JOIN positions p ON p.topic = $1 AND p.partition = v.partition AND p.next_offset = v.expected
ORDER BY p.partition FOR NO KEY UPDATE OF p
"""

# Moves locked rows on. One row a partition.
_ADVANCE = """
UPDATE positions p
SET next_offset = v.next_offset, last_offset = v.last_offset, last_timestamp = v.last_timestamp,
    last_checksum = v.last_checksum, taken = v.taken
FROM unnest($2::int4[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::json[])
     AS v(partition, next_offset, last_offset, last_timestamp, last_checksum, taken)
WHERE p.topic = $1 AND p.partition = v.partition
"""

# Where reading of the output topics goes on; it is the relay that reads on.
_KNOWN = """
INSERT INTO positions (topic, partition, next_offset)
SELECT $1, v.partition, v.next_offset FROM unnest($2::int4[], $3::int8[]) AS v(partition, next_offset)
ORDER BY v.partition
ON CONFLICT (topic, partition) DO UPDATE SET next_offset = greatest(positions.next_offset, EXCLUDED.next_offset)
"""

# An output topic is another one than it was.
_SET_BACK = """
UPDATE positions p SET next_offset = v.next_offset
FROM unnest($2::int4[], $3::int8[]) AS v(partition, next_offset)
WHERE p.topic = $1 AND p.partition = v.partition AND p.next_offset > v.next_offset
"""

# One process at a time fixes what is fixed at the first start.
_LOCK_LOGS = "LOCK TABLE logs IN SHARE ROW EXCLUSIVE MODE"

# The log this schema is the state of. At most one row.
_LOG = "SELECT topic, partition_count FROM logs"

_FIX_LOG = "INSERT INTO logs (topic, partition_count) VALUES ($1, $2)"


class LostRaceError(Exception):
    """Another worker has moved a position on: what was decoded is not ours to apply."""


class ForeignLogError(Exception):
    """A schema belongs to one log; this one belongs to another. The message says what to set."""


async def load(connection: Connection, topic: str, partitions: Sequence[int]) -> dict[int, Position]:
    """The known positions among these partitions."""
    return _positions(await connection.fetch(_LOAD, topic, partitions))


async def load_all(connection: Connection, schema: str, topic: str) -> dict[int, Position]:
    """All positions of a topic that a schema knows, whatever the search path."""
    return _positions(await connection.fetch(_ALL.format(schema=schema), topic))


async def first_offsets(connection: Connection, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Where reading of these partitions began, as far as known."""
    return {row[0]: row[1] for row in await connection.fetch(_FIRST_OFFSETS, topic, partitions)}


def _positions(rows: Iterable[Record]) -> dict[int, Position]:
    return {row[0]: Position(row[0], row[1], row[2], row[3], row[4], _offsets(row[5])) for row in rows}


def _offsets(taken: str) -> dict[int, int]:
    return {int(source): offset for source, offset in json.loads(taken).items()}


async def create(connection: Connection, topic: str, starts: dict[int, int]) -> None:
    """Partition to the offset at which its reading begins, where it has no position yet."""
    await connection.execute(_CREATE, topic, list(starts), list(starts.values()))


async def compare_and_set(connection: Connection, topic: str, advances: Sequence[tuple[int, Position]]) -> None:
    """Move positions on from their expected offsets, all or none. Raises LostRaceError where one is elsewhere."""
    locked = await connection.fetch(
        _LOCK, topic, [new.partition for _, new in advances], [expected for expected, _ in advances]
    )
    if len(locked) != len(advances):
        raise LostRaceError(f"{topic}: {len(advances) - len(locked)} of {len(advances)} positions have moved on")
    await connection.execute(
        _ADVANCE,
        topic,
        [new.partition for _, new in advances],
        [new.next_offset for _, new in advances],
        [new.last_offset for _, new in advances],
        [new.last_timestamp for _, new in advances],
        [new.last_checksum for _, new in advances],
        [json.dumps(new.taken) for _, new in advances],
    )


async def let_commit_skip_disk(connection: Connection) -> None:
    """Let this transaction's commit not wait for the disk: should a crash lose it, its positions are lost with it."""
    await connection.execute("SET LOCAL synchronous_commit TO OFF")


async def note_known(connection: Connection, topic: str, next_offsets: dict[int, int]) -> None:
    """Everything before these offsets of an output topic is in the outbox; never moves back."""
    await connection.execute(_KNOWN, topic, list(next_offsets), list(next_offsets.values()))


async def forget_known(connection: Connection, topic: str, next_offsets: dict[int, int]) -> None:
    """No more than what is before these offsets of an output topic is in the outbox; never moves on."""
    await connection.execute(_SET_BACK, topic, list(next_offsets), list(next_offsets.values()))


async def partition_count(connection: Connection, topic: str) -> int | None:
    """The partition count that fixes every batch's home; None before the first start, also where there is no schema.

    Raises ForeignLogError where this schema is the state of another log.
    """
    if not await connection.fetchval("SELECT to_regclass('logs') IS NOT NULL"):
        return None
    known = await connection.fetchrow(_LOG)
    return None if known is None else _count_of(known, topic)


async def fix_partition_count(connection: Connection, topic: str, found: int) -> int:
    """The partition count that fixes every batch's home: the one found at the first start, whatever is found now.

    Raises ForeignLogError where this schema is the state of another log.
    """
    async with connection.transaction():
        await connection.execute(_LOCK_LOGS)
        known = await connection.fetchrow(_LOG)
        if known is None:
            await connection.execute(_FIX_LOG, topic, found)
            return found
    return _count_of(known, topic)


def _count_of(known: Record, topic: str) -> int:
    if known["topic"] != topic:
        raise ForeignLogError(
            f"the schema holds the state of {known['topic']}, not of {topic}:"
            " each topic prefix needs a schema of its own (ROLLCALL_DATABASE_SCHEMA)"
        )
    return int(known["partition_count"])
