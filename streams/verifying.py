"""Holds the live state against what the log gives: everything that differs, in words.

The log was folded into a shadow before; what the workers have applied meanwhile is folded here, within one REPEATABLE
READ transaction that sees positions and state of one moment, so the live pipeline may go on.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from handlers.finalization import rfc3339
from schemas.dead_letters import Reason
from schemas.topics import Topics
from store import comparison
from store.comparison import Comparison, Differing, Event
from store.connection import Connection
from store.rows import Position
from streams.kafka import KafkaConnection
from streams.log_span import Span
from streams.reading import Homes
from streams.replay import Replay
from streams.scanning import Scan

SHOWN_OFFSETS = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the log has it, and where to look."""

    what: str
    message: str
    batch_id: str | None = None
    item_id: str | None = None
    partition: int | None = None
    offsets: tuple[int, ...] = ()


@dataclass(slots=True)
class Verified:
    """What was verified besides; ``replayable_from``: where the log begins, of partitions that have lost records."""

    batches: int = 0
    events: int = 0
    left_out: int = 0
    replayable_from: dict[int, tuple[int, datetime | None]] = field(default_factory=dict)
    not_comparable_events: int = 0


def applied(position: Position, first: int) -> int:
    """The offset behind the last record applied, which is what the state is the state of."""
    return first if position.last_offset is None else position.last_offset + 1


async def position_differences(
    replay: Replay, live: dict[int, Position], span: Span, folded: dict[int, Position], *, whole: bool
) -> list[Difference]:
    """Positions that do not stand where the state does. ``whole``: the log still begins at its beginning."""
    found: list[Difference] = []
    gaps: dict[int, tuple[int, int]] = {}
    for partition, position in live.items():
        end, last = span.ends.get(partition, 0), position.last_offset
        behind = applied(position, span.starts.get(partition, 0))
        if position.next_offset > end:
            found.append(_position(partition, position, f"the log ends at {end}: it is another log, or was truncated"))
        elif position.next_offset < behind:
            found.append(_position(partition, position, f"the record at {last} is applied: it would be applied again"))
        elif position.next_offset > behind:
            gaps[partition] = (max(behind, span.starts[partition]), position.next_offset)
        ours = folded.get(partition)
        if ours is None or last is None or last < span.starts.get(partition, 0) or last >= end:
            continue
        if (ours.last_offset, ours.last_timestamp, ours.last_checksum) != position[2:5]:
            found.append(
                _position(partition, position, f"the last record applied is not the one at {ours.last_offset}")
            )
        elif whole and ours.taken != position.taken:
            said = f"it has taken forwards up to {position.taken}, the log says {ours.taken}"
            found.append(_position(partition, position, said))
    for partition, offsets in (await replay.records_between(gaps)).items():
        said = f"records before it were not applied: {_offsets(offsets)}"
        found.append(_position(partition, live[partition], said, tuple(offsets)))
    return found


async def state_differences(compared: Comparison, homes: Homes) -> AsyncIterator[Difference]:
    """Batches, items and dead letters that are not as the log has them."""
    async for differing in compared.state():
        # A forward that the broker refused is known to the worker that tried.
        is_refused_forward = differing.log is None and (differing.live or {}).get("reason") == Reason.TOO_LARGE
        if not is_refused_forward:
            yield _state(differing, homes)


async def event_differences(
    compared: Comparison, scan: Scan, live: Connection, topics: Topics, homes: Homes, verified: Verified
) -> AsyncIterator[Difference]:
    """Events that are missing on their topics, there twice, or not what the log gives."""
    async for event in compared.duplicated():
        yield _event(topics, homes, event, f"is there {len(event.at)} times")
    async for event in compared.contradicting():
        yield _event(topics, homes, event, "says something else than the log gives")
    async for event in compared.altered():
        yield _event(topics, homes, event, "has another content in the outbox than the log gives")
    async for events in _together(compared.unknown()):
        # Decided behind the positions compared: by now the outbox has it.
        newer = await comparison.are_known(live, [event.id for event in events if not event.is_known])
        for event in events:
            if event.id not in newer:
                yield _event(topics, homes, event, "was never decided: the log does not give it")
    async for event in compared.missing():
        if event.channel in scan.cut and (
            event.time is None or event.time < scan.first_times.get(event.channel, _LATE)
        ):
            verified.not_comparable_events += 1  # the topic's own retention may have taken it
        else:
            said = "is lost: neither in the outbox nor on the topic" if event.is_lost else "is published, but not there"
            yield _event(topics, homes, event, said)


