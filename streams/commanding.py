"""What somebody asks of a batch, as records for the stream: which, how many items it concerns, and whether it can be.

The builders are pure; a command that the batch's state leaves nothing to do for raises NothingToDoError instead.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.events import MAX_ID_CHARS
from schemas.topics import Topics
from store import positions, reads
from store.connection import Connection
from store.reads import BatchStatus
from streams.manifests import opening
from streams.sending import Place

RetriedStatus = Literal["failed", "missing", "partial"]
RETRIED_STATUSES: tuple[RetriedStatus, ...] = get_args(RetriedStatus)

MAX_RETRIED = 1_000_000
PAGE = 10_000
POLL_S = 0.1


class NothingToDoError(Exception):
    """The batch's state leaves nothing to do; the message says why, and what could be done."""


@dataclass(frozen=True, slots=True)
class Command:
    """Records to be sent, in order; ``batch_id`` is the batch they are for, ``items`` how many items it concerns.

    ``means`` says what will happen, for the question whether it should.
    """

    batch_id: str
    items: int
    means: str
    events: Sequence[Mapping[str, Any]]


def cancel(batch_id: str, found: BatchStatus | None, *, reason: str | None = None) -> Command:
    """End a batch on purpose; one that nobody has opened is created and ended."""
    _check_open(found, "cancel")
    event = _event("batch.cancelled", batch_id, reason=reason)
    return Command(batch_id, _missing(found), _ends(found, "cancelled"), [event])


def abort(batch_id: str, found: BatchStatus | None, *, message: str, code: str | None = None) -> Command:
    """End a batch because of a critical error; one that nobody has opened is created and ended."""
    _check_open(found, "abort")
    error = {"message": message} if code is None else {"code": code, "message": message}
    event = _event("batch.aborted", batch_id, error=error)
    return Command(batch_id, _missing(found), _ends(found, "failed"), [event])


def finalize(found: BatchStatus, *, reason: str | None = None) -> Command:
    """End a batch as it stands; of one that has ended, have the summary computed again."""
    _check_kept(found)
    event = _event("batch.finalize_requested", found.batch_id, reason=reason)
    if found.outcome is not None:
        return Command(found.batch_id, 0, f"it is {found.outcome}, only its summary is computed again", [event])
    return Command(found.batch_id, found.missing, _ends(found, "as it stands"), [event])


def reopen(
    found: BatchStatus,
    *,
    item_ids: Sequence[str] = (),
    deadline_at: str | None = None,
    reason: str | None = None,
) -> Command:
    """Ask for items of a finalized batch anew: these, or the failed and the missing."""
    if found.outcome is None:
        raise NothingToDoError(f"it is not finalized but {found.status}: there is nothing to reopen")
    _check_kept(found)
    items = len(item_ids) or found.failed + found.missing
    if not items:
        raise NothingToDoError("no item failed and none is missing: there is nothing to ask for anew (see --item)")
    # With the revision it acts on, a repetition changes nothing.
    event = _event(
        "batch.reopened",
        found.batch_id,
        revision=found.revision,
        item_ids=list(item_ids) or None,
        deadline_at=deadline_at,
        reason=reason,
    )
    means = f"{_items(items)} asked for anew, it ends again with revision {found.revision + 1}"
    return Command(found.batch_id, items, means, [event])


def retry(
    found: BatchStatus,
    item_ids: Sequence[str],
    *,
    statuses: Sequence[RetriedStatus],
    batch_id: str,
    deadline_at: str | None = None,
) -> Command:
    """Open a new batch of some items of another, and have the upstream service asked for them."""
    _check_kept(found)
    if not item_ids:
        if "missing" in statuses and found.missing:
            raise NothingToDoError(
                f"{found.missing:,} items are missing, but no manifest names them: they cannot be asked for by id"
            )
        raise NothingToDoError(f"no item of it is {' or '.join(statuses)}: there is nothing to retry")
    opened = _event(
        "batch.opened",
        batch_id,
        retry_of=found.batch_id,
        request_retry=True,
        name=found.name,
        metadata=found.metadata,
        policy=found.policy,
        deadline_at=deadline_at,
    )
    still = "" if found.outcome else f" (it is still {found.status})"
    means = f"{_items(len(item_ids))} asked for again, as batch {batch_id}{still}{_unnamed(found, item_ids, statuses)}"
    return Command(batch_id, len(item_ids), means, opening(opened, item_ids))


