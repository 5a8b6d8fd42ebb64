"""What the tables say of batches, their items and the log, held against what the log means."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from tests.faults.history import History
from tests.faults.observed import Finding, LogRecord, Observed, RegisterRow, Row, at, at_place, moment
from tests.faults.producing import home as home_of
from tests.harness.model import Batch, Model, Register, canonical

_VALUES = RegisterRow._fields[2:]
"""All but the key."""
_JSON = [_VALUES.index(name) for name in ("output", "metrics")]


# --- batches -----------------------------------------------------------------------------------------------------


def batch_findings(history: History, observed: Observed) -> Iterable[Finding]:
    rows: dict[str, Row] = {}
    for row in observed.tables["batches"]:
        if row["batch_id"] in rows:
            yield Finding("doubled", f"batches has {_where_said(row)} twice")
        rows[row["batch_id"]] = row
    for batch_id in rows.keys() - history.model.batches.keys():
        yield Finding("contradicting", f"batches has {_where_said(rows[batch_id])}: the log says nothing of it")
    for batch_id, batch in history.model.batches.items():
        home = home_of(batch_id.encode(), observed.partitions)
        where = f"{batch_id}, {_newest(batch, home)}"
        if batch_id not in rows:
            yield Finding("lost", f"batches has no {where}")
            continue
        row, expected = rows[batch_id], _expected_row(batch, history.model, home)
        said = {name: _said(name, row[name]) for name in expected}
        if said != expected:
            yield Finding("contradicting", f"batches {where}: {_differences(said, expected)}")
        is_due = bool(batch.revisions) and batch_id not in observed.refused
        if is_due and row["published_at"] is None:
            yield Finding("never-finalized", f"batches {where} is not marked as published")
        elif row["published_at"] is not None and not is_due:
            yield Finding("contradicting", f"batches {where} is marked as published at {row['published_at']}")


def _where_said(row: Row) -> str:
    """Where a row says that it comes from; of a batch without results the table keeps no offset, but the time."""
    if row["decided_offset"] is not None:
        return f"{row['batch_id']}, decided at {at_place((row['partition'], row['decided_offset']))}"
    if row["last_result_offset"] is not None:
        return f"{row['batch_id']}, last result at {at_place((row['partition'], row['last_result_offset']))}"
    return f"{row['batch_id']}, home partition {row['partition']}, opened at {row['opened_at']}"


def _newest(batch: Batch, home: int) -> str:
    """Where the log last said something of a batch that shows."""
    if batch.finalized is not None:
        return f"decided at {at_place((home, batch.finalized.as_of_offset))}"
    return f"last spoken of at {at_place((home, batch.last_offset))}"


def _expected_row(batch: Batch, model: Model, home: int) -> dict[str, Any]:
    counts, final = batch.item_counts(), batch.finalized
    alerts = {alert for alert, _ in batch.alerts}
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
        "name": batch.name,
        "metadata": canonical(batch.metadata),
        "policy": _policy(batch.policy),
        "deadline_at": None if batch.deadline_at is None else datetime.fromisoformat(batch.deadline_at),
        "retry_of": batch.retry_of,
        "request_retry": batch.request_retry,
        "opened_at": _moment_or_none(batch.opened_at_ms),
        "first_result_at": _moment_or_none(batch.first_result_at_ms),
        "last_result_at": _moment_or_none(batch.last_counted_at_ms),
        "last_result_offset": batch.last_counted_offset,
        "last_answer_at": _moment_or_none(batch.last_answer_at_ms),
        "completed_at": _moment_or_none(final.completed_at_ms) if final else None,
        "finalized_at": moment(final.finalized_at_ms) if final else None,
        "decided_offset": final.as_of_offset if final else None,
        "reopened_at": _moment_or_none(batch.reopened_at_ms),
        "reason": batch.reason,
        "error": canonical(batch.error),
        "failure_seen": "batch.first_failure" in alerts,
        "threshold_exceeded": "batch.failure_threshold_exceeded" in alerts,
        "pruned_at": _moment_or_none(batch.pruned_at_ms),
    }


def _said(column: str, value: Any) -> Any:
    if column == "policy":
        return _policy(json.loads(value or "{}"))
    return canonical(json.loads(value or "null")) if column in ("metadata", "error") else value


def _policy(said: Mapping[str, Any]) -> str | None:
    """What limits there are; as many may be written as 3 or as 3.0."""
    limits = {name: float(value) if isinstance(value, int) else value for name, value in said.items()}
    return canonical({name: value for name, value in limits.items() if value is not None} or None)


def _moment_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else moment(milliseconds)


def _differences(said: Mapping[str, Any], meant: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {said[name]!r} for {meant[name]!r}" for name in meant if said[name] != meant[name])


# --- items -------------------------------------------------------------------------------------------------------


def register_findings(
    table: str, history: History, observed: Observed, expected: Mapping[str, Mapping[str, Register]]
) -> Iterable[Finding]:
    """Rows are compared whole, JSON anew only where they differ: there are hundreds of thousands."""
    held: defaultdict[str, dict[str, Sequence[Any]]] = defaultdict(dict)
    homes = _Homes(observed.partitions)
    for row in observed.registers[table]:
        batch_id, item_id = row[0], row[1]
        if item_id in held[batch_id]:
            places = ", ".join(at_place((homes[batch_id], each[2])) for each in (held[batch_id][item_id], row))
            yield Finding("doubled", f"{table} has {batch_id}/{item_id} twice, of {places}")
        held[batch_id][item_id] = row
    for batch_id, items in expected.items():
        home, rows = homes[batch_id], held[batch_id]
        for item_id, register in items.items():
            place = (home, register.offset)
            found = rows.pop(item_id, None)
            if found is None:
                yield Finding("lost", f"{table} has no {batch_id}/{item_id}: {at_place(place)}")
                continue
            said, meant = tuple(found[2:]), _expected_values(register, moment(history.appended_at[place]))
            if said != meant and (said := _with_canonical_json(said)) != meant:
                columns = [dict(zip(_VALUES, values, strict=True)) for values in (said, meant)]
                differences = _differences(*columns)
                yield Finding("contradicting", f"{table} {batch_id}/{item_id} of {at_place(place)}: {differences}")
    for batch_id, rows in held.items():
        for item_id, row in rows.items():
            place = (homes[batch_id], row[2])
            yield Finding("contradicting", f"{table} has {batch_id}/{item_id} of {at_place(place)}: not in the log")


class _Homes(dict[str, int]):
    """Each batch's home, computed once."""

    def __init__(self, partitions: int) -> None:
        super().__init__()
        self._partitions = partitions

    def __missing__(self, batch_id: str) -> int:
        home = self[batch_id] = home_of(batch_id.encode(), self._partitions)
        return home


