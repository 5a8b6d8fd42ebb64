"""The fault runner's checker bites: hand-made logs and tables with one thing wrong each."""

import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.dead_letters import Refused
from store import tables
from streams.decoding import decode
from tests.faults import queues
from tests.faults.checker import check
from tests.faults.observed import Finding, LogRecord, Observed, RegisterRow, Row, SentRecord
from tests.faults.producing import digest, home
from tests.harness import broken_records

KEY = b"batch-1"
HOME = home(KEY, 2)
AWAY = 1 - HOME


def record(partition: int, offset: int, value: dict[str, Any] | bytes, **headers: bytes) -> LogRecord:
    said = value if isinstance(value, bytes) else json.dumps(value).encode()
    return LogRecord(partition, offset, 1_000 * (offset + 1), KEY, said, headers)


def result(item: str, status: str = "succeeded", **said: Any) -> dict[str, Any]:
    return {"batch_id": "batch-1", "item_id": item, "status": status, **said}


def after(seconds: int) -> datetime:
    return datetime(1970, 1, 1, 0, 0, seconds, tzinfo=UTC)


OPENED = {
    "type": "batch.opened",
    "batch_id": "batch-1",
    "total_items": 2,
    "name": "first",
    "metadata": {"of": [1, True]},
    "policy": {"tolerated_failure_count": 1},
}
ASTRAY = record(AWAY, 0, result("b"))
BROKEN = record(AWAY, 1, b"no JSON")
LOG = [
    record(HOME, 0, OPENED),
    record(HOME, 1, result("a")),
    record(HOME, 2, result("a")),
    ASTRAY,
    BROKEN,
    record(HOME, 3, result("b"), rollcall_forwarded_partition=b"%d" % AWAY, rollcall_forwarded_offset=b"0"),
]
FORWARDED = LOG[-1]
LATE = record(
    HOME,
    4,
    result(
        "a",
        "failed",
        attempt=2,
        effect="updated",
        duration_ms=1.5,
        message="tried again",
        error={"code": "E1", "message": "no", "stack_trace": "line 1"},
        output={"of": [1, True]},
        metrics={"rows": 1},
        worker="w1",
        occurred_at="1970-01-01T01:00:03+01:00",
    ),
)
AS_OF = {"topic": "rollcall.events", "partition": HOME, "offset": 3}
EVENT = {
    "batch_id": "batch-1",
    "revision": 1,
    "outcome": "completed",
    "finalized_by": "all_items_in",
    "item_counts": {
        "total": 2,
        "succeeded": 2,
        "partial": 0,
        "failed": 0,
        "skipped": 0,
        "missing": 0,
        "unexpected": 0,
    },
    "write_counts": {"created": 0, "updated": 0, "unchanged": 0},
    "error_summary": None,
    "failed_item_ids": [],
    "missing_item_ids": [],
    "name": "first",
    "metadata": {"of": [1, True]},
    "supersedes": None,
    "retry_of": None,
    "opened_at": "1970-01-01T00:00:01Z",
    "first_result_at": "1970-01-01T00:00:02Z",
    "finalized_at": "1970-01-01T00:00:04Z",
    "duration_ms": 3_000,
    "as_of": AS_OF,
}
EVENT_HEADERS = {
    "ce_specversion": b"1.0",
    "ce_id": b"batch.finalized/batch-1/1",
    "ce_type": b"rollcall.batch.finalized.v1",
    "ce_source": b"/rollcall",
    "ce_time": b"1970-01-01T00:00:04.000Z",
    "ce_subject": b"batch-1",
    "content-type": b"application/json",
}
LETTER = LogRecord(
    0,
    0,
    9_000,
    KEY,
    b"no JSON",
    {
        "rollcall_dlt_original_partition": b"%d" % AWAY,
        "rollcall_dlt_original_offset": b"1",
        "rollcall_dlt_original_topic": b"rollcall.events",
        "rollcall_dlt_original_timestamp": b"2000",
        "rollcall_dlt_reason": b"invalid_json",
        "rollcall_dlt_message": b"not JSON",
    },
)
ITEMS = [
    RegisterRow("batch-1", "a", 1, after(2), 0, "succeeded", 1, *[None] * 10),
    RegisterRow("batch-1", "b", 3, after(4), 0, "succeeded", 1, *[None] * 10),
]
LATE_ITEM = RegisterRow(
    "batch-1",
    "a",
    4,
    after(5),
    0,
    "failed",
    2,
    "updated",
    1.5,
    "tried again",
    "E1",
    "no",
    "line 1",
    '{"of":[1,true]}',
    '{"rows":1}',
    "w1",
    after(3),
)
BATCH = {
    "batch_id": "batch-1",
    "partition": HOME,
    "state": "finalized",
    "outcome": "completed",
    "finalized_by": "all_items_in",
    "generation": 0,
    "revision": 1,
    "sealed": True,
    "total_items": 2,
    "expected": None,
    "matched": 0,
    "succeeded": 2,
    "partial": 0,
    "failed": 0,
    "skipped": 0,
    "retrying": 0,
    "created": 0,
    "updated": 0,
    "unchanged": 0,
    "duplicates": 1,
    "late": 1,
    "decided_offset": 3,
    "published_at": "some time",
    "name": "first",
    "metadata": '{"of": [1, true]}',
    "policy": '{"tolerated_failure_count": 1}',
    "retry_of": None,
    "request_retry": False,
    "deadline_at": None,
    "opened_at": after(1),
    "first_result_at": after(2),
    "last_result_at": after(4),
    "last_result_offset": 3,
    "last_answer_at": after(4),
    "completed_at": after(4),
    "finalized_at": after(4),
    "reopened_at": None,
    "reason": None,
    "error": None,
    "failure_seen": False,
    "threshold_exceeded": False,
    "pruned_at": None,
}

