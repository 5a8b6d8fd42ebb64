"""A batch's items in aggregate, as pages draw them. Each reads one batch's stretch of its keys and nothing else."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


def _items(chosen: str) -> str:
    """Items of a batch, expected or answered; one that has not answered has no status."""
    # Whatever bounds them stands in both: below a FULL JOIN no condition is pushed.
    answered, expected = f"item_results WHERE {chosen}", f"expected_items WHERE {chosen}"
    return f"(SELECT item_id, status FROM {answered}) r FULL JOIN (SELECT item_id FROM {expected}) e USING (item_id)"


# At most :tiles slices of neighbouring ids, each with how its items are.
_TILES = text(f"""
SELECT min(item_id), max(item_id), count(*), count(*) FILTER (WHERE status = 'failed'),
       count(*) FILTER (WHERE status IS NULL OR status = 'retrying'), count(*) FILTER (WHERE status = 'partial')
FROM (
    SELECT item_id, status, ntile(:tiles) OVER (ORDER BY item_id) AS tile FROM {_items("batch_id = :batch_id")}
) numbered
GROUP BY tile ORDER BY tile
""")

# The items of a slice by id, at most :most.
_SLICE = text(f"""
SELECT item_id, coalesce(status, 'missing')
FROM {_items("batch_id = :batch_id AND item_id >= :first AND item_id <= :last")}
ORDER BY item_id LIMIT :most
""")

# Answers by time, in :buckets stretches of equal length between the first and the last.
_THROUGHPUT = text("""
SELECT width_bucket(extract(epoch FROM received_at)::float8, :begin, :end, :buckets) AS bucket, count(*)
FROM item_results WHERE batch_id = :batch_id AND status <> 'retrying' GROUP BY bucket ORDER BY bucket
""")

# The jobs there are: names of batches, the one that ran last first.
_JOBS = text("""
SELECT name, count(*), max(coalesce(opened_at, first_result_at)), count(*) FILTER (WHERE outcome IS NULL),
       count(*) FILTER (WHERE outcome = 'failed')
FROM batches WHERE name IS NOT NULL GROUP BY name ORDER BY 3 DESC NULLS LAST, 1 LIMIT :most
""")


class Tile(NamedTuple):
    """A slice of neighbouring items."""

    first: str
    last: str
    items: int
    failed: int
    unanswered: int
    partial: int

    @property
    def status(self) -> str:
        """What a look at it has to show: the worst of its items."""
        if self.failed:
            return "failed"
        if self.unanswered:
            return "missing" if self.unanswered == self.items else "waiting"
        return "partial" if self.partial else "succeeded"


class Job(NamedTuple):
    """The batches of one name."""

    name: str
    runs: int
    last_run_at: datetime | None
    open: int
    failed: int


async def tiles(connection: AsyncConnection, batch_id: str, most: int) -> list[Tile]:
    """A batch's items in at most so many slices of about the same size, by id."""
    found = await connection.execute(_TILES, {"batch_id": batch_id, "tiles": most})
    return [Tile(*row) for row in found]


async def items_between(
    connection: AsyncConnection, batch_id: str, first: str, last: str, most: int
) -> Sequence[tuple[str, str]]:
    """(id, status) of the items of a slice, ``missing`` where one has not answered."""
    parameters = {"batch_id": batch_id, "first": first, "last": last, "most": most}
    return [(row[0], row[1]) for row in await connection.execute(_SLICE, parameters)]


async def throughput(
    connection: AsyncConnection, batch_id: str, begin: datetime, end: datetime, buckets: int
) -> list[int]:
    """Answers in each of so many stretches of equal length from ``begin`` to ``end``."""
    if end <= begin:
        return []
    parameters = {"batch_id": batch_id, "begin": begin.timestamp(), "end": end.timestamp(), "buckets": buckets}
    counts = [0] * buckets
    for bucket, count in await connection.execute(_THROUGHPUT, parameters):
        counts[min(max(bucket, 1), buckets) - 1] += count
    return counts


async def jobs(connection: AsyncConnection, most: int) -> list[Job]:
    """Names of batches with their numbers, the one that ran last first."""
    return [Job(*row) for row in await connection.execute(_JOBS, {"most": most})]
