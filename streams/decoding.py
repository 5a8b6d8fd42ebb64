"""From a Kafka record's bytes to what the fold takes, or to the reason why it can't be taken. Pure."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite
from typing import Annotated, Any, Literal

import msgspec
import rollcall_native
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import asdict
from pydantic import ValidationError
from pydantic_core import from_json

from handlers.records import LifecycleRecord, Record, TakenRecord
from schemas.dead_letters import Reason, Refused
from schemas.events import (
    ADAPTERS,
    BATCH_ID_ADAPTER,
    MAX_ID_CHARS,
    MAX_INT,
    MAX_MANIFEST_CHUNK,
    MAX_METADATA_BYTES,
    MAX_NAME_CHARS,
    MAX_OUTPUT_BYTES,
    MAX_STACK_TRACE_BYTES,
    MAX_TEXT_BYTES,
    SCHEMA_VERSION,
    TIME_PATTERN,
)
from store.rows import ItemRow
from streams.fetched import FetchedRecord

MAX_DEPTH = 100
"""Nesting beyond this is refused; the value itself is level 1."""

CUT_MARK = "… [cut]"
_SHORT = MAX_TEXT_BYTES // 4
"""A text of so many characters is never cut."""

_EARLIEST = datetime.min.replace(microsecond=1, tzinfo=UTC)
_LATEST = datetime.max.replace(microsecond=999_998, tzinfo=UTC)

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_new_tuple = tuple.__new__

_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"000000000")
_WIDE_NUMBER = b"0" * 300
"""Integers of fewer digits fit a double."""
_STRIDE = 30
_WIDE_SAMPLE = _WIDE_NUMBER[::_STRIDE]
"""What every such number leaves of a value's every thirtieth byte, wherever it begins."""
_TIMES = ("deadline_at", "occurred_at")