# A retry of two items, one record behind the log above, on whichever partition is its home.
RETRY_KEY = b"batch-2"
RETRY_HOME = home(RETRY_KEY, 2)
RETRY_OPENED = {
    "type": "batch.opened",
    "batch_id": "batch-2",
    "item_ids": ["a", "b"],
    "retry_of": "batch-1",
    "request_retry": True,
    "deadline_at": "2099-12-31T23:59:59Z",
}
RETRY_RECORD = LogRecord(RETRY_HOME, 8, 10_000, RETRY_KEY, json.dumps(RETRY_OPENED).encode(), {})
RETRY_BATCH = dict.fromkeys(BATCH) | {
    "batch_id": "batch-2",
    "partition": RETRY_HOME,
    "state": "pending",
    "sealed": True,
    "expected": 2,
    "retry_of": "batch-1",
    "deadline_at": datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC),
    "opened_at": after(10),
    "request_retry": True,
    **dict.fromkeys(("failure_seen", "threshold_exceeded"), False),
    **dict.fromkeys(("revision", "generation", "matched", "duplicates", "late"), 0),
    **dict.fromkeys(("succeeded", "partial", "failed", "skipped", "retrying", "created", "updated", "unchanged"), 0),
}
REQUEST = LogRecord(
    0,
    0,
    11_000,
    RETRY_KEY,
    json.dumps({"batch_id": "batch-2", "retry_of": "batch-1", "item_ids": ["a", "b"]}).encode(),
    EVENT_HEADERS
    | {
        "ce_id": b"batch.retry_requested/batch-2/8",
        "ce_type": b"rollcall.batch.retry_requested.v1",
        "ce_time": b"1970-01-01T00:00:10.000Z",
        "ce_subject": b"batch-2",
    },
)


REQUEST_ID = "batch.retry_requested/batch-2/8"


def event(**changes: Any) -> LogRecord:
    return LogRecord(0, 0, 9_000, KEY, json.dumps(EVENT | changes).encode(), EVENT_HEADERS)


def with_headers(record: LogRecord, **headers: bytes) -> LogRecord:
    return record._replace(headers={**record.headers, **headers})


def lacking(value: dict[str, Any], field: str) -> bytes:
    return json.dumps({name: said for name, said in value.items() if name != field}).encode()


def outbox_row(channel: str, record: LogRecord, **columns: Any) -> dict[str, Any]:
    headers = {name: text.decode() for name, text in record.headers.items()}
    return {
        "id": headers["ce_id"],
        "channel": channel,
        "batch_id": headers["ce_subject"],
        "revision": None,
        "value": (record.value or b"").decode(),
        "headers": json.dumps(headers),
        "published_at": "some time",
        "published_partition": record.partition,
        "published_offset": record.offset,
        "refused": None,
        **columns,
    }


ALERT = LogRecord(
    0,
    0,
    12_000,
    KEY,
    json.dumps({"batch_id": "batch-1", "alert": "batch.slow", "message": "slow", "details": {}}).encode(),
    EVENT_HEADERS | {"ce_id": b"batch.slow/batch-1/0", "ce_type": b"rollcall.batch.slow.v1"},
)
EVENT_ROW = outbox_row("finalized", event(), revision=1)
REQUEST_ROW = outbox_row("requests", REQUEST)
LETTER_ROW = {
    "topic": "rollcall.events",
    "partition": AWAY,
    "record_offset": 1,
    "appended_at": after(2),
    "reason": "invalid_json",
    "message": "not JSON",
    "batch_id": None,
    "key": KEY,
    "value": b"no JSON",
    "headers": "[]",
    "published_at": "some time",
    "published_partition": 0,
    "published_offset": 0,
    "refused": None,
}