async def items_to_reopen(connection: AsyncConnection, found: BatchStatus, item_ids: Sequence[str]) -> Sequence[str]:
    """These items, each once. Raises NothingToDoError where one is none of the batch's: it would not be asked for."""
    wanted = list(dict.fromkeys(item_ids))
    strange = await reads.strange_items(connection, found, wanted) if wanted else []
    if strange:
        more = f" and {len(strange) - 1:,} more are no items" if len(strange) > 1 else " is no item"
        raise NothingToDoError(f'"{strange[0]}"{more} of this batch: no result came, and no manifest names it')
    return wanted


async def items_to_retry(
    connection: AsyncConnection, batch_id: str, statuses: Sequence[RetriedStatus]
) -> Sequence[str]:
    """The ids of a batch's items of these statuses. Raises NothingToDoError where there are too many for one retry."""
    found: list[str] = []
    for status in dict.fromkeys(statuses):
        after: str | None = None
        while True:
            if status == "missing":
                missing = await reads.missing(connection, batch_id, after=after, limit=PAGE)
                found += missing.rows
                after = missing.next
            else:
                items = await reads.items(connection, batch_id, status=status, after=after, limit=PAGE)
                found += [item.item_id for item in items.rows]
                after = items.next
            if len(found) > MAX_RETRIED:
                raise NothingToDoError(f"more than {MAX_RETRIED:,} items: retry them by one --status after the other")
            if after is None:
                break
    return found


async def free_retry_id(connection: AsyncConnection, topics: Topics, batch_id: str) -> str:
    """The id for the next retry of a batch: ``ID-retry-1`` and so on, the first that no batch has."""
    number = 1
    while True:
        suffix = f"-retry-{number}"
        candidate = batch_id[: MAX_ID_CHARS - len(suffix)] + suffix
        if await reads.batch(connection, topics.events, candidate) is None:
            return candidate
        number += 1


async def applied_within(connection: Connection, topics: Topics, last: Place, seconds: float) -> bool:
    """Whether everything up to a place in the log is applied; waits for it so long at most."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                stored = await positions.load(connection, topics.events, [last.partition])
                if last.partition in stored and stored[last.partition].next_offset > last.offset:
                    return True
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False


def _check_open(found: BatchStatus | None, action: str) -> None:
    if found is not None and found.outcome is not None:
        raise NothingToDoError(f"it is finalized already, {found.outcome}: there is nothing to {action}")


def _check_kept(found: BatchStatus) -> None:
    if found.pruned_at is not None:
        raise NothingToDoError("its items were pruned: it stays as it is, and which of them failed is not known")


def _missing(found: BatchStatus | None) -> int:
    return found.missing if found else 0


def _ends(found: BatchStatus | None, how: str) -> str:
    if found is None:
        return f"nothing is known of this batch: it will be created, and ended as {how}"
    of_total = f" of {found.total:,}" if found.total is not None else ""
    stay = f"{found.missing:,}{of_total} items stay missing" if found.missing else "no item is missing"
    return f"it ends {how if how.startswith('as ') else f'as {how}'}: {found.answered:,} answered, {stay}"


def _unnamed(found: BatchStatus, item_ids: Sequence[str], statuses: Sequence[RetriedStatus]) -> str:
    """What to say of the missing that no manifest names; ``item_ids`` are all that could be named of these statuses."""
    if "missing" not in statuses:
        return ""
    others = sum(getattr(found, status) for status in statuses if status != "missing")
    unnamed = found.missing - (len(item_ids) - others)
    return f"; not the missing ({unnamed:,}), whom no manifest names" if unnamed else ""


def _items(count: int) -> str:
    return "1 item is" if count == 1 else f"{count:,} items are"


def _event(kind: str, batch_id: str, **fields: Any) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    return {"type": kind, "batch_id": batch_id, **given}
