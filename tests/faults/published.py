"""What came out on the topics, held against what the log means."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.faults.history import History
from tests.faults.observed import Finding, LogRecord, Observed, Place, at, at_place, moment
from tests.faults.producing import home as home_of
from tests.harness.model import ABSENT, ExpectedFinalized, canonical

FAILURE_ALERTS = ("batch.first_failure", "batch.failure_threshold_exceeded", "batch.failure_rate_exceeded")
FAILURE_RATE_LIMIT = 0.5
"""The default of ROLLCALL_FAILURE_RATE_LIMIT."""


def event_findings(history: History, observed: Observed) -> Iterable[Finding]:
    expected = history.model.all_revisions()
    seen: defaultdict[tuple[str, int], list[LogRecord]] = defaultdict(list)
    for event in observed.finalized:
        batch_id, said = said_by(event)
        seen[batch_id, said.get("revision", 0)].append(event)
        where = f"event {at(event)} of batch {batch_id}"
        if (final := revision_of(expected, batch_id, said)) is None:
            yield Finding("early", f"{where}: the log does not complete it, revision {said.get('revision')}")
            continue
        home = home_of(batch_id.encode(), observed.partitions)
        as_of = said.get("as_of") or {}
        decided = (home, final.as_of_offset)
        if as_of.get("partition") != home:
            yield Finding("contradicting", f"{where}: as_of is {as_of}, decided was at {at_place(decided)}")
        elif as_of.get("offset", -1) < final.as_of_offset:
            yield Finding("early", f"{where}: as of offset {as_of.get('offset')}, decided was at {at_place(decided)}")
        elif event.timestamp < history.appended_at[decided]:
            yield Finding("early", f"{where}: appended before the record that decided, {at_place(decided)}")
        else:
            headers = _cloud_event("batch.finalized", str(final.revision), batch_id, final.finalized_at_ms, observed)
            wrong = [*final.contradictions(said), *_further_contradictions(final, said, observed)]
            wrong += _header_contradictions(event, headers)
            yield from (Finding("contradicting", f"{where}: {line}") for line in wrong)
    yield from _order_findings(observed)
    for (batch_id, revision), events in seen.items():
        if len(events) > 1:
            places = ", ".join(map(at, events))
            yield Finding("doubled", f"{len(events)} events of batch {batch_id}, revision {revision}: {places}")
    refused = {row["batch_id"] for row in observed.tables["outbox"] if row["refused"] is not None}
    for final in (final for revisions in expected.values() for final in revisions):
        batch_id = final.batch_id
        completed_by = at_place((home_of(batch_id.encode(), observed.partitions), final.as_of_offset))
        if batch_id in observed.refused:
            if (batch_id, final.revision) in seen or batch_id not in refused:
                why = f"batch {batch_id}, complete at {completed_by}: its event cannot be sent and is not set aside"
                yield Finding("contradicting", why)
        elif (batch_id, final.revision) not in seen:
            yield Finding("never-finalized", f"batch {batch_id}, revision {final.revision}, complete at {completed_by}")


def _order_findings(observed: Observed) -> Iterable[Finding]:
    """Where whoever reads the one partition of a batch, from front to back, would not end with its newest revision."""
    newest: dict[str, tuple[int, LogRecord]] = {}
    for event in sorted(observed.finalized, key=lambda each: (each.partition, each.offset)):
        batch_id, said = said_by(event)
        where = f"event {at(event)} of batch {batch_id}, revision {said.get('revision')}"
        home = home_of(event.key or b"", observed.finalized_partitions)
        if event.partition != home:
            yield Finding("contradicting", f"{where}: its partition is {home}")
        revision, before = newest.setdefault(batch_id, (said.get("revision", 0), event))
        if said.get("revision", 0) < revision:
            yield Finding("contradicting", f"{where}: behind revision {revision}, {at(before)}")
        else:
            newest[batch_id] = said.get("revision", 0), event


def _further_contradictions(final: ExpectedFinalized, said: Mapping[str, Any], observed: Observed) -> Iterable[str]:
    """What the model leaves to whoever knows the topics."""
    begun_ms = final.first_result_at_ms if final.opened_at_ms is None else final.opened_at_ms
    duration_ms = None if begun_ms is None else final.finalized_at_ms - begun_ms
    if canonical(said.get("duration_ms", ABSENT)) != canonical(duration_ms):
        yield f"duration_ms is {said.get('duration_ms', ABSENT)!r}, expected {duration_ms!r}"
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
        "ce_time": moment(at_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "ce_subject": batch_id,
        "content-type": "application/json",
    }
    return {header: text.encode() for header, text in headers.items()}


def _header_contradictions(record: LogRecord, expected: Mapping[str, bytes]) -> Iterable[str]:
    """Where a record's headers are others; a trace may be carried on."""
    for header in sorted((record.headers.keys() | expected.keys()) - {"traceparent"}):
        if record.headers.get(header) != expected.get(header):
            yield f"header {header} is {record.headers.get(header)!r}, expected {expected.get(header)!r}"


