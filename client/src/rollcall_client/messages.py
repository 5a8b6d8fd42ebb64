"""The messages on ``rollcall.events``, built and checked before they are sent. Pure.

What the service would refuse raises ``InvalidMessageError`` here, where the caller can still do something about it;
texts for people are cut to what the service keeps, and marked as cut.
"""

import json
import math
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

from rollcall_client.errors import InvalidMessageError

Status: TypeAlias = Literal["succeeded", "partial", "failed", "skipped", "retrying"]
Effect: TypeAlias = Literal["created", "updated", "unchanged"]
Error: TypeAlias = str | BaseException | Mapping[str, Any]
"""What went wrong: a sentence, an exception (its type becomes the code, its traceback the stack trace), or a mapping
with ``message`` and perhaps ``code`` and ``stack_trace``."""
Deadline: TypeAlias = datetime | timedelta | float
"""A time with a zone, or how long from now (a timedelta, or seconds)."""


class Policy(TypedDict, total=False):
    """How a batch is judged."""

    tolerated_failure_count: int
    tolerated_failure_percentage: float
    late_results: Literal["record", "revise"]
    slow_after_s: float
    stalled_after_s: float


MAX_ID_CHARS = 200
MAX_INT = 2**31 - 1
MAX_DEPTH = 90
"""The service takes 100 levels of the whole message."""
MAX_NAME_CHARS = 200
MAX_METADATA_BYTES = 16 * 1024
MAX_OUTPUT_BYTES = 64 * 1024
MAX_TEXT_BYTES = 4 * 1024
MAX_STACK_TRACE_BYTES = 16 * 1024
MAX_MANIFEST_IDS = 10_000
MAX_MANIFEST_BYTES = 700 * 1024
"""Of one message, so that it fits into Kafka's usual 1 MiB with all around it."""
MAX_MESSAGE_BYTES = 1_000_000

CUT_MARK = " … [cut]"

STATUSES = frozenset({"succeeded", "partial", "failed", "skipped", "retrying"})
EFFECTS = frozenset({"created", "updated", "unchanged"})

_UNFIT_FOR_ITEM = re.compile(r"[\u0000-\u001f\u007f-\u009f]")
_UNFIT_FOR_BATCH = re.compile(r"[/\u0000-\u001f\u007f-\u009f]")
_UNSTORABLE = re.compile(r"[\u0000\ud800-\udfff]")

_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

Message: TypeAlias = dict[str, Any]


def encode(message: Message) -> bytes:
    """The message's value on the wire. Raises InvalidMessageError."""
    try:
        value = _json(message).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessageError(f"{_about(message)}: this cannot be written as JSON: {error}") from None
    if len(value) > MAX_MESSAGE_BYTES:
        raise InvalidMessageError(f"{_about(message)}: {len(value)} bytes are more than a message may have")
    return value


class Encoded(NamedTuple):
    """A message as it goes out, and what it is about; ``item_id`` is None where that is the batch itself.

    ``seals`` says that the batch can end by it.
    """

    batch_id: str
    item_id: str | None
    value: bytes
    seals: bool


def encoded(message: Message) -> Encoded:
    """Raises InvalidMessageError."""
    seals = message.get("type") == "batch.sealed"
    return Encoded(message["batch_id"], message.get("item_id"), encode(message), seals)


# Batches


