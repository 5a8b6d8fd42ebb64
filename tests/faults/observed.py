"""What the checker compares: records as consumers see them, rows, and what the producer wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec

from tests.harness.topics import drain, end_offsets

Row = Mapping[str, Any]
Place = tuple[int, int]
NO_HEADERS: Mapping[str, bytes] = {}


class LogRecord(NamedTuple):
    """A record as a consumer sees it; `timestamp` in ms."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


class SentRecord(NamedTuple):
    """A line of the producer's record; without a place the outcome is unknown."""

    place: Place | None
    digest: str
    broken: str | None


class RegisterRow(NamedTuple):
    """A row of `item_results` or `late_results`; JSON as text."""

    batch_id: str
    item_id: str
    version: int
    received_at: datetime
    generation: int
    status: str
    attempt: int
    effect: str | None
    duration_ms: float | None
    message: str | None
    error_code: str | None
    error_message: str | None
    stack_trace: str | None
    output: str | None
    metrics: str | None
    worker: str | None
    occurred_at: datetime | None


class Finding(NamedTuple):
    """One thing that is wrong, and where."""

    kind: str
    what: str


@dataclass
class Observed:
    """All that there is to be compared.

    `tables` are rows by table. Of the two large ones a row is a tuple, `registers`, also by table; the manifests,
    `expected_items`, are the ids by batch. `ends` says where the log ended when all was read, by partition; `since`
    where reading it began, if not at 0.

    The events of the batches in `refused` nobody can send. `refused_above` is the size (bytes of value, compressed)
    above which the topic takes no dead letter, None where it takes all.
    """

    partitions: int
    sent: Sequence[SentRecord]
    log: Sequence[LogRecord]
    finalized: Sequence[LogRecord]
    dead_letters: Sequence[LogRecord]
    tables: Mapping[str, Sequence[Row]]
    registers: Mapping[str, Sequence[Any]]
    manifests: Mapping[str, Sequence[str]]
    ends: Mapping[int, int]
    since: Mapping[int, int] = field(default_factory=dict)
    alerts: Sequence[LogRecord] = ()
    requests: Sequence[LogRecord] = ()
    prefix: str = "rollcall."
    finalized_partitions: int = 1
    refused: frozenset[str] = frozenset()
    refused_above: int | None = None


def at_place(place: Place) -> str:
    return f"{place[0]}@{place[1]}"


def at(record: LogRecord) -> str:
    return f"{record.partition}@{record.offset}"


@cache
def moment(milliseconds: int) -> datetime:
    """Many records share one."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


# --- reading -----------------------------------------------------------------------------------------------------

_ROUND = "starts_with(batch_id, $1)"
_QUERIES = {
    "batches": f"SELECT * FROM batches WHERE {_ROUND}",
    "outbox": f"SELECT * FROM outbox WHERE {_ROUND}",
}
_REGISTERS = f"SELECT {', '.join(RegisterRow._fields)} FROM %s WHERE {_ROUND}"
_MANIFESTS = f"SELECT batch_id, array_agg(item_id) FROM expected_items WHERE {_ROUND} GROUP BY batch_id"
_DEAD_LETTERS = """
SELECT * FROM dead_letters
WHERE topic <> $1 OR record_offset >= coalesce(($2::jsonb ->> partition::text)::bigint, 0)
"""
_POSITIONS = "SELECT * FROM positions"


@dataclass
class Stretch:
    """What is checked: everything, or one round's batches and what lies behind these offsets (by topic, partition)."""

    since: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    batches: str = ""


async def observe(
    bootstrap: str, prefix: str, database: str, schema: str, sent: Sequence[SentRecord], stretch: Stretch
) -> Observed:
    """Read topics, as a read_committed consumer, and tables."""
    partitions, finalized_partitions = [
        len(await end_offsets(bootstrap, f"{prefix}{topic}")) for topic in ("events", "finalized")
    ]
    log, finalized, letters, alerts, requests = [
        [
            LogRecord(
                each.partition,
                each.offset,
                each.timestamp,
                each.key,
                each.value,
                dict(each.headers) if each.headers else NO_HEADERS,
            )
            for each in await drain(
                bootstrap,
                f"{prefix}{topic}",
                since={int(number): offset for number, offset in stretch.since.get(topic, {}).items()},
            )
        ]
        for topic in ("events", "finalized", "dead-letters", "alerts", "requests")
    ]
    connection = await asyncpg.connect(database, server_settings={"search_path": schema}, command_timeout=120)
    begun = stretch.since.get("events", {})
    try:
        tables = {
            table: [dict(row) for row in await connection.fetch(query, stretch.batches)]
            for table, query in _QUERIES.items()
        }
        dead = await connection.fetch(_DEAD_LETTERS, f"{prefix}events", json.dumps(begun))
        tables["dead_letters"] = [dict(row) for row in dead]
        tables["positions"] = [dict(row) for row in await connection.fetch(_POSITIONS)]
        registers = {
            table: await connection.fetch(_REGISTERS % table, stretch.batches)
            for table in ("item_results", "late_results")
        }
        manifests = {row[0]: row[1] for row in await connection.fetch(_MANIFESTS, stretch.batches)}
    finally:
        await connection.close()
    return Observed(
        partitions,
        sent,
        log,
        finalized,
        letters,
        tables,
        registers,
        manifests,
        ends={tp.partition: end for tp, end in (await end_offsets(bootstrap, f"{prefix}events")).items()},
        since={int(number): offset for number, offset in begun.items()},
        alerts=alerts,
        requests=requests,
        prefix=prefix,
        finalized_partitions=finalized_partitions,
    )


def sent_records(record: Path) -> list[SentRecord]:
    """The producer's record."""
    lines = msgspec.json.Decoder().decode_lines(record.read_bytes())
    return [SentRecord(None if line[0] is None else (line[0], line[1]), line[2], line[3]) for line in lines]
