"""How a command that changes a batch goes out: checked, agreed to, sent, waited for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

import typer
from typer.exceptions import TyperException

from rollcall.batch_asking import Answer, snapshot, topics_of
from rollcall.reaching import ServerError, naming
from rollcall.rendering import note, print_line, showable
from rollcall.settings import Settings
from schemas.dead_letters import Refused
from store import diagnosis, reads
from store.diagnosis import DeadLetter
from store.reads import BatchStatus
from streams.commanding import Command, applied_within
from streams.decoding import decode
from streams.observing import home_partition_count
from streams.reading import Homes
from streams.sending import Place, Sender

WAIT_S = 30.0


class NotAgreedError(TyperException):
    """Nobody could be asked whether it should be done."""

    exit_code = 2


def check(command: Command) -> None:
    """Raise typer.BadParameter where a record would be refused as soon as it is read."""
    for event in command.events:
        try:
            decode(json.dumps(event).encode(), 0, datetime.now(UTC))
        except Refused as refusal:
            raise typer.BadParameter(refusal.message) from None


def confirm(action: str, batch_id: str, command: Command, *, yes: bool) -> None:
    """Ask whether it should be done. Raises NotAgreedError without a terminal to ask on, typer.Abort after a no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NotAgreedError(f"{action} {showable(batch_id)}: {showable(command.means)}; say --yes to do that")
    note(f"{showable(batch_id)}: {showable(command.means)}")
    if not typer.confirm(f"{action.capitalize()}?", err=True):
        note("nothing was done")
        raise typer.Abort


async def carried_out(action: str, batch_id: str, command: Command, settings: Settings, *, wait: bool) -> Answer:
    """Send a command's records, wait until they are applied, and say what came of it."""
    database, topics, kafka = settings.database(), topics_of(settings), settings.kafka_connection()
    with naming(settings, "PostgreSQL"):
        connection = await database.connect("batch")
    try:
        with naming(settings, "Kafka"):
            sender = Sender(kafka, topics, Homes(await home_partition_count(connection, kafka, topics)))
        with _saying_which(command, batch_id):
            with naming(settings, "Kafka"):
                try:
                    places = await sender.events(command.events)
                finally:
                    await sender.close()
            with naming(settings, "PostgreSQL"):
                applied = wait and await applied_within(connection, topics, places[-1], WAIT_S)
    finally:
        connection.terminate()
    batch, refused = None, None
    if applied:
        with naming(settings, "PostgreSQL"):
            async with snapshot(settings) as reading:
                batch = await reads.batch(reading, topics.events, command.batch_id)
                offsets = [place.offset for place in places]
                refused = await diagnosis.dead_letter_at(reading, topics.events, places[0].partition, offsets)
    as_json = {
        "action": action,
        "batch_id": batch_id,
        "items": command.items,
        "partition": places[-1].partition,
        "offset": places[-1].offset,
        "applied": applied,
        "refused": asdict(refused) if refused else None,
        "batch": asdict(batch) if batch else None,
    }
    failed = refused is not None or (wait and not applied)
    return Answer(as_json, lambda: _show(command, places[-1], wait, applied, batch, refused), exit_code=int(failed))


@contextmanager
def _saying_which(command: Command, batch_id: str) -> Iterator[None]:
    """Where a new batch may be there in spite of a failure, say which: repeated as it was, it would be another."""
    try:
        yield
    except ServerError as error:
        if command.batch_id == batch_id:
            raise
        new = showable(command.batch_id)
        raise ServerError(
            f"{error}; batch {new} may be open all the same: if `rollcall batch show` does not find it,"
            f" repeat this with --id {new}"
        ) from error


def _show(
    command: Command, place: Place, wait: bool, applied: bool, batch: BatchStatus | None, refused: DeadLetter | None
) -> None:
    where = f"partition {place.partition}, offset {place.offset}"
    if refused is not None:
        print_line(f"refused: {showable(refused.message)} ({where})")
    elif not applied:
        waited = f" and not applied within {WAIT_S:g} s; see `rollcall batch why`" if wait else ""
        print_line(f"it is in the log ({where}){waited}")
    elif batch is not None:
        from rollcall.batch_views import show_batch

        print_line(f"applied ({where})")
        print_line()
        show_batch(batch)
