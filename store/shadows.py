"""Statements about shadows: schemas that a replay has folded the log into, beside the live one.

A comment on the schema says of which one it is the shadow, so that no replay ever writes into anything else.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from store.connection import Connection

# The comment of a schema. No row: there is no such schema; null: nobody has said anything of it.
_COMMENT = "SELECT obj_description(oid, 'pg_namespace') AS comment FROM pg_namespace WHERE nspname = $1"

# Which of these batches have no row.
_UNKNOWN = """
SELECT v.batch_id FROM unnest($1::text[]) AS v(batch_id)
WHERE NOT EXISTS (SELECT FROM batches b WHERE b.batch_id = v.batch_id)
"""

_MARK_INCOMPLETE = "INSERT INTO incomplete_history SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"

# Whether nobody else works on the schema of that name; for as long as the connection stands.
_RESERVE = "SELECT pg_try_advisory_lock(hashtextextended('rollcall shadow ' || current_database() || ' ' || $1, 0))"

_COUNT_INCOMPLETE = "SELECT count(*) FROM incomplete_history"


class NotAShadowError(Exception):
    """A schema is there that no replay has made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a shadow is of: the live schema, and the one batch that was replayed (None: all)."""

    of: str
    batch_id: str | None = None


async def find(connection: Connection, schema: str) -> Shadow | None:
    """What the schema of that name is a shadow of; None where there is no such schema.

    Raises NotAShadowError where it is something else.
    """
    row = await connection.fetchrow(_COMMENT, schema)
    if row is None:
        return None
    try:
        said = json.loads(row["comment"] or "")
        return Shadow(**said["rollcall_shadow"])
    except (ValueError, KeyError, TypeError):
        raise NotAShadowError(
            f'the schema "{schema}" is not a shadow that `rollcall replay` has made: choose another name'
        ) from None


async def create(connection: Connection, schema: str, shadow: Shadow) -> None:
    """Create the schema, empty, as a shadow."""
    comment = json.dumps({"rollcall_shadow": asdict(shadow)}).replace("'", "''")
    async with connection.transaction():
        await connection.execute(f'CREATE SCHEMA "{schema}"')
        await connection.execute(f"COMMENT ON SCHEMA \"{schema}\" IS '{comment}'")


async def drop(connection: Connection, schema: str) -> None:
    """Drop a shadow, if it is there. Raises NotAShadowError."""
    if await find(connection, schema) is not None:
        await connection.execute(f'DROP SCHEMA "{schema}" CASCADE')


async def reserve(connection: Connection, schema: str) -> bool:
    """Whether this connection alone may now work on a schema, until it is closed."""
    return bool(await connection.fetchval(_RESERVE, schema))


async def unknown_batches(connection: Connection, batch_ids: Sequence[str]) -> list[str]:
    """Which of these batches are not known."""
    return [row[0] for row in await connection.fetch(_UNKNOWN, batch_ids)]


async def mark_incomplete(connection: Connection, batch_ids: Sequence[str]) -> None:
    """Mark batches whose beginning lies before where the replay began."""
    if batch_ids:
        await connection.execute(_MARK_INCOMPLETE, batch_ids)


async def count_incomplete(connection: Connection) -> int:
    """How many batches are marked."""
    return int(await connection.fetchval(_COUNT_INCOMPLETE))
