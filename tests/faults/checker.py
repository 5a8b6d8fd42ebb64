"""The checker: folds what was acknowledged by itself, and compares it with what Rollcall made of it.

    python -m tests.faults.checker --bootstrap HOST:PORT --prefix PREFIX --database URL --schema SCHEMA --sent FILE
        [--since JSON --batches PREFIX]

It shares no code with the product, nor its schemas: what a history means comes from the naive model, the bytes from
plain clients. FILE is the producer's record (`tests.faults.producing`). The exit code is 0 where everything is right, 1
with a report where it isn't. Findings:

    lost             acknowledged, and its effect is nowhere
    doubled          an event, a request, a dead letter or a row more than once
    early            an event before, or without, the record that completes its batch
    contradicting    an event or a row that says something else than the log
    never-finalized  a batch that is complete, and has no event
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec
from aiokafka.partitioner import murmur2

from tests.faults.producing import digest
from tests.harness.model import Batch, ExpectedFinalized, Model
from tests.harness.topics import drain, end_offsets

KINDS = ("lost", "doubled", "early", "contradicting", "never-finalized")
SHOWN = 12
FAILURE_ALERTS = ("batch.first_failure", "batch.failure_threshold_exceeded")

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


@dataclass
class History:
    """What the log means: the fold, where each counted record was first read, and what must be a dead letter."""

    model: Model = field(default_factory=Model)
    letters: dict[Place, tuple[str, LogRecord]] = field(default_factory=dict)
    """By where the record was first read."""
    appended_at: dict[Place, int] = field(default_factory=dict)
    """When each record that counts was appended, in ms."""


@dataclass
class Report:
    """What the checker found. `latencies` are (append time of the deciding record, ms from there to the event)."""

    findings: list[Finding]
    counts: dict[str, int]
    latencies: list[tuple[int, int]]

    def as_json(self) -> dict[str, Any]:
        return {
            "found": {kind: sum(finding.kind == kind for finding in self.findings) for kind in KINDS},
            "findings": [list(finding) for finding in self.findings[:200]],
            "counts": self.counts,
            "latencies": self.latencies,
        }


def check(observed: Observed) -> Report:
    """Compare. Pure: all that is needed has been read."""
    findings: list[Finding] = []
    broken = {record.digest: record.broken for record in observed.sent if record.broken is not None}
    log = [(record, digest(record.key, record.value)) for record in sorted(observed.log)]
    findings += _log_findings(observed.sent, log)
    history = fold(log, observed.partitions, broken, findings)
    findings += _event_findings(history, observed)
    findings += _alert_findings(history, observed)
    findings += _request_findings(history, observed)
    findings += _dead_letter_findings(history, observed)
    findings += _batch_findings(history.model, observed)
    findings += _register_findings("item_results", observed, {b: x.registers for b, x in history.model.batches.items()})
    findings += _register_findings("late_results", observed, {b: x.late for b, x in history.model.batches.items()})
    expected = history.model.all_revisions()
    latencies = []
    for event in observed.finalized:
        batch_id, said = _event(event)
        if (final := _revision(expected, batch_id, said)) is not None:
            decided = history.appended_at[_home(batch_id.encode(), observed.partitions), final.as_of_offset]
            latencies.append((decided, event.timestamp - decided))
    counts = {
        "records": len(observed.log),
        "batches": len(history.model.batches),
        "finalized": len(expected),
        "revisions": sum(len(revisions) for revisions in expected.values()),
        "events": len(observed.finalized),
        "dead_letters": len(observed.dead_letters),
        "unknown": sum(record.place is None for record in observed.sent),
    }
    return Report(findings, counts, sorted(latencies))


# --- the log -----------------------------------------------------------------------------------------------------


def fold(
    log: Sequence[tuple[LogRecord, str]], partitions: int, broken: Mapping[str, str | None], findings: list[Finding]
) -> History:
    """Fold what lies at home, of each forwarded record the first copy; what lies astray must have come home.

    The log is sorted, and has each record's digest beside it.
    """
    history = History()
    homes: dict[str, int] = {}
    copies: set[Place] = set()
    forwards: list[tuple[LogRecord, Place, str]] = []
    astray: dict[Place, tuple[LogRecord, str]] = {}
    taken: dict[Place, tuple[LogRecord, Place | None]] = {}
    decode = msgspec.json.Decoder().decode
    for record, identity in log:
        if identity in broken:
            history.letters[record.partition, record.offset] = (broken[identity] or "", record)
            continue
        value = decode(record.value or b"null")
        batch_id = str(value["batch_id"])
        if batch_id not in homes:
            homes[batch_id] = _home(batch_id.encode(), partitions)
        if record.partition != homes[batch_id]:
            astray[record.partition, record.offset] = (record, identity)
            continue
        origin = _forwarded_from(record) if record.headers else None
        if origin is not None:
            forwards.append((record, origin, identity))
            if origin in copies:
                continue
            copies.add(origin)
        taken[record.partition, record.offset] = (record, origin)
        history.appended_at[record.partition, record.offset] = record.timestamp
        history.model.apply(record.offset, record.timestamp, value)
    findings += [
        Finding("lost", f"{_at(record)} lies astray and never came home")
        for place, (record, _) in astray.items()
        if place not in copies
    ]
    for copy, origin, identity in forwards:
        if origin not in astray:
            findings.append(Finding("contradicting", f"{_at(copy)} is a copy of {_place(origin)}, which is not astray"))
        elif identity != astray[origin][1]:
            findings.append(
                Finding("contradicting", f"{_at(copy)} is not the record of which it is a copy, {_place(origin)}")
            )
    for refusal in history.model.refusals:
        home = _home(refusal.batch_id.encode(), partitions)
        record, origin = taken[home, refusal.offset]
        first_read = record if origin is None or origin not in astray else astray[origin][0]
        history.letters[origin or (home, refusal.offset)] = ("not_applicable", first_read)
    return history


def _log_findings(sent: Sequence[SentRecord], log: Sequence[tuple[LogRecord, str]]) -> Iterable[Finding]:
    """What was acknowledged is in the log, and what is in the log was sent by somebody."""
    held = {(record.partition, record.offset): identity for record, identity in log}
    known = {each.digest for each in sent}
    for each in sent:
        if each.place is not None:
            identity = held.get(each.place)
            if identity is None:
                yield Finding("lost", f"{_place(each.place)} was acknowledged and is not in the log")
            elif identity != each.digest:
                yield Finding("contradicting", f"{_place(each.place)} is not the record that was acknowledged there")
    for record, identity in log:
        if identity not in known:
            yield Finding("contradicting", f"{_at(record)} is a record that nobody sent")


def _home(key: bytes, partitions: int) -> int:
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def _forwarded_from(record: LogRecord) -> Place | None:
    partition = record.headers.get("rollcall_forwarded_partition")
    offset = record.headers.get("rollcall_forwarded_offset")
    return None if partition is None or offset is None else (int(partition), int(offset))


# --- what came out -----------------------------------------------------------------------------------------------


def _event_findings(history: History, observed: Observed) -> Iterable[Finding]:
    expected = history.model.all_revisions()
    seen: defaultdict[tuple[str, int], list[LogRecord]] = defaultdict(list)
    for event in observed.finalized:
        batch_id, said = _event(event)
        seen[batch_id, said.get("revision", 0)].append(event)
        where = f"event {_at(event)} of batch {batch_id}"
        if (final := _revision(expected, batch_id, said)) is None:
            yield Finding("early", f"{where}: the log does not complete it, revision {said.get('revision')}")
            continue
        home = _home(batch_id.encode(), observed.partitions)
        as_of = said.get("as_of") or {}
        decided = (home, final.as_of_offset)
        if as_of.get("partition") != home:
            yield Finding("contradicting", f"{where}: as_of is {as_of}, decided was at {_place(decided)}")
        elif as_of.get("offset", -1) < final.as_of_offset:
            yield Finding("early", f"{where}: as of offset {as_of.get('offset')}, decided was at {_place(decided)}")
        elif event.timestamp < history.appended_at[decided]:
            yield Finding("early", f"{where}: appended before the record that decided, {_place(decided)}")
        else:
            headers = _cloud_event("batch.finalized", str(final.revision), batch_id, final.finalized_at_ms, observed)
            wrong = [*final.contradictions(said), *_further_contradictions(final, said, observed)]
            wrong += _header_contradictions(event, headers)
            yield from (Finding("contradicting", f"{where}: {line}") for line in wrong)
    for (batch_id, revision), events in seen.items():
        if len(events) > 1:
            places = ", ".join(map(_at, events))
            yield Finding("doubled", f"{len(events)} events of batch {batch_id}, revision {revision}: {places}")
    refused = {row["batch_id"] for row in observed.tables["outbox"] if row["refused"] is not None}
    for final in (final for revisions in expected.values() for final in revisions):
        batch_id = final.batch_id
        completed_by = _place((_home(batch_id.encode(), observed.partitions), final.as_of_offset))
        if batch_id in observed.refused:
            if (batch_id, final.revision) in seen or batch_id not in refused:
                why = f"batch {batch_id}, complete at {completed_by}: its event cannot be sent and is not set aside"
                yield Finding("contradicting", why)
        elif (batch_id, final.revision) not in seen:
            yield Finding("never-finalized", f"batch {batch_id}, revision {final.revision}, complete at {completed_by}")


def _further_contradictions(final: ExpectedFinalized, said: Mapping[str, Any], observed: Observed) -> Iterable[str]:
    """What the model leaves to whoever knows the topics."""
    begun_ms = final.first_result_at_ms if final.opened_at_ms is None else final.opened_at_ms
    duration_ms = None if begun_ms is None else final.finalized_at_ms - begun_ms
    if said.get("duration_ms") != duration_ms:
        yield f"duration_ms is {said.get('duration_ms')!r}, expected {duration_ms!r}"
    if (topic := (said.get("as_of") or {}).get("topic")) != f"{observed.prefix}events":
        yield f"as_of.topic is {topic!r}, expected '{observed.prefix}events'"


def _cloud_event(name: str, of_which: str, batch_id: str, at_ms: int, observed: Observed) -> dict[str, bytes]:
    """The headers of what goes out about a batch: CloudEvents 1.0, binary mode."""
    identity = f"{name}/{batch_id}/{of_which}" if of_which else f"{name}/{batch_id}"
    headers = {
        "ce_specversion": "1.0",
        "ce_id": identity,
        "ce_type": f"rollcall.{name}.v1",
        "ce_source": f"/{observed.prefix.rstrip('.')}",
        "ce_time": _moment(at_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "ce_subject": batch_id,
        "content-type": "application/json",
    }
    return {header: text.encode() for header, text in headers.items()}


def _header_contradictions(record: LogRecord, expected: Mapping[str, bytes]) -> Iterable[str]:
    """Where a record's headers are others; a trace may be carried on."""
    for header in sorted((record.headers.keys() | expected.keys()) - {"traceparent"}):
        if record.headers.get(header) != expected.get(header):
            yield f"header {header} is {record.headers.get(header)!r}, expected {expected.get(header)!r}"


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _event(event: LogRecord) -> tuple[str, dict[str, Any]]:
    """The batch id and what is said of it."""
    return (event.key or b"").decode(errors="replace"), json.loads(event.value or b"{}")


