"""What a log means: the fold of what counts of it, and what of it must become a dead letter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tests.faults.observed import Finding, LogRecord, Place, SentRecord, at, at_place
from tests.faults.producing import home as home_of
from tests.harness.model import Model


@dataclass
class History:
    """What the log means: the fold, where each counted record was first read, and what must be a dead letter."""

    model: Model = field(default_factory=Model)
    letters: dict[Place, tuple[str, LogRecord]] = field(default_factory=dict)
    """By where the record was first read."""
    appended_at: dict[Place, int] = field(default_factory=dict)
    """When each record that counts was appended, in ms."""
    taken: dict[int, dict[int, int]] = field(default_factory=dict)
    """By home and source partition: the last record of that source that came home there."""


def fold(
    log: Sequence[tuple[LogRecord, str]], partitions: int, broken: Mapping[str, str | None], findings: list[Finding]
) -> History:
    """Fold what lies at home, of each forwarded record the first copy; what lies astray must have come home.

    The log is sorted, and has each record's digest beside it.
    """
    history = History()
    homes: dict[str, int] = {}
    copies: set[Place] = set()
    forwards: list[tuple[LogRecord, Place, str]] = []
    astray: dict[Place, tuple[LogRecord, str]] = {}
    taken: dict[Place, tuple[LogRecord, Place | None]] = {}
    decode = msgspec.json.Decoder().decode
    for record, identity in log:
        if identity in broken:
            history.letters[record.partition, record.offset] = (broken[identity] or "", record)
            continue
        value = decode(record.value or b"null")
        batch_id = str(value["batch_id"])
        if batch_id not in homes:
            homes[batch_id] = home_of(batch_id.encode(), partitions)
        if record.partition != homes[batch_id]:
            astray[record.partition, record.offset] = (record, identity)
            continue
        origin = _forwarded_from(record) if record.headers else None
        if origin is not None:
            forwards.append((record, origin, identity))
            if origin in copies:
                continue
            copies.add(origin)
            sources = history.taken.setdefault(record.partition, {})
            sources[origin[0]] = max(origin[1], sources.get(origin[0], -1))
        taken[record.partition, record.offset] = (record, origin)
        history.appended_at[record.partition, record.offset] = record.timestamp
        history.model.apply(record.offset, record.timestamp, value)
    findings += [
        Finding("lost", f"{at(record)} lies astray and never came home")
        for place, (record, _) in astray.items()
        if place not in copies
    ]
    for copy, origin, identity in forwards:
        if origin not in astray:
            findings.append(
                Finding("contradicting", f"{at(copy)} is a copy of {at_place(origin)}, which is not astray")
            )
        elif identity != astray[origin][1]:
            findings.append(
                Finding("contradicting", f"{at(copy)} is not the record of which it is a copy, {at_place(origin)}")
            )
    for refusal in history.model.refusals:
        home = home_of(refusal.batch_id.encode(), partitions)
        record, origin = taken[home, refusal.offset]
        first_read = record if origin is None or origin not in astray else astray[origin][0]
        history.letters[origin or (home, refusal.offset)] = ("not_applicable", first_read)
    return history


def log_findings(sent: Sequence[SentRecord], log: Sequence[tuple[LogRecord, str]]) -> Iterable[Finding]:
    """What was acknowledged is in the log, and what is in the log was sent by somebody."""
    held = {(record.partition, record.offset): identity for record, identity in log}
    known = {each.digest for each in sent}
    for each in sent:
        if each.place is not None:
            identity = held.get(each.place)
            if identity is None:
                yield Finding("lost", f"{at_place(each.place)} was acknowledged and is not in the log")
            elif identity != each.digest:
                yield Finding("contradicting", f"{at_place(each.place)} is not the record that was acknowledged there")
    for record, identity in log:
        if identity not in known:
            yield Finding("contradicting", f"{at(record)} is a record that nobody sent")


def _forwarded_from(record: LogRecord) -> Place | None:
    partition = record.headers.get("rollcall_forwarded_partition")
    offset = record.headers.get("rollcall_forwarded_offset")
    return None if partition is None or offset is None else (int(partition), int(offset))
