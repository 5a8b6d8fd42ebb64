"""What the checker compares: records as consumers see them, rows, and what the producer wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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


class Finding(NamedTuple):
    """One thing that is wrong, and where."""

    kind: str
    what: str


@dataclass
class Observed:
    """All that there is to be compared. `tables` are rows by table; ids in `refused` are of events nobody can send.

    `refused_above` is the size (bytes of value) above which the topic takes no dead letter, None where it takes all.
    """

    partitions: int
    sent: Sequence[SentRecord]
    log: Sequence[LogRecord]
    finalized: Sequence[LogRecord]
    dead_letters: Sequence[LogRecord]
    tables: Mapping[str, Sequence[Row]]
    alerts: Sequence[LogRecord] = ()
    requests: Sequence[LogRecord] = ()
    prefix: str = "rollcall."
    refused: frozenset[str] = frozenset()
    refused_above: int | None = None


def at_place(place: Place) -> str:
    return f"{place[0]}@{place[1]}"


def at(record: LogRecord) -> str:
    return f"{record.partition}@{record.offset}"


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


# --- reading -----------------------------------------------------------------------------------------------------

_ROUND = "starts_with(batch_id, $1)"
_REGISTERS = f"batch_id, item_id, version, status, attempt, effect, error_message FROM %s WHERE {_ROUND}"
_QUERIES = {
    "batches": f"SELECT * FROM batches WHERE {_ROUND}",
    "item_results": f"SELECT {_REGISTERS % 'item_results'}",
    "late_results": f"SELECT {_REGISTERS % 'late_results'}",
    "outbox": f"SELECT batch_id, refused FROM outbox WHERE channel = 'finalized' AND {_ROUND}",
}
_DEAD_LETTERS = """
SELECT partition, record_offset, refused FROM dead_letters
WHERE record_offset >= coalesce(($1::jsonb ->> partition::text)::bigint, 0)
"""


@dataclass
class Stretch:
    """What is checked: everything, or one round's batches and what lies behind these offsets (by topic, partition)."""

    since: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    batches: str = ""


async def observe(
    bootstrap: str, prefix: str, database: str, schema: str, sent: Sequence[SentRecord], stretch: Stretch
) -> Observed:
    """Read topics, as a read_committed consumer, and tables."""
    partitions = len(await end_offsets(bootstrap, f"{prefix}events"))
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
    try:
        tables = {
            table: [dict(row) for row in await connection.fetch(query, stretch.batches)]
            for table, query in _QUERIES.items()
        }
        letters_since = json.dumps(stretch.since.get("events", {}))
        tables["dead_letters"] = [dict(row) for row in await connection.fetch(_DEAD_LETTERS, letters_since)]
    finally:
        await connection.close()
    return Observed(partitions, sent, log, finalized, letters, tables, alerts, requests, prefix)


def sent_records(record: Path) -> list[SentRecord]:
    """The producer's record."""
    lines = msgspec.json.Decoder().decode_lines(record.read_bytes())
    return [SentRecord(None if line[0] is None else (line[0], line[1]), line[2], line[3]) for line in lines]
