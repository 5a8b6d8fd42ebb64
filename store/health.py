"""Statements that look at an installation as a whole: privileges, what waits to leave, what was put aside. Read-only.

Counts walk over their tables: for a person who asks now and then, not for a loop.
"""

from datetime import datetime
from typing import NamedTuple

from store.connection import Connection
from store.outbox import WITHHELD
from store.tables import metadata

# What this user may not do with our tables: (table, privilege).
_LACKING = """
SELECT t, p FROM unnest($1::text[]) t, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
WHERE NOT has_table_privilege(to_regclass(t), p) ORDER BY t, p
"""

# Waiting, and put aside for good, of events and of dead letters; what a promotion withheld is neither. One row.
_LEAVING = f"""
SELECT (SELECT count(*) FROM outbox WHERE published_at IS NULL AND refused IS NULL),
       (SELECT count(*) FROM dead_letters WHERE published_at IS NULL AND refused IS NULL),
       (SELECT count(*) FROM outbox WHERE refused <> '{WITHHELD}' AND published_at IS NULL),
       (SELECT count(*) FROM dead_letters WHERE refused <> '{WITHHELD}' AND published_at IS NULL)
"""

# Those that nobody has dealt with.
_DEAD_LETTERS = """
SELECT reason, count(*), max(appended_at) FROM dead_letters WHERE redriven_at IS NULL AND discarded_at IS NULL
GROUP BY reason ORDER BY 2 DESC, 1
"""

_FAILED_SUMMARIES = "SELECT count(*), min(batch_id) FROM summaries WHERE state = 'failed'"

_NOT_DURABLE = """
SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
ORDER BY name
"""


class Leaving(NamedTuple):
    """How many events and dead letters wait for the relay, and how many the broker has refused for good."""

    events: int
    dead_letters: int
    refused_events: int
    refused_dead_letters: int


class DeadLetterCount(NamedTuple):
    """How many records could not be taken for one reason, and when the last of them was appended."""

    reason: str
    records: int
    newest: datetime


async def lacking_privileges(connection: Connection) -> list[tuple[str, str]]:
    """(table, privilege) of what this user may not do, though a worker or relay would."""
    tables = sorted(metadata.tables)
    return [(row[0], row[1]) for row in await connection.fetch(_LACKING, tables)]


async def settings_that_forget(connection: Connection) -> list[str]:
    """Settings of the server that are off, so that a crash may take what was committed."""
    return [row[0] for row in await connection.fetch(_NOT_DURABLE)]


async def leaving(connection: Connection) -> Leaving:
    """What has not left yet."""
    row = await connection.fetchrow(_LEAVING)
    assert row is not None
    return Leaving(*row)


async def dead_letters(connection: Connection) -> list[DeadLetterCount]:
    """Dead letters that were neither redriven nor discarded, by reason, the most frequent first."""
    return [DeadLetterCount(*row) for row in await connection.fetch(_DEAD_LETTERS)]


async def failed_summaries(connection: Connection) -> tuple[int, str | None]:
    """How many summaries could not be computed, and the first batch among them."""
    row = await connection.fetchrow(_FAILED_SUMMARIES)
    assert row is not None
    return row[0], row[1]
