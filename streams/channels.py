"""The relay's two queues: what each reads from PostgreSQL, how it looks in Kafka, and how it is marked as published."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy import Table
from typing_extensions import override

from handlers.alerts import alert_event
from schemas.events import MAX_ID_CHARS, MAX_INT
from schemas.headers import (
    DLT_MESSAGE,
    DLT_OFFSET,
    DLT_PARTITION,
    DLT_REASON,
    DLT_TIMESTAMP,
    DLT_TOPIC,
    TRACEPARENT,
    event_id_of,
    headers_from,
    number_of,
    revision_of,
    text_of,
    traceparent_of,
    utf8_of,
)
from schemas.topics import Topics
from store import batches, outbox, tables
from store.connection import Connection
from store.outbox import PublishedDeadLetter, PublishedEvent
from store.rows import DeadLetterRow, OutboxRow
from streams.fetched import FetchedRecord
from streams.reading import append_time, decoded_headers, encoded_headers

MAX_HEADER_CHARS = 1_000
MAX_TOPIC_CHARS = 249

Row = TypeVar("Row")


class Outgoing(NamedTuple):
    """A record to be sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class Acknowledged(NamedTuple, Generic[Row]):
    """A row the broker has, and where."""

    row: Row
    partition: int
    offset: int
    at: datetime


class Channel(ABC, Generic[Row]):
    """One queue from PostgreSQL to Kafka."""

    name: str
    poll_s: float
    """How long to wait, in seconds, after nothing was found to publish."""
    round_rows: int
    """How many rows one transaction takes at most."""
    table: Table

    def __init__(self, topics: Topics) -> None:
        self.topics = topics

    @abstractmethod
    def output_topics(self) -> list[str]:
        """The topics this queue writes; nobody else does."""

    @abstractmethod
    async def unpublished(self, connection: Connection, limit: int, max_bytes: int) -> list[Row]:
        """The next rows to publish, in order; no more than ``limit``, and of values about ``max_bytes`` in all."""

    @abstractmethod
    def outgoing(self, row: Row) -> Outgoing:
        """A row as a record."""

    @abstractmethod
    def traceparents(self, rows: Sequence[Row]) -> list[str]:
        """The traces that rows carry on."""

    @abstractmethod
    async def mark_published(self, connection: Connection, published: Sequence[Acknowledged[Row]]) -> None:
        """Mark rows that the broker has acknowledged."""

    @abstractmethod
    async def mark_found(self, connection: Connection, found: Iterable[FetchedRecord]) -> None:
        """Mark, or insert as published, what was found on the topics. Records that aren't ours are passed over."""

    @abstractmethod
    async def quarantine(self, connection: Connection, row: Row, why: str) -> None:
        """Put a row aside that the broker refuses for good, with an alert."""


class Events(Channel[OutboxRow]):
    """The outbox: finalized events, alerts, requests, summaries."""

    name = "events"
    poll_s = 0.01
    round_rows = 1_000
    table = tables.outbox

    @override
    def output_topics(self) -> list[str]:
        return [self.topics.finalized, self.topics.summaries, self.topics.alerts, self.topics.requests]

    @override
    async def unpublished(self, connection: Connection, limit: int, max_bytes: int) -> list[OutboxRow]:
        """And mark what a higher revision on the topic has overtaken: it counts as published."""
        rows = await outbox.unpublished(connection, limit, max_bytes)
        now = datetime.now(UTC)
        said = [
            PublishedEvent(row.id, row.channel, row.batch_id, row.revision, now, None, None)
            for row, is_said in rows
            if is_said
        ]
        await outbox.mark_published(connection, said)
        return [row for row, is_said in rows if not is_said]

    @override
    def outgoing(self, row: OutboxRow) -> Outgoing:
        headers: list[tuple[str, bytes | None]] = [
            (name, text.encode()) for name, text in headers_from(row.headers).items()
        ]
        key = None if row.batch_id is None else row.batch_id.encode()
        return Outgoing(f"{self.topics.prefix}{row.channel}", key, row.value.encode(), headers)

    @override
    def traceparents(self, rows: Sequence[OutboxRow]) -> list[str]:
        found = (headers_from(row.headers).get(TRACEPARENT) for row in rows)
        return [traceparent for traceparent in found if traceparent is not None]

    @override
    async def mark_published(self, connection: Connection, published: Sequence[Acknowledged[OutboxRow]]) -> None:
        events = [
            PublishedEvent(row.id, row.channel, row.batch_id, row.revision, at, partition, offset)
            for row, partition, offset, at in published
        ]
        await _mark(connection, events)

    @override
    async def mark_found(self, connection: Connection, found: Iterable[FetchedRecord]) -> None:
        events: dict[str, PublishedEvent] = {}
        for record in found:
            identity = event_id_of(record.headers)
            if identity is not None and identity not in events:
                events[identity] = PublishedEvent(
                    identity,
                    record.topic.removeprefix(self.topics.prefix),
                    _subject(record.headers),
                    revision_of(identity) if record.topic == self.topics.finalized else None,
                    append_time(record.timestamp),
                    record.partition,
                    record.offset,
                )
        await _mark(connection, list(events.values()))

    @override
    async def quarantine(self, connection: Connection, row: OutboxRow, why: str) -> None:
        await outbox.refuse(connection, row.id, why)
        if row.channel != "alerts":
            await outbox.insert(connection, [_refused_alert(self.topics, f"event {row.id}", row.id, row.batch_id, why)])