def _revision(
    expected: Mapping[str, Sequence[ExpectedFinalized]], batch_id: str, said: Mapping[str, Any]
) -> ExpectedFinalized | None:
    """The finalization that an event speaks of, if there was one."""
    revision = said.get("revision") or 0
    revisions = expected.get(batch_id, ())
    return revisions[revision - 1] if 1 <= revision <= len(revisions) else None


def _alert_findings(history: History, observed: Observed) -> Iterable[Finding]:
    """What failures call for is raised once a batch; alerts about time, or about the end, are not modelled."""
    raised: defaultdict[tuple[Any, Any], list[LogRecord]] = defaultdict(list)
    for each in observed.alerts:
        said = json.loads(each.value or b"{}")
        raised[said.get("batch_id"), said.get("alert")].append(each)
    expected = {
        (batch.batch_id, alert): (_home(batch.batch_id.encode(), observed.partitions), offset)
        for batch in history.model.batches.values()
        for alert, offset in batch.alerts
    }
    for batch_id, alert in sorted(expected.keys() - raised.keys()):
        yield Finding("lost", f"no alert {alert} of batch {batch_id}, due at {_place(expected[batch_id, alert])}")
    for (batch_id, alert), records in raised.items():
        if alert not in FAILURE_ALERTS:
            continue
        where = ", ".join(map(_at, records))
        if (batch_id, alert) not in expected:
            yield Finding("contradicting", f"alert {alert} of batch {batch_id}, {where}: nothing calls for it")
            continue
        if len(records) > 1:
            yield Finding("doubled", f"{len(records)} alerts {alert} of batch {batch_id}: {where}")
        headers = _cloud_event(alert, "", batch_id, history.appended_at[expected[batch_id, alert]], observed)
        for line in _header_contradictions(records[0], headers):
            yield Finding("contradicting", f"alert {alert} of batch {batch_id}, {where}: {line}")