def position(topic: str, last: LogRecord, **taken: int) -> dict[str, Any]:
    return {
        "topic": f"rollcall.{topic}",
        "partition": last.partition,
        "next_offset": last.offset + 1,
        "last_offset": last.offset,
        "last_timestamp": last.timestamp,
        "last_checksum": zlib.crc32((last.key or b"") + (last.value or b"")),
        "taken": json.dumps(taken),
    }


WHOLE_LOG = [*LOG, LATE, RETRY_RECORD]
LAST = {each.partition: each for each in WHOLE_LOG}
POSITIONS = [
    position("events", LAST[HOME], **{str(AWAY): 0}),
    position("events", LAST[AWAY]),
    *(
        position(topic, each)
        for topic, each in (("finalized", event()), ("requests", REQUEST), ("dead-letters", LETTER))
    ),
]


def all_right() -> Observed:
    return Observed(
        partitions=2,
        sent=[
            SentRecord(
                (each.partition, each.offset),
                digest(each.key, each.value),
                "invalid_json" if each is BROKEN else None,
            )
            for each in WHOLE_LOG
            if each is not FORWARDED
        ],
        log=WHOLE_LOG,
        finalized=[event()],
        dead_letters=[LETTER],
        tables={
            "batches": [BATCH, RETRY_BATCH],
            "dead_letters": [LETTER_ROW],
            "outbox": [EVENT_ROW, REQUEST_ROW],
            "positions": POSITIONS,
        },
        registers={"item_results": ITEMS, "late_results": [LATE_ITEM]},
        manifests={"batch-2": ["a", "b"]},
        ends={partition: last.offset + 1 for partition, last in LAST.items()},
        requests=[REQUEST],
    )


def without(*records: LogRecord) -> list[LogRecord]:
    """The log but for these."""
    return [each for each in WHOLE_LOG if each not in records]


def with_table(observed: Observed, table: str, *rows: Row) -> Observed:
    return replace(observed, tables={**observed.tables, table: rows})


def with_registers(observed: Observed, table: str, *rows: RegisterRow) -> Observed:
    return replace(observed, registers={**observed.registers, table: rows})


def with_batch(observed: Observed, **changes: Any) -> Observed:
    return with_table(observed, "batches", BATCH | changes, RETRY_BATCH)


def found(observed: Observed) -> list[str]:
    return sorted({finding.kind for finding in check(observed).findings})


def test_what_is_right_is_not_reported() -> None:
    report = check(all_right())
    assert report.findings == []
    assert report.latencies == [(4_000, 5_000)]


def test_an_unknown_outcome_may_or_may_not_appear() -> None:
    observed = all_right()
    unknown = [each._replace(place=None) for each in observed.sent]
    assert found(replace(observed, sent=[*unknown, SentRecord(None, digest(KEY, b"{}"), None)])) == []


