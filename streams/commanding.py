"""What somebody asks of a batch, as records for the stream: which, how many items it concerns, and whether it can be.

The command line and the HTTP API ask the same here, so that both say the same of a batch that is there. (Of one that is
not, the API says 404, while the command line may still cancel or abort it before anybody opens it.) The builders are
pure; what cannot be done raises NotPossibleError.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.events import MAX_ID_CHARS
from schemas.topics import Topics
from store import positions, reads, statistics
from store.connection import Connection, driver
from store.reads import BatchStatus
from streams.manifests import opening
from streams.sending import Place

RetriedStatus = Literal["failed", "missing", "partial"]
RETRIED_STATUSES: tuple[RetriedStatus, ...] = get_args(RetriedStatus)

MAX_RETRIED = 1_000_000
PAGE = 10_000
POLL_S = 0.1


class NotPossibleError(Exception):
    """The batch's state forbids it, or ``field`` of what was asked is wrong; the message says why in one line."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Command:
    """Records to be sent, in order; ``batch_id`` is the batch they are for, ``items`` how many items it concerns.

    ``means`` says what will happen, for the question whether it should. ``acts_on`` is the revision of the batch that
    is acted on (0: has not ended, or is not known). ``only_summary``: the batch has ended, and is to stay as it is,
    though the same records would end it where somebody has reopened it.
    """

    batch_id: str
    items: int
    means: str
    events: Sequence[Mapping[str, Any]]
    acts_on: int
    only_summary: bool = False


def seal(batch_id: str, found: BatchStatus | None, *, total_items: int | None = None) -> Command:
    """Let no more items come; the total is needed where there is no manifest."""
    _check_open(found, "seal")
    items = total_items or (found.total if found else None) or 0
    event = _event("batch.sealed", batch_id, total_items=total_items)
    return Command(batch_id, items, "no more items come", [event], revision_of(found))


def cancel(
    batch_id: str, found: BatchStatus | None, *, revision: int | None = None, reason: str | None = None
) -> Command:
    """End a batch on purpose; one that nobody has opened is created and ended.

    ``revision``, here and where else a batch is ended: the one that is meant (None: whichever it is), so that a
    repetition does not end what was reopened meanwhile. It is checked here alone, against ``found``: the record does
    not carry it.
    """
    _check_open(found, "cancel", revision)
    event = _event("batch.cancelled", batch_id, reason=reason)
    return Command(batch_id, _missing(found), _ends(found, "cancelled"), [event], revision_of(found))


def abort(
    batch_id: str, found: BatchStatus | None, *, error: Mapping[str, Any], revision: int | None = None
) -> Command:
    """End a batch because of a critical error; one that nobody has opened is created and ended."""
    _check_open(found, "abort", revision)
    event = _event("batch.aborted", batch_id, error=_given(error))
    return Command(batch_id, _missing(found), _ends(found, "failed"), [event], revision_of(found))


def finalize(
    batch_id: str, found: BatchStatus | None, *, revision: int | None = None, reason: str | None = None
) -> Command:
    """End a batch as it stands; of one that has ended, have the summary computed again.

    Not where ``revision`` is given: who asked for that, and asks once more, might end what was reopened meanwhile.
    """
    _check_kept(found)
    if revision is not None:
        _check_open(found, "finalize", revision)
    event = _event("batch.finalize_requested", batch_id, reason=reason)
    if found is not None and found.outcome is not None:
        means = f"it is {found.outcome}, only its summary is computed again"
        return Command(batch_id, 0, means, [event], found.revision, only_summary=True)
    return Command(batch_id, _missing(found), _ends(found, "as it stands"), [event], revision_of(found))


def reopen(
    found: BatchStatus,
    *,
    item_ids: Sequence[str] = (),
    strange: Sequence[str] = (),
    revision: int | None = None,
    deadline_at: str | None = None,
    reason: str | None = None,
) -> Command:
    """Ask for items of a finalized batch anew: these, or the failed and the missing.

    ``revision`` is the one that is meant (None: whichever it is), so that a repetition does not reopen the next one.
    ``strange`` are those of them that are no items of the batch (``reads.strange_items``): they would not be asked for.
    """
    if found.outcome is None:
        raise NotPossibleError(f"the batch is not finalized but {found.status}: there is nothing to reopen")
    if revision not in (None, found.revision):
        raise NotPossibleError(f"the batch is at revision {found.revision}: revision {revision} cannot be reopened")
    _check_kept(found)
    if strange:
        more = f" and {len(strange) - 1:,} more are no items" if len(strange) > 1 else " is no item"
        why = f'"{strange[0]}"{more} of the batch: no result came, and no manifest names it'
        raise NotPossibleError(why, field="item_ids")
    items = len(item_ids) or found.failed + found.missing
    if not items:
        raise NotPossibleError("no item failed and none is missing: say which items to ask for anew")
    # With the revision it acts on, a repetition changes nothing.
    event = _event(
        "batch.reopened",
        found.batch_id,
        revision=found.revision,
        item_ids=list(item_ids) or None,
        deadline_at=deadline_at,
        reason=reason,
    )
    # A batch.sealed that came after it had ended changed nothing: whoever sent that thinks it is sealed.
    unsealed = "" if found.sealed else "; it is not sealed, so it waits for batch.sealed, too"
    means = f"{_items(items)} asked for anew, it ends again with revision {found.revision + 1}{unsealed}"
    return Command(found.batch_id, items, means, [event], found.revision)


