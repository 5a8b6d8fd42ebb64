"""Submitting over HTTP: the API is one more publisher. What it takes goes to the log, and the workers decide.

Every event is decoded before it is sent, by the very rules by which a worker will: what the API accepts is no dead
letter for its form. What only the batch's state can say (a sealed batch takes no more ids) the worker says, as a dead
letter; whoever waits for the record to be applied gets that as the answer.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiokafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from api.access import Caller
from api.context import Context
from api.idempotency import HARMLESS, NO_KEY, Try
from api.problems import Problem, invalid, is_database_away, unavailable
from schemas.dead_letters import Reason, Refused
from schemas.topics import MAX_EVENT_BYTES
from store import access, details, reads
from streams.decoding import decode
from streams.sending import NotAllTakenError, Place, encoded

APPLY_TIMEOUT_S = 5.0
"""How long an answer waits for a worker to have read what was sent."""
_LOOK_FIRST_S, _LOOK_AT_MOST_EVERY_S = 0.01, 0.1


def checked(event: Mapping[str, Any], where: str = "") -> Mapping[str, Any]:
    """An event as a worker would take it. Raises 413 or 422; ``where`` begins the name of the field."""
    now = datetime.now(UTC)
    try:
        value = encoded(event)
        decode(value, 0, now)
    except Refused as refusal:
        if refusal.reason is Reason.TOO_LARGE:
            raise Problem(413, where + refusal.message) from None
        field, colon, message = refusal.message.partition(": ")
        if colon and not field.startswith("cannot"):
            raise invalid(where + field, message) from None
        raise invalid(where.rstrip(".") or "body", refusal.message) from None
    except ValueError as error:
        raise invalid(where.rstrip(".") or "body", f"cannot be sent as JSON: {error}") from None
    if len(value) > MAX_EVENT_BYTES:
        # Refused only as it is sent, it would fail what others are sending, and what came before it would count.
        size = f"{len(value)} bytes of JSON, at most {MAX_EVENT_BYTES} are taken"
        raise Problem(413, f"{where.rstrip('.') or 'body'}: {size}")
    return event


def check_item_count(here: Context, count: int, field: str) -> None:
    """Raise 422 where a batch would have more items than are allowed."""
    limit = here.limits.items_per_batch
    if limit is not None and count > limit:
        raise invalid(field, f"{count} items; at most {limit} are allowed here (ROLLCALL_MAX_ITEMS)")


async def may_exist(here: Context, batch_id: str) -> reads.BatchStatus | None:
    """A batch, or None where it may well be in what is not read yet. Raises 404 where it is not."""
    async with here.reading() as connection:
        found = None if "\0" in batch_id else await reads.batch(connection, here.topics.events, batch_id)
        if found is not None:
            return found
        home = here.homes.of(batch_id) if batch_id else 0
        applied = await details.next_offset(connection, here.topics.events, home)
    end = here.log_ends.of(home)
    # The end is up to a second old: who opened the batch a moment ago, and did not wait, is told to try again.
    if end is not None and applied >= end:
        raise Problem(404, f'there is no batch "{batch_id}"')
    return None


async def submit(
    here: Context,
    caller: Caller,
    action: str,
    batch_id: str,
    items: int | None,
    events: Sequence[Mapping[str, Any]],
    traceparent: str | None = None,
    this: Try = NO_KEY,
    again: str = HARMLESS,
) -> list[Place]:
    """Write down who does what, and send it. Raises 413 and 503.

    ``again``: whether, or how, the same request can be sent again where it is not known to have arrived.
    """
    async with here.writing() as connection:
        await this.sends(connection)
        entry = await access.record_action(
            connection, caller=caller.name, key_id=caller.key_id, action=action, batch_id=batch_id, items=items
        )
    try:
        places = await here.sender.events(events, traceparent)
    except NotAllTakenError as refused:
        raise _not_all_taken(refused, len(events), "results" if action == "results" else None) from None
    except (KafkaError, OSError, TimeoutError) as error:
        raise unavailable(f"the broker did not acknowledge it in time; it may have arrived, and {again}") from error
    for place in places:
        here.log_ends.reaches(place.partition, place.offset + 1)
    last = places[-1]
    try:
        async with here.writing() as connection:
            await access.record_place(connection, entry, last.partition, last.offset)
    except Exception as error:
        if not is_database_away(error):
            raise
        raise unavailable(
            f'it is in the log (batch "{batch_id}", partition {last.partition}, offset {last.offset}) and need not be'
            " sent again, but the database cannot be reached at the moment: what became of it is not known yet"
        ) from error
    return places


_TOO_LARGE = "too large for the topic, alone or with what was sent in one with it"


def _not_all_taken(refused: NotAllTakenError, sent: int, field: str | None) -> Problem:
    """413 that says what is in the log and what is not; ``field`` is the list that has an event for each member.

    What goes out in one, also of other callers, is refused as one: nobody knows whether any of it was too large alone.
    """
    out = refused.too_large | refused.behind
    why = (
        f"{_TOO_LARGE} (the topic's max.message.bytes is below what Rollcall sets);"
        " what is small is taken if it is sent again alone"
    )
    if sent == 1:
        return Problem(413, f"the event is {why}")
    if field is None:
        return Problem(413, f"sent in {sent} events, of which {len(out)} are not in the log: {why}")
    return Problem(
        413,
        f"{len(out)} of {sent} {field} are not in the log, those that `errors` names: {why}",
        errors=[
            (f"{field}.{index}", _TOO_LARGE if index in refused.too_large else "came behind what was too large")
            for index in sorted(out)
        ],
    )


async def applied(here: Context, places: Sequence[Place]) -> bool:
    """Wait, for a few seconds at most, until a worker has applied these records of one batch.

    Raises 409 where it refused one of them, for what the batch's state is. False: workers are down or behind, or the
    database is away; what was sent is in the log all the same.
    """
    topic, last = here.topics.events, places[-1]
    deadline, pause = time.monotonic() + APPLY_TIMEOUT_S, _LOOK_FIRST_S
    while time.monotonic() < deadline:
        try:
            async with here.reading() as connection:
                if await details.next_offset(connection, topic, last.partition) > last.offset:
                    offsets = [place.offset for place in places]
                    refusal = await details.refusal(connection, topic, last.partition, offsets)
                    if refusal is not None:
                        raise Problem(409, refusal)
                    return True
        except (SQLAlchemyError, OSError):
            pass
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LOOK_AT_MOST_EVERY_S)
    return False
