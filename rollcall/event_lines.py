"""Events as lines of JSON: read in bounded memory, checked as intake will check them, and published."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path

from rollcall.reaching import naming
from rollcall.rendering import note, print_json, showable
from rollcall.settings import Settings
from schemas.dead_letters import Refused
from schemas.topics import Topics
from streams.ndjson import Lines, batch_of
from streams.observing import home_partition_count
from streams.reading import Homes
from streams.sending import Sender

CHUNK_BYTES = 512 * 1024
REPORT_EVERY_S = 0.5
SHOWN_PROBLEMS = 20
LISTED_PROBLEMS = 1_000


class PublishError(RuntimeError):
    """Not all was published; the message is one line and says what was."""


@dataclass(frozen=True)
class Problem:
    """A line that would become a dead letter."""

    line: int
    reason: str
    message: str


@dataclass
class Tally:
    """What became of the lines so far, and the first of the problems; all are said as they are found."""

    good: int = 0
    bad: int = 0
    published: int = 0
    problems: list[Problem] = field(default_factory=list)
    silent: InitVar[bool] = False

    def __post_init__(self, silent: bool) -> None:
        self._silent = silent

    def add(self, line: int, refusal: Refused) -> None:
        """A bad line."""
        self.bad += 1
        if self._silent:
            return
        if self.bad <= LISTED_PROBLEMS:
            self.problems.append(Problem(line, refusal.reason, refusal.message))
        if self.bad <= SHOWN_PROBLEMS:
            note(f"line {line}: {refusal.reason}: {showable(refusal.message)}")
        elif self.bad == SHOWN_PROBLEMS + 1:
            note("there are more")


def check_only(file: Path, *, as_json: bool) -> int:
    """Check every line and say what is bad; returns how many are."""
    tally = Tally()
    try:
        asyncio.run(_check(file, tally))
        note(f"{tally.good:,} good lines, {tally.bad:,} bad ones")
    finally:
        if as_json:
            print_json(asdict(tally))
    return tally.bad


def publish_all(file: Path, settings: Settings, *, skip_bad: bool, as_json: bool) -> int:
    """Publish the good lines, where a bad one doesn't forbid it; returns how many are bad.

    Raises PublishError, ServerError and NoTopicError.
    """
    tally = Tally()
    try:
        _publish(file, settings, tally, skip_bad=skip_bad)
    finally:
        if as_json:
            print_json(asdict(tally))
    return tally.bad


def _publish(file: Path, settings: Settings, tally: Tally, *, skip_bad: bool) -> None:
    """Check all that can be read twice before anything is sent; a stream is checked line by line as it is sent."""
    sending = tally
    if _can_be_read_twice(file):
        asyncio.run(_check(file, tally))
        if tally.bad and not skip_bad:
            note(f"{tally.bad:,} of {tally.bad + tally.good:,} lines are bad: nothing was published (see --skip-bad)")
            return
        sending = Tally(silent=True)
    began = time.monotonic()
    try:
        asyncio.run(_send(file, settings, sending, skip_bad=skip_bad))
    finally:
        tally.published = sending.published
        topic = Topics(settings.topic_prefix).events
        note(f"published {tally.published:,} events to {topic} in {time.monotonic() - began:.1f} s")


async def _check(file: Path, tally: Tally) -> None:
    with _progress("checked") as progress:
        async for _ in _events_of(file, tally, stop_at_bad=False):
            progress(tally.good + tally.bad)


async def _send(file: Path, settings: Settings, tally: Tally, *, skip_bad: bool) -> None:
    kafka, topics = settings.kafka_connection(), Topics(settings.topic_prefix)
    with naming(settings, "PostgreSQL"):
        connection = await settings.database().connect("publish")
    with naming(settings, "Kafka"):
        try:
            partitions = await home_partition_count(connection, kafka, topics)
        finally:
            connection.terminate()
        sender = Sender(kafka, topics, Homes(partitions))
        try:
            with _progress("published") as progress:
                async for events in _events_of(file, tally, stop_at_bad=not skip_bad):
                    await sender.encoded_events(events)
                    tally.published += len(events)
                    progress(tally.published)
        finally:
            await sender.close()
    if tally.bad and not skip_bad:
        raise PublishError("stopped at a bad line; what came before it is published (see --skip-bad)")


async def _events_of(file: Path, tally: Tally, *, stop_at_bad: bool) -> AsyncIterator[list[tuple[str, bytes]]]:
    """(batch id, JSON) of the good lines, as many at a time as were there to be read."""
    lines = Lines()
    async for chunk in _chunks(file):
        events = []
        for line in lines.feed(chunk) if chunk else lines.end():
            try:
                events.append((batch_of(line), line.value or b""))
                tally.good += 1
            except Refused as refusal:
                tally.add(line.number, refusal)
                if stop_at_bad:
                    yield events
                    return
        yield events


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    """What there is to read, as it comes, and an empty chunk at the end."""
    with _opened(file) as descriptor:
        chunk = b"-"
        while chunk:
            await _readable(descriptor)
            chunk = os.read(descriptor, CHUNK_BYTES)
            yield chunk


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    if str(file) == "-":
        yield sys.stdin.fileno()
        return
    # Not blocking: that of a FIFO would wait for who writes into it, and heed no signal meanwhile.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, so that Ctrl+C ends it at once."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return  # a file, which cannot be waited for and needs not
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def _can_be_read_twice(file: Path) -> bool:
    return str(file) != "-" and stat.S_ISREG(file.stat().st_mode)


@contextmanager
def _progress(done: str) -> Iterator[Callable[[int], None]]:
    """A line on a terminal that says how far it is, and goes at the end."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    said_at = time.monotonic()

    def say(count: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= REPORT_EVERY_S:
            said_at = time.monotonic()
            sys.stderr.write(f"\r{done} {count:,}")
            sys.stderr.flush()

    try:
        yield say
    finally:
        sys.stderr.write("\r\x1b[K")
