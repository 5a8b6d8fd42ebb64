"""Why a batch isn't done: what database and log know of it, gathered once, and put into sentences. Reads only."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from aiokafka.errors import KafkaError
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.topics import Topics, home_partition
from store import diagnosis, reads
from store.reads import BatchStatus
from streams.findings import Facts, Finding, Items, findings
from streams.kafka import KafkaConnection
from streams.log_search import LastResult, look
from streams.observing import NoTopicError

KAFKA_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Why:
    """The facts, and what they amount to: a sentence each, what matters most first."""

    facts: Facts
    findings: tuple[Finding, ...]


async def why(
    connection: AsyncConnection,
    kafka: KafkaConnection,
    topics: Topics,
    batch_id: str,
    *,
    now: datetime,
    limit: int = 10,
    say: Callable[[BaseException], str] = str,
) -> Why:
    """Everything known of why a batch is not done, or that it is; lists name at most ``limit``.

    ``connection`` is a snapshot. That Kafka is away is part of the answer, worded by ``say``. Raises what PostgreSQL's
    driver does.
    """
    batch = await reads.batch(connection, topics.events, batch_id)
    partitions = await diagnosis.partition_count(connection, topics.events)
    applied = await diagnosis.applied(connection, topics.events)
    home = batch.partition if batch else home_partition(batch_id, partitions) if partitions else None
    letter_count, letters = await diagnosis.dead_letters_of(connection, batch_id, limit=limit)
    last_result = await _last_result(connection, batch)
    log, problem = None, None
    if home is not None:
        try:
            async with asyncio.timeout(KAFKA_TIMEOUT_S):
                log, last_result = await look(kafka, topics, batch_id, batch, home, applied, last_result)
        except (KafkaError, NoTopicError, OSError, TimeoutError) as error:
            problem = say(error) or type(error).__name__
    event = await diagnosis.finalized_event(connection, batch_id, batch.revision) if batch and batch.outcome else None
    facts = Facts(
        batch_id=batch_id,
        batch=batch,
        partition=home,
        applied_to=applied[home].next_offset if home in applied else None,
        missing=await _missing(connection, batch, limit),
        retrying=await _retrying(connection, batch, limit),
        unexpected=await _unexpected(connection, batch, limit),
        dead_letter_count=letter_count,
        dead_letters=tuple(letters),
        last_result=last_result,
        event=event,
        log=log,
        log_problem=problem,
    )
    return Why(facts, tuple(findings(facts, now)))


async def _last_result(connection: AsyncConnection, batch: BatchStatus | None) -> LastResult | None:
    if batch is None or batch.last_result_at is None:
        return None
    offset = await diagnosis.last_result_offset(connection, batch.batch_id)
    return None if offset is None else LastResult(batch.last_result_at, batch.partition, offset)


async def _missing(connection: AsyncConnection, batch: BatchStatus | None, limit: int) -> Items:
    if batch is None or not batch.missing:
        return Items(0, ())
    page = await reads.missing(connection, batch.batch_id, limit=limit)
    return Items(batch.missing, tuple(page.rows))


async def _retrying(connection: AsyncConnection, batch: BatchStatus | None, limit: int) -> Items:
    if batch is None or not batch.retrying:
        return Items(0, ())
    page = await reads.items(connection, batch.batch_id, status="retrying", limit=limit)
    return Items(batch.retrying, tuple(item.item_id for item in page.rows))


async def _unexpected(connection: AsyncConnection, batch: BatchStatus | None, limit: int) -> Items:
    if batch is None or not batch.unexpected:
        return Items(0, ())
    named = await reads.has_manifest(connection, batch.batch_id)
    ids = await diagnosis.unexpected(connection, batch.batch_id, limit=limit) if named else ()
    return Items(batch.unexpected, tuple(ids))