_BACKSLASH = ord("\\")
_FAST_WAY_FAILED = (Refused, msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""The exact way says why, or takes it after all."""


class _Float(float):
    """A number that msgspec would write otherwise than Python (1e16). It does not know this class, and refuses to."""


# What ``schemas.events`` says, for msgspec: the fast way takes nothing that pydantic refuses.
class _Error(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    message: str
    code: str | None = None
    stack_trace: str | None = None


_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
_Time = Annotated[str, Meta(pattern=TIME_PATTERN.replace("$", r"\Z"))]  # Python's $ passes over a line's end


class _Result(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    batch_id: _Id
    item_id: _Id
    status: Literal["succeeded", "partial", "failed", "skipped", "retrying"]
    type: Literal["item.result"] | None = None
    schema_version: Annotated[int, Meta(ge=1, le=SCHEMA_VERSION)] | None = None
    attempt: Annotated[int, Meta(ge=1, le=MAX_INT)] | None = None
    effect: Literal["created", "updated", "unchanged"] | None = None
    duration_ms: Annotated[float, Meta(ge=0)] | None = None
    message: str | None = None
    error: _Error | None = None
    output: Any = UNSET
    metrics: dict[str, int | float] | UnsetType | None = UNSET
    worker: Annotated[str, Meta(max_length=MAX_NAME_CHARS)] | None = None
    occurred_at: _Time | None = None


class _OpenError(_Error, forbid_unknown_fields=False, gc=False):
    pass


class _OpenResult(_Result, forbid_unknown_fields=False, gc=False):
    error: _OpenError | None = None


class _Lifecycle(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", gc=False):
    """The most frequent messages of a batch, with the fields that are simple, in the order of ``schemas.events``."""

    batch_id: _Id
    schema_version: Annotated[int, Meta(ge=1, le=SCHEMA_VERSION)] | None = None


_Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
_Manifest = Annotated[list[_Id], Meta(max_length=MAX_MANIFEST_CHUNK)]


class _Opened(_Lifecycle, tag="batch.opened", gc=False):
    total_items: _Count | None = None
    item_ids: _Manifest | None = None
    name: Annotated[str, Meta(max_length=MAX_NAME_CHARS)] | None = None
    sealed: bool | None = None
    deadline_at: _Time | None = None
    request_retry: bool | None = None
    occurred_at: _Time | None = None


class _ItemsExpected(_Lifecycle, tag="batch.items_expected", kw_only=True, gc=False):
    item_ids: _Manifest


class _Sealed(_Lifecycle, tag="batch.sealed", gc=False):
    total_items: _Count | None = None


_decode_known = msgspec.json.Decoder(_Result, float_hook=_Float).decode
_decode_open = msgspec.json.Decoder(_OpenResult, float_hook=_Float).decode
_decode_any = msgspec.json.Decoder().decode
_decode_lifecycle = msgspec.json.Decoder(_Opened | _ItemsExpected | _Sealed).decode
_encode = msgspec.json.Encoder().encode


_decoder = rollcall_native.results.Decoder(ItemRow) if rollcall_native.compiled else None


def take_usual(
    records: list[FetchedRecord],
    begin: int,
    end: int,
    lists: Mapping[str, list[TakenRecord] | None],
    append_time: Callable[[int], datetime],
) -> int:
    """Add usual results without headers to their batch's list, from ``begin`` on.

    Returns the index of the first record that is no usual result, has headers, or no list (it is not at home here);
    ``end`` where there is none. Without what is compiled: ``begin``.
    """
    return begin if _decoder is None else _decoder.take(records, begin, end, lists, append_time)


def decode(value: bytes | None, offset: int, received_at: datetime) -> Record:
    """Decode one record's value. Raises Refused with the reason and, where one could be read, the batch id."""
    if not value:
        raise Refused(Reason.INVALID_JSON, "the record has no value (a tombstone)" if value is None else "empty value")
    if _decoder is not None:
        if (row := _decoder.decode(value, offset, received_at)) is not None:
            return row
        # Most of what is no usual result.
        if b'"batch.' in value and _BACKSLASH not in value:
            record = _plain_lifecycle(value, offset, received_at)
            if record is not None:
                return record
    return decode_in_python(value, offset, received_at)


def decode_in_python(value: bytes, offset: int, received_at: datetime) -> Record:
    """As ``decode``, of a value that is not empty, without what is compiled."""
    # Without escapes no string can hold U+0000 or half a surrogate pair. One byte, as a number, is found the fastest.
    if _BACKSLASH in value and b"\\u" in value:
        return decode_exactly(value, offset, received_at)
    try:
        result = _decode_known(value)
        batch_id, item_id, line = _plain_batch_id(result.batch_id), result.item_id, result.message
        if (
            batch_id
            and item_id.isprintable()
            and (line is None or len(line) <= _SHORT)
            and result.error is None
            and result.output is UNSET
            and result.metrics is UNSET
            and result.occurred_at is None
        ):
            # Nearly every result. Not ItemRow(...): on a path this hot, one call less a record shows.
            fields = (
                batch_id, item_id, result.status, result.attempt or 1, 0, offset, received_at, result.effect,
                result.duration_ms, line, None, None, None, None, None, result.worker, None,
            )  # fmt: skip
            return _new_tuple(ItemRow, fields)
        if (row := _plain_row(value, result, offset, received_at)) is not None:
            return row
    except msgspec.ValidationError as error:
        # Which only a lifecycle message has to hold.
        if b'"batch.' in value and (record := _plain_lifecycle(value, offset, received_at)) is not None:
            return record
        if "unknown field" in str(error) and (row := _open_row(value, offset, received_at)) is not None:
            return row
    except _FAST_WAY_FAILED:
        pass
    return decode_exactly(value, offset, received_at)


def _open_row(value: bytes, offset: int, received_at: datetime) -> ItemRow | None:
    """The row of a result with fields that are not known; None where the exact way has to look."""
    try:
        _decode_any(value)  # what _decode_open passes over, it doesn't look at
        return _plain_row(value, _decode_open(value), offset, received_at, is_open=True)
    except _FAST_WAY_FAILED:
        return None


def _plain_row(
    value: bytes, result: _Result, offset: int, received_at: datetime, *, is_open: bool = False
) -> ItemRow | None:
    """The row of a result with nothing unusual about it; None where the exact way has to look."""
    untyped = is_open or result.output is not UNSET or result.metrics is not UNSET
    if untyped and not _is_bounded(value):
        return None
    result.batch_id = _plain_batch_id(result.batch_id)
    if not result.batch_id or not result.item_id.isprintable():
        return None
    return _item_row(result, offset, received_at, _dumps_decoded)


@lru_cache(maxsize=10_000)
def _plain_batch_id(batch_id: str) -> str:
    """The same string object for all records of a batch; empty where the exact way has to look.

    What an id may not hold is not printable; some of what isn't, an id may hold.
    """
    return batch_id if batch_id.isprintable() and "/" not in batch_id else ""


def _plain_lifecycle(value: bytes, offset: int, received_at: datetime) -> LifecycleRecord | None:
    """The record of a lifecycle message with nothing unusual about it; None where the exact way has to look."""
    try:
        event = _decode_lifecycle(value)
        kind, batch_id = event.__struct_config__.tag, _plain_batch_id(event.batch_id)
        message = {"type": kind, **asdict(event)}
        if not batch_id or not all(map(str.isprintable, message.get("item_ids") or ())):
            return None
        return LifecycleRecord(batch_id, kind, offset, received_at, _lifecycle_body(message))
    except _FAST_WAY_FAILED:
        return None


def _is_bounded(value: bytes) -> bool:
    """Whether nothing in a JSON text can be nested too deep, or be an integer that no double holds."""
    if value.count(b"[") + value.count(b"{") > MAX_DEPTH:
        return False
    if len(value) < len(_WIDE_NUMBER) or _WIDE_SAMPLE not in value[::_STRIDE].translate(_DIGITS_ALIKE):
        return True
    return _WIDE_NUMBER not in value.translate(_DIGITS_ALIKE)


def decode_exactly(value: bytes, offset: int, received_at: datetime) -> Record:
    """What ``decode`` means: any value, step by step, with a reason for each refusal."""
    event = _parse(value)
    if not isinstance(event, dict):
        raise Refused(Reason.INVALID_EVENT, f"the value is {_json_type(event)}, not an object")
    try:
        _check_storable(event)
        return _decode_event(event, value, offset, received_at)
    except Refused as refusal:
        refusal.batch_id = readable_batch_id(event)
        raise


def _decode_event(event: dict[str, Any], value: bytes, offset: int, received_at: datetime) -> Record:
    version = event.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise Refused(
            Reason.UNSUPPORTED_SCHEMA_VERSION, f"schema_version {version} is above {SCHEMA_VERSION}, the highest known"
        )
    kind = event.get("type")
    if kind is None:
        kind = "item.result"
    if not isinstance(kind, str):
        raise Refused(Reason.INVALID_EVENT, f"type: {_json_type(kind)}, not a string")
    adapter = ADAPTERS.get(kind)
    if adapter is None:
        raise Refused(Reason.UNKNOWN_TYPE, f"unknown type {_shown(kind)}")
    try:
        message = adapter.validate_json(value)
    except ValidationError as error:
        raise _refusal(error) from None
    try:
        if kind == "item.result":
            return _item_row(msgspec.convert(message, _OpenResult), offset, received_at)
        return LifecycleRecord(message["batch_id"], kind, offset, received_at, _lifecycle_body(message))
    except (ValueError, OverflowError) as error:
        raise Refused(Reason.INVALID_EVENT, str(error)) from None


def readable_batch_id(event: Mapping[str, Any]) -> str | None:
    """The batch id of an event that may otherwise be broken; None where there is no valid one."""
    try:
        batch_id = BATCH_ID_ADAPTER.validate_python(event.get("batch_id"))
        batch_id.encode()
    except (ValidationError, UnicodeEncodeError):
        return None
    return batch_id


def parse_time(text: str) -> datetime:
    """An RFC 3339 time with zone as UTC. Raises ValueError or OverflowError where there is no such moment.

    The calendar's ends (0001-01-01T00:00:00Z is Go's "no time") move by a microsecond: asyncpg has them for infinities.
    """
    return min(max(datetime.fromisoformat(text.upper()).astimezone(UTC), _EARLIEST), _LATEST)


def cut(text: str, limit: int) -> str:
    """At most ``limit`` UTF-8 bytes of a text; where something was cut, a mark at the end says so."""
    if len(text) * 4 <= limit:
        return text
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - len(CUT_MARK.encode())].decode(errors="ignore") + CUT_MARK


