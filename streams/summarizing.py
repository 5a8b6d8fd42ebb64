"""Computes the summaries of finalized batches: after the event, on a connection of its own, retried on its own.

Whatever goes wrong here shows as ``summary_state`` and, in the end, as an alert. What a batch is was committed before.
The lead is not what keeps this right: who computes a summary twice computes the same, and only the first finds the
request pending (the compare-and-set of ``store.summaries.ready``).
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import structlog

from handlers import summary
from schemas.topics import Topics
from store import batches, outbox, promotion, statistics, summaries
from store.connection import BY_KEY, SERVING, Connection, Database
from store.rows import OutboxRow
from store.summaries import PendingSummary
from streams.portion import Portion
from streams.retrying import attempts, sleep

POLL_S = 0.2
# One round reads this many batches and about this many items, or one batch that is larger.
ROUND_BATCHES = 500
ROUND_ITEMS = 50_000
LONGEST_PAUSE_S = 2.0
RETRY_AFTER_S = 2.0
MAX_PROBLEM_CHARS = 500

log = structlog.get_logger(__name__)


class Summarizer:
    """Computes what is pending, round by round, and rests between rounds for as long as they take: results go first.

    ``timeout_s`` is how long one statement may take, ``retry_after_s`` the wait after a first failure.
    """

    def __init__(
        self, database: Database, topics: Topics, *, timeout_s: float, retry_after_s: float = RETRY_AFTER_S
    ) -> None:
        self._database = database
        self._topics = topics
        self._timeout_s = timeout_s
        self._retry_after = timedelta(seconds=retry_after_s)
        self._portion = Portion(ROUND_BATCHES)

    async def run(self, stop: asyncio.Event) -> None:
        """Summarize until ``stop`` is set, beginning anew after every failure that may pass."""
        async for attempt in attempts("summarizing failed, beginning anew", stop):
            with attempt:
                # The server gives up first, and says why.
                connection = await self._database.connect(
                    "clock summaries",
                    command_timeout=self._timeout_s + 15.0,
                    statement_timeout=str(round(self._timeout_s * 1000)),
                    **BY_KEY,
                    **SERVING,
                )
                try:
                    while not stop.is_set():
                        began = time.monotonic()
                        found = await self._round(connection)
                        took_s = time.monotonic() - began
                        await sleep(stop, min(took_s, LONGEST_PAUSE_S) if found else max(POLL_S, took_s))
                finally:
                    connection.terminate()

    async def _round(self, connection: Connection) -> bool:
        """Summarize what waits longest; returns whether anything did."""
        waiting = await summaries.pending(connection, datetime.now(UTC), self._portion.count)
        if not waiting:
            return False
        asked = _first(waiting)
        try:
            await self._summarize(connection, asked)
        except (TimeoutError, asyncpg.PostgresError):
            self._portion.too_much(len(asked))  # what is stored at once has 30 s
            raise
        self._portion.fitted()
        return True

    async def _summarize(self, connection: Connection, asked: Sequence[PendingSummary]) -> None:
        """Compute and store these summaries; where that fails, half of them each, down to those that are to blame."""
        schema = await promotion.identity(connection, self._database.schema)
        try:
            computed = await self._computed(connection, asked)
        except Exception as error:
            if not _is_of_the_batches(connection, error):
                raise
            if len(asked) == 1:
                await self._note_failure(connection, asked[0], error)
                return
            middle = len(asked) // 2
            await self._summarize(connection, asked[:middle])
            await self._summarize(connection, asked[middle:])
            return
        async with connection.transaction():
            await promotion.keep_off(connection)
            if await promotion.identity(connection, self._database.schema) != schema:
                return  # half of what was read may be of the one, half of the other
            stored = await summaries.ready(connection, [(each, event.value) for each, event in computed])
            await outbox.insert(connection, [event for each, event in computed if each.batch_id in stored])

    async def _computed(
        self, connection: Connection, asked: Sequence[PendingSummary]
    ) -> list[tuple[PendingSummary, OutboxRow]]:
        """The events of these summaries. Batches that have another revision by now, or are open again, are left out."""
        ids = [each.batch_id for each in asked]
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = await batches.load(connection, ids)
            counted = await statistics.load(connection, ids)
        computed: list[tuple[PendingSummary, OutboxRow]] = []
        for each in asked:
            batch = found[each.batch_id]
            if batch.outcome is not None and batch.revision == each.revision:
                value = summary.summarized(batch, counted[batch.batch_id]).model_dump_json()
                computed.append((each, summary.summarized_event(self._topics, each, batch, value)))
        return computed

    async def _note_failure(self, connection: Connection, asked: PendingSummary, error: Exception) -> None:
        """Try again later, or give up with an alert."""
        problem = f"{type(error).__name__}: {error}".splitlines()[0][:MAX_PROBLEM_CHARS]
        # A full disk is no fault of the batch, though a large one may be what fills it: the others do not wait for it.
        is_full = isinstance(error, asyncpg.DiskFullError)
        delay = self._retry_after * 64 if is_full else summary.next_attempt_in(asked.attempts + 1, self._retry_after)
        retry_at = None if delay is None else datetime.now(UTC) + delay
        log.warning("a summary failed", batch_id=asked.batch_id, problem=problem, retry_at=retry_at)
        async with connection.transaction():
            if await summaries.failed(connection, asked, problem, retry_at, counts=not is_full) and retry_at is None:
                batch = (await batches.load(connection, [asked.batch_id]))[asked.batch_id]
                await outbox.insert(connection, [summary.given_up_event(self._topics, asked, batch, problem)])


def _first(waiting: Sequence[PendingSummary]) -> list[PendingSummary]:
    """As many as fit into a round, at least one."""
    taken: list[PendingSummary] = []
    items = 0
    for each in waiting:
        items += each.items
        if taken and items > ROUND_ITEMS:
            break
        taken.append(each)
    return taken


def _is_of_the_batches(connection: Connection, error: Exception) -> bool:
    """Whether what was computed is to blame, and not that the server is away, stops, or asks to try again."""
    if connection.is_closed() or isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return False
    if isinstance(error, asyncpg.PostgresError):
        return not (error.sqlstate or "").startswith(("08", "40", "57P"))
    return True