class DeadLetters(Channel[DeadLetterRow]):
    """The table of dead letters is a queue of its own, so that a flood of them delays no finalized event."""

    name = "dead-letters"
    poll_s = 0.1
    round_rows = 300  # they share a process with the events, which must not wait long for it
    table = tables.dead_letters

    @override
    def output_topics(self) -> list[str]:
        return [self.topics.dead_letters]

    @override
    async def unpublished(self, connection: Connection, limit: int, max_bytes: int) -> list[DeadLetterRow]:
        return await outbox.unpublished_dead_letters(connection, limit, max_bytes)

    @override
    def outgoing(self, row: DeadLetterRow) -> Outgoing:
        about = {
            DLT_TOPIC: row.topic,
            DLT_PARTITION: str(row.partition),
            DLT_OFFSET: str(row.record_offset),
            DLT_TIMESTAMP: str(round(row.appended_at.timestamp() * 1000)),
            DLT_REASON: row.reason,
            DLT_MESSAGE: row.message[:MAX_HEADER_CHARS],
        }
        headers = decoded_headers(row.headers) + [(name, text.encode()) for name, text in about.items()]
        return Outgoing(self.topics.dead_letters, row.key, row.value, headers)

    @override
    def traceparents(self, rows: Sequence[DeadLetterRow]) -> list[str]:
        headers = ([(name, value) for name, value in decoded_headers(row.headers) if value is not None] for row in rows)
        found = (traceparent_of(each) for each in headers)
        return [traceparent for traceparent in found if traceparent is not None]

    @override
    async def mark_published(self, connection: Connection, published: Sequence[Acknowledged[DeadLetterRow]]) -> None:
        letters = [PublishedDeadLetter(row, at, partition, offset) for row, partition, offset, at in published]
        await outbox.mark_dead_letters_published(connection, letters)

    @override
    async def mark_found(self, connection: Connection, found: Iterable[FetchedRecord]) -> None:
        letters: dict[tuple[str, int, int], PublishedDeadLetter] = {}
        for record in found:
            if (letter := _found_dead_letter(record)) is not None:
                published = PublishedDeadLetter(letter, append_time(record.timestamp), record.partition, record.offset)
                letters.setdefault(letter[:3], published)
        await outbox.insert_published_dead_letters(connection, list(letters.values()))

    @override
    async def quarantine(self, connection: Connection, row: DeadLetterRow, why: str) -> None:
        await outbox.refuse_dead_letter(connection, row, why)
        position = f"{row.topic}-{row.partition}@{row.record_offset}"
        alert = _refused_alert(self.topics, f"dead letter of {position}", position, row.batch_id, why)
        await outbox.insert(connection, [alert])


async def _mark(connection: Connection, events: Sequence[PublishedEvent]) -> None:
    await outbox.mark_published(connection, events)
    finalized = {
        event.batch_id: (event.batch_id, event.revision, event.published_at)
        for event in sorted(events, key=lambda event: event.revision or 0)
        if event.revision is not None and event.batch_id is not None
    }
    await batches.mark_published(connection, finalized.values())


def _found_dead_letter(record: FetchedRecord) -> DeadLetterRow | None:
    topic, partition = text_of(record.headers, DLT_TOPIC), number_of(record.headers, DLT_PARTITION)
    offset, timestamp = number_of(record.headers, DLT_OFFSET), number_of(record.headers, DLT_TIMESTAMP)
    if topic is None or partition is None or offset is None or timestamp is None:
        return None
    if len(topic) > MAX_TOPIC_CHARS or partition > MAX_INT:
        return None  # no place that Kafka has
    original = [header for header in record.headers if not header[0].startswith("rollcall_dlt_")]
    return DeadLetterRow(
        topic,
        partition,
        offset,
        append_time(timestamp),
        utf8_of(record.headers, DLT_REASON) or "",
        utf8_of(record.headers, DLT_MESSAGE) or "",
        None,
        record.key,
        record.value,
        encoded_headers(original),
    )


def _subject(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """An event's batch; None where it is too long to be one."""
    found = utf8_of(headers, "ce_subject")
    return None if found is None or len(found) > MAX_ID_CHARS else found


def _refused_alert(topics: Topics, what: str, identity: str, batch_id: str | None, why: str) -> OutboxRow:
    return alert_event(
        topics,
        "relay.record_refused",
        batch_id,
        f"the broker refuses the {what}: {why}",
        {"refused": identity},
        event_id=f"relay.record_refused/{identity}",
        time=datetime.now(UTC),
    )