def _expected_values(register: Register, received_at: datetime) -> tuple[Any, ...]:
    """In the order of the columns."""
    said = register.content
    error = said["error"] or {}
    return (
        register.offset,
        received_at,
        register.generation,
        register.status,
        register.attempt,
        said["effect"],
        said["duration_ms"],
        said["message"],
        error.get("code"),
        error.get("message"),
        error.get("stack_trace"),
        canonical(said["output"]),
        canonical(said["metrics"]),
        said["worker"],
        said["occurred_at"],
    )


def _with_canonical_json(values: tuple[Any, ...]) -> tuple[Any, ...]:
    changed = list(values)
    for column in _JSON:
        changed[column] = canonical(json.loads(values[column] or "null"))
    return tuple(changed)


def manifest_findings(history: History, observed: Observed) -> Iterable[Finding]:
    homes = _Homes(observed.partitions)
    for batch_id, batch in history.model.batches.items():
        rows = observed.manifests.get(batch_id, ())
        held, manifest = set(rows), batch.manifest or set()
        if len(rows) == len(held) and held == manifest:
            continue
        for offset, chunk in batch.chunks:
            place = at_place((homes[batch_id], offset))
            if missing := [item_id for item_id in chunk if item_id not in held]:
                yield Finding("lost", f"expected_items has not {_some(missing)} of {batch_id}: {place}")
        where = f"{batch_id}, {_newest(batch, homes[batch_id])}"
        if surplus := sorted(held - manifest):
            yield Finding("contradicting", f"expected_items has {_some(surplus)} of {where}: not in the log")
        if twice := sorted(item_id for item_id in held if rows.count(item_id) > 1):
            yield Finding("doubled", f"expected_items has {_some(twice)} of {where} more than once")
    for batch_id in sorted(observed.manifests.keys() - history.model.batches.keys()):
        what = f"expected_items has {_some(observed.manifests[batch_id])} of {batch_id}"
        yield Finding("contradicting", f"{what}, home partition {homes[batch_id]}: the log says nothing of it")


