"""`rollcall batch cancel|abort|finalize|reopen|retry`: each a record on the stream, asked about before, shown after."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from rollcall.batch_asking import AsJson, BatchId, known, known_or_not, possible, print_answer, snapshot, topics_of
from rollcall.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from rollcall.settings import Settings
    from streams.commanding import Command, RetriedStatus

    Planned = Callable[[AsyncConnection, Settings], Awaitable[Command]]

app = typer.Typer()

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until a worker has applied it, and show the batch.")]
Reason = Annotated[str | None, typer.Option(help="Why, for people.", show_default=False)]
Revision = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="NUMBER",
        help="Only where the batch is at this revision (0 before its first end): to repeat it does no harm then.",
        show_default=False,
    ),
]
Deadline = Annotated[
    str | None, typer.Option(metavar="TIME", help="When it ends at the latest (RFC 3339).", show_default=False)
]


@app.command()
def cancel(
    batch_id: BatchId,
    reason: Reason = None,
    revision: Revision = None,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """End a batch on purpose: cancelled; whoever has not answered stays missing."""

    async def plan(connection: AsyncConnection, settings: Settings) -> Command:
        from streams import commanding

        found = await known_or_not(connection, settings, batch_id)
        return commanding.cancel(batch_id, found, revision=revision, reason=reason)

    _do("cancel", batch_id, plan, yes, wait, as_json)


@app.command()
def abort(
    batch_id: BatchId,
    error: Annotated[str, typer.Option(metavar="MESSAGE", help="The critical error that stopped the job.")],
    code: Annotated[str | None, typer.Option(help="The error's code.", show_default=False)] = None,
    revision: Revision = None,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """End a batch because of a critical error: failed; whoever has not answered stays missing."""

    async def plan(connection: AsyncConnection, settings: Settings) -> Command:
        from streams import commanding

        found = await known_or_not(connection, settings, batch_id)
        return commanding.abort(batch_id, found, error={"message": error, "code": code}, revision=revision)

    _do("abort", batch_id, plan, yes, wait, as_json)


@app.command()
def finalize(
    batch_id: BatchId,
    reason: Reason = None,
    revision: Revision = None,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """End a batch as it stands; of one that has ended, only the summary is computed again (not with --revision)."""

    async def plan(connection: AsyncConnection, settings: Settings) -> Command:
        from streams import commanding

        found = await known(connection, settings, batch_id)
        return commanding.finalize(batch_id, found, revision=revision, reason=reason)

    _do("finalize", batch_id, plan, yes, wait, as_json)


@app.command()
def reopen(
    batch_id: BatchId,
    item: Annotated[
        list[str] | None,
        typer.Option(help="An item to ask for anew, several times for several; else the failed and the missing."),
    ] = None,
    deadline: Deadline = None,
    reason: Reason = None,
    revision: Revision = None,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Ask for items of a finalized batch anew; it ends again, with the next revision."""

    async def plan(connection: AsyncConnection, settings: Settings) -> Command:
        from store import reads
        from streams import commanding

        found = await known(connection, settings, batch_id)
        items = list(dict.fromkeys(item or ()))
        strange = await reads.strange_items(connection, found, items)
        return commanding.reopen(
            found, item_ids=items, strange=strange, revision=revision, deadline_at=deadline, reason=reason
        )

    _do("reopen", batch_id, plan, yes, wait, as_json)


@app.command()
def retry(
    batch_id: BatchId,
    status: Annotated[
        str, typer.Option(metavar="LIST", help="Items of which status: failed, missing, partial; with commas.")
    ] = "failed,missing",
    new_id: Annotated[
        str | None,
        typer.Option("--id", metavar="NEW", help="The new batch's id; else ID-retry-1 and so on.", show_default=False),
    ] = None,
    deadline: Deadline = None,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Open a new batch of the items that failed or are missing, and ask the upstream service for them."""
    statuses = _statuses(status)

    async def plan(connection: AsyncConnection, settings: Settings) -> Command:
        from streams import commanding

        topics = topics_of(settings)
        found = await known(connection, settings, batch_id)
        if new_id is not None:
            await commanding.check_free(connection, topics, possible(new_id))
        return commanding.retry(
            found,
            await commanding.items_to_retry(lambda: nullcontext(connection), batch_id, statuses=statuses),
            statuses=statuses,
            batch_id=new_id or await commanding.free_retry_id(connection, topics, batch_id),
            deadline_at=deadline,
        )

    _do("retry", batch_id, plan, yes, wait, as_json)


def _statuses(text: str) -> list[RetriedStatus]:
    from streams.commanding import RETRIED_STATUSES

    wanted = [part.strip() for part in text.split(",")]
    found = [status for status in RETRIED_STATUSES if status in wanted]
    if unknown := [part for part in wanted if part not in RETRIED_STATUSES]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(RETRIED_STATUSES)}", param_hint="--status")
    return found


def _do(action: str, batch_id: str, plan: Planned, yes: bool, wait: bool, as_json: bool) -> None:
    """Say what will happen, ask, send it, and show what came of it."""
    from rollcall.acting import carried_out, check, confirm
    from rollcall.logs import configure_logging

    settings = load_settings()
    configure_logging("error", settings.log_format, role="batch")
    command = asyncio.run(_planned(plan, settings))
    agreed: Command | None = None
    while agreed is None or _another(agreed, command):
        check(command)
        confirm(action, batch_id, command, yes=yes)
        agreed = command
        if not yes:  # it may have been thought over for long: what the batch is now may forbid it, or make it another
            command = asyncio.run(_planned(plan, settings))
    print_answer(asyncio.run(carried_out(action, batch_id, command, settings, wait=wait)), as_json)


def _another(agreed: Command, command: Command) -> bool:
    """Whether this is not what was agreed to. Fewer items may be missing of a batch that goes on meanwhile."""
    one, other = ((each.batch_id, each.acts_on, each.only_summary) for each in (agreed, command))
    return one != other


async def _planned(plan: Planned, settings: Settings) -> Command:
    from rollcall.reaching import naming

    with naming(settings, "PostgreSQL"):
        async with snapshot(settings) as connection:
            return await plan(connection, settings)