def _request_findings(history: History, observed: Observed) -> Iterable[Finding]:
    """For each record that puts items on the manifest of a retry one request goes out, which names those."""
    asked: defaultdict[tuple[Any, tuple[str, ...]], list[LogRecord]] = defaultdict(list)
    for each in observed.requests:
        said = json.loads(each.value or b"{}")
        asked[said.get("batch_id"), tuple(said.get("item_ids") or ())].append(each)
    expected = {
        (batch.batch_id, item_ids): (batch, (_home(batch.batch_id.encode(), observed.partitions), offset))
        for batch in history.model.batches.values()
        for offset, item_ids in batch.requests
    }
    for (batch_id, item_ids), (_, place) in expected.items():
        if (batch_id, item_ids) not in asked:
            yield Finding("lost", f"no request for {len(item_ids)} items of batch {batch_id}, due at {_place(place)}")
    for (batch_id, item_ids), records in asked.items():
        where = f"request {', '.join(map(_at, records))} for {len(item_ids)} items of batch {batch_id}"
        if (batch_id, item_ids) not in expected:
            yield Finding("contradicting", f"{where}: nothing calls for it")
            continue
        if len(records) > 1:
            yield Finding("doubled", f"{len(records)} times {where}")
        batch, place = expected[batch_id, item_ids]
        retry_of = json.loads(records[0].value or b"{}").get("retry_of")
        if (records[0].key or b"").decode() != batch_id or retry_of != batch.retry_of:
            yield Finding("contradicting", f"{where}: key {records[0].key!r}, a retry of {retry_of!r}")
        headers = _cloud_event("batch.retry_requested", str(place[1]), batch_id, history.appended_at[place], observed)
        for line in _header_contradictions(records[0], headers):
            yield Finding("contradicting", f"{where}: {line}")


