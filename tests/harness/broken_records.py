"""Records that must become dead letters, and records that only look as if they should.

`BROKEN` holds one record for each kind of defect, each with exactly one defect, built by systematic combination;
`TRICKY_GOOD` holds what must be taken. `EITHER` holds what the contract leaves open: such a record may be taken or
become a dead letter, but it must never stop the stream nor harm its neighbours. It shares no code with the product.

Every record has a batch id of its own and is keyed by it, unless the key is the point; so its bytes are its own, too,
wherever they can hold an id. Keys tell the others apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Headers = tuple[tuple[str, bytes], ...]

INVALID_JSON = "invalid_json"
INVALID_EVENT = "invalid_event"
UNKNOWN_TYPE = "unknown_type"
UNSUPPORTED_VERSION = "unsupported_schema_version"
UNSTORABLE = "unstorable"
TOO_LARGE = "too_large"

# Where the contract says "a dead letter" and leaves the reason to the reader, these are the readings taken here.
EMPTY_VALUE = INVALID_JSON
TOMBSTONE = INVALID_JSON
NOT_AN_OBJECT = INVALID_EVENT
TYPE_OF_WRONG_KIND = INVALID_EVENT
VERSION_BELOW_ONE = INVALID_EVENT

MAX_DEPTH = 100  # the value itself is level 1
READABLE_DEPTH = 200  # deeper, a parser may well give up before it has seen the batch id


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that must become a dead letter with these bytes. `value` None is a tombstone.

    `batch_id` is the one that must be found in the value; None (no JSON, the id itself is what is wrong, nested beyond
    what parsers go through) asks nothing of the reader, so compare it only where it is given.
    """

    name: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    batch_id: str | None


@dataclass(frozen=True, slots=True)
class Good:
    """A record that must be taken, for the batch `batch_id` whatever its key says."""

    name: str
    key: bytes | None
    value: bytes
    headers: Headers
    batch_id: str


class Raw(str):
    """JSON text that stands in the value as it is, so that it can be what no encoder would write."""

    __slots__ = ()


# --- values ------------------------------------------------------------------------------------------------------

OPENED: dict[str, Any] = {"type": "batch.opened"}
EXPECTED: dict[str, Any] = {"type": "batch.items_expected", "item_ids": ["a"]}
SEALED: dict[str, Any] = {"type": "batch.sealed", "total_items": 3}
RESULT: dict[str, Any] = {"type": "item.result", "item_id": "i", "status": "succeeded"}
KINDS: dict[str, dict[str, Any]] = {"opened": OPENED, "expected": EXPECTED, "sealed": SEALED, "result": RESULT}

ABSENT = object()