WRONG: dict[str, tuple[str, Callable[[Observed], Observed]]] = {
    "an acknowledged record that is not in the log": (
        "lost",
        lambda o: replace(o, sent=[*o.sent, SentRecord((HOME, 9), digest(KEY, b"{}"), None)]),
    ),
    "a record astray that never came home": (
        "lost",
        lambda o: replace(o, log=without(FORWARDED), finalized=[]),
    ),
    "a result without a row": ("lost", lambda o: with_registers(o, "item_results", ITEMS[0])),
    "a batch without a row": ("lost", lambda o: with_table(o, "batches")),
    "a broken record without a dead letter": ("lost", lambda o: replace(o, dead_letters=[])),
    "a broken record without a row": ("lost", lambda o: with_table(o, "dead_letters")),
    "two events of a revision": (
        "doubled",
        lambda o: replace(o, finalized=[event(), event()._replace(offset=1)]),
    ),
    "two dead letters of a record": (
        "doubled",
        lambda o: replace(o, dead_letters=[LETTER, LETTER._replace(offset=1)]),
    ),
    "an event as of an earlier record": (
        "early",
        lambda o: replace(o, finalized=[event(as_of=AS_OF | {"offset": 1})]),
    ),
    "an event of a batch that is not complete": (
        "early",
        lambda o: replace(o, log=without(ASTRAY, FORWARDED)),
    ),
    "an event appended before the record that decided": (
        "early",
        lambda o: replace(o, finalized=[event()._replace(timestamp=3_999)]),
    ),
    "an event as of a later record": (
        "contradicting",
        lambda o: replace(o, finalized=[event(as_of=AS_OF | {"offset": 4})]),
    ),
    "an event with other counts": (
        "contradicting",
        lambda o: replace(o, finalized=[event(item_counts=EVENT["item_counts"] | {"succeeded": 3})]),  # type: ignore[operator]
    ),
    "a duplicate counted as a result": ("contradicting", lambda o: with_batch(o, succeeded=3)),
    "a forwarded copy counted twice": ("contradicting", lambda o: with_batch(o, duplicates=2)),
    "a register of another record": (
        "contradicting",
        lambda o: with_registers(o, "item_results", ITEMS[0]._replace(version=2), ITEMS[1]),
    ),
    "a forwarded copy of another record's bytes": (
        "contradicting",
        lambda o: replace(o, log=[*without(FORWARDED), FORWARDED._replace(value=LOG[1].value)]),
    ),
    "a forwarded copy of a record that is not astray": (
        "contradicting",
        lambda o: replace(o, log=[*without(FORWARDED), with_headers(FORWARDED, rollcall_forwarded_offset=b"7")]),
    ),
    "an event of another source": (
        "contradicting",
        lambda o: replace(o, finalized=[with_headers(event(), ce_source=b"/elsewhere")]),
    ),
    "an event under another id": (
        "contradicting",
        lambda o: replace(o, finalized=[with_headers(event(), ce_id=b"batch.finalized/batch-1/2")]),
    ),
    "an event without a type": (
        "contradicting",
        lambda o: replace(
            o, finalized=[event()._replace(headers={n: t for n, t in EVENT_HEADERS.items() if n != "ce_type"})]
        ),
    ),
    "an event about another subject": (
        "contradicting",
        lambda o: replace(o, finalized=[with_headers(event(), ce_subject=b"batch-2")]),
    ),
    "an event with another duration": (
        "contradicting",
        lambda o: replace(o, finalized=[event(duration_ms=2_000)]),
    ),
    "an event as of another topic": (
        "contradicting",
        lambda o: replace(o, finalized=[event(as_of=AS_OF | {"topic": "events"})]),
    ),
    "an event on another partition than its batch's": (
        "contradicting",
        lambda o: replace(o, finalized=[event()._replace(partition=1)]),
    ),
    "an event that says false where it means 0": (
        "contradicting",
        lambda o: replace(o, finalized=[event(item_counts=EVENT["item_counts"] | {"failed": False})]),  # type: ignore[operator]
    ),
    "an event that lacks what is null": (
        "contradicting",
        lambda o: replace(o, finalized=[event()._replace(value=lacking(EVENT, "retry_of"))]),
    ),
    "an event without a duration": (
        "contradicting",
        lambda o: replace(o, finalized=[event()._replace(value=lacking(EVENT, "duration_ms"))]),
    ),
    "an alert sent twice": ("doubled", lambda o: replace(o, alerts=[ALERT, ALERT._replace(offset=1)])),
    "an alert that nothing calls for": (
        "contradicting",
        lambda o: replace(o, alerts=[with_headers(ALERT, ce_id=b"batch.first_failure/batch-1")]),
    ),
    "a dead letter without the headers of its record": (
        "contradicting",
        lambda o: replace(o, log=[*without(BROKEN), with_headers(BROKEN, traceparent=b"00-1")]),
    ),
    "a request that was never sent": ("lost", lambda o: replace(o, requests=[])),
    "a request sent twice": ("doubled", lambda o: replace(o, requests=[REQUEST, REQUEST._replace(offset=1)])),
    "a request for other items": (
        "contradicting",
        lambda o: replace(o, requests=[REQUEST._replace(value=(REQUEST.value or b"").replace(b'"b"', b'"c"'))]),
    ),
    "a request for a retry of another batch": (
        "contradicting",
        lambda o: replace(o, requests=[REQUEST._replace(value=(REQUEST.value or b"").replace(b"batch-1", b"batch-0"))]),
    ),
    "a request under another id": (
        "contradicting",
        lambda o: replace(o, requests=[with_headers(REQUEST, ce_id=b"batch.retry_requested/batch-2/7")]),
    ),
    "a batch of another name": ("contradicting", lambda o: with_batch(o, name="second")),
    "a batch that began at another time": (
        "contradicting",
        lambda o: with_batch(o, opened_at=BATCH["first_result_at"]),
    ),
    "a batch without its deadline": (
        "contradicting",
        lambda o: with_table(o, "batches", BATCH, RETRY_BATCH | {"deadline_at": None}),
    ),
    "a dead letter from another topic": (
        "contradicting",
        lambda o: replace(o, dead_letters=[with_headers(LETTER, rollcall_dlt_original_topic=b"rollcall.other")]),
    ),
    "a dead letter from another time": (
        "contradicting",
        lambda o: replace(o, dead_letters=[with_headers(LETTER, rollcall_dlt_original_timestamp=b"2001")]),
    ),
    "a dead letter of a sound record": (
        "contradicting",
        lambda o: replace(
            o, sent=[each._replace(broken=None) for each in o.sent], log=[each for each in o.log if each is not BROKEN]
        ),
    ),
    "a batch that is complete without an event": ("never-finalized", lambda o: replace(o, finalized=[])),
    "a batch whose event is not marked": (
        "never-finalized",
        lambda o: with_batch(o, published_at=None),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_reported(what: str) -> None:
    kind, spoil = WRONG[what]
    assert kind in found(spoil(all_right()))


def test_an_older_revision_behind_a_newer_one_is_reported() -> None:
    observed = all_right()
    observed.finalized = [event(revision=2), event()._replace(offset=1)]
    assert any("revision 1: behind revision 2, 0@0" in finding.what for finding in check(observed).findings)


def test_a_batch_that_ends_with_most_of_its_items_failed_is_worth_an_alert() -> None:
    observed = all_right()
    failed = [each._replace(value=(each.value or b"").replace(b"succeeded", b"failed")) for each in observed.log]
    identity = "batch.failure_rate_exceeded/batch-1/1"
    said = {"failed": 2, "answered": 2, "failure_rate": 1.0, "limit": 0.5}

    def findings(**details: Any) -> list[str]:
        value = {"batch_id": "batch-1", "alert": "batch.failure_rate_exceeded", "details": said | details}
        headers = EVENT_HEADERS | {"ce_id": identity.encode(), "ce_type": b"rollcall.batch.failure_rate_exceeded.v1"}
        alert = ALERT._replace(value=json.dumps(value).encode(), headers=headers)
        checked = check(replace(observed, log=failed, alerts=[alert] if details else []))
        return [finding.what for finding in checked.findings if f"alert {identity}" in finding.what]

    assert findings() == [f"no alert {identity}, due at {HOME}@3"]
    assert findings(failed=2) == []
    assert findings(failed=1) == [f"alert {identity}, 0@0: details are {said | {'failed': 1}}, expected {said}"]


def test_an_event_that_its_topic_refuses_must_be_set_aside() -> None:
    unsent = replace(all_right(), finalized=[], refused=frozenset({"batch-1"}))
    assert found(unsent) == ["contradicting"]
    aside = {"published_at": None, "published_partition": None, "published_offset": None, "refused": "too large"}
    assert found(with_batch(with_table(unsent, "outbox", EVENT_ROW | aside, REQUEST_ROW), published_at=None)) == []


def test_findings_name_their_offsets() -> None:
    observed = replace(all_right(), finalized=[event(as_of=AS_OF | {"offset": 1})])
    [finding] = [each for each in check(observed).findings if each.kind == "early"]
    assert f"{HOME}@3" in finding.what
    assert "offset 1" in finding.what


# --- the tables --------------------------------------------------------------------------------------------------


def the_finding(observed: Observed) -> Finding:
    """What is found where one thing is wrong."""
    [finding] = check(observed).findings
    return finding


@pytest.mark.parametrize("column", sorted(BATCH.keys() - {"batch_id", "published_at"}))
def test_each_column_of_a_batch_is_compared(column: str) -> None:
    wrong = '{"of": "another"}' if column in ("metadata", "policy", "error") else "another"
    finding = the_finding(with_batch(all_right(), **{column: wrong}))
    assert finding.kind == "contradicting"
    assert f"batches batch-1, decided at {HOME}@3: {column} " in finding.what


@pytest.mark.parametrize("table", ["item_results", "late_results"])
@pytest.mark.parametrize("column", RegisterRow._fields[2:])
def test_each_column_of_a_result_is_compared(table: str, column: str) -> None:
    wrong = '{"of": [1, 1]}' if column in ("output", "metrics") else "another"
    observed = all_right()
    first, *others = observed.registers[table]
    finding = the_finding(with_registers(observed, table, first._replace(**{column: wrong}), *others))
    assert finding.kind == "contradicting"
    assert f"{table} batch-1/a of {HOME}@{first.version}: {column} " in finding.what


def test_a_limit_may_be_written_as_a_float() -> None:
    assert found(with_batch(all_right(), policy='{"tolerated_failure_count": 1.0}')) == []


def test_no_column_is_left_out_but_for_those_that_the_log_does_not_decide() -> None:
    def undecided(table: Any, compared: Iterable[str]) -> set[str]:
        return set(table.columns.keys()) - set(compared)

    assert undecided(tables.batches, BATCH) == set()
    assert undecided(tables.item_results, RegisterRow._fields) == set()
    assert undecided(tables.late_results, RegisterRow._fields) == set()
    assert undecided(tables.outbox, EVENT_ROW) == {"seq"}
    assert undecided(tables.dead_letters, LETTER_ROW) == {"seq", "redriven_at", "discarded_at", "discard_reason"}
    assert undecided(tables.positions, POSITIONS[0]) == {"first_offset"}


def outbox(observed: Observed, **changes: Any) -> Observed:
    """With another row of the event."""
    return with_table(observed, "outbox", EVENT_ROW | changes, REQUEST_ROW)


def letters(observed: Observed, **changes: Any) -> Observed:
    return with_table(observed, "dead_letters", LETTER_ROW | changes)


def positions(observed: Observed, number: int, **changes: Any) -> Observed:
    changed = [*POSITIONS[:number], POSITIONS[number] | changes, *POSITIONS[number + 1 :]]
    return with_table(observed, "positions", *changed)


EVENT_DUE = f"outbox batch.finalized/batch-1/1, due at {HOME}@3"
LETTER_DUE = f"dead_letters {AWAY}@1 (invalid_json)"
HOME_LAST, AWAY_LAST = LAST[HOME].offset, LAST[AWAY].offset
NOBODYS = RegisterRow("batch-1", "z", 9, after(9), 0, "succeeded", 1, *[None] * 10)
FURTHER = BATCH | {"batch_id": "batch-3", "partition": 1}
ONLY_OPENED = RETRY_BATCH | {"batch_id": "batch-3", "partition": 1}

# What is wrong, and the one finding: its kind, and what it says, which names an offset.
WRONG_ROWS: dict[str, tuple[str, str, Callable[[Observed], Observed]]] = {
    "a batch that only its results tell of": (
        "contradicting",
        "batches has batch-3, last result at 1@3",
        lambda o: with_table(o, "batches", BATCH, RETRY_BATCH, FURTHER | {"decided_offset": None}),
    ),
    "a batch of which the log says nothing": (
        "contradicting",
        "batches has batch-3, decided at 1@3: the log says nothing of it",
        lambda o: with_table(o, "batches", BATCH, RETRY_BATCH, FURTHER),
    ),
    "a batch of which the log says nothing, and which is only opened": (
        "contradicting",
        f"batches has batch-3, home partition 1, opened at {after(10)}",
        lambda o: with_table(o, "batches", BATCH, RETRY_BATCH, ONLY_OPENED),
    ),
    "a batch twice": (
        "doubled",
        f"batches has batch-1, decided at {HOME}@3 twice",
        lambda o: with_table(o, "batches", BATCH, BATCH, RETRY_BATCH),
    ),
    "a batch without a row that was only opened": (
        "lost",
        f"batches has no batch-2, last spoken of at {RETRY_HOME}@8",
        lambda o: with_table(o, "batches", BATCH),
    ),
    "a batch that is marked as published without an event": (
        "contradicting",
        f"batches batch-2, last spoken of at {RETRY_HOME}@8 is marked as published",
        lambda o: with_table(o, "batches", BATCH, RETRY_BATCH | {"published_at": "some time"}),
    ),
    "a result twice": (
        "doubled",
        f"item_results has batch-1/a twice, of {HOME}@1, {HOME}@1",
        lambda o: with_registers(o, "item_results", ITEMS[0], *ITEMS),
    ),
    "a result of nobody": (
        "contradicting",
        f"item_results has batch-1/z of {HOME}@9: not in the log",
        lambda o: with_registers(o, "item_results", *ITEMS, NOBODYS),
    ),
    "a late result without a row": (
        "lost",
        f"late_results has no batch-1/a: {HOME}@4",
        lambda o: with_registers(o, "late_results"),
    ),
    "a late result that is not late": (
        "contradicting",
        f"late_results has batch-1/b of {HOME}@3: not in the log",
        lambda o: with_registers(o, "late_results", LATE_ITEM, ITEMS[1]),
    ),
    "an expected item without a row": (
        "lost",
        f"expected_items has not b of batch-2: {RETRY_HOME}@8",
        lambda o: replace(o, manifests={"batch-2": ["a"]}),
    ),
    "an item that nobody expects": (
        "contradicting",
        f"expected_items has c of batch-2, last spoken of at {RETRY_HOME}@8: not in the log",
        lambda o: replace(o, manifests={"batch-2": ["a", "b", "c"]}),
    ),
    "an expected item twice": (
        "doubled",
        f"expected_items has b of batch-2, last spoken of at {RETRY_HOME}@8 more than once",
        lambda o: replace(o, manifests={"batch-2": ["a", "b", "b"]}),
    ),
    "a manifest of a batch without one": (
        "contradicting",
        f"expected_items has a of batch-1, decided at {HOME}@3: not in the log",
        lambda o: replace(o, manifests={"batch-1": ["a"], "batch-2": ["a", "b"]}),
    ),
    "a manifest of a batch of which the log says nothing": (
        "contradicting",
        "expected_items has a of batch-3, home partition",
        lambda o: replace(o, manifests={"batch-2": ["a", "b"], "batch-3": ["a"]}),
    ),
    "a position before the last record": (
        "lost",
        f"positions: {HOME}@{HOME_LAST} is next, {HOME}@{HOME_LAST} is in the log",
        lambda o: positions(o, 0, next_offset=HOME_LAST),
    ),
    "a position behind the log's end": (
        "contradicting",
        f"positions: {HOME}@{HOME_LAST + 2} is next, the end is {HOME_LAST + 1}",
        lambda o: positions(o, 0, next_offset=HOME_LAST + 2),
    ),
    "a partition without a position": (
        "lost",
        f"positions has no partition {AWAY}, which ends at {AWAY_LAST + 1}",
        lambda o: with_table(o, "positions", POSITIONS[0], *POSITIONS[2:]),
    ),
    "a position of no partition": (
        "contradicting",
        "positions has 7@1: there is no such partition",
        lambda o: with_table(o, "positions", *POSITIONS, POSITIONS[0] | {"partition": 7, "next_offset": 1}),
    ),
    "another last record": (
        "contradicting",
        f"positions: last ({HOME_LAST - 1}, ",
        lambda o: positions(o, 0, last_offset=HOME_LAST - 1),
    ),
    "a last record of another time": (
        "contradicting",
        f"{HOME}@{HOME_LAST} is",
        lambda o: positions(o, 0, last_timestamp=1),
    ),
    "a last record with other bytes": (
        "contradicting",
        f"{HOME}@{HOME_LAST} is",
        lambda o: positions(o, 0, last_checksum=1),
    ),
    "a forwarded record of which the position knows nothing": (
        "contradicting",
        f"positions, partition {HOME}: of {AWAY} taken up to None for 0",
        lambda o: positions(o, 0, taken="{}"),
    ),
    "a forwarded record that never came": (
        "contradicting",
        f"positions, partition {AWAY}: of {HOME} taken up to 5 for None",
        lambda o: positions(o, 1, taken=json.dumps({str(HOME): 5})),
    ),
    "a published event that the relay doesn't know": (
        "contradicting",
        "positions, finalized: 0@0 is next, 0@0 is published",
        lambda o: positions(o, 2, next_offset=0),
    ),
    "an event without a row": (
        "lost",
        f"outbox has no batch.finalized/batch-1/1, due at {HOME}@3",
        lambda o: with_table(o, "outbox", REQUEST_ROW),
    ),
    "a request without a row": (
        "lost",
        f"outbox has no {REQUEST_ID}, due at {RETRY_HOME}@8",
        lambda o: with_table(o, "outbox", EVENT_ROW),
    ),
    "a row of an event that nothing calls for": (
        "contradicting",
        "outbox has batch.finalized/batch-1/2, published at 0@0: nothing calls for it",
        lambda o: with_table(o, "outbox", EVENT_ROW, EVENT_ROW | {"id": "batch.finalized/batch-1/2"}, REQUEST_ROW),
    ),
    "an event of another channel": (
        "contradicting",
        f"{EVENT_DUE}: ('alerts', 'batch-1', 1) for",
        lambda o: outbox(o, channel="alerts"),
    ),
    "an event of another batch's row": (
        "contradicting",
        f"{EVENT_DUE}: ('finalized', 'batch-2', 1) for",
        lambda o: outbox(o, batch_id="batch-2"),
    ),
    "an event of another revision's row": (
        "contradicting",
        f"{EVENT_DUE}: ('finalized', 'batch-1', 2) for",
        lambda o: outbox(o, revision=2),
    ),
    "an event that is not marked as published": (
        "never-finalized",
        f"{EVENT_DUE} is not marked as published",
        lambda o: outbox(o, published_at=None, published_partition=None, published_offset=None),
    ),
    "a request that is not marked as published": (
        "lost",
        f"outbox {REQUEST_ID}, due at {RETRY_HOME}@8 is not marked as published",
        lambda o: with_table(o, "outbox", EVENT_ROW, REQUEST_ROW | {"published_at": None}),
    ),
    "an event marked in another partition": (
        "contradicting",
        f"{EVENT_DUE} is published at 1@0, and really 0@0",
        lambda o: outbox(o, published_partition=1),
    ),
    "an event marked at another offset": (
        "contradicting",
        f"{EVENT_DUE} is published at 0@1, and really 0@0",
        lambda o: outbox(o, published_offset=1),
    ),
    "an event marked without a place": (
        "contradicting",
        f"{EVENT_DUE} is published nowhere, and really 0@0",
        lambda o: outbox(o, published_partition=None, published_offset=None),
    ),
    "an event that was refused although its topic takes it": (
        "contradicting",
        f"{EVENT_DUE}: refused is 'too large'",
        lambda o: outbox(o, refused="too large"),
    ),
    "an event whose row has another value": (
        "contradicting",
        f"{EVENT_DUE}, which finalized has at 0@0: its value is '{{}}'",
        lambda o: outbox(o, value="{}"),
    ),
    "an event whose row has no value": (
        "contradicting",
        f"{EVENT_DUE}, which finalized has at 0@0: its value is None",
        lambda o: outbox(o, value=None),
    ),
    "an event whose row has other headers": (
        "contradicting",
        f"{EVENT_DUE}, which finalized has at 0@0: its headers are '{{}}'",
        lambda o: outbox(o, headers="{}"),
    ),
    "a dead letter's row twice": (
        "doubled",
        f"dead_letters has {AWAY}@1 of rollcall.other and rollcall.events",
        lambda o: with_table(o, "dead_letters", LETTER_ROW | {"topic": "rollcall.other"}, LETTER_ROW),
    ),
    "a row of a sound record": (
        "contradicting",
        f"dead_letters has {HOME}@1, published at 0@0: it is sound",
        lambda o: with_table(o, "dead_letters", LETTER_ROW, LETTER_ROW | {"partition": HOME}),
    ),
    "a row of another topic": ("contradicting", f"{LETTER_DUE}: topic ", lambda o: letters(o, topic="rollcall.other")),
    "a row with another reason": ("contradicting", f"{LETTER_DUE}: reason ", lambda o: letters(o, reason="too_large")),
    "a row of another time": ("contradicting", f"{LETTER_DUE}: appended_at ", lambda o: letters(o, appended_at=None)),
    "a row with another key": ("contradicting", f"{LETTER_DUE}: key ", lambda o: letters(o, key=None)),
    "a row with another value": ("contradicting", f"{LETTER_DUE}: value ", lambda o: letters(o, value=b"")),
    "a row with other headers": (
        "contradicting",
        f"{LETTER_DUE}: headers ",
        lambda o: letters(o, headers='[["x", "eQ=="]]'),
    ),
    "a row with a batch that cannot be read": (
        "contradicting",
        f"{LETTER_DUE}: batch_id 'batch-1'",
        lambda o: letters(o, batch_id="batch-1"),
    ),
    "a row with another message": (
        "contradicting",
        f"{LETTER_DUE}: message 'why not', 0@0 has 'not JSON'",
        lambda o: letters(o, message="why not"),
    ),
    "a dead letter that is not marked as published": (
        "lost",
        f"{LETTER_DUE} is not marked as published",
        lambda o: letters(o, published_at=None),
    ),
    "a dead letter marked in another partition": (
        "contradicting",
        f"{LETTER_DUE} is published at 1@0, and really 0@0",
        lambda o: letters(o, published_partition=1),
    ),
    "a dead letter marked at another offset": (
        "contradicting",
        f"{LETTER_DUE} is published at 0@1, and really 0@0",
        lambda o: letters(o, published_offset=1),
    ),
    "a dead letter that was refused although its topic takes it": (
        "contradicting",
        f"{LETTER_DUE}: refused is 'too large'",
        lambda o: letters(o, refused="too large"),
    ),
}


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_what_is_wrong_in_a_table_is_the_one_finding(what: str) -> None:
    kind, said, spoil = WRONG_ROWS[what]
    finding = the_finding(spoil(all_right()))
    assert (finding.kind, said in finding.what) == (kind, True), finding


def test_what_lies_before_the_stretch_may_have_been_forwarded() -> None:
    older = positions(all_right(), 1, taken=json.dumps({str(HOME): 5}))
    assert check(replace(older, since={HOME: 6})).findings == []


def test_what_was_applied_since_the_log_was_read_is_not_held_against_the_position() -> None:
    further = positions(all_right(), 0, next_offset=HOME_LAST + 2, last_offset=HOME_LAST + 1)
    assert check(replace(further, ends={HOME: HOME_LAST + 2, AWAY: AWAY_LAST + 1})).findings == []


def test_what_goes_out_at_its_own_time_may_be_on_its_way() -> None:
    others = [
        EVENT_ROW | {"id": f"{name}/batch-1/1", "channel": channel, "published_at": None}
        for name, channel in (("batch.summarized", "summaries"), ("batch.slow_detected", "alerts"))
    ]
    assert check(with_table(all_right(), "outbox", EVENT_ROW, REQUEST_ROW, *others)).findings == []


def test_every_broken_record_has_a_batch_id_that_the_checker_takes() -> None:
    for each in broken_records.BROKEN:
        if each.value is None:
            continue
        with pytest.raises(Refused) as refused:
            decode(each.value, 0, datetime.now(UTC))
        broken = LogRecord(0, 0, 0, each.key, each.value, {})
        assert refused.value.batch_id in queues._batch_ids(refused.value.reason, broken), each.name


def test_the_checker_shares_no_code_with_the_product() -> None:
    code = "import sys, tests.faults.checker; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for package in ("api", "handlers", "migrations", "rollcall", "schemas", "store", "streams"):
        assert f"'{package}'" not in loaded
