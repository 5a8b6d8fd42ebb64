"""The two tables that are published from, outbox and dead letters, held against the log and the topics."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.faults.history import History
from tests.faults.observed import Finding, LogRecord, Observed, Place, Row, at, at_place, moment
from tests.faults.producing import home as home_of
from tests.faults.published import FAILURE_ALERTS, is_refused

FAILURE_RATE = "batch.failure_rate_exceeded"
"""Its limit is a setting: whether it is due the checker leaves open."""
CAUSED_BY_RECORDS = {"batch.finalized", "batch.retry_requested", FAILURE_RATE, *FAILURE_ALERTS}
"""What else goes out, summaries and alerts about time, has its own time, and may be on its way."""


class Cause(NamedTuple):
    """What the log says of an event: the columns of its row, and the record that calls for it."""

    channel: str
    batch_id: str
    revision: int | None
    place: Place


# --- outbox ------------------------------------------------------------------------------------------------------


def outbox_findings(history: History, observed: Observed) -> Iterable[Finding]:
    """One row for each event that the log calls for, marked as published where it really is."""
    due, open_to_doubt = _causes(history, observed)
    on_topic = _by_event_id(observed)
    rows = {row["id"]: row for row in observed.tables["outbox"] if _name(row["id"]) in CAUSED_BY_RECORDS}
    for identity in due.keys() - rows.keys():
        yield Finding("lost", f"outbox has no {identity}, due at {at_place(due[identity].place)}")
    for identity in on_topic.keys() - rows.keys() - due.keys():
        channel, record = on_topic[identity][0]
        yield Finding("lost", f"outbox has no {identity}, which {channel} has at {at(record)}")
    for identity, row in rows.items():
        cause = due.get(identity) or open_to_doubt.get(identity)
        if cause is None:
            yield Finding("contradicting", f"outbox has {identity}, {_published(row)}: nothing calls for it")
            continue
        where = f"outbox {identity}, due at {at_place(cause.place)}"
        said = (row["channel"], row["batch_id"], row["revision"])
        if said != cause[:3]:
            yield Finding("contradicting", f"{where}: {said} for {cause[:3]}")
        yield from _mark_findings(where, row, on_topic.get(identity, ()), cause, observed)
        yield from _content_findings(where, row, on_topic.get(identity, ()))


def _causes(history: History, observed: Observed) -> tuple[dict[str, Cause], dict[str, Cause]]:
    """The events that there must be, and those that there may be, by id."""
    due: dict[str, Cause] = {}
    open_to_doubt: dict[str, Cause] = {}
    for batch_id, batch in history.model.batches.items():
        home = home_of(batch_id.encode(), observed.partitions)
        for final in batch.revisions:
            decided = (home, final.as_of_offset)
            due[f"batch.finalized/{batch_id}/{final.revision}"] = Cause("finalized", batch_id, final.revision, decided)
            open_to_doubt[f"{FAILURE_RATE}/{batch_id}/{final.revision}"] = Cause("alerts", batch_id, None, decided)
        for alert, offset in batch.alerts:
            due[f"{alert}/{batch_id}"] = Cause("alerts", batch_id, None, (home, offset))
        for offset, *_ in batch.requests:
            due[f"batch.retry_requested/{batch_id}/{offset}"] = Cause("requests", batch_id, None, (home, offset))
    return due, open_to_doubt


def _by_event_id(observed: Observed) -> Mapping[str, Sequence[tuple[str, LogRecord]]]:
    found: defaultdict[str, list[tuple[str, LogRecord]]] = defaultdict(list)
    for channel in ("finalized", "alerts", "requests"):
        for record in getattr(observed, channel):
            identity = record.headers.get("ce_id", b"").decode()
            if _name(identity) in CAUSED_BY_RECORDS:
                found[identity].append((channel, record))
    return found


def _name(identity: str) -> str:
    return identity.partition("/")[0]


def _published(row: Row) -> str:
    """Where a row says that it was published."""
    if row["published_at"] is None:
        return "unpublished"
    if row["published_partition"] is None:
        return "published nowhere"
    return f"published at {at_place((row['published_partition'], row['published_offset']))}"


def _mark_findings(
    where: str, row: Row, on_topic: Sequence[tuple[str, LogRecord]], cause: Cause, observed: Observed
) -> Iterable[Finding]:
    places = [(record.partition, record.offset) for _, record in on_topic]
    is_marked = row["published_at"] is not None
    if cause.channel == "finalized" and cause.batch_id in observed.refused:
        if is_marked or row["refused"] is None:
            yield Finding("contradicting", f"{where}: refused is {row['refused']!r}, it is {_published(row)}")
        return
    if row["refused"] is not None:
        yield Finding("contradicting", f"{where}: refused is {row['refused']!r}, its topic takes it")
    if not is_marked:
        kind = "never-finalized" if cause.channel == "finalized" else "lost"
        yield Finding(kind, f"{where} is not marked as published")
    elif (row["published_partition"], row["published_offset"]) not in places:
        really = ", ".join(map(at_place, places)) or "nowhere"
        yield Finding("contradicting", f"{where} is {_published(row)}, and really {really}")


def _content_findings(where: str, row: Row, on_topic: Sequence[tuple[str, LogRecord]]) -> Iterable[Finding]:
    for channel, record in on_topic[:1]:
        what = f"{where}, which {channel} has at {at(record)}"
        if row["value"] is None or row["value"].encode() != record.value:
            yield Finding("contradicting", f"{what}: its value is {row['value']!r}")
        headers = {name: text.encode() for name, text in json.loads(row["headers"] or "{}").items()}
        if headers != record.headers:
            yield Finding("contradicting", f"{what}: its headers are {row['headers']!r}")


# --- dead letters ------------------------------------------------------------------------------------------------

_LETTER = ("topic", "reason", "appended_at", "key", "value", "headers")


def dead_letter_row_findings(
    history: History, observed: Observed, on_topic: Mapping[Place, Sequence[LogRecord]]
) -> Iterable[Finding]:
    """One row for each record that can't be taken, with its bytes, marked as published where the letter really is."""
    rows: dict[Place, Row] = {}
    for row in observed.tables["dead_letters"]:
        place = (row["partition"], row["record_offset"])
        if place in rows:
            yield Finding("doubled", f"dead_letters has {at_place(place)} of {rows[place]['topic']} and {row['topic']}")
        rows[place] = row
    for place in rows.keys() - history.letters.keys():
        yield Finding("contradicting", f"dead_letters has {at_place(place)}, {_published(rows[place])}: it is sound")
    for place, (reason, record) in history.letters.items():
        if place not in rows:
            yield Finding("lost", f"{at_place(place)} ({reason}) is not among dead_letters")
            continue
        row, letters = rows[place], on_topic.get(place, ())
        where = f"dead_letters {at_place(place)} ({reason})"
        said = (*(row[column] for column in _LETTER[:-1]), _headers_of(row["headers"]))
        meant = (
            f"{observed.prefix}events",
            reason,
            moment(record.timestamp),
            record.key,
            record.value,
            record.headers,
        )
        for column, one, other in zip(_LETTER, said, meant, strict=True) if said != meant else ():
            if one != other:
                yield Finding("contradicting", f"{where}: {column} {_short(one)} for {_short(other)}")
        if row["batch_id"] not in (readable := _batch_ids(reason, record)):
            yield Finding("contradicting", f"{where}: batch_id {row['batch_id']!r} for {_short(readable)}")
        yield from _letter_mark_findings(where, row, letters, must_be_refused=is_refused(record, observed))


