"""`rollcall tail ...`: one line for each event that Rollcall publishes, as it comes.

A plain read_committed consumer without a group: it sees what any downstream service sees, and leaves no trace.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

    from rollcall.settings import Settings
    from schemas.topics import Topics

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Channel = Literal["finalized", "dead-letters"]

Record: TypeAlias = "ConsumerRecord[bytes, bytes]"
Shown: TypeAlias = Callable[["Record"], str | None]
Positions: TypeAlias = "dict[TopicPartition, int]"

POLL_MS = 1_000


@app.command()
def tail(
    channel: Annotated[Channel, typer.Argument(help="What to follow.", show_default=False)],
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="All that the topic still holds first, then what comes.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line: of an event its value, of a dead letter all of it."),
    ] = False,
) -> None:
    """One line for each event that Rollcall publishes, as it comes; Ctrl+C ends it."""
    from rollcall.logs import configure_logging
    from rollcall.reaching import naming
    from rollcall.rendering import reader_may_leave
    from rollcall.settings import load_settings
    from schemas.topics import Topics

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format, role="tail")
    shown = _SHOWN[channel, as_json]
    topic = _topic(Topics(settings.topic_prefix), channel)
    with naming(settings, "Kafka"), reader_may_leave():
        asyncio.run(_until_interrupted(settings, topic, shown, from_beginning))


async def _until_interrupted(settings: Settings, topic: str, shown: Shown, from_beginning: bool) -> None:
    from rollcall.interrupting import heeding

    following = asyncio.ensure_future(_follow(settings, topic, shown, from_beginning))
    if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        # A pipe's writing end becomes readable when nobody reads it any more: `... | head -1` ends by itself.
        asyncio.get_running_loop().add_reader(sys.stdout.fileno(), following.cancel)
    with heeding((signal.SIGINT, signal.SIGTERM), lambda _: following.cancel()):
        await asyncio.wait({following})
    if not following.cancelled():
        following.result()


async def _follow(settings: Settings, topic: str, shown: Shown, from_beginning: bool) -> None:
    from rollcall.rendering import note, write_line
    from streams.kafka import START_TIMEOUT_S, started
    from streams.observing import administering, partitions_of

    kafka = settings.kafka_connection()
    async with administering(kafka) as admin:
        await partitions_of(admin, topic)
    consumer = kafka.consumer(
        topic,
        client_id="rollcall-tail",
        isolation_level="read_committed",
        auto_offset_reset="earliest" if from_beginning else "latest",
        enable_auto_commit=False,
    )
    async with started(consumer):
        # Positions are known before we say so: what is published from then on will be shown.
        async with asyncio.timeout(START_TIMEOUT_S):
            positions = {partition: await consumer.position(partition) for partition in consumer.assignment()}
        note(f"following {topic} from {'its beginning' if from_beginning else 'now on'}; Ctrl+C ends")
        await print_all(consumer, positions, shown, write_line)


async def print_all(
    consumer: AIOKafkaConsumer, positions: Positions, shown: Shown, write_line: Callable[[bytes], None]
) -> None:
    """Write a line for each record from these positions on, also of partitions that the topic is given meanwhile."""
    while True:
        fetched = await consumer.getmany(timeout_ms=POLL_MS)
        if consumer.assignment() != positions.keys():
            _resume(consumer, positions)
            continue
        # Partitions come one after the other; within what came at once, time decides.
        for record in sorted((each for part in fetched.values() for each in part), key=lambda each: each.timestamp):
            line = _line(record, shown)
            if line is not None:
                write_line(line.encode())
        positions.update({partition: part[-1].offset + 1 for partition, part in fetched.items()})


def _resume(consumer: AIOKafkaConsumer, positions: Positions) -> None:
    """Go on where each partition stood, at the beginning of one that was added.

    When the partitions of a topic are others, aiokafka reads all of them from where its reset policy says.
    """
    assigned = consumer.assignment()
    for partition in positions.keys() - assigned:
        del positions[partition]
    for partition in assigned:
        consumer.seek(partition, positions.setdefault(partition, 0))


def _line(record: Record, shown: Shown) -> str | None:
    from rollcall.rendering import note

    try:
        return shown(record)
    except (ValueError, TypeError, LookupError, AttributeError):
        # Whoever may write this topic may write anything.
        note(f"not an event of Rollcall's: {record.topic}, partition {record.partition}, offset {record.offset}")
        return None


def _topic(topics: Topics, channel: Channel) -> str:
    return {"finalized": topics.finalized, "dead-letters": topics.dead_letters}[channel]


def _finalized_as_json(record: Record) -> str | None:
    if record.value is None:
        return None  # a tombstone: somebody has deleted the batch from the compacted topic
    event = json.loads(record.value)
    # As it was published, unless somebody else wrote it on several lines.
    return json.dumps(event, ensure_ascii=False) if b"\n" in record.value else record.value.decode()


def _finalized_as_text(record: Record) -> str | None:
    from rollcall.rendering import showable

    if record.value is None:
        return None
    event = json.loads(record.value)
    counts = event["item_counts"]
    said = [f"{counts[name]:,} {name}" for name in _COUNTS if counts[name] or name == "succeeded"]
    revision = f"  revision {event['revision']}" if event["revision"] > 1 else ""
    when = str(event["finalized_at"]).replace("T", " ")
    items = f"{counts['total']:,} item{'s' * (counts['total'] != 1)}: {', '.join(said)}"
    return f"{showable(when)}  {showable(event['batch_id'])}  {showable(event['outcome'])}  {items}{revision}"


def _dead_letter_as_json(record: Record) -> str | None:
    from schemas import headers as names

    headers = _headers(record)
    return json.dumps(
        {
            "topic": headers.get(names.DLT_TOPIC),
            "partition": _number(headers.get(names.DLT_PARTITION)),
            "offset": _number(headers.get(names.DLT_OFFSET)),
            "timestamp": _number(headers.get(names.DLT_TIMESTAMP)),
            "reason": headers.get(names.DLT_REASON),
            "message": headers.get(names.DLT_MESSAGE),
            "key": _decoded(record.key),
            "value": _decoded(record.value),
            "key_base64": _base64(record.key),
            "value_base64": _base64(record.value),
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _dead_letter_as_text(record: Record) -> str | None:
    from rollcall.rendering import at, showable
    from schemas import headers as names

    headers = _headers(record)
    where = "/".join(headers.get(name, "?") for name in (names.DLT_TOPIC, names.DLT_PARTITION, names.DLT_OFFSET))
    when = at(datetime.fromtimestamp(record.timestamp / 1000, UTC))
    key = "no key" if record.key is None else f"key {record.key.decode(errors='backslashreplace')}"
    said = (where, headers.get(names.DLT_REASON, "?"), key, headers.get(names.DLT_MESSAGE, "?"))
    return "  ".join((str(when), *map(showable, said)))


def _headers(record: Record) -> dict[str, str]:
    return {name: value.decode(errors="backslashreplace") for name, value in record.headers if value is not None}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _decoded(data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def _base64(data: bytes | None) -> str | None:
    # Only where text cannot say it.
    return None if data is None or _decoded(data) is not None else base64.b64encode(data).decode()


_COUNTS = ("succeeded", "partial", "failed", "skipped", "missing", "unexpected")

_SHOWN: dict[tuple[Channel, bool], Shown] = {
    ("finalized", False): _finalized_as_text,
    ("finalized", True): _finalized_as_json,
    ("dead-letters", False): _dead_letter_as_text,
    ("dead-letters", True): _dead_letter_as_json,
}
