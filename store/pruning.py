"""Statements that delete the items of batches that the log says are pruned, in chunks, so that nobody waits for locks.

Which batches are pruned is state, made by the fold; when their rows go is nobody's business but the disk's. So the rows
of a pruned batch may be back (in a shadow that was promoted, in a database made anew) and are found and deleted again.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from store import promotion
from store.connection import Connection

# Its rows are still needed: a summary of how it ended is to be computed from them.
_WAITED_FOR = """EXISTS (
    SELECT FROM summaries s WHERE s.batch_id = b.batch_id AND s.revision = b.revision AND s.state = 'pending')"""

_ROWS = ("b.succeeded + b.partial + b.failed + b.skipped + b.retrying", "b.late", "coalesce(b.expected, 0)")
_IN_ALL = " + ".join(f"({rows})::int8" for rows in _ROWS)

_IS_DUE = f"b.outcome IS NOT NULL AND b.pruned_at IS NULL AND b.finalized_at < $1 AND NOT {_WAITED_FOR}"

# Batches to be pruned, by id. (finalized before, behind this id, how many)
_DUE = f"""
SELECT b.batch_id, b.revision, {_IN_ALL} AS rows, greatest({", ".join(_ROWS)}) AS most
FROM batches b WHERE {_IS_DUE} AND b.batch_id > $2 ORDER BY b.batch_id LIMIT $3
"""

_COUNT_DUE = f"SELECT count(*), coalesce(sum({_IN_ALL}), 0)::int8 FROM batches b WHERE {_IS_DUE}"

# How many of these are pruned: one that was reopened meanwhile is not. (batch ids)
_COUNT_PRUNED = "SELECT count(*) FROM batches WHERE batch_id = ANY($1::text[]) AND pruned_at IS NOT NULL"

TABLES = ("item_results", "late_results", "expected_items")
_HAS_ROWS = " OR ".join(f"EXISTS (SELECT FROM {table} i WHERE i.batch_id = b.batch_id)" for table in TABLES)

# Pruned batches of which rows are left. (behind this id, how many)
_LEFT = f"""
SELECT b.batch_id, b.revision, {_IN_ALL} AS rows, greatest({", ".join(_ROWS)}) AS most
FROM batches b WHERE b.pruned_at IS NOT NULL AND ({_HAS_ROWS}) AND b.batch_id > $1 ORDER BY b.batch_id LIMIT $2
"""

# Some rows of pruned batches, by item. At most one row: how many, and the last item. (batch ids, behind this item, how
# many)
_DELETE = f"""
WITH pruned AS MATERIALIZED (
    SELECT b.batch_id FROM batches b
    WHERE b.batch_id = ANY($1::text[]) AND b.pruned_at IS NOT NULL AND NOT {_WAITED_FOR}
), chosen AS MATERIALIZED (
    SELECT i.ctid AS place FROM {{table}} i
    WHERE i.batch_id = ANY(ARRAY(SELECT batch_id FROM pruned)) AND i.item_id > $2
    ORDER BY i.batch_id, i.item_id LIMIT $3
), gone AS (
    DELETE FROM {{table}} WHERE ctid = ANY(ARRAY(SELECT place FROM chosen)) AND batch_id = ANY($1::text[])
    RETURNING item_id
)
SELECT count(*), max(item_id) FROM gone
"""


class Prunable(NamedTuple):
    """A batch, how many rows of items it has, in all and of one table at most."""

    batch_id: str
    revision: int
    rows: int
    most: int


async def due(connection: Connection, finalized_before: datetime, after: str, limit: int) -> list[Prunable]:
    """Batches that ended before a time and whose items are kept; by id, behind the one given."""
    return [Prunable(*row) for row in await connection.fetch(_DUE, finalized_before, after, limit)]


async def count_due(connection: Connection, finalized_before: datetime) -> tuple[int, int]:
    """How many batches that are, and how many rows."""
    row = await connection.fetchrow(_COUNT_DUE, finalized_before)
    assert row is not None
    return int(row[0]), int(row[1])


async def count_pruned(connection: Connection, batch_ids: Sequence[str]) -> int:
    """How many of these batches are pruned by now."""
    return int(await connection.fetchval(_COUNT_PRUNED, batch_ids))


async def left(connection: Connection, after: str, limit: int) -> list[Prunable]:
    """Batches that are pruned and whose rows are still there; by id, behind the one given."""
    return [Prunable(*row) for row in await connection.fetch(_LEFT, after, limit)]


async def delete_some(
    connection: Connection, table: str, batch_ids: Sequence[str], after: str, limit: int
) -> tuple[int, str | None]:
    """Delete rows of those of these batches that are pruned, by item behind the one given; how many, and the last item.

    Of several batches all rows have to be within the limit: there is no going on behind an item then.
    """
    async with connection.transaction():
        await promotion.keep_off(connection)
        row = await connection.fetchrow(_DELETE.format(table=table), batch_ids, after, limit)
    assert row is not None
    return int(row[0]), row[1]