def _dead_letter_findings(history: History, observed: Observed) -> Iterable[Finding]:
    seen: defaultdict[Place, list[LogRecord]] = defaultdict(list)
    for letter in observed.dead_letters:
        partition = letter.headers.get("rollcall_dlt_original_partition", b"-1")
        offset = letter.headers.get("rollcall_dlt_original_offset", b"-1")
        seen[int(partition), int(offset)].append(letter)
    rows = {(row["partition"], row["record_offset"]): row for row in observed.tables["dead_letters"]}
    for place, letters in seen.items():
        if len(letters) > 1:
            places = ", ".join(map(_at, letters))
            yield Finding("doubled", f"{len(letters)} dead letters of {_place(place)}: {places}")
        if place not in history.letters:
            yield Finding("contradicting", f"dead letter {_at(letters[0])} of {_place(place)}, which is sound")
    for place in rows.keys() - history.letters.keys():
        yield Finding("contradicting", f"dead_letters has {_place(place)}, which is sound")
    for place, (reason, record) in history.letters.items():
        if place not in rows:
            yield Finding("lost", f"{_place(place)} ({reason}) is not among dead_letters")
        elif (rows[place]["refused"] is not None) is not _is_refused(record, observed):
            yield Finding("contradicting", f"{_place(place)} ({reason}): refused is {rows[place]['refused']!r}")
        if _is_refused(record, observed):
            if place in seen:
                yield Finding("contradicting", f"{_place(place)} ({reason}) has a dead letter its topic cannot take")
            continue
        if place not in seen:
            yield Finding("lost", f"{_place(place)} ({reason}) has no dead letter")
            continue
        letter = seen[place][0]
        if (letter.key, letter.value) != (record.key, record.value):
            yield Finding("contradicting", f"dead letter {_at(letter)} of {_place(place)} has other bytes")
        about = {"original_topic": f"{observed.prefix}events", "original_timestamp": record.timestamp, "reason": reason}
        for name, meant in about.items():
            if (said := letter.headers.get(f"rollcall_dlt_{name}", b"").decode()) != str(meant):
                where = f"dead letter {_at(letter)} of {_place(place)}"
                yield Finding("contradicting", f"{where}: {name} is {said!r}, expected '{meant}'")


