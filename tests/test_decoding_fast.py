"""The fast ways of decoding, compiled and not, take what the exact way takes, as the same record, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import rollcall_native
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.workload import result
from handlers import fold
from handlers.records import Record
from schemas.dead_letters import Refused
from schemas.events import BatchItemsExpected, BatchOpened, BatchSealed, ItemError, ItemResult
from streams import decoding
from streams.decoding import decode, decode_exactly, decode_in_python
from tests.harness.broken_records import BROKEN, EITHER, TRICKY_GOOD, Broken, Good
from tests.harness.micro_batches import taken_of
from tests.harness.record_batches import batch, records_in

NOW = datetime(2026, 1, 1, tzinfo=UTC)

FULL: dict[str, Any] = {
    "type": "item.result",
    "schema_version": 1,
    "batch_id": "bätch 1",
    "item_id": "a/b",
    "status": "failed",
    "attempt": 3,
    "effect": "updated",
    "duration_ms": 1.5,
    "message": 'a "line"\n/ more €😀',
    "error": {"code": "E", "message": "why", "stack_trace": "at"},
    "output": {"ü": [1, None, 2.5e10, {"a": True}]},
    "metrics": {"a": 1, "b": 0.5},
    "worker": "w",
    "occurred_at": "2026-01-01T02:00:00.25+02:00",
}
FIELDS = sorted(ItemResult.__annotations__)
LIFECYCLE_FIELDS = sorted(BatchOpened.__annotations__)

# JSON texts that parsers are known to differ about, or that some field takes and another does not.
TEXTS = (
    *("null", "true", "0", "1", "-1", "-0", "-0.0", "1.0", "1e0", "1E5", "1.50", "0.1", "5e-324", "1e-400", "1e308"),
    *(
        "1e309",
        "1e999",
        "-1e999",
        "2147483647",
        "2147483648",
        "9223372036854775808",
        "18446744073709551616",
        "01",
        "1.",
    ),
    *(".5", "+1", "-", "1e", "NaN", "Infinity", "-Infinity", "9" * 299, "9" * 300, "9" * 309, "9" * 400, "9" * 5_000),
    *("0." + "3" * 400, "1.7976931348623157e308", "1.7976931348623159e308", "123456789012345678901234567890"),
    *('""', '"a"', '"2"', '"a/b"', '"\\/"', '"\\n"', '"\\t"', '"\\x"', '"\\u0041"', '"\\u0000"', '"\\ud83d"', '"\x7f"'),
    *('"\x85"', '"\xa0"', '"\u2028"', '"\ufeff"', '"\u0378"', '"\U000f0000"', '"\x00"', '"\x1f"', '"\n"', '" "', "''"),
    *('"' + "x" * 200 + '"', '"' + "x" * 201 + '"', '"' + "😀" * 200 + '"', '"' + "😀" * 201 + '"'),
    *('"' + "m" * 4_097 + '"', '"' + "€" * 22_000 + '"', "[", "]", "{", "}", "[1,]", "[,]", '{"a":1,}', "{1:2}"),
    *("[" * 98 + "]" * 98, "[" * 99 + "]" * 99, "[" * 100 + "]" * 100, "[" * 101 + "]" * 101, '"' + "[" * 120 + '"'),
    *("[" * 5_000 + "]" * 5_000, '{"a":' * 99 + "1" + "}" * 99, "[]", "{}", '{"a":1}', '{"a":1,"a":2}', '{"a":true}'),
    *('{"message":"m"}', '{"message":"m","code":1}', '{"message":null}', '{"message":"m","more":1e999}', '{"":1}'),
    *('{"message":"m","message":2}', '{"code":"c"}', '{"message":"m","more":"\\u0000"}', '"succeeded"', '"retrying"'),
    *('"item.result"', '"batch.opened"', '"created"', '"2026-01-01T00:00:00Z"', '"2026-01-01T00:00:00Z\\n"', '"2026"'),
    *('"2026-02-30T00:00:00Z"', '"20260101T000000Z"', '"2026-01-01 00:00:00-23:59"', '"2026-01-01T00:00:00+24:00"'),
    *('"0001-01-01T00:00:00+01:00"', '"2026-01-01T00:00:00.123456789z"', '"2026-01-01T00:00:60Z"', '"٢026-01-01T"'),
    *(
        '"\\b\\f\\r\\/"',
        '["a","b"]',
        '["a","a"]',
        '["a/b",""]',
        '["a","\\n"]',
        '["\x7f"]',
        '["\xa0"]',
        "[1]",
        "[null]",
        "[1e16]",
    ),
    *('{"a":1e309}', '{"a":' + "9" * 400 + "}", '{"a":12345678901234567890123,"b":-0,"c":-0.0,"d":1E2}', '"Infinity"'),
)
RAW_BYTES = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"\x0c", b"\\", b'"', b",", b":", b"}", b" ")


OPENED: dict[str, Any] = {
    "type": "batch.opened",
    "batch_id": "bätch 1",
    "schema_version": 1,
    "item_ids": ["a/b", "ü"],
    "name": "nightly",
    "sealed": False,
    "deadline_at": "2026-01-01T02:00:00.25+02:00",
    "request_retry": True,
    "occurred_at": "2026-01-01T00:00:00Z",
}
ITEMS_EXPECTED: dict[str, Any] = {"type": "batch.items_expected", "batch_id": "b", "item_ids": ["a", "b"]}
SEALED: dict[str, Any] = {"type": "batch.sealed", "batch_id": "b", "schema_version": 1, "total_items": 5}
LIFECYCLES = (OPENED, ITEMS_EXPECTED, SEALED, {"type": "batch.cancelled", "batch_id": "b", "reason": "r"})
MANIFESTS = [json.dumps([str(number) for number in range(size)]) for size in (10_000, 10_001)]


def encoded(fields: list[tuple[str, str]]) -> bytes:
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields) + "}").encode()


FULL_TEXTS = [(name, json.dumps(value, ensure_ascii=False)) for name, value in FULL.items()]
LIFECYCLE_TEXTS = [
    [(name, json.dumps(value, ensure_ascii=False)) for name, value in event.items()] for event in LIFECYCLES
]
REQUIRED_TEXTS = [pair for pair in FULL_TEXTS if pair[0] in ItemResult.__required_keys__]

anywhere = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
texts = st.sampled_from(TEXTS) | st.builds(
    lambda value, separators: json.dumps(value, ensure_ascii=False, separators=separators),
    anywhere,
    st.sampled_from([(",", ":"), (", ", ": ")]),
)


@st.composite
def altered_messages(draw: st.DrawFn) -> bytes:
    """A message with some fields left out, replaced, repeated or added, and now and then some bytes spoilt."""
    fields = list(draw(st.sampled_from([FULL_TEXTS, REQUIRED_TEXTS, *LIFECYCLE_TEXTS])))
    names = FIELDS if fields[0][1] == '"item.result"' else LIFECYCLE_FIELDS
    for _ in range(draw(st.integers(0, 3))):
        name, text = draw(st.sampled_from([*names, "unknown", ""])), draw(texts)
        kept = [pair for pair in fields if pair[0] != name]
        how = draw(st.sampled_from(["replace", "drop", "repeat"]))
        fields = {"replace": [*kept, (name, text)], "drop": kept, "repeat": [*fields, (name, text)]}[how]
    value = encoded(draw(st.permutations(fields))).replace(b"\xed\xa0\x80", b"?") if fields else b"{}"
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(st.sampled_from(RAW_BYTES)) + value[at + draw(st.integers(0, 2)) :]
    return value


def outcome(way: Any, value: bytes) -> tuple[object, ...]:
    try:
        return "taken", repr(way(value, 7, NOW))
    except Refused as refusal:
        return "refused", refusal.reason, refusal.message, refusal.batch_id


def taken(value: bytes, offset: int, moment: datetime) -> Record:
    """Out of a fetched batch, where no NUL of a bytes object is behind it."""
    data = batch(offset, [(None, value, [])], begun_ms=round(moment.timestamp() * 1_000))
    [record] = fold.rows(taken_of(records_in(data)))
    return record


def assert_same(value: bytes) -> None:
    exact = outcome(decode_exactly, value)
    assert outcome(decode, value) == exact
    assert outcome(decode_in_python, value) == exact
    assert outcome(taken, value) == exact


@settings(max_examples=1_500, deadline=None)
@given(altered_messages())
@example(encoded([*REQUIRED_TEXTS, ("unknown", "1e999")]))
@example(encoded([*REQUIRED_TEXTS, ("output", "9" * 5_000), ("output", "null")]))
@example(encoded([*REQUIRED_TEXTS, ("metrics", '{"a":' + "9" * 400 + "}"), ("metrics", "null")]))
def test_both_ways_say_the_same_of_altered_messages(value: bytes) -> None:
    assert_same(value)


def test_both_ways_say_the_same_of_every_tricky_text_in_every_field() -> None:
    for name in [*FIELDS, "unknown"]:
        kept = [pair for pair in FULL_TEXTS if pair[0] != name]
        for text in TEXTS:
            assert_same(encoded([*kept, (name, text)]))
            assert_same(encoded([(name, text), *REQUIRED_TEXTS]))
            assert_same(encoded([(name, text), *FULL_TEXTS]))


@pytest.mark.parametrize("fields", LIFECYCLE_TEXTS)
def test_both_ways_say_the_same_of_every_tricky_text_in_every_field_of_a_lifecycle(
    fields: list[tuple[str, str]],
) -> None:
    types = [json.dumps(event["type"]) for event in LIFECYCLES]
    for name in [*LIFECYCLE_FIELDS, "unknown"]:
        kept = [pair for pair in fields if pair[0] != name]
        for text in [*TEXTS, *types, *MANIFESTS]:
            assert_same(encoded([*kept, (name, text)]))
            assert_same(encoded([(name, text), *fields]))
            assert_same(encoded([*fields, (name, text)]))


def test_both_ways_say_the_same_of_the_corpus() -> None:
    corpus: list[Broken | Good] = [*BROKEN, *TRICKY_GOOD, *EITHER]
    for record in corpus:
        if record.value:
            assert_same(record.value)


@pytest.mark.parametrize("position", range(0, 100, 9))
def test_both_ways_say_the_same_of_spoilt_bytes(position: int) -> None:
    value = encoded(FULL_TEXTS)
    for at in range(len(value) * position // 100, len(value) * (position + 9) // 100):
        for raw in RAW_BYTES:
            assert_same(value[:at] + raw + value[at:])
            assert_same(value[:at] + raw + value[at + 1 :])


@pytest.mark.skipif(not rollcall_native.compiled, reason="nothing is compiled here")
def test_usual_results_are_taken_by_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: bytes, *_: object) -> None:
        raise AssertionError(f"was decoded in Python: {value!r}")

    monkeypatch.setattr(decoding, "decode_in_python", refuse)
    full = FULL | {"message": "a line / more €😀", "occurred_at": "2026-01-01T02:00:00.25Z"}
    full |= {"output": {"ü": [1, None, -2.5, {"a": True, "b": False}], "": [], "c": {}}}
    for value in (full, {name: full[name] for name in ItemResult.__required_keys__}):
        for separators in ((",", ":"), (", ", ": ")):
            if separators != (",", ":"):
                value = {name: each for name, each in value.items() if name not in ("output", "metrics")}
            text = json.dumps(value, ensure_ascii=False, separators=separators).encode()
            assert decode(text, 7, NOW) == decode_exactly(text, 7, NOW)
    for item in range(100):
        assert decode(result("b", item, output_bytes=2_000), 7, NOW)


def test_usual_messages_go_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: bytes, *_: object) -> None:
        raise AssertionError(f"went the exact way: {value!r}")

    monkeypatch.setattr(decoding, "decode_exactly", refuse)
    assert decode(encoded(FULL_TEXTS), 7, NOW).batch_id == FULL["batch_id"]
    assert decode(encoded(REQUIRED_TEXTS), 7, NOW).batch_id == FULL["batch_id"]
    nulls = [(name, "null") for name in FIELDS if name not in ItemResult.__required_keys__]
    assert decode(encoded([*nulls, *REQUIRED_TEXTS[::-1]]), 7, NOW).batch_id == FULL["batch_id"]
    assert decode(encoded([*FULL_TEXTS, ("unknown", '{"a":[1,"batch.opened"]}')]), 7, NOW)
    for item in range(100):
        assert decode(result("b", item), 7, NOW)
    for fields in LIFECYCLE_TEXTS[:3]:
        assert decode(encoded(fields), 7, NOW)
    assert decode(encoded([*LIFECYCLE_TEXTS[1][:2], ("item_ids", MANIFESTS[0])]), 7, NOW)


def test_both_ways_know_the_same_fields() -> None:
    assert set(decoding._Result.__struct_fields__) == set(ItemResult.__annotations__)
    assert set(decoding._Error.__struct_fields__) == set(ItemError.__annotations__)


@pytest.mark.parametrize(
    ("fast", "exact"),
    [(decoding._Opened, BatchOpened), (decoding._ItemsExpected, BatchItemsExpected), (decoding._Sealed, BatchSealed)],
)
def test_a_lifecycle_decoded_fast_has_its_fields_in_the_order_of_the_exact_way(fast: Any, exact: Any) -> None:
    known = ["type", *fast.__struct_fields__]
    assert known == [name for name in exact.__annotations__ if name in known]
