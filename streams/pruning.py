"""Prunes: has the log say that batches' items are no longer kept, and deletes their rows once that is applied.

Through the log, because what is a duplicate, late, or to be asked for again is told by the items: a worker that lacks
them would fold what comes later otherwise than a replay that has them. So it is a record from which on nobody looks.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from schemas.topics import Topics
from store import positions, pruning
from store.connection import Connection
from store.pruning import Prunable
from streams.polling import SilentError
from streams.sending import Sender

PAGE = 500
"""Batches said to be pruned at a time."""
CHUNK = 5_000
"""Rows deleted in a transaction."""
WAIT_S = 60.0
POLL_S = 0.1


class NotAppliedError(Exception):
    """No worker has applied what was put on the log; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """How far it is, in batches and rows, and how much there was to do when it began."""

    batches: int = 0
    rows: int = 0
    of_batches: int = 0
    of_rows: int = 0


async def prune(
    connection: Connection, sender: Sender, topics: Topics, finalized_before: datetime
) -> AsyncGenerator[Pruned, None]:
    """Prune batches that ended before a time, and finish what an earlier one has left; yields how far it is.

    Stopped at any moment, it goes on where it was when it is begun again. Raises NotAppliedError, KafkaError, and what
    PostgreSQL raises.
    """
    batches, rows = await pruning.count_due(connection, finalized_before)
    done = Pruned(of_batches=batches, of_rows=rows)
    yield done
    after = ""
    while page := await pruning.left(connection, after, PAGE):
        after = page[-1].batch_id
        async for deleted in _delete(connection, page):
            done = replace(done, rows=done.rows + deleted, of_rows=max(done.of_rows, done.rows + deleted))
            yield done
    after = ""
    while page := await pruning.due(connection, finalized_before, after, PAGE):
        after = page[-1].batch_id
        await _say(connection, sender, topics, page)
        async for deleted in _delete(connection, page):
            done = replace(done, rows=done.rows + deleted)
            yield done
        pruned = await pruning.count_pruned(connection, [each.batch_id for each in page])
        done = replace(done, batches=done.batches + pruned)
        yield done


async def _say(connection: Connection, sender: Sender, topics: Topics, page: Sequence[Prunable]) -> None:
    """Put it on the log and wait until workers have applied it."""
    try:
        places = await sender.events(
            [{"type": "batch.pruned", "batch_id": each.batch_id, "revision": each.revision} for each in page]
        )
    except TimeoutError:
        raise SilentError("not all was acknowledged in time") from None  # says whose time-out it was
    ends: dict[int, int] = {}
    for place in places:
        ends[place.partition] = max(ends.get(place.partition, 0), place.offset + 1)
    stood, since = -1, time.monotonic()
    while True:
        stored = await positions.load(connection, topics.events, sorted(ends))
        stands = {partition: stored[partition].next_offset if partition in stored else 0 for partition in ends}
        if all(stands[partition] >= end for partition, end in ends.items()):
            return
        if sum(stands.values()) != stood:
            stood, since = sum(stands.values()), time.monotonic()
        if time.monotonic() - since > WAIT_S:
            raise NotAppliedError(
                f"no worker has applied anything for {WAIT_S:g} s: is one running? What was to be pruned is in the log;"
                " run the same command again to delete the rows"
            )
        await asyncio.sleep(POLL_S)


async def _delete(connection: Connection, page: Sequence[Prunable]) -> AsyncGenerator[int, None]:
    """Delete the rows of these batches, as far as they are pruned by now; yields how many, chunk by chunk."""
    for share in _shares(page):
        ids = [each.batch_id for each in share]
        for table in pruning.TABLES:
            after: str | None = ""
            while after is not None:
                deleted, after = await pruning.delete_some(connection, table, ids, after, CHUNK)
                if deleted:
                    yield deleted
                if len(share) > 1 or deleted < CHUNK:
                    break


def _shares(page: Sequence[Prunable]) -> Iterator[list[Prunable]]:
    """Batches that together are no larger than a chunk, or one that is."""
    share: list[Prunable] = []
    for each in page:
        if share and sum(other.most for other in share) + each.most > CHUNK:
            yield share
            share = []
        share.append(each)
    if share:
        yield share