def _some(item_ids: Sequence[str]) -> str:
    """The first ones, and how many there are."""
    shown = ", ".join(item_ids[:3])
    return shown if len(item_ids) <= 3 else f"{shown} and {len(item_ids) - 3} more"


# --- positions ---------------------------------------------------------------------------------------------------


def position_findings(history: History, observed: Observed) -> Iterable[Finding]:
    """All of the log is applied, and what was last applied of it is what lies there."""
    rows = {row["partition"]: row for row in observed.tables["positions"] if row["topic"] == f"{observed.prefix}events"}
    last = {record.partition: record for record in sorted(observed.log)}
    for partition, end in observed.ends.items():
        row = rows.get(partition)
        if row is None:
            if end > 0:
                yield Finding("lost", f"positions has no partition {partition}, which ends at {end}")
            continue
        if (next_offset := row["next_offset"]) > end:
            yield Finding("contradicting", f"positions: {at_place((partition, next_offset))} is next, the end is {end}")
        if partition in last:
            yield from _last_findings(row, last[partition])
        yield from _taken_findings(row, history.taken.get(partition, {}), observed.since)
    for partition in rows.keys() - observed.ends.keys():
        place = at_place((partition, rows[partition]["next_offset"]))
        yield Finding("contradicting", f"positions has {place}: there is no such partition")
    yield from _output_findings(observed)


def _output_findings(observed: Observed) -> Iterable[Finding]:
    """What is on the topics is known to be there; of alerts there may be new ones at any time."""
    known = {(row["topic"], row["partition"]): row["next_offset"] for row in observed.tables["positions"]}
    outputs = {"finalized": observed.finalized, "requests": observed.requests, "dead-letters": observed.dead_letters}
    for name, records in outputs.items():
        for partition, last in {record.partition: record for record in sorted(records)}.items():
            next_offset = known.get((f"{observed.prefix}{name}", partition), 0)
            if next_offset <= last.offset:
                place = at_place((partition, next_offset))
                yield Finding("contradicting", f"positions, {name}: {place} is next, {at(last)} is published")


def _last_findings(row: Row, last: LogRecord) -> Iterable[Finding]:
    if row["next_offset"] <= last.offset:
        yield Finding("lost", f"positions: {row['partition']}@{row['next_offset']} is next, {at(last)} is in the log")
    # Behind it there may be what was appended since the log was read.
    elif row["last_offset"] is None or row["last_offset"] <= last.offset:
        said = (row["last_offset"], row["last_timestamp"], row["last_checksum"])
        meant = (last.offset, last.timestamp, zlib.crc32((last.key or b"") + (last.value or b"")))
        if said != meant:
            yield Finding("contradicting", f"positions: last {said} (offset, time, checksum), {at(last)} is {meant}")


def _taken_findings(row: Row, meant: Mapping[int, int], since: Mapping[int, int]) -> Iterable[Finding]:
    """Up to where forwarded records have come home; what lies before the stretch may have left its mark, too."""
    said = {int(source): offset for source, offset in json.loads(row["taken"]).items()}
    for source in sorted(said.keys() | meant.keys()):
        is_older = source not in meant and said[source] < since.get(source, 0)
        if said.get(source) != meant.get(source) and not is_older:
            differing = f"up to {said.get(source)} for {meant.get(source)}"
            yield Finding("contradicting", f"positions, partition {row['partition']}: of {source} taken {differing}")