def opened(
    batch_id: str,
    *,
    total_items: int | None = None,
    item_ids: Sequence[str] | None = None,
    sealed: bool | None = None,
    name: str | None = None,
    deadline_at: str | None = None,
    policy: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    retry_of: str | None = None,
) -> Message:
    """``batch.opened``; fields that are None are left out."""
    if total_items is not None and item_ids is not None:
        raise InvalidMessageError("give total_items or items, not both")
    if sealed and total_items is None and item_ids is None:
        raise InvalidMessageError("a batch that is sealed from the beginning needs total_items or items")
    if metadata is not None:
        if not isinstance(metadata, Mapping):
            raise InvalidMessageError(f"metadata is a mapping, not {metadata!r:.100}")
        check_json("metadata", metadata, MAX_METADATA_BYTES)
    if retry_of is not None:
        check_batch_id(retry_of)
    return _without_none(
        type="batch.opened",
        batch_id=check_batch_id(batch_id),
        total_items=None if total_items is None else _count("total_items", total_items),
        item_ids=item_ids,
        sealed=sealed,
        name=None if name is None else _name("a batch's", name),
        deadline_at=deadline_at,
        policy=None if policy is None else _policy(policy),
        metadata=metadata,
        retry_of=retry_of,
    )


def items_expected(batch_id: str, item_ids: Sequence[str]) -> Message:
    """``batch.items_expected``: more of a manifest."""
    return {"type": "batch.items_expected", "batch_id": batch_id, "item_ids": item_ids}


def sealed(batch_id: str, total_items: int | None = None) -> Message:
    """``batch.sealed``."""
    total = None if total_items is None else _count("total_items", total_items)
    return _without_none(type="batch.sealed", batch_id=batch_id, total_items=total)


def cancelled(batch_id: str, reason: str | None = None) -> Message:
    """``batch.cancelled``."""
    cut_reason = None if reason is None else cut(reason, MAX_TEXT_BYTES)
    return _without_none(type="batch.cancelled", batch_id=batch_id, reason=cut_reason)


def aborted(batch_id: str, error: Error) -> Message:
    """``batch.aborted``: a critical error stopped the job."""
    return {"type": "batch.aborted", "batch_id": batch_id, "error": error_of(error)}


def manifest_pieces(item_ids: Iterable[str]) -> Iterator[list[str]]:
    """A manifest in pieces that fit into one message each; at least one, perhaps empty.

    Raises InvalidMessageError for what is no id, or is there twice.
    """
    if isinstance(item_ids, str):
        raise InvalidMessageError(f"items are several ids, not one text: {item_ids!r:.100}")
    seen: set[str] = set()
    piece: list[str] = []
    size, pieces = 0, 0
    for item_id in item_ids:
        check_item_id(item_id)
        if item_id in seen:
            raise InvalidMessageError(f"item {item_id!r} is there twice: the items of a batch need distinct ids")
        seen.add(item_id)
        bytes_ = len(item_id.encode(errors="replace")) * 2 + 3  # a quote or backslash in it takes two
        if piece and (len(piece) == MAX_MANIFEST_IDS or size + bytes_ > MAX_MANIFEST_BYTES):
            yield piece
            piece, size, pieces = [], 0, pieces + 1
        piece.append(item_id)
        size += bytes_
    if piece or not pieces:
        yield piece


# Items


def item_result(
    batch_id: str,
    item_id: str,
    status: Status,
    *,
    attempt: int | None = None,
    effect: Effect | None = None,
    duration_ms: float | None = None,
    message: str | None = None,
    error: Error | None = None,
    output: Any = None,
    metrics: Mapping[str, float] | None = None,
    worker: str | None = None,
    occurred_at: datetime | None = None,
) -> Message:
    """``item.result``; fields that are None are left out."""
    if status not in STATUSES:
        raise InvalidMessageError(f"a status is one of {', '.join(sorted(STATUSES))}, not {status!r}")
    result: Message = {"type": "item.result", "batch_id": batch_id, "item_id": check_item_id(item_id), "status": status}
    if attempt is not None:
        if _count("attempt", attempt) < 1:
            raise InvalidMessageError("attempts count from 1")
        result["attempt"] = attempt
    if effect is not None:
        if effect not in EFFECTS:
            raise InvalidMessageError(f"an effect is one of {', '.join(sorted(EFFECTS))}, not {effect!r}")
        result["effect"] = effect
    if duration_ms is not None:
        if not (_is_number(duration_ms) and _fits_a_double(duration_ms) and duration_ms >= 0):
            raise InvalidMessageError(f"duration_ms is a number of milliseconds, not {duration_ms!r}")
        result["duration_ms"] = duration_ms
    if message is not None:
        result["message"] = cut(message, MAX_TEXT_BYTES)
    if error is not None:
        result["error"] = error_of(error)
    if output is not None:
        check_json("output", output, MAX_OUTPUT_BYTES)
        result["output"] = output
    if metrics is not None:
        result["metrics"] = check_metrics(metrics)
    if worker is not None:
        result["worker"] = check_worker(worker)
    if occurred_at is not None:
        result["occurred_at"] = time_text(occurred_at)
    return result


