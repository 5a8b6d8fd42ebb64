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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.history import fold, log_findings
from tests.faults.observed import Finding, Observed, Stretch, observe, sent_records
from tests.faults.producing import digest
from tests.faults.producing import home as home_of
from tests.faults.published import (
    alert_findings,
    dead_letter_findings,
    event_findings,
    letters_by_origin,
    request_findings,
    revision_of,
    said_by,
)
from tests.faults.queues import dead_letter_row_findings, outbox_findings
from tests.faults.state import batch_findings, manifest_findings, position_findings, register_findings

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
    letters = letters_by_origin(observed)
    findings += dead_letter_findings(history, observed, letters)
    batches = history.model.batches.items()
    findings += batch_findings(history, observed)
    findings += register_findings("item_results", history, observed, {name: each.registers for name, each in batches})
    findings += register_findings("late_results", history, observed, {name: each.late for name, each in batches})
    findings += manifest_findings(history, observed)
    findings += position_findings(history, observed)
    findings += outbox_findings(history, observed)
    findings += dead_letter_row_findings(history, observed, letters)
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
    arguments.add_argument("--refused-above", type=int, help="dead letters of more bytes (compressed) are refused")
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