def said_by(event: LogRecord) -> tuple[str, dict[str, Any]]:
    """The batch id and what is said of it."""
    return (event.key or b"").decode(errors="replace"), json.loads(event.value or b"{}")


def revision_of(
    expected: Mapping[str, Sequence[ExpectedFinalized]], batch_id: str, said: Mapping[str, Any]
) -> ExpectedFinalized | None:
    """The finalization that an event speaks of, if there was one."""
    revision = said.get("revision") or 0
    revisions = expected.get(batch_id, ())
    return revisions[revision - 1] if 1 <= revision <= len(revisions) else None


def alert_findings(history: History, observed: Observed) -> Iterable[Finding]:
    """What failures call for is raised, and each alert once. When alerts about time are due is not modelled."""
    raised: defaultdict[str, list[LogRecord]] = defaultdict(list)
    for each in observed.alerts:
        raised[each.headers.get("ce_id", b"").decode()].append(each)
    expected = {each.identity: each for each in _alerts_due(history, observed)}
    for identity in sorted(expected.keys() - raised.keys()):
        yield Finding("lost", f"no alert {identity}, due at {at_place(expected[identity].due)}")
    for identity, records in raised.items():
        where = f"alert {identity}, {', '.join(map(at, records))}"
        if len(records) > 1:
            yield Finding("doubled", f"{len(records)} times {where}")
        if identity.partition("/")[0] not in FAILURE_ALERTS:
            continue
        if identity not in expected:
            yield Finding("contradicting", f"{where}: nothing calls for it")
            continue
        due = expected[identity]
        said = json.loads(records[0].value or b"{}")
        about = {"alert": said.get("alert"), "batch_id": said.get("batch_id"), "key": (records[0].key or b"").decode()}
        if about != {"alert": due.alert, "batch_id": due.batch_id, "key": due.batch_id}:
            yield Finding("contradicting", f"{where}: it is about {about}")
        if due.details is not None and canonical(said.get("details")) != canonical(due.details):
            yield Finding("contradicting", f"{where}: details are {said.get('details')}, expected {due.details}")
        headers = _cloud_event(due.alert, due.of_which, due.batch_id, history.appended_at[due.due], observed)
        for line in _header_contradictions(records[0], headers):
            yield Finding("contradicting", f"{where}: {line}")


class _Alert(NamedTuple):
    """One that is due, where, and what it must say if that is modelled."""

    alert: str
    batch_id: str
    of_which: str
    due: Place
    details: Mapping[str, Any] | None

    @property
    def identity(self) -> str:
        return "/".join(filter(None, (self.alert, self.batch_id, self.of_which)))


def _alerts_due(history: History, observed: Observed) -> Iterable[_Alert]:
    for batch in history.model.batches.values():
        home = home_of(batch.batch_id.encode(), observed.partitions)
        for alert, offset in batch.alerts:
            yield _Alert(alert, batch.batch_id, "", (home, offset), None)
    for final in (final for revisions in history.model.all_revisions().values() for final in revisions):
        failed = final.item_counts["failed"]
        answered = failed + sum(final.item_counts[status] for status in ("succeeded", "partial", "skipped"))
        if answered and failed / answered > FAILURE_RATE_LIMIT:
            place = home_of(final.batch_id.encode(), observed.partitions), final.as_of_offset
            details = {
                "failed": failed,
                "answered": answered,
                "failure_rate": failed / answered,
                "limit": FAILURE_RATE_LIMIT,
            }
            yield _Alert("batch.failure_rate_exceeded", final.batch_id, str(final.revision), place, details)