def _headers_of(encoded: str) -> dict[str, bytes]:
    """The table keeps [name, base64 of the value] each."""
    return {} if encoded == "[]" else {name: base64.b64decode(value or "") for name, value in json.loads(encoded)}


def _batch_ids(reason: str, record: LogRecord) -> Sequence[Any]:
    """Which batch ids a reader may have found in a record: one that is broken may, or may not, have a readable one."""
    if reason == "invalid_json":
        return (None,)
    try:
        # As text: Python takes no integer of more than 4,300 digits.
        said = json.loads(record.value or b"null", parse_int=str, parse_float=str)["batch_id"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return (None,)
    return (said,) if reason == "not_applicable" else (None, said)


def _letter_mark_findings(
    where: str, row: Row, letters: Sequence[LogRecord], *, must_be_refused: bool
) -> Iterable[Finding]:
    if must_be_refused is (row["refused"] is None):
        yield Finding("contradicting", f"{where}: refused is {row['refused']!r}")
    if must_be_refused:
        if row["published_at"] is not None:
            yield Finding("contradicting", f"{where} is {_published(row)}, which its topic cannot take")
        return
    if row["published_at"] is None:
        yield Finding("lost", f"{where} is not marked as published")
    elif (row["published_partition"], row["published_offset"]) not in [each[:2] for each in letters]:
        really = ", ".join(map(at, letters)) or "nowhere"
        yield Finding("contradicting", f"{where} is {_published(row)}, and really {really}")
    for letter in letters[:1]:
        message = letter.headers.get("rollcall_dlt_message", b"").decode()
        if not message or not row["message"].startswith(message):
            yield Finding("contradicting", f"{where}: message {_short(row['message'])}, {at(letter)} has {message!r}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
