"""Applies readings in transactions of their own: what workers do with the live log, and a replay with all of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg
import structlog

from handlers import fold
from handlers.microbatch import Applied, apply
from handlers.records import TakenRecord
from migrations.version import check
from schemas.dead_letters import Reason, Refused
from store import copying, items
from store.connection import BY_KEY, SERVING, Connection, Database
from store.failpoints import reach
from store.failures import is_transient
from store.rows import ItemRow
from streams.portion import MAX_PATIENCE, Portion
from streams.reading import Reading

MAX_PESSIMISTIC = 64

# A worker that is stopped or cut off inside its transaction would hold the locks of its positions against the worker
# that has taken its partitions over. In the midst of a statement neither this nor `SERVING` ends it: the other worker
# does, as it connects anew after its time-out.
TRANSACTION_TIMEOUT_MS = 60_000
# A worker gives up before that, and takes on less; also where something else failed after so long that it may be why.
APPLY_TIMEOUT_S = 50.0
TOO_LONG_S = 8.0
# One command; a whole micro-batch of them must fit into the time above also where each takes seconds.
COMMAND_TIMEOUT_S = 30.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Optimism:
    """Whether to write results without looking for registers: not for a while after that proved wrong."""

    wait: int = 0
    pause: int = 1

    def __bool__(self) -> bool:
        return self.wait == 0

    def learn(self, *, met_registers: bool) -> None:
        """Note how a micro-batch went that looked first, or whose optimism held."""
        if not met_registers:
            self.wait, self.pause = 0, 1
        elif self.wait > 0:
            self.wait -= 1

    def collided(self) -> None:
        """The optimism proved wrong."""
        self.wait = self.pause
        self.pause = min(self.pause * 2, MAX_PESSIMISTIC)


async def connect_to_apply(database: Database, role: str, patience: int = 1) -> Connection:
    """A connection for micro-batches, whose limits are ``patience`` times the usual.

    Raises WrongSchemaError and what connecting raises.
    """
    limits = {**SERVING, "transaction_timeout": str(TRANSACTION_TIMEOUT_MS)}
    connection = await database.connect(
        role,
        command_timeout=COMMAND_TIMEOUT_S * patience,
        **BY_KEY,
        **{name: str(int(milliseconds) * patience) for name, milliseconds in limits.items()},
    )
    try:
        await check(connection, database.schema)
        if ended := await copying.end_abandoned(connection):
            log.warning("ended sessions of workers that were cut off inside a statement", sessions=ended)
    except BaseException:
        connection.terminate()
        raise
    return connection


class TooMuchError(TimeoutError):
    """A micro-batch took longer than it may; one of fewer records, or with more patience, may not."""


async def apply_reading(
    connection: Connection, reading: Reading, optimism: Optimism, portion: Portion | None
) -> Applied:
    """Apply a reading in a transaction; what PostgreSQL cannot hold becomes a dead letter.

    Raises LostRaceError, TooMuchError (the portion is another one then: connect and read anew; without one it may take
    as long as its connection lets it), and what a lost connection raises.
    """
    if portion is None:
        return await _apply(connection, reading, optimism)
    begun, allowed_s = time.monotonic(), APPLY_TIMEOUT_S * portion.patience
    try:
        async with asyncio.timeout(allowed_s):
            applied = await _apply(connection, reading, optimism)
    except Exception as error:
        # A session that idled for too long while we were folding is ended between two statements: a lost connection.
        took_long = isinstance(error, TimeoutError) or time.monotonic() - begun >= TOO_LONG_S
        is_least = reading.count <= 1 and portion.patience == MAX_PATIENCE
        if not took_long or not is_transient(error) or is_least:
            raise
        portion.too_much(reading.count)
        raise TooMuchError(f"PostgreSQL did not take {reading.count} records in time: {error!r}") from error
    portion.fitted((time.monotonic() - begun) / allowed_s)
    return applied


async def _apply(connection: Connection, reading: Reading, optimism: Optimism) -> Applied:
    optimistic = bool(optimism)
    while True:
        try:
            async with transaction(connection):
                applied = await apply(connection, reading.micro_batch, optimistic=optimistic)
                reach("commit.before")
        except asyncpg.UniqueViolationError:
            if not optimistic:
                raise
            optimism.collided()
            optimistic = False
        except (asyncpg.DataError, UnicodeEncodeError, OverflowError) as error:
            await _set_unstorable_aside(connection, reading, error)
        else:
            reach("commit.after")
            optimism.learn(met_registers=applied.met_registers)
            return applied


async def _set_unstorable_aside(connection: Connection, reading: Reading, error: Exception) -> None:
    """Find the results that PostgreSQL can't hold and make them dead letters; the rest is folded anew."""
    found = 0
    for part in reading.micro_batch.slices.values():
        kept: list[TakenRecord] = []
        for record in fold.rows(part.records):
            if isinstance(record, ItemRow) and (why := await items.why_unstorable(connection, record)) is not None:
                refusal = Refused(Reason.UNSTORABLE, f"cannot be stored: {why}", record.batch_id)
                letter = reading.micro_batch.dead_letter(part.partition, record.offset, refusal)
                reading.micro_batch.dead_letters.append(letter)
                found += 1
            else:
                kept.append(record)
        part.records[:] = kept
    if not found:
        raise error
    log.warning("records that cannot be stored became dead letters", records=found)


@asynccontextmanager
async def transaction(connection: Connection) -> AsyncIterator[None]:
    """A transaction. Raises what ends it, whatever becomes of the ROLLBACK.

    After a time-out or a cancellation the connection is dropped: a ROLLBACK would wait, as long again.
    """
    begun = connection.transaction()
    await begun.start()
    try:
        yield
    except (TimeoutError, asyncio.CancelledError):
        connection.terminate()
        raise
    except BaseException:
        with suppress(Exception):
            await begun.rollback()
        raise
    await begun.commit()