def request_findings(history: History, observed: Observed) -> Iterable[Finding]:
    """For each record that puts items on the manifest of a retry one request goes out, which names those."""
    asked: defaultdict[tuple[Any, tuple[str, ...]], list[LogRecord]] = defaultdict(list)
    for each in observed.requests:
        said = json.loads(each.value or b"{}")
        asked[said.get("batch_id"), tuple(said.get("item_ids") or ())].append(each)
    expected = {
        (batch.batch_id, item_ids): (of, (home_of(batch.batch_id.encode(), observed.partitions), offset))
        for batch in history.model.batches.values()
        for offset, of, item_ids in batch.requests
    }
    for (batch_id, item_ids), (_, place) in expected.items():
        if (batch_id, item_ids) not in asked:
            yield Finding("lost", f"no request for {len(item_ids)} items of batch {batch_id}, due at {at_place(place)}")
    for (batch_id, item_ids), records in asked.items():
        where = f"request {', '.join(map(at, records))} for {len(item_ids)} items of batch {batch_id}"
        if (batch_id, item_ids) not in expected:
            yield Finding("contradicting", f"{where}: nothing calls for it")
            continue
        if len(records) > 1:
            yield Finding("doubled", f"{len(records)} times {where}")
        of, place = expected[batch_id, item_ids]
        retry_of = json.loads(records[0].value or b"{}").get("retry_of")
        if (records[0].key or b"").decode() != batch_id or retry_of != of:
            yield Finding("contradicting", f"{where}: key {records[0].key!r}, a retry of {retry_of!r}")
        headers = _cloud_event("batch.retry_requested", str(place[1]), batch_id, history.appended_at[place], observed)
        for line in _header_contradictions(records[0], headers):
            yield Finding("contradicting", f"{where}: {line}")


def letters_by_origin(observed: Observed) -> Mapping[Place, Sequence[LogRecord]]:
    """The dead letters on their topic, by where the record was first read."""
    found: defaultdict[Place, list[LogRecord]] = defaultdict(list)
    for letter in observed.dead_letters:
        partition = letter.headers.get("rollcall_dlt_original_partition", b"-1")
        offset = letter.headers.get("rollcall_dlt_original_offset", b"-1")
        found[int(partition), int(offset)].append(letter)
    return found


def dead_letter_findings(
    history: History, observed: Observed, seen: Mapping[Place, Sequence[LogRecord]]
) -> Iterable[Finding]:
    for place, letters in seen.items():
        if len(letters) > 1:
            places = ", ".join(map(at, letters))
            yield Finding("doubled", f"{len(letters)} dead letters of {at_place(place)}: {places}")
        if place not in history.letters:
            yield Finding("contradicting", f"dead letter {at(letters[0])} of {at_place(place)}, which is sound")
    for place, (reason, record) in history.letters.items():
        if is_refused(record, observed):
            if place in seen:
                yield Finding("contradicting", f"{at_place(place)} ({reason}) has a dead letter its topic cannot take")
            continue
        if place not in seen:
            yield Finding("lost", f"{at_place(place)} ({reason}) has no dead letter")
            continue
        letter = seen[place][0]
        if (letter.key, letter.value) != (record.key, record.value):
            yield Finding("contradicting", f"dead letter {at(letter)} of {at_place(place)} has other bytes")
        carried = {name: text for name, text in letter.headers.items() if not name.startswith("rollcall_dlt_")}
        if carried != record.headers:
            where = f"dead letter {at(letter)} of {at_place(place)}"
            yield Finding("contradicting", f"{where}: carries headers {carried}, expected {dict(record.headers)}")
        about = {"original_topic": f"{observed.prefix}events", "original_timestamp": record.timestamp, "reason": reason}
        for name, meant in about.items():
            if (said := letter.headers.get(f"rollcall_dlt_{name}", b"").decode()) != str(meant):
                where = f"dead letter {at(letter)} of {at_place(place)}"
                yield Finding("contradicting", f"{where}: {name} is {said!r}, expected '{meant}'")


def is_refused(record: LogRecord, observed: Observed) -> bool:
    """Whether a record is too large for the topic of dead letters, also compressed."""
    limit, value = observed.refused_above, record.value or b""
    return limit is not None and len(value) > limit and len(gzip.compress(value)) > limit
