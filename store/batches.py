"""Statements on ``batches``. A batch has one writer, the worker whose compare-and-set of its position succeeded.

But for ``published_at``: the relay says it, the worker takes it back where there is a new revision.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter

from store import copying
from store.connection import Connection
from store.rows import Batch
from store.statements import Rows, array_literal, types_of
from store.tables import batches

_COLUMNS = Batch.__struct_fields__
_values = attrgetter(*_COLUMNS)
_ROWS = Rows(types_of(batches, _COLUMNS), large=("reason",))
_PUBLISHED = Rows(types_of(batches, ("batch_id", "revision", "published_at")))

# The touched batches of a micro-batch, by key. At most one row an id.
_LOAD = f"SELECT {_ROWS.columns} FROM batches WHERE batch_id = ANY($1::text::text[])"

# All columns of each batch; sorted, so that rows are locked in one order everywhere. Of a new revision nobody is told.
_WRITE = f"""
INSERT INTO batches ({_ROWS.columns})
SELECT {_ROWS.columns} FROM {_ROWS.source} ORDER BY batch_id
ON CONFLICT (batch_id) DO UPDATE SET {", ".join(f"{column} = EXCLUDED.{column}" for column in _COLUMNS[1:])},
    published_at = CASE WHEN batches.revision = EXCLUDED.revision THEN batches.published_at END
"""

# When the broker has acknowledged a batch's newest event; sorted, as above.
_MARK_PUBLISHED = f"""
WITH published AS MATERIALIZED (
    SELECT b.batch_id, v.published_at
    FROM {_PUBLISHED.source}
    JOIN batches b ON b.batch_id = v.batch_id AND b.revision = v.revision
    ORDER BY b.batch_id FOR NO KEY UPDATE OF b
)
UPDATE batches b SET published_at = p.published_at FROM published p WHERE b.batch_id = p.batch_id
"""


async def load(connection: Connection, batch_ids: Sequence[str]) -> dict[str, Batch]:
    """The known ones of these batches."""
    rows = await connection.fetch(_LOAD, array_literal(batch_ids))
    return {row[0]: Batch(*row) for row in rows}


async def copy_new(connection: Connection, new: Sequence[Batch]) -> None:
    """Write batches that have no row yet; its bytes cost half of what an upsert's parameters do.

    Raises asyncpg.UniqueViolationError where one has.
    """
    if new:
        await copying.copy(connection, "batches", copying.BATCH_COLUMNS, copying.batch_rows(new))


async def write(connection: Connection, changed: Sequence[Batch]) -> None:
    """Write batches, whether they have a row or not."""
    if changed:
        await connection.execute(_WRITE, *_ROWS.parameters(map(_values, changed)))


async def mark_published(connection: Connection, published: Iterable[tuple[str, int, object]]) -> None:
    """(batch id, revision, time) of events that the broker has; other revisions' batches are left alone."""
    rows = list(published)
    if rows:
        await connection.execute(_MARK_PUBLISHED, *_PUBLISHED.parameters(rows))