def _is_refused(record: LogRecord, observed: Observed) -> bool:
    return observed.refused_above is not None and len(record.value or b"") > observed.refused_above


# --- the tables --------------------------------------------------------------------------------------------------


def _batch_findings(model: Model, observed: Observed) -> Iterable[Finding]:
    rows = {row["batch_id"]: row for row in observed.tables["batches"]}
    for batch_id in rows.keys() - model.batches.keys():
        yield Finding("contradicting", f"batches has {batch_id}, of which the log says nothing")
    for batch_id, batch in model.batches.items():
        home = _home(batch_id.encode(), observed.partitions)
        where = f"{batch_id}, {_newest(batch, home)}"
        if (row := rows.get(batch_id)) is None:
            yield Finding("lost", f"batches has no {where}")
            continue
        expected = _expected_row(batch, model, home)
        wrong = {name: (row[name], value) for name, value in expected.items() if row[name] != value}
        if wrong:
            differences = ", ".join(f"{name} {said!r} for {value!r}" for name, (said, value) in wrong.items())
            yield Finding("contradicting", f"batches {where}: {differences}")
        if batch.revisions and row["published_at"] is None and batch_id not in observed.refused:
            yield Finding("never-finalized", f"batches {where} is not marked as published")


def _newest(batch: Batch, home: int) -> str:
    """Where the log last said something of a batch that shows."""
    if batch.finalized is not None:
        return f"decided at {_place((home, batch.finalized.as_of_offset))}"
    offsets = [register.offset for register in batch.registers.values()]
    return f"last result at {_place((home, max(offsets)))}" if offsets else f"home partition {home}, without results"


