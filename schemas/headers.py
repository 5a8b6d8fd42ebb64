"""Record headers: CloudEvents on the way out, original positions on dead letters and forwards."""

import re
from collections.abc import Iterable, Mapping

import msgspec

from schemas.events import MAX_INT

CONTENT_TYPE_JSON = "application/json"

TRACEPARENT = "traceparent"
MAX_TRACEPARENT_CHARS = 128
"""W3C Trace Context's has 55 today; what is carried on is bounded."""

# On a record that a worker sent on to its batch's home partition: where it was first read.
FORWARDED_PARTITION = "rollcall_forwarded_partition"
FORWARDED_OFFSET = "rollcall_forwarded_offset"
FORWARDED_TIMESTAMP = "rollcall_forwarded_timestamp"
# Of which log that position is: copies of records in other clusters and topics are no forwards there.
FORWARDED_LOG = "rollcall_forwarded_log"
FORWARDED = frozenset({FORWARDED_PARTITION, FORWARDED_OFFSET, FORWARDED_TIMESTAMP, FORWARDED_LOG})

# On a dead letter that an operator has sent to the log again: where it was first read.
REDRIVEN_PARTITION = "rollcall_redriven_partition"
REDRIVEN_OFFSET = "rollcall_redriven_offset"
REDRIVEN_TIMESTAMP = "rollcall_redriven_timestamp"
REDRIVEN_LOG = "rollcall_redriven_log"
REDRIVEN = frozenset({REDRIVEN_PARTITION, REDRIVEN_OFFSET, REDRIVEN_TIMESTAMP, REDRIVEN_LOG})

MAX_EVENT_ID_BYTES = 2_000
"""More than any of ours, and less than an index of PostgreSQL takes."""

# Anybody can write headers: what is none of our numbers must not reach int(), which refuses 5,000 digits.
_NUMBER = re.compile(r"[0-9]{1,18}")

DLT_TOPIC = "rollcall_dlt_original_topic"
DLT_PARTITION = "rollcall_dlt_original_partition"
DLT_OFFSET = "rollcall_dlt_original_offset"
DLT_TIMESTAMP = "rollcall_dlt_original_timestamp"
DLT_REASON = "rollcall_dlt_reason"
DLT_MESSAGE = "rollcall_dlt_message"


def cloud_event(
    *, event_id: str, event_type: str, source: str, time: str, subject: str, traceparent: str | None
) -> dict[str, str]:
    """CloudEvents 1.0 attributes in Kafka's binary mode (one ``ce_`` header each), as text."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_type": event_type,
        "ce_source": source,
        "ce_time": time,
        "ce_subject": subject,
        "content-type": CONTENT_TYPE_JSON,
    }
    if traceparent is not None:
        headers[TRACEPARENT] = traceparent
    return headers


def headers_text(headers: Mapping[str, str]) -> str:
    """Headers as JSON, as the outbox keeps them."""
    return msgspec.json.encode(headers).decode()


_from_text = msgspec.json.Decoder(dict[str, str]).decode


def headers_from(text: str) -> dict[str, str]:
    """What ``headers_text`` made a text of."""
    return _from_text(text)


def text_of(headers: Iterable[tuple[str, bytes]], name: str) -> str | None:
    """The last value of a header as ASCII text; None where it is absent or is no text that PostgreSQL takes."""
    found: str | None = None
    for key, value in headers:
        if key == name and value is not None:
            found = value.decode("ascii") if value.isascii() and b"\0" not in value else None
    return found


def utf8_of(headers: Iterable[tuple[str, bytes]], name: str) -> str | None:
    """The last value of a header, whatever it is, as text; None where it is absent."""
    found = [value for key, value in headers if key == name and value is not None]
    return utf8(found[-1]) if found else None


def utf8(value: bytes) -> str:
    """Anybody's bytes as text that PostgreSQL takes."""
    return value.decode(errors="replace").replace("\x00", "")


def traceparent_of(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """The trace to carry on, where there is one of a sensible length."""
    found = text_of(headers, TRACEPARENT)
    return found if found is not None and len(found) <= MAX_TRACEPARENT_CHARS else None


def forwarded_from(headers: Iterable[tuple[str, bytes]], log: str) -> tuple[int, int] | None:
    """(partition, offset) at which a record of this log was first read; None where it is no forward of it."""
    if (text_of(headers, FORWARDED_LOG) or "") != log:
        return None
    return _place(headers, FORWARDED_PARTITION, FORWARDED_OFFSET)


def redriven_from(headers: Iterable[tuple[str, bytes]], log: str) -> tuple[int, int] | None:
    """(partition, offset) at which a redriven record of this log was first read; None where it is none of it."""
    if text_of(headers, REDRIVEN_LOG) != log:
        return None
    return _place(headers, REDRIVEN_PARTITION, REDRIVEN_OFFSET)


def _place(headers: Iterable[tuple[str, bytes]], of_partition: str, of_offset: str) -> tuple[int, int] | None:
    """The place these headers name; None where it is none that there can be."""
    partition, offset = number_of(headers, of_partition), number_of(headers, of_offset)
    return None if partition is None or partition > MAX_INT or offset is None else (partition, offset)


def number_of(headers: Iterable[tuple[str, bytes]], name: str) -> int | None:
    """A header that is a partition, an offset or a timestamp; None where it is absent or anything else."""
    text = text_of(headers, name)
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def event_id_of(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """The id of an event on an output topic; None where there is none, or one too long to be any of ours."""
    found = utf8_of(headers, "ce_id")
    return None if found is None or len(found.encode()) > MAX_EVENT_ID_BYTES else found


def revision_of(event_id: str) -> int | None:
    """The revision (1 and up) that a finalized event's id ends with; None where it ends with anything else."""
    text = event_id.rsplit("/", 1)[-1]
    return int(text) if _NUMBER.fullmatch(text) and 1 <= int(text) <= MAX_INT else None