def _item_row(result: _Result, offset: int, received_at: datetime, dumps: Callable[[Any], str] = _dumps) -> ItemRow:
    code = message = trace = None
    if (error := result.error) is not None:
        code, message, trace = error.code, cut(error.message, MAX_TEXT_BYTES), error.stack_trace
        if code is not None:
            code = cut(code, MAX_TEXT_BYTES)
        if trace is not None:
            trace = cut(trace, MAX_STACK_TRACE_BYTES)
    if (line := result.message) is not None and len(line) * 4 > MAX_TEXT_BYTES:
        line = cut(line, MAX_TEXT_BYTES)
    output = metrics = None
    if result.output is not UNSET and result.output is not None:
        output = _bounded_json("output", dumps(result.output), MAX_OUTPUT_BYTES)
    if result.metrics is not UNSET and result.metrics is not None:
        metrics = _dumps(result.metrics)
    occurred_at = None if result.occurred_at is None else parse_time(result.occurred_at)
    return ItemRow(
        result.batch_id,
        result.item_id,
        result.status,
        result.attempt or 1,
        0,
        offset,
        received_at,
        result.effect,
        result.duration_ms,
        line,
        code,
        message,
        trace,
        output,
        metrics,
        result.worker,
        occurred_at,
    )


def _lifecycle_body(message: dict[str, Any]) -> dict[str, Any]:
    """The message without absent fields, with times and JSON in the form they are stored in."""
    body = {field: value for field, value in message.items() if value is not None}
    for field in _TIMES:
        if field in body:
            body[field] = parse_time(body[field])
    if "metadata" in body:
        body["metadata"] = _bounded_json("metadata", _dumps(body["metadata"]), MAX_METADATA_BYTES)
    if "policy" in body:
        body["policy"] = _dumps({name: value for name, value in body["policy"].items() if value is not None})
    if "error" in body:
        body["error"] = _dumps(_cut_error(body["error"]))
    if "reason" in body:
        body["reason"] = cut(body["reason"], MAX_TEXT_BYTES)
    if "item_ids" in body and len(set(body["item_ids"])) != len(body["item_ids"]):
        raise Refused(Reason.INVALID_EVENT, "item_ids: the ids of a manifest must be distinct")
    if "item_ids" in body and "total_items" in body:
        raise Refused(Reason.INVALID_EVENT, "total_items and item_ids: give one of them, not both")
    return body


