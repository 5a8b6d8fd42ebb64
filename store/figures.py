"""What an operator watches of the whole installation: counts by partial indexes, cheap however much is finished."""

from datetime import datetime
from typing import NamedTuple

from store.connection import Connection

# Open batches by state, and since when the oldest of each is. At most two rows.
_OPEN = """
SELECT state, count(*), min(coalesce(reopened_at, opened_at, first_result_at))
FROM batches WHERE outcome IS NULL GROUP BY state
"""

# What waits in the outbox, by channel.
_OUTBOX = "SELECT channel, count(*) FROM outbox WHERE published_at IS NULL AND refused IS NULL GROUP BY channel"

_DEAD_LETTERS = "SELECT count(*) FROM dead_letters WHERE published_at IS NULL AND refused IS NULL"

# How far each partition of a topic is applied.
_APPLIED = "SELECT partition, next_offset FROM positions WHERE topic = $1"


class Figures(NamedTuple):
    """Counts at one moment; ``applied`` gives the next offset by partition."""

    open_batches: dict[str, int]
    oldest_open: datetime | None
    outbox: dict[str, int]
    unpublished_dead_letters: int
    applied: dict[int, int]


async def read(connection: Connection, topic: str) -> Figures:
    """Read what is to be watched; ``topic`` is the input log."""
    opened = await connection.fetch(_OPEN)
    return Figures(
        {row[0]: row[1] for row in opened},
        min((row[2] for row in opened if row[2] is not None), default=None),
        {row[0]: row[1] for row in await connection.fetch(_OUTBOX)},
        await connection.fetchval(_DEAD_LETTERS),
        {row[0]: row[1] for row in await connection.fetch(_APPLIED, topic)},
    )