def revision_of(found: BatchStatus | None) -> int:
    """The revision that a batch is at; 0 of one of which nothing is known."""
    return found.revision if found else 0


def retry(
    found: BatchStatus,
    item_ids: Sequence[str],
    *,
    batch_id: str,
    statuses: Sequence[RetriedStatus] = (),
    error: str | None = None,
    deadline_at: str | None = None,
) -> Command:
    """Open a new batch of some items of another, and have the upstream service asked for them.

    ``statuses`` or ``error`` is what the items were chosen by, none where they were named.
    """
    _check_kept(found)
    if not item_ids:
        raise NotPossibleError(_nothing_to_retry(found, statuses, error))
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
    return Command(batch_id, len(item_ids), means, opening(opened, item_ids), found.revision)


async def items_to_retry(
    reading: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
    batch_id: str,
    *,
    statuses: Sequence[RetriedStatus] = (),
    error: str | None = None,
) -> list[str]:
    """The ids of a batch's items of these statuses, or of those that failed with this error.

    ``reading`` gives a connection for each page. Raises NotPossibleError where there are too many for one retry.
    """
    found: list[str] = []
    chosen: Sequence[RetriedStatus] = statuses if error is None else ["failed"]
    for status in dict.fromkeys(chosen):
        after: str | None = ""
        while after is not None:
            async with reading() as connection:
                ids, after = await _page(connection, batch_id, status, error, after)
            found += ids
            if len(found) > MAX_RETRIED:
                raise NotPossibleError(
                    f"more than {MAX_RETRIED:,} items: retry one status after the other", field="status"
                )
    return found


async def check_free(connection: AsyncConnection, topics: Topics, batch_id: str) -> None:
    """Raise NotPossibleError where there is a batch of that id."""
    if await reads.batch(connection, topics.events, batch_id) is not None:
        raise NotPossibleError(f'there is a batch "{batch_id}" already: choose another id')


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


async def _page(
    connection: AsyncConnection, batch_id: str, status: RetriedStatus, error: str | None, after: str
) -> tuple[Sequence[str], str | None]:
    """Ids behind an id, and where to go on (None: nowhere)."""
    if error is not None:
        return await statistics.failed_with(await driver(connection), batch_id, error, after=after, limit=PAGE)
    if status == "missing":
        missing = await reads.missing(connection, batch_id, after=after, limit=PAGE)
        return missing.rows, missing.next
    page = await reads.items(connection, batch_id, status=status, after=after, limit=PAGE)
    return [item.item_id for item in page.rows], page.next


def _check_open(found: BatchStatus | None, action: str, revision: int | None = None) -> None:
    if found is not None and found.outcome is not None:
        raise NotPossibleError(f"the batch is finalized already, {found.outcome}: there is nothing to {action}")
    at = revision_of(found)
    if revision not in (None, at):
        since = "it ended and was reopened since" if at > revision else "it has not come so far"
        raise NotPossibleError(f"the batch is at revision {at}, not {revision}: {since}")


def _check_kept(found: BatchStatus | None) -> None:
    if found is not None and found.pruned_at is not None:
        raise NotPossibleError(
            "the batch's items were pruned: it stays as it is, and which of them failed is not known"
        )


def _nothing_to_retry(found: BatchStatus, statuses: Sequence[RetriedStatus], error: str | None) -> str:
    if error is not None:
        return f"no failed item of the batch has the error {error}"
    if "missing" in statuses and found.missing:
        return f"{found.missing:,} items are missing, but no manifest names them: they cannot be asked for by id"
    return f"no item of the batch is {' or '.join(statuses)}"


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
    return {"type": kind, "batch_id": batch_id, **_given(fields)}


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