def _cut_error(error: Mapping[str, Any]) -> dict[str, str]:
    limits = {"code": MAX_TEXT_BYTES, "message": MAX_TEXT_BYTES, "stack_trace": MAX_STACK_TRACE_BYTES}
    return {name: cut(error[name], limit) for name, limit in limits.items() if error.get(name) is not None}


def _dumps_decoded(value: Any) -> str:
    """What ``_dumps`` gives, of a value that msgspec has decoded with ``_Float``, in a third of the time."""
    try:
        return _encode(value).decode()
    except TypeError:
        return _dumps(value)


def _bounded_json(field: str, text: str, limit: int) -> str:
    if len(text) * 4 > limit and (size := len(text.encode())) > limit:
        raise Refused(Reason.TOO_LARGE, f"{field}: {size} bytes of JSON, at most {limit} are taken")
    return text


def _parse(value: bytes) -> Any:
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError as error:
        # The parser refuses some JSON that is well-formed but can't be held: lone surrogates, depth, huge integers.
        try:
            event = _parse_leniently(value)
        except RecursionError:
            event = None
        except ValueError:
            raise Refused(Reason.INVALID_JSON, f"not JSON: {error}") from None
        batch_id = readable_batch_id(event) if isinstance(event, dict) else None
        raise Refused(Reason.UNSTORABLE, f"cannot be stored: {error}", batch_id) from None


def _parse_leniently(value: bytes) -> Any:
    """What the grammar allows, numbers left out. Raises ValueError, and RecursionError where it is too deep to tell."""
    return _lenient.decode(value.decode())


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# Made once: in a flood of broken records it would be made for each.
_lenient = json.JSONDecoder(parse_int=lambda _: 0, parse_float=lambda _: 0.0, parse_constant=_no_constant)


def _check_storable(event: dict[str, Any]) -> None:
    """Refuse what PostgreSQL or a double can't hold, anywhere in the value. Walks without recursion."""
    pending: list[tuple[Any, int]] = [(event, 1)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            if "\x00" in value:
                raise Refused(Reason.UNSTORABLE, "cannot be stored: a string contains U+0000")
        elif isinstance(value, float):
            if not isfinite(value):
                raise Refused(Reason.UNSTORABLE, "cannot be stored: a number is beyond what a double can hold")
        elif isinstance(value, int):
            try:
                float(value)
            except OverflowError:
                raise Refused(
                    Reason.UNSTORABLE, "cannot be stored: a number is beyond what a double can hold"
                ) from None
        elif isinstance(value, list | dict):
            if depth > MAX_DEPTH:
                raise Refused(Reason.UNSTORABLE, f"cannot be stored: nested more than {MAX_DEPTH} deep")
            if isinstance(value, dict):
                pending.extend((key, depth) for key in value)
                pending.extend((inner, depth + 1) for inner in value.values())
            else:
                pending.extend((inner, depth + 1) for inner in value)


def _refusal(error: ValidationError) -> Refused:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "too_long" and first["loc"] == ("item_ids",):
        return Refused(Reason.TOO_LARGE, f"item_ids: at most {MAX_MANIFEST_CHUNK} ids in one message")
    return Refused(Reason.INVALID_EVENT, f"{field}: {first['msg']}" if field else first["msg"])


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names: list[tuple[type, str]] = [(bool, "a boolean"), (str, "a string"), (list, "an array"), (dict, "an object")]
    return next((name for kind, name in names if isinstance(value, kind)), "a number")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