def error_of(error: Error) -> dict[str, str]:
    """The wire's error {``code``?, ``message``, ``stack_trace``?} of a sentence, an exception or a mapping."""
    if isinstance(error, str):
        return {"message": cut(error, MAX_TEXT_BYTES)}
    if isinstance(error, BaseException):
        found = {"code": type(error).__name__, "message": cut(str(error) or type(error).__name__, MAX_TEXT_BYTES)}
        if error.__traceback__ is not None:
            trace = "".join(traceback.format_exception(error))
            found["stack_trace"] = cut(trace, MAX_STACK_TRACE_BYTES, keep_end=True)
        return found
    if not isinstance(error, Mapping):
        raise InvalidMessageError(f"an error is a sentence, an exception or a mapping, not {error!r:.100}")
    unknown = sorted(error.keys() - {"code", "message", "stack_trace"})
    if unknown or "message" not in error:
        raise InvalidMessageError(f"an error has a message, and perhaps code and stack_trace, not {sorted(error)}")
    found = {"message": cut(str(error["message"]), MAX_TEXT_BYTES)}
    if error.get("code") is not None:
        found["code"] = cut(str(error["code"]), MAX_TEXT_BYTES)
    if error.get("stack_trace") is not None:
        found["stack_trace"] = cut(str(error["stack_trace"]), MAX_STACK_TRACE_BYTES, keep_end=True)
    return found


# Checks


def check_batch_id(batch_id: str) -> str:
    """The id itself. Raises InvalidMessageError."""
    if not isinstance(batch_id, str) or not 1 <= len(batch_id) <= MAX_ID_CHARS or _UNFIT_FOR_BATCH.search(batch_id):
        raise InvalidMessageError(
            f"a batch id is 1 to {MAX_ID_CHARS} characters without control characters and '/', not {batch_id!r}"
        )
    return _encodable(batch_id)


def check_item_id(item_id: str) -> str:
    """The id itself. Raises InvalidMessageError."""
    if not isinstance(item_id, str) or not 1 <= len(item_id) <= MAX_ID_CHARS or _UNFIT_FOR_ITEM.search(item_id):
        raise InvalidMessageError(
            f"an item id is 1 to {MAX_ID_CHARS} characters without control characters, not {item_id!r}"
        )
    return item_id if item_id.isascii() else _encodable(item_id)


def check_worker(worker: str) -> str:
    """The name itself. Raises InvalidMessageError."""
    return _name("a worker's", worker)