def _expected_row(batch: Batch, model: Model, home: int) -> dict[str, Any]:
    counts, final = batch.item_counts(), batch.finalized
    return {
        "partition": home,
        "state": "finalized" if final else model.status(batch.batch_id),
        "outcome": final.outcome if final else None,
        "finalized_by": final.finalized_by if final else None,
        "revision": batch.revision,
        "generation": batch.generation,
        "sealed": batch.sealed,
        "total_items": batch.total,
        "expected": None if batch.manifest is None else len(batch.manifest),
        "matched": len((batch.manifest or set()) & batch.answered),
        **{name: counts[name] for name in ("succeeded", "partial", "failed", "skipped")},
        "retrying": len(batch.registers) - len(batch.answered),
        **batch.write_counts(),
        "duplicates": len(batch.duplicate_offsets),
        "late": len(batch.late),
        "decided_offset": final.as_of_offset if final else None,
        "name": batch.name,
        "retry_of": batch.retry_of,
        "deadline_at": None if batch.deadline_at is None else datetime.fromisoformat(batch.deadline_at),
        "opened_at": _moment_or_none(batch.opened_at_ms),
        "first_result_at": _moment_or_none(batch.first_result_at_ms),
        "reopened_at": _moment_or_none(batch.reopened_at_ms),
        "finalized_at": _moment(final.finalized_at_ms) if final else None,
    }


def _moment_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else _moment(milliseconds)


def _register_findings(table: str, observed: Observed, expected: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
    rows: dict[tuple[str, str], Row] = {}
    for row in observed.tables[table]:
        key = (row["batch_id"], row["item_id"])
        if key in rows:
            yield Finding("doubled", f"{table} has {key} twice")
        rows[key] = row
    for batch_id, items in expected.items():
        for item_id, register in items.items():
            held = rows.pop((batch_id, item_id), None)
            if held is None:
                home = _home(batch_id.encode(), observed.partitions)
                yield Finding("lost", f"{table} has no {batch_id}/{item_id}: {_place((home, register.offset))}")
                continue
            said = (held["version"], held["status"], held["attempt"], held["effect"], held["error_message"])
            error = (register.content["error"] or {}).get("message")
            meant = (register.offset, register.status, register.attempt, register.content["effect"], error)
            if said != meant:
                yield Finding("contradicting", f"{table} {batch_id}/{item_id}: {said}, the log says {meant}")
    for (batch_id, item_id), row in rows.items():
        place = _place((_home(batch_id.encode(), observed.partitions), row["version"]))
        yield Finding("contradicting", f"{table} has {batch_id}/{item_id} of {place}, of which the log says nothing")


def _place(place: Place) -> str:
    return f"{place[0]}@{place[1]}"


def _at(record: LogRecord) -> str:
    return f"{record.partition}@{record.offset}"


# --- reading -----------------------------------------------------------------------------------------------------

# Of one round: batches of this prefix; dead letters by where the record was read.
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


def _say(report: Report) -> None:
    print(", ".join(f"{count} {name}" for name, count in report.counts.items()))
    waits = sorted(wait for _, wait in report.latencies)
    if waits:
        print(f"latency of events: median {statistics.median(waits):.0f} ms, maximum {waits[-1]} ms")
    for kind in KINDS:
        found = [finding for finding in report.findings if finding.kind == kind]
        print(f"{kind}: {len(found)}")
        for finding in found[:SHOWN]:
            print(f"    {finding.what}")
        if len(found) > SHOWN:
            print(f"    and {len(found) - SHOWN} more")


def main() -> int:
    arguments = argparse.ArgumentParser(prog="checker", description="Hold Rollcall's output against its input.")
    for name in ("bootstrap", "prefix", "database", "schema"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--sent", required=True, type=Path)
    arguments.add_argument("--since", default="{}", help="JSON: where to begin, by topic (unprefixed) and partition")
    arguments.add_argument("--batches", default="", help="check batches of this prefix only")
    arguments.add_argument("--refused", default="", help="batches whose event the topic refuses, with commas between")
    arguments.add_argument("--refused-above", type=int, help="dead letters of more bytes of value are refused")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    gc.disable()  # it makes a million objects, keeps them all, and ends
    sent = sent_records(given.sent)
    stretch = Stretch(json.loads(given.since), given.batches)
    seen = asyncio.run(observe(given.bootstrap, given.prefix, given.database, given.schema, sent, stretch))
    seen.refused = frozenset(given.refused.split(",")) - {""}
    seen.refused_above = given.refused_above
    report = check(seen)
    if given.json:
        print(json.dumps(report.as_json()))
    else:
        _say(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
