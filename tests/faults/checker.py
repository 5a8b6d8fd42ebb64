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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.faults.history import fold, log_findings
from tests.faults.observed import Finding, Observed, Row, Stretch, at_place, moment, observe, sent_records
from tests.faults.producing import digest
from tests.faults.producing import home as home_of
from tests.faults.published import (
    alert_findings,
    dead_letter_findings,
    event_findings,
    request_findings,
    revision_of,
    said_by,
)
from tests.harness.model import Batch, Model

KINDS = ("lost", "doubled", "early", "contradicting", "never-finalized")
SHOWN = 12


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
    findings += log_findings(observed.sent, log)
    history = fold(log, observed.partitions, broken, findings)
    findings += event_findings(history, observed)
    findings += alert_findings(history, observed)
    findings += request_findings(history, observed)
    findings += dead_letter_findings(history, observed)
    findings += _batch_findings(history.model, observed)
    findings += _register_findings("item_results", observed, {b: x.registers for b, x in history.model.batches.items()})
    findings += _register_findings("late_results", observed, {b: x.late for b, x in history.model.batches.items()})
    expected = history.model.all_revisions()
    latencies = []
    for event in observed.finalized:
        batch_id, said = said_by(event)
        if (final := revision_of(expected, batch_id, said)) is not None:
            decided = history.appended_at[home_of(batch_id.encode(), observed.partitions), final.as_of_offset]
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


# --- the tables --------------------------------------------------------------------------------------------------


def _batch_findings(model: Model, observed: Observed) -> Iterable[Finding]:
    rows = {row["batch_id"]: row for row in observed.tables["batches"]}
    for batch_id in rows.keys() - model.batches.keys():
        yield Finding("contradicting", f"batches has {batch_id}, of which the log says nothing")
    for batch_id, batch in model.batches.items():
        home = home_of(batch_id.encode(), observed.partitions)
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
        return f"decided at {at_place((home, batch.finalized.as_of_offset))}"
    offsets = [register.offset for register in batch.registers.values()]
    return f"last result at {at_place((home, max(offsets)))}" if offsets else f"home partition {home}, without results"


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
        "finalized_at": moment(final.finalized_at_ms) if final else None,
    }


def _moment_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else moment(milliseconds)


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
                home = home_of(batch_id.encode(), observed.partitions)
                yield Finding("lost", f"{table} has no {batch_id}/{item_id}: {at_place((home, register.offset))}")
                continue
            said = (held["version"], held["status"], held["attempt"], held["effect"], held["error_message"])
            error = (register.content["error"] or {}).get("message")
            meant = (register.offset, register.status, register.attempt, register.content["effect"], error)
            if said != meant:
                yield Finding("contradicting", f"{table} {batch_id}/{item_id}: {said}, the log says {meant}")
    for (batch_id, item_id), row in rows.items():
        place = at_place((home_of(batch_id.encode(), observed.partitions), row["version"]))
        yield Finding("contradicting", f"{table} has {batch_id}/{item_id} of {place}, of which the log says nothing")


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