def text(value: Any) -> str:
    """Compact JSON; `Raw` members stand for themselves."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_name(key)}:{text(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _name(key: str) -> str:
    return str(key) if isinstance(key, Raw) else json.dumps(key, ensure_ascii=False)


def nested(depth: int, *, innermost: str = "", objects: bool = False) -> Raw:
    """Arrays or objects within each other, `depth` of them."""
    if objects:
        return Raw('{"n":' * (depth - 1) + "{" + innermost + "}" + "}" * (depth - 1))
    return Raw("[" * depth + innermost + "]" * depth)


def _fields(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**base, **changes}.items() if value is not ABSENT}


# --- broken: not JSON --------------------------------------------------------------------------------------------

# Defect -> the bytes of a result's value; %s is where its batch id stands.
_NOT_JSON: Mapping[str, bytes] = {
    "cut in a string": b'{"batch_id":"%s","item_id":"i","status":"succ',
    "cut behind a value": b'{"batch_id":"%s","item_id":"i","status":"succeeded"',
    "cut behind a colon": b'{"batch_id":"%s","item_id":',
    "cut behind a comma": b'{"batch_id":"%s",',
    "cut in an escape": b'{"batch_id":"%s","message":"\\u00',
    "cut in a nested object": b'{"batch_id":"%s","item_id":"i","status":"succeeded","output":{"a":[1,2',
    "only an opening brace": b"{",
    "text": b"hello %s",
    "trailing word": b'{"batch_id":"%s","item_id":"i","status":"succeeded"}x',
    "trailing brace": b'{"batch_id":"%s","item_id":"i","status":"succeeded"}}',
    "trailing NUL": b'{"batch_id":"%s","item_id":"i","status":"succeeded"}\x00',
    "two values": b'{"batch_id":"%s","item_id":"i","status":"succeeded"}{}',
    "two lines": b'{"batch_id":"%s","item_id":"i","status":"succeeded"}\n{"batch_id":"x"}',
    "trailing comma": b'{"batch_id":"%s","item_id":"i","status":"succeeded",}',
    "trailing comma in an array": b'{"batch_id":"%s","item_id":"i","status":"succeeded","output":[1,]}',
    "missing colon": b'{"batch_id" "%s","item_id":"i","status":"succeeded"}',
    "missing comma": b'{"batch_id":"%s" "item_id":"i","status":"succeeded"}',
    "single quotes": b"{'batch_id':'%s','item_id':'i','status':'succeeded'}",
    "bare names": b'{batch_id:"%s",item_id:"i",status:"succeeded"}',
    "comment": b'{"batch_id":"%s","item_id":"i",/* done */"status":"succeeded"}',
    "number as a name": b'{"batch_id":"%s","item_id":"i","status":"succeeded",1:2}',
    "raw newline in a string": b'{"batch_id":"%s","item_id":"i","status":"failed","message":"a\nb"}',
    "raw tab in a string": b'{"batch_id":"%s","item_id":"i","status":"failed","message":"a\tb"}',
    "raw NUL in a string": b'{"batch_id":"%s","item_id":"i","status":"failed","message":"a\x00b"}',
    "unknown escape": b'{"batch_id":"%s","item_id":"i","status":"failed","message":"\\x41"}',
    "short unicode escape": b'{"batch_id":"%s","item_id":"i","status":"failed","message":"\\u12"}',
    "unicode escape of no hex": b'{"batch_id":"%s","item_id":"i","status":"failed","message":"\\u12G4"}',
    "byte order mark": b'\xef\xbb\xbf{"batch_id":"%s","item_id":"i","status":"succeeded"}',
    "no-break space before": b'\xc2\xa0{"batch_id":"%s","item_id":"i","status":"succeeded"}',
    "form feed between": b'{"batch_id":"%s",\x0c"item_id":"i","status":"succeeded"}',
    "form encoded": b"batch_id=%s&item_id=i&status=succeeded",
    "xml": b"<result batch='%s' status='succeeded'/>",
    "avro-like binary": b"\x00\x00\x00\x00\x05\x06%s\x02i",
    "gzip": b"\x1f\x8b\x08\x00%s",
}

_NO_LITERALS: tuple[str, ...] = (
    "NaN",
    "Infinity",
    "-Infinity",
    "nan",
    "inf",
    "True",
    "None",
    "undefined",
    "+1",
    "01",
    "-01",
    ".5",
    "1.",
)
_NO_LITERALS += ("1.e5", "1e", "0x10", "1_000", "--1", "-", "1,000,", "'x'", "tru", "nulll", "\u0661")

# Bytes that are no UTF-8, each on its own.
_NOT_UTF8: Mapping[str, bytes] = {
    "stray continuation byte": b"\x80",
    "byte FF": b"\xff",
    "latin-1 text": "größer".encode("latin-1"),
    "cut two-byte character": b"\xc3",
    "cut four-byte character": b"\xf0\x9f\x98",
    "overlong slash": b"\xc0\xaf",
    "overlong NUL": b"\xc0\x80",
    "surrogate half in UTF-8": b"\xed\xa0\x80",
    "surrogate pair in UTF-8 (CESU-8)": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond the last code point": b"\xf4\x90\x80\x80",
}

# Places in a result that can hold arbitrary text: `@` stands for it.
_TEXT_PLACES: Mapping[str, str] = {
    "batch id": '{"batch_id":"%s@","item_id":"i","status":"succeeded"}',
    "item id": '{"batch_id":"%s","item_id":"i@","status":"succeeded"}',
    "status": '{"batch_id":"%s","item_id":"i","status":"succeeded@"}',
    "effect": '{"batch_id":"%s","item_id":"i","status":"succeeded","effect":"created@"}',
    "message": '{"batch_id":"%s","item_id":"i","status":"failed","message":"m@"}',
    "error message": '{"batch_id":"%s","item_id":"i","status":"failed","error":{"message":"m@"}}',
    "error code": '{"batch_id":"%s","item_id":"i","status":"failed","error":{"message":"m","code":"@"}}',
    "stack trace": '{"batch_id":"%s","item_id":"i","status":"failed","error":{"message":"m","stack_trace":"@"}}',
    "output": '{"batch_id":"%s","item_id":"i","status":"succeeded","output":"@"}',
    "nested output": '{"batch_id":"%s","item_id":"i","status":"succeeded","output":{"a":[{"b":"x@y"}]}}',
    "name in output": '{"batch_id":"%s","item_id":"i","status":"succeeded","output":{"a@":1}}',
    "name of a metric": '{"batch_id":"%s","item_id":"i","status":"succeeded","metrics":{"m@":1}}',
    "worker": '{"batch_id":"%s","item_id":"i","status":"succeeded","worker":"w@"}',
    "occurred_at": '{"batch_id":"%s","item_id":"i","status":"succeeded","occurred_at":"2026-01-01T00:00:00Z@"}',
    "unknown field": '{"batch_id":"%s","item_id":"i","status":"succeeded","x_note":"@"}',
    "nested unknown field": '{"batch_id":"%s","item_id":"i","status":"succeeded","x_note":{"a":["@"]}}',
    "name of an unknown field": '{"batch_id":"%s","item_id":"i","status":"succeeded","x@":1}',
    "batch name": '{"type":"batch.opened","batch_id":"%s","name":"n@"}',
    "metadata": '{"type":"batch.opened","batch_id":"%s","metadata":{"a":"@"}}',
    "name in metadata": '{"type":"batch.opened","batch_id":"%s","metadata":{"a@":{}}}',
    "retry_of": '{"type":"batch.opened","batch_id":"%s","retry_of":"r@"}',
    "manifest": '{"type":"batch.opened","batch_id":"%s","item_ids":["a","b@"]}',
    "manifest chunk": '{"type":"batch.items_expected","batch_id":"%s","item_ids":["a","b@"]}',
}

# Escapes that are legal JSON and mean what no PostgreSQL text holds.
_UNSTORABLE_ESCAPES: Mapping[str, str] = {"U+0000": "\\u0000", "lone high surrogate": "\\ud800"}
_MORE_UNSTORABLE_ESCAPES: Mapping[str, str] = {
    "U+0000 behind an escaped backslash": "\\\\\\u0000",
    "U+0000 among text": "before\\u0000after",
    "lone low surrogate": "\\udc00",
    "upper-case lone surrogate": "\\uDBFF",
    "surrogates the wrong way round": "\\ude00\\ud83d",
    "high surrogate before a letter": "\\ud83dx",
    "high surrogate before an escaped letter": "\\ud83d\\u0041",
    "two high surrogates": "\\ud83d\\ud83d\\ude00",
    "lone surrogate behind an escaped backslash": "\\\\\\ud800",
}

_NO_DOUBLE: Mapping[str, Raw] = {
    "1e999": Raw("1e999"),
    "-1e400": Raw("-1e400"),
    "1.8e308": Raw("1.8e308"),
    "1E+309": Raw("1E+309"),
    "1e131072": Raw("1e131072"),
    "1e99999999999999999999": Raw("1e99999999999999999999"),
    "integer of 400 digits": Raw("9" * 400),
    "negative integer of 400 digits": Raw("-" + "9" * 400),
    "integer of 5,000 digits": Raw("7" * 5_000),
    "400 digits and a fraction": Raw("9" * 400 + ".5"),
}

_NUMBER_PLACES: Mapping[str, str] = {
    "output": '{"batch_id":"%s","item_id":"i","status":"succeeded","output":@}',
    "nested output": '{"batch_id":"%s","item_id":"i","status":"succeeded","output":{"a":[1,@]}}',
    "a metric": '{"batch_id":"%s","item_id":"i","status":"succeeded","metrics":{"m":@}}',
    "duration_ms": '{"batch_id":"%s","item_id":"i","status":"succeeded","duration_ms":@}',
    "attempt": '{"batch_id":"%s","item_id":"i","status":"succeeded","attempt":@}',
    "unknown field": '{"batch_id":"%s","item_id":"i","status":"succeeded","x_size":@}',
    "nested unknown field": '{"batch_id":"%s","item_id":"i","status":"succeeded","x_size":[{"a":@}]}',
    "metadata": '{"type":"batch.opened","batch_id":"%s","metadata":{"m":@}}',
    "total_items": '{"type":"batch.opened","batch_id":"%s","total_items":@}',
}

_DEEP_PLACES: Mapping[str, str] = {
    "output": '{"batch_id":"%s","item_id":"i","status":"succeeded","output":@}',
    "unknown field": '{"batch_id":"%s","item_id":"i","status":"succeeded","x_tree":@}',
    "metadata": '{"type":"batch.opened","batch_id":"%s","metadata":{"n":@}}',
}

# --- broken: wrong fields ----------------------------------------------------------------------------------------

_LONG = "x" * 201
_ASTRAL = "\U0001f600"
_BAD_ID: tuple[Any, ...] = (ABSENT, None, "", 5, 1.5, True, [], ["i"], {}, _LONG, _ASTRAL * 201)
_BAD_ID += ("a\u0001", "\ta", "a\n", "a\rb", "\u001f", "a\u007f", "a\u0085b")
_BAD_BATCH_ID = (*_BAD_ID, "a/b", "/", "a/")
_BAD_TEXT: tuple[Any, ...] = (5, 1.5, True, [], ["x"], {}, {"text": "x"})
_BAD_FLAG: tuple[Any, ...] = ("true", "yes", "", 0, 1, 1.0, [], {})
_BAD_OBJECT: tuple[Any, ...] = ("x", "", "{}", 5, 1.5, True, [], [{}])
_NO_INTEGER: tuple[Any, ...] = ("2", "", "two", True, False, 1.0, 1.5, Raw("1e0"), Raw("2E0"), Raw("2.0"), [], [1], {})
_BAD_TOTAL = (*_NO_INTEGER, -1, -(2**31), 2**31, 2**32, 2**63, 10**30)
_BAD_ATTEMPT = (*_BAD_TOTAL, 0)
_NO_NUMBER: tuple[Any, ...] = ("5", "", "5ms", "PT5S", True, False, [], [5], {})
_BAD_DURATION = (*_NO_NUMBER, -1, -0.001, Raw("-1e300"))
_BAD_TIME: tuple[Any, ...] = (5, 0, 1_700_000_000, 1_700_000_000.5, True, [], {}, "", "now", "yesterday", "2026")
_BAD_TIME += ("1700000000", "1700000000.5", "-1", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00.5")
_BAD_TIME += ("2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-32T00:00:00Z")
_BAD_TIME += ("2025-02-29T00:00:00Z", "2026-01-01T24:00:01Z", "2026-01-01T25:00:00Z", "2026-01-01T00:60:00Z")
_BAD_TIME += ("2026-01-01T00:00:61Z", "2026-01-01T00:00:00+25:00", "2026-01-01T00:00:00+0100", "2026-01-01T00:00:00+01")
_BAD_TIME += ("2026-01-01T00:00Z", "2026-01-01T00Z", "20260101T000000Z", "2026-W01-1T00:00:00Z", "2026-001T00:00:00Z")
_BAD_TIME += ("26-01-01T00:00:00Z", "2026-1-1T00:00:00Z", "01.01.2026 00:00:00Z", "Thu, 01 Jan 2026 00:00:00 GMT")
_BAD_TIME += ("2026-01-01T00:00:00 Z", "2026-01-01T00:00:00Z ", " 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n")
_BAD_TIME += (
    "2026-01-01T00:00:00.Z",
    "2026-01-01T00:00:00ZZ",
    "2026-01-01T00:00:00[Europe/Berlin]",
    "２０２６-01-01T00:00:00Z",
)
_BAD_STATUS: tuple[Any, ...] = (ABSENT, None, "", "done", "ok", "SUCCEEDED", "Failed", " failed", "failed ", "failed\n")
_BAD_STATUS += ("success", "error", "pending", "processing", "missing", "cancelled", 1, 0, True, ["failed"], {})
_BAD_EFFECT: tuple[Any, ...] = ("", "deleted", "CREATED", "create", "none", 1, True, [], ["created"], {})
_BAD_ITEM_IDS: tuple[Any, ...] = ("a", "", 5, True, {}, {"a": 1}, [5], ["a", 5], [None], [True], [1.5], [["a"]], [{}])
_BAD_ITEM_IDS += ([""], ["a", ""], ["a", _LONG], ["a", "b\n"], ["\u0001"], ["a", "a"], ["a", "b", "c", "a"])
_BAD_ERROR = (*_BAD_OBJECT, {}, {"message": None}, {"code": "E"}, {"stack_trace": "s"}, {"message": None, "code": "E"})
_BAD_METRICS = (*_BAD_OBJECT, {"m": "5"}, {"m": True}, {"m": None}, {"m": []}, {"m": {}}, {"a": 1, "m": {"b": 1}})
_BAD_POLICIES: Mapping[str, tuple[Any, ...]] = {
    "tolerated_failure_count": (*_NO_INTEGER, -1),
    "tolerated_failure_percentage": (*_NO_NUMBER, -1, -0.5),
    "late_results": ("", "keep", "RECORD", "reject", 1, True, [], {}),
    "slow_after_s": (*_NO_NUMBER, -1),
    "stalled_after_s": (*_NO_NUMBER, -1),
}

# Message -> field -> values that it must not have.
_WRONG_FIELDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "opened": {
        "batch_id": _BAD_BATCH_ID,
        "total_items": _BAD_TOTAL,
        "item_ids": _BAD_ITEM_IDS,
        "name": (*_BAD_TEXT, _LONG, _ASTRAL * 201),
        "sealed": _BAD_FLAG,
        "deadline_at": _BAD_TIME,
        "policy": _BAD_OBJECT,
        "metadata": _BAD_OBJECT,
        "retry_of": (*_BAD_TEXT, "", _LONG, "a/b", "a\n"),
        "request_retry": _BAD_FLAG,
        "occurred_at": _BAD_TIME,
    },
    "expected": {"batch_id": _BAD_BATCH_ID, "item_ids": (ABSENT, None, *_BAD_ITEM_IDS)},
    "sealed": {"batch_id": _BAD_BATCH_ID, "total_items": _BAD_TOTAL},
    "result": {
        "batch_id": _BAD_BATCH_ID,
        "item_id": _BAD_ID,
        "status": _BAD_STATUS,
        "attempt": _BAD_ATTEMPT,
        "effect": _BAD_EFFECT,
        "duration_ms": _BAD_DURATION,
        "message": _BAD_TEXT,
        "error": _BAD_ERROR,
        "metrics": _BAD_METRICS,
        "worker": (*_BAD_TEXT, _LONG, _ASTRAL * 201),
        "occurred_at": _BAD_TIME,
    },
}

_UNKNOWN_TYPES: tuple[str, ...] = (
    "",
    "nothing",
    "batch",
    "batch.",
    "item_result",
    "ITEM.RESULT",
    "item.result ",
    "item.result\n",
)
_UNKNOWN_TYPES += ("batch.exploded", "rollcall.batch.opened.v1", "пакет.открыт", "t" * 5_000)
_NOT_UTF8_HEADERS: Headers = (("traceparent", b"\xff\xfe\x00"), ("content-type", b"\xc3"), ("x-empty", b""))


def _broken() -> Iterator[Broken]:
    number = 0

    def record(
        name: str, value: str | bytes | None, reason: str, *, readable: bool = True, headers: Headers = ()
    ) -> Broken:
        """`%s` in the value becomes the batch id. A str is taken as UTF-8."""
        nonlocal number
        number += 1
        batch_id = f"broken-{number:04d}"
        raw = value.encode() if isinstance(value, str) else value
        if raw is not None:
            raw = raw.replace(b"%s", batch_id.encode())
        return Broken(name, batch_id.encode(), raw, headers, reason, batch_id if readable else None)

    def event(name: str, fields: Mapping[str, Any], reason: str, *, readable: bool = True) -> Broken:
        return record(name, text({"batch_id": "%s", **fields}), reason, readable=readable)

    # no JSON
    yield record("empty value", b"", EMPTY_VALUE, readable=False)
    yield record("tombstone", None, TOMBSTONE, readable=False)
    for blank in (b" ", b"\n", b"\t\r\n "):
        yield record(f"nothing but white space {blank!r}", blank, EMPTY_VALUE, readable=False)
    for name, junk in _NOT_JSON.items():
        yield record(name, junk, INVALID_JSON, readable=False)
    for literal in _NO_LITERALS:
        for place in ("output", "duration_ms", "x_unknown"):
            yield event(f"{literal} as {place}", RESULT | {place: Raw(literal)}, INVALID_JSON, readable=False)
    whole = text({"batch_id": "%s", **RESULT})
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        number += 1
        batch_id = f"broken-{number:04d}"
        encoded = whole.replace("%s", batch_id).encode(encoding)
        yield Broken(f"encoded as {encoding}", batch_id.encode(), encoded, (), INVALID_JSON, None)
    for name, junk in _NOT_UTF8.items():
        places = _TEXT_PLACES if name in ("byte FF", "surrogate half in UTF-8") else ("message", "unknown field")
        for place in places:
            mixed = _TEXT_PLACES[place].encode().replace(b"@", junk)
            yield record(f"{name} in {place}", mixed, INVALID_JSON, readable=False)

    # no object
    for value in ("[]", '["%s"]', '[{"batch_id":"%s"}]', '"%s"', "5", "-1.5", "true", "false", "null"):
        yield record(f"{value} instead of an object", value, NOT_AN_OBJECT, readable=False)

    # JSON that cannot be stored
    for name, escape in _UNSTORABLE_ESCAPES.items():
        for place, template in _TEXT_PLACES.items():
            value = template.replace("@", escape)
            yield record(f"{name} in {place}", value, UNSTORABLE, readable=place != "batch id")
    for name, escape in _MORE_UNSTORABLE_ESCAPES.items():
        for place in ("message", "output", "unknown field", "metadata"):
            yield record(f"{name} in {place}", _TEXT_PLACES[place].replace("@", escape), UNSTORABLE)
    for name, literal in _NO_DOUBLE.items():
        for place, template in _NUMBER_PLACES.items():
            yield record(f"{name} in {place}", template.replace("@", literal), UNSTORABLE)
    for place, template in _DEEP_PLACES.items():
        above = 2 if place == "metadata" else 1
        for depth in (101, 102, 150, 201, 250, 1_000, 5_000):
            readable = depth <= READABLE_DEPTH
            arrays = template.replace("@", nested(depth - above))
            yield record(f"{depth} levels of arrays in {place}", arrays, UNSTORABLE, readable=readable)
            if depth <= 1_000:
                objects = template.replace("@", nested(depth - above, objects=True))
                yield record(f"{depth} levels of objects in {place}", objects, UNSTORABLE, readable=readable)
    for depth in (20_000, 200_000):
        yield event(f"{depth} levels in unknown field", RESULT | {"x": nested(depth)}, UNSTORABLE, readable=False)
    yield record("200,000 levels instead of an object", nested(200_000), UNSTORABLE, readable=False)

    # what it claims to be
    for unknown in _UNKNOWN_TYPES:
        yield event(f"type {unknown[:30]!r}", RESULT | {"type": unknown}, UNKNOWN_TYPE)
    wrong_kinds: tuple[Any, ...] = (5, 1.5, True, False, [], ["item.result"], {}, {"name": "item.result"})
    for wrong in wrong_kinds:
        yield event(f"type {wrong!r}", RESULT | {"type": wrong}, TYPE_OF_WRONG_KIND)
    for kind, base in KINDS.items():
        for version in (2, 3, 99, 2**31 - 1):
            yield event(f"{kind} of version {version}", base | {"schema_version": version}, UNSUPPORTED_VERSION)
        for version in (0, -1):
            yield event(f"{kind} of version {version}", base | {"schema_version": version}, VERSION_BELOW_ONE)
        for wrong in ("1", "", "v1", True, 1.0, 1.5, Raw("1e0"), [], [1], {}):
            yield event(f"{kind} of version {wrong!r}", base | {"schema_version": wrong}, INVALID_EVENT)

    # wrong fields
    for kind, fields in _WRONG_FIELDS.items():
        for field, values in fields.items():
            for value in values:
                said = "absent" if value is ABSENT else text(value)[:40]
                changed = text(_fields({"batch_id": "%s", **KINDS[kind]}, {field: value}))
                yield record(f"{kind}: {field} {said}", changed, INVALID_EVENT, readable=field != "batch_id")
    for field, values in _BAD_POLICIES.items():
        for value in values:
            name = f"opened: policy.{field} {text(value)[:40]}"
            yield event(name, OPENED | {"policy": {field: value}}, INVALID_EVENT)
    for part in ("message", "code", "stack_trace"):
        for value in _BAD_TEXT:
            error = {"message": "m", part: value}
            yield event(f"result: error.{part} {text(value)}", RESULT | {"error": error}, INVALID_EVENT)
    for name, both in {
        "a total and a manifest": {"total_items": 1, "item_ids": ["a"]},
        "a total of 0 and an empty manifest": {"total_items": 0, "item_ids": []},
        "an unsealed total and manifest": {"total_items": 1, "item_ids": ["a"], "sealed": False},
    }.items():
        yield event(f"opened: {name}", OPENED | both, INVALID_EVENT)
    yield record("an empty object", "{}", INVALID_EVENT, readable=False)
    yield record("only unknown fields", '{"x":1,"y":"%s"}', INVALID_EVENT, readable=False)

    # too large
    ids = [f"{n:05d}" for n in range(10_001)]
    yield event("opened: 10,001 item ids", OPENED | {"item_ids": ids}, TOO_LARGE)
    yield event("expected: 10,001 item ids", EXPECTED | {"item_ids": ids}, TOO_LARGE)
    for name, filling in {
        "one long text": {"a": "x" * 17_000},
        "many small fields": {f"field-{n:04d}": n for n in range(2_000)},
        "three-byte characters": {"a": "项" * 6_000},
        "half a megabyte": {"a": ["x" * 1_000] * 500},
    }.items():
        yield event(f"opened: metadata of {name}", OPENED | {"metadata": filling}, TOO_LARGE)
    for name, output in {
        "one long text": "x" * 66_000,
        "many small items": list(range(20_000)),
        "three-byte characters": "项" * 23_000,
        "an object of half a megabyte": {"a": ["x" * 1_000] * 500},
    }.items():
        yield event(f"result: output of {name}", RESULT | {"output": output}, TOO_LARGE)

    # broken values in an odd envelope
    enveloped: tuple[tuple[str, bytes | None, str], ...] = (
        ("no JSON", b"{%s", INVALID_JSON),
        ("no UTF-8", b'{"batch_id":"%s","item_id":"\xff","status":"failed"}', INVALID_JSON),
        ("an empty value", b"", EMPTY_VALUE),
        ("a tombstone", None, TOMBSTONE),
        ("no object", b"[]", NOT_AN_OBJECT),
        ("a NUL", b'{"batch_id":"%s","item_id":"i","status":"failed","message":"\\u0000"}', UNSTORABLE),
        ("a bad status", b'{"batch_id":"%s","item_id":"i","status":"done"}', INVALID_EVENT),
        ("an unknown type", b'{"batch_id":"%s","type":"nothing"}', UNKNOWN_TYPE),
    )
    for name, content, reason in enveloped:
        readable = reason in (UNSTORABLE, UNKNOWN_TYPE) or name == "a bad status"
        yield record(
            f"headers that are no UTF-8 around {name}", content, reason, readable=readable, headers=_NOT_UTF8_HEADERS
        )
        for envelope, key in (("no key", None), ("a key that is no UTF-8", b"\xff\xfe\x00"), ("an empty key", b"")):
            inner = record(f"{envelope} before {name}", content, reason, readable=readable)
            yield Broken(inner.name, key, inner.value, inner.headers, reason, inner.batch_id)


# --- good, whatever it looks like --------------------------------------------------------------------------------

_GOOD_TEXTS: Mapping[str, str] = {
    "a backslash and u0000 as text": "\\\\u0000",
    "two backslashes and u0000 as text": "\\\\\\\\u0000",
    "a backslash and ud800 as text": "\\\\ud800",
    "a surrogate pair": "\\ud83d\\ude00",
    "an upper-case surrogate pair": "\\uD83D\\uDE00",
    "two surrogate pairs": "\\ud83d\\ude00\\ud83d\\ude00",
    "a raw astral character": _ASTRAL,
    "the last code point": "\U0010ffff",
    "a noncharacter": "\ufffe\uffff",
    "a replacement character": "\ufffd",
    "an escaped byte order mark": "\\ufeff",
    "1e999 in a string": "1e999",
    "NaN in a string": "NaN",
    "NaN in an escaped string": '\\"a\\":NaN,\\"b\\":Infinity',
    "400 digits in a string": "9" * 400,
    "500 brackets in a string": "[{" * 500,
    "brackets behind an escaped quote": '\\"' + "[" * 500,
    "brackets behind an escaped backslash": "\\\\" + "[" * 500,
    "every short escape": '\\"\\\\\\/\\b\\f\\n\\r\\t',
    "an escaped control character": "\\u0001\\u001f\\u007f",
    "markup and quotes": "<b>'; DROP TABLE batches; --%%\\\\x00{}$1",
    "COPY's own markers": "\\\\N\\t\\\\.\\n",
    "right-to-left and combining text": "שלום e\u0301\u202e",
}

_GOOD_NUMBERS: Mapping[str, str] = {
    "1e308": "1e308",
    "-1e308": "-1e308",
    "the largest double": "1.7976931348623157e308",
    "the smallest double": "5e-324",
    "an integer of 300 digits": "3" * 300,
    "an integer of 309 digits": "1" + "0" * 308,
    "a fraction of 400 digits": "0." + "3" * 400,
    "zero with a large exponent": "0e999",
    "minus zero": "-0.0",
    "beyond 64 bits": str(2**64),
}

_GOOD_TIMES: tuple[str, ...] = (
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00+00:00",
    "2026-01-01T00:00:00-09:30",
    "2026-01-01T00:00:00-00:00",
)
_GOOD_TIMES += ("2026-01-01T00:00:00.1Z", "2026-01-01T00:00:00.123456Z", "2026-01-01T00:00:00.123456789Z")
_GOOD_TIMES += ("2024-02-29T23:59:59+14:00", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-12-31T00:00:00Z")


def _good() -> Iterator[Good]:
    number = 0

    def record(name: str, value: str, *, key: bytes | None = b"%s", headers: Headers = ()) -> Good:
        nonlocal number
        number += 1
        batch_id = f"tricky-{number:04d}"
        raw = value.encode().replace(b"%s", batch_id.encode())
        return Good(name, key and key.replace(b"%s", batch_id.encode()), raw, headers, batch_id)

    def event(name: str, fields: Mapping[str, Any]) -> Good:
        return record(name, text({"batch_id": "%s", **fields}))

    for kind, base in KINDS.items():
        yield event(f"plain {kind}", base)
    plain = text({"batch_id": "%s", **RESULT})
    bare = '{"batch_id":"%s","item_id":"i","status":"failed"}'
    yield record("neither type nor version", bare)

    for name, content in _GOOD_TEXTS.items():
        for place in ("message", "stack trace", "output", "name in output", "unknown field", "metadata", "worker"):
            if place == "worker" and len(content) > 150:
                continue
            yield record(f"{name} in {place}", _TEXT_PLACES[place].replace("@", content))
    for name, number_text in _GOOD_NUMBERS.items():
        for place in ("output", "nested output", "a metric", "unknown field", "metadata"):
            if place == "a metric" and "integer" in name:
                continue
            yield record(f"{name} in {place}", _NUMBER_PLACES[place].replace("@", number_text))
    for place, template in _DEEP_PLACES.items():
        levels = MAX_DEPTH - (2 if place == "metadata" else 1)
        yield record(f"100 levels of arrays in {place}", template.replace("@", nested(levels)))
        yield record(f"100 levels of objects in {place}", template.replace("@", nested(levels, objects=True)))
        yield record(f"a text 100 levels deep in {place}", template.replace("@", nested(levels, innermost='"[{"')))
        yield record(f"500 arrays beside each other in {place}", template.replace("@", text([[]] * 500)))

    # unknown, null and repeated fields
    yield event("unknown fields", RESULT | {"x": {"y": [1, None]}, "": 1, "revision": 7, "items": ["?"], "v2": True})
    yield event("fields of other messages", RESULT | {"total_items": "?", "item_ids": 5, "policy": [], "metadata": "x"})
    for kind, fields in _WRONG_FIELDS.items():
        required = ("batch_id", "item_id", "status") if kind != "expected" else ("batch_id", "item_ids")
        optional = [field for field in (*fields, "type", "schema_version", "output") if field not in required]
        for field in optional:
            if (field == "type" and kind != "result") or (kind == "sealed" and field == "total_items"):
                continue  # the meaning would change
            yield event(f"{kind}: {field} null", KINDS[kind] | {field: None})
    yield event(
        "every optional of an error null", RESULT | {"error": {"message": "m", "code": None, "stack_trace": None}}
    )
    yield event("every optional of a policy null", OPENED | {"policy": dict.fromkeys(_BAD_POLICIES)})
    yield event("an empty policy, metadata and metrics", OPENED | {"policy": {}, "metadata": {}, "metrics": {}})
    yield event("a total, and a manifest of null", OPENED | {"total_items": 5, "item_ids": None})
    yield event("a manifest, and a total of null", OPENED | {"total_items": None, "item_ids": ["a"]})
    yield record("a field twice, the last counts", bare[:-1] + ',"status":"succeeded","attempt":1,"attempt":2}')
    yield record("the batch id twice, the last counts", '{"batch_id":"tricky-first",' + bare[1:])
    yield record("an escaped field name", bare.replace('"item_id"', '"\\u0069tem_id"'))

    # bounds, met exactly or cut
    yield event("an item id of 200 astral characters", RESULT | {"item_id": _ASTRAL * 200})
    yield event("an item id with slashes and spaces", RESULT | {"item_id": " a/b//c d/"})
    yield event("a name of 200 astral characters", OPENED | {"name": _ASTRAL * 200})
    yield event("a worker of 200 characters", RESULT | {"worker": "w" * 200})
    yield event("the largest attempt", RESULT | {"attempt": 2**31 - 1})
    yield event("the largest total", OPENED | {"total_items": 2**31 - 1})
    yield event("a total of 0", OPENED | {"total_items": 0})
    yield event("an empty manifest", OPENED | {"item_ids": []})
    yield event("10,000 item ids", EXPECTED | {"item_ids": [f"{n:05d}" for n in range(10_000)]})
    yield event("10,000 item ids at once", OPENED | {"item_ids": [f"{n:05d}" for n in range(10_000)]})
    yield event("metadata just below the bound", OPENED | {"metadata": {"a": "x" * 16_300}})
    yield event("output just below the bound", RESULT | {"output": "x" * 65_400})
    yield event("a duration with a fraction", RESULT | {"duration_ms": 0.001})
    yield event("a duration of 0", RESULT | {"duration_ms": 0})
    for name, long in {
        "ASCII": "m" * 100_000,
        "straddling": "m" * 4_095 + "€" * 20_000,
        "astral": _ASTRAL * 30_000,
    }.items():
        yield event(f"a message far above the bound, {name}", RESULT | {"message": long})
        yield event(f"an error message far above the bound, {name}", RESULT | {"error": {"message": long}})
        trace = {"message": "m", "stack_trace": "m" * 12_288 + long}
        yield event(f"a stack trace far above the bound, {name}", RESULT | {"error": trace})
    for time in _GOOD_TIMES:
        yield event(f"occurred_at {time}", RESULT | {"occurred_at": time})
        yield event(f"deadline_at {time}", OPENED | {"deadline_at": time, "occurred_at": time})
    for value in (False, 0, "", "null", [], {}, [None], {"": None}):
        yield event(f"output {text(value)}", RESULT | {"output": value})

    # the envelope
    yield record("white space around", f" \r\n\t{plain} \n\n")
    yield record("white space within", plain.replace(",", " ,\n\t").replace('":', '" : '))
    yield record("everything escaped", plain.replace("succeeded", "".join(f"\\u{ord(c):04x}" for c in "succeeded")))
    yield record("no key", plain, key=None)
    yield record("an empty key", plain, key=b"")
    yield record("the key of another batch", plain, key=b"tricky-somebody-else")
    yield record("a key that is no UTF-8", plain, key=b"\xff\xfe\x00")
    yield record("headers that are no UTF-8", plain, headers=_NOT_UTF8_HEADERS)
    yield record("a header twice", plain, headers=(("x", b"1"), ("x", b"2"), ("", b"")))
    yield record(
        "a traceparent that is none", plain, headers=(("traceparent", b"not a trace"), ("tracestate", b"\x00"))
    )
    yield record("the headers of a dead letter", plain, headers=(("rollcall_dlt_reason", b"\xff"),))


# --- left open ---------------------------------------------------------------------------------------------------


def _either() -> Iterator[Good]:
    number = 0

    def event(name: str, fields: Mapping[str, Any]) -> Good:
        nonlocal number
        number += 1
        batch_id = f"either-{number:04d}"
        return Good(name, batch_id.encode(), text({"batch_id": batch_id, **fields}).encode(), (), batch_id)

    # Aware times whose UTC form lies outside the years 1 to 9999: converting them raises OverflowError in Python.
    for time in ("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "0000-01-01T00:00:00Z"):
        yield event(f"occurred_at {time}", RESULT | {"occurred_at": time})
        yield event(f"deadline_at {time}", OPENED | {"deadline_at": time})
    for time in ("2026-12-31T23:59:60Z", "2026-01-01t00:00:00z", "2026-01-01 00:00:00Z", "2026-01-01T24:00:00Z"):
        yield event(f"occurred_at {time!r}", RESULT | {"occurred_at": time})
    for literal in ("1e-400", "1e-99999", "1e-99999999999", "0e99999999999"):
        for place in ("output", "duration_ms", "x"):
            yield event(f"{literal} as {place}", RESULT | {place: Raw(literal)})
    yield event("a duration of 1e308", RESULT | {"duration_ms": Raw("1e308")})
    yield event("an integer of 300 digits as a metric", RESULT | {"metrics": {"m": Raw("3" * 300)}})
    yield event("more than 100 percent", OPENED | {"policy": {"tolerated_failure_percentage": 101}})
    yield event("an absurd tolerated count", OPENED | {"policy": {"tolerated_failure_count": 2**40}})
    yield event("an absurd slow_after_s", OPENED | {"policy": {"slow_after_s": Raw("1e300")}})
    yield event("an empty chunk", EXPECTED | {"item_ids": []})
    yield event("an empty name", OPENED | {"name": ""})
    yield event("a name with control characters", OPENED | {"name": "a\n\u0001b"})
    yield event("an empty worker", RESULT | {"worker": ""})
    yield event("a very long error code", RESULT | {"error": {"message": "m", "code": "E" * 100_000}})
    yield event(
        "metadata at the bound once its escapes are undone",
        OPENED | {"metadata": {"a": Raw('"' + "\\u20ac" * 5_000 + '"')}},
    )
    yield event("metadata at the bound without white space", OPENED | {"metadata": Raw('{"a":' + " " * 20_000 + "1}")})
    yield event("a retry of itself", OPENED | {"retry_of": f"either-{number + 1:04d}"})
    yield event("a field twice, the first one broken", {"attempt": "x", Raw('"attempt"'): 2, **RESULT})
    yield event("a field twice, the first one unstorable", {"x": Raw("1e999"), Raw('"x"'): 2, **RESULT})
    yield event("item ids of white space", RESULT | {"item_id": " "})
    yield event("an item id with a line separator", RESULT | {"item_id": "a\u2028b"})


BROKEN: tuple[Broken, ...] = tuple(_broken())
TRICKY_GOOD: tuple[Good, ...] = tuple(_good())
EITHER: tuple[Good, ...] = tuple(_either())
