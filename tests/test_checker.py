"""The fault runner's checker bites: hand-made logs with one thing wrong each."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.faults.checker import check
from tests.faults.observed import LogRecord, Observed, SentRecord
from tests.faults.producing import digest, home

KEY = b"batch-1"
HOME = home(KEY, 2)
AWAY = 1 - HOME


def record(partition: int, offset: int, value: dict[str, Any] | bytes, **headers: bytes) -> LogRecord:
    said = value if isinstance(value, bytes) else json.dumps(value).encode()
    return LogRecord(partition, offset, 1_000 * (offset + 1), KEY, said, headers)


def result(item: str, status: str = "succeeded") -> dict[str, Any]:
    return {"batch_id": "batch-1", "item_id": item, "status": status}


OPENED = {"type": "batch.opened", "batch_id": "batch-1", "total_items": 2, "name": "first"}
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
    "metadata": None,
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
    },
)
ITEM = {"batch_id": "batch-1", "status": "succeeded", "attempt": 1, "effect": None, "error_message": None}
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
    "late": 0,
    "decided_offset": 3,
    "published_at": "some time",
    "name": "first",
    "retry_of": None,
    "deadline_at": None,
    "opened_at": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
    "first_result_at": datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
    "reopened_at": None,
    "finalized_at": datetime(1970, 1, 1, 0, 0, 4, tzinfo=UTC),
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
    "opened_at": datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC),
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


def event(**changes: Any) -> LogRecord:
    return LogRecord(0, 0, 9_000, KEY, json.dumps(EVENT | changes).encode(), EVENT_HEADERS)


def with_headers(record: LogRecord, **headers: bytes) -> LogRecord:
    return record._replace(headers={**record.headers, **headers})


def all_right() -> Observed:
    return Observed(
        partitions=2,
        sent=[
            SentRecord(
                (each.partition, each.offset),
                digest(each.key, each.value),
                "invalid_json" if each is BROKEN else None,
            )
            for each in (*LOG, RETRY_RECORD)
            if each is not FORWARDED
        ],
        log=[*LOG, RETRY_RECORD],
        finalized=[event()],
        dead_letters=[LETTER],
        tables={
            "batches": [BATCH, RETRY_BATCH],
            "item_results": [ITEM | {"item_id": "a", "version": 1}, ITEM | {"item_id": "b", "version": 3}],
            "late_results": [],
            "dead_letters": [{"partition": AWAY, "record_offset": 1, "refused": None}],
            "outbox": [{"batch_id": "batch-1", "refused": None}],
        },
        requests=[REQUEST],
    )


def without(*records: LogRecord) -> list[LogRecord]:
    """The log but for these."""
    return [each for each in (*LOG, RETRY_RECORD) if each not in records]


def with_table(observed: Observed, table: str, *rows: dict[str, Any]) -> Observed:
    return replace(observed, tables={**observed.tables, table: rows})


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
    "a result without a row": ("lost", lambda o: with_table(o, "item_results", ITEM | {"item_id": "a", "version": 1})),
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
        lambda o: with_table(
            o, "item_results", ITEM | {"item_id": "a", "version": 2}, ITEM | {"item_id": "b", "version": 3}
        ),
    ),
    "a forwarded copy of another record's bytes": (
        "contradicting",
        lambda o: replace(o, log=[*LOG[:-1], FORWARDED._replace(value=LOG[1].value), RETRY_RECORD]),
    ),
    "a forwarded copy of a record that is not astray": (
        "contradicting",
        lambda o: replace(o, log=[*LOG[:-1], with_headers(FORWARDED, rollcall_forwarded_offset=b"7"), RETRY_RECORD]),
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


def test_an_event_that_its_topic_refuses_must_be_set_aside() -> None:
    without = replace(all_right(), finalized=[], refused=frozenset({"batch-1"}))
    assert found(without) == ["contradicting"]
    aside = with_table(without, "outbox", {"batch_id": "batch-1", "refused": "too large"})
    assert found(with_batch(aside, published_at=None)) == []


def test_findings_name_their_offsets() -> None:
    observed = replace(all_right(), finalized=[event(as_of=AS_OF | {"offset": 1})])
    [finding] = [each for each in check(observed).findings if each.kind == "early"]
    assert f"{HOME}@3" in finding.what
    assert "offset 1" in finding.what


def test_the_checker_shares_no_code_with_the_product() -> None:
    code = "import sys, tests.faults.checker; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for package in ("api", "handlers", "migrations", "rollcall", "schemas", "store", "streams"):
        assert f"'{package}'" not in loaded