async def _together(events: AsyncIterator[Event]) -> AsyncIterator[list[Event]]:
    """Some at a time."""
    together: list[Event] = []
    async for event in events:
        together.append(event)
        if len(together) == comparison.FETCH:
            yield together
            together = []
    if together:
        yield together


async def scan_into(compared: Comparison, scan: Scan, kafka: KafkaConnection, topics: Topics) -> int:
    """Read the output topics for the comparison; returns the number of records."""
    records = 0
    async for said in scan.read(kafka, topics):
        await compared.note_scanned(said)
        records += len(said)
    return records


_LATE = datetime.max.replace(tzinfo=UTC)


def _position(partition: int, position: Position, said: str, offsets: tuple[int, ...] = ()) -> Difference:
    message = f"position of partition {partition}: stands at {position.next_offset}, but {said}"
    return Difference("position", message, partition=partition, offsets=offsets or (position.next_offset,))


_NAMES = {
    "batches": "batch",
    "item_results": "item",
    "late_results": "late result of item",
    "expected_items": "expected item",
    "summaries": "summary",
    "dead_letters": "dead letter",
}


def _state(differing: Differing, homes: Homes) -> Difference:
    key, live, log = differing.key, differing.live, differing.log
    batch_id, item_id = key.get("batch_id"), key.get("item_id")
    if differing.table == "dead_letters":
        partition, offset = key["partition"], key["record_offset"]
        return Difference(
            "dead letter",
            f"dead letter of partition {partition}, offset {offset}: {_said(differing)}",
            partition=partition,
            offsets=(offset,),
        )
    partition = homes.of(str(batch_id))
    offsets = tuple(
        sorted({row[name] for row in (live, log) if row for name in _OFFSET_COLUMNS if row.get(name) is not None})
    )
    name = _NAMES[differing.table]
    about = f'{name} "{item_id}" of batch "{batch_id}"' if item_id is not None else f'{name} "{batch_id}"'
    place = f"partition {partition}" + (f", offset {_offsets(offsets)}" if offsets else "")
    message = f"{about}: {_said(differing)} ({place})"
    return Difference(name, message, batch_id, item_id, partition, offsets)


_OFFSET_COLUMNS = ("version", "decided_offset", "last_result_offset", "requested_offset")


def _said(differing: Differing) -> str:
    if differing.live is None or differing.log is None:
        return "is missing, the log has it" if differing.live is None else "is there, but the log does not give it"
    live, log = differing.live, differing.log
    names = comparison.differing_columns(differing)
    return "; ".join(f"{name} is {_short(live.get(name))}, the log gives {_short(log.get(name))}" for name in names)


def _event(topics: Topics, homes: Homes, event: Event, said: str) -> Difference:
    """An event by its place on its topic; where it has none, by the record of the log that decided it."""
    name = f"event {event.id} on {topics.prefix}{event.channel}"
    if event.at:
        places = ", ".join(f"partition {partition}, offset {offset}" for partition, offset in event.at)
        offsets = tuple(offset for _, offset in event.at)
        return Difference("event", f"{name}: {said} ({places})", event.batch_id, None, event.at[0][0], offsets)
    home = None if event.batch_id is None else homes.of(event.batch_id)
    decided = () if event.decided_offset is None else (event.decided_offset,)
    place = f" (decided by partition {home}, offset {_offsets(decided)} of {topics.events})" if decided else ""
    return Difference("event", f"{name}: {said}{place}", event.batch_id, None, home, decided)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _offsets(offsets: Iterable[int]) -> str:
    listed = [str(offset) for offset in offsets]
    return ", ".join(listed[:SHOWN_OFFSETS]) + (
        f" and {len(listed) - SHOWN_OFFSETS} more" if len(listed) > SHOWN_OFFSETS else ""
    )


def beginning(offset: int, time: datetime | None) -> str:
    """Where a partition's log begins."""
    return f"offset {offset}" + (f" ({rfc3339(time)})" if time else "")