def check_json(what: str, value: Any, max_bytes: int) -> None:
    """That Rollcall can keep this JSON value. Raises InvalidMessageError."""
    _check_value(what, value, 1)
    try:
        size = len(_json(value).encode())
    except (TypeError, ValueError) as error:
        raise InvalidMessageError(f"{what} cannot be written as JSON: {error}") from None
    if size > max_bytes:
        raise InvalidMessageError(f"{what} has {size} bytes as JSON, and {max_bytes} at most are kept")


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as they are sent. Raises InvalidMessageError for what is no name with a finite number."""
    if not isinstance(metrics, Mapping):
        raise InvalidMessageError(f"metrics are numbers by name, not {metrics!r:.100}")
    for name, number in metrics.items():
        if not isinstance(name, str) or _UNSTORABLE.search(name):
            raise InvalidMessageError(f"a metric's name is a text, not {name!r}")
        if not _is_number(number) or not _fits_a_double(number):
            raise InvalidMessageError(f"metric {name}: a finite number is needed, not {number!r}")
    return dict(metrics)


def cut(text: str, max_bytes: int, *, keep_end: bool = False) -> str:
    """A text for people, at most so long in UTF-8, marked where it was cut; what cannot be stored becomes "\ufffd"."""
    if not isinstance(text, str):
        raise InvalidMessageError(f"a text is needed, not {text!r}")
    if _UNSTORABLE.search(text):
        text = _UNSTORABLE.sub("\ufffd", text)
    raw = text.encode()
    if len(raw) <= max_bytes:
        return text
    room = max_bytes - len(CUT_MARK.encode())
    if keep_end:  # of a stack trace the end says most
        return CUT_MARK.strip() + "\n" + raw[len(raw) - room + 1 :].decode(errors="ignore")
    return raw[:room].decode(errors="ignore") + CUT_MARK


def deadline_text(deadline: Deadline | None, now: datetime) -> str | None:
    """A deadline as RFC 3339. Raises InvalidMessageError for a time without a zone."""
    if deadline is None:
        return None
    if isinstance(deadline, datetime):
        return time_text(deadline)
    return time_text(now + (deadline if isinstance(deadline, timedelta) else timedelta(seconds=deadline)))


def time_text(time: datetime) -> str:
    """RFC 3339 in UTC. Raises InvalidMessageError for a time without a zone."""
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise InvalidMessageError(f"a time with a zone is needed, like datetime.now(UTC), not {time!r}")
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


_POLICY_NUMBERS = ("tolerated_failure_percentage", "slow_after_s", "stalled_after_s")


def _policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(policy.keys() - Policy.__annotations__.keys())
    if unknown:
        raise InvalidMessageError(f"a policy has {', '.join(Policy.__annotations__)}, not {', '.join(unknown)}")
    if (count := policy.get("tolerated_failure_count")) is not None:
        _count("tolerated_failure_count", count)
    for name in _POLICY_NUMBERS:
        if (number := policy.get(name)) is not None and not (
            _is_number(number) and _fits_a_double(number) and number >= 0
        ):
            raise InvalidMessageError(f"policy: {name} is a number from 0, not {number!r}")
    if policy.get("tolerated_failure_percentage", 0) > 100:
        raise InvalidMessageError("policy: tolerated_failure_percentage is at most 100")
    if policy.get("late_results", "record") not in ("record", "revise"):
        raise InvalidMessageError("policy: late_results is record or revise")
    return dict(policy)


def _name(whose: str, name: str) -> str:
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARS:
        raise InvalidMessageError(f"{whose} name is a text of at most {MAX_NAME_CHARS} characters, not {name!r:.100}")
    return name if name.isprintable() else _encodable(name, f"{whose} name")


def _count(what: str, number: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_INT:
        raise InvalidMessageError(f"{what} is an integer from 0 to {MAX_INT}, not {number!r}")
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits_a_double(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def _check_value(what: str, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidMessageError(f"{what} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise InvalidMessageError(f"{what} holds U+0000 or half a surrogate pair, which cannot be stored")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _check_value(what, key, depth)
            _check_value(what, each, depth + 1)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_value(what, each, depth + 1)
    elif _is_number(value) and not _fits_a_double(value):
        raise InvalidMessageError(f"{what} holds a number that is not finite, or too large")


def _encodable(text: str, what: str = "the id") -> str:
    if _UNSTORABLE.search(text):
        raise InvalidMessageError(f"{what} {text!r} holds U+0000 or half a surrogate pair, which cannot be stored")
    return text


def _without_none(**fields: Any) -> Message:
    return {name: value for name, value in fields.items() if value is not None}


def _about(message: Message) -> str:
    return f"{message.get('type')} of {message.get('item_id') or message.get('batch_id')}"
