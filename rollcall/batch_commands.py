"""`rollcall batch show|list|items|missing|why|summary`: ask about batches, their items, and who has not answered."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rollcall import history_commands
from rollcall.batch_asking import Answer, AsJson, BatchId, answer, known, possible, topics_of, unknown
from rollcall.settings import Settings
from store.reads import BatchStatusName, ItemStatus

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from store.reads import Page

app = typer.Typer()

MAX_LIMIT = 100_000

Limit = Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="How many at most.")]


@app.command()
def show(batch_id: BatchId, as_json: AsJson = False) -> None:
    """One batch: status, counts, times, and the place in the log they stand on."""

    async def ask(connection: AsyncConnection, settings: Settings) -> Answer:
        from rollcall import batch_views as views

        found = await known(connection, settings, batch_id)
        return Answer(asdict(found), lambda: views.show_batch(found))

    answer(ask, as_json)


@app.command("list")
def list_batches(
    status: Annotated[
        BatchStatusName | None, typer.Option(help="Only those of this status.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only those of this name.", show_default=False)] = None,
    limit: Limit = 20,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on behind this batch.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The newest batches first. As JSON: {"batches": [...], "next"}."""

    async def ask(connection: AsyncConnection, settings: Settings) -> Answer:
        from rollcall import batch_views as views
        from store import reads

        try:
            page = await reads.batches(
                connection, topics_of(settings).events, status=status, name=name, after=after, limit=limit
            )
        except LookupError:
            raise unknown(after or "") from None
        as_object = {"batches": [asdict(each) for each in page.rows], "next": page.next}
        return Answer(as_object, lambda: views.show_batches(page))

    answer(ask, as_json)


@app.command()
def items(
    batch_id: BatchId,
    status: Annotated[ItemStatus | None, typer.Option(help="Only those of this status.", show_default=False)] = None,
    limit: Limit = 100,
    after: Annotated[
        str | None, typer.Option(metavar="ITEM", help="Go on behind this item.", show_default=False)
    ] = None,
    stack_traces: Annotated[bool, typer.Option("--stack-traces", help="With the stack traces of errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is known of a batch's items, by id. As JSON: {"batch_id", "items": [...], "next"}."""

    async def ask(connection: AsyncConnection, settings: Settings) -> Answer:
        from rollcall import batch_views as views
        from store import reads

        await known(connection, settings, batch_id)
        page = await reads.items(
            connection, batch_id, status=status, after=after, limit=limit, stack_traces=stack_traces
        )
        as_object = {"batch_id": batch_id, "items": [asdict(each) for each in page.rows], "next": page.next}
        return Answer(as_object, lambda: views.show_items(page, stack_traces=stack_traces))

    answer(ask, as_json)


@app.command()
def missing(
    batch_id: BatchId,
    limit: Limit = 100,
    after: Annotated[
        str | None, typer.Option(metavar="ITEM", help="Go on behind this item.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Who has not answered: ids on the manifest without a terminal result, one a line.

    As JSON: {"batch_id", "total", "missing", "item_ids": [...], "next"}; "item_ids" is null where no manifest names
    them.
    """

    async def ask(connection: AsyncConnection, settings: Settings) -> Answer:
        from rollcall import batch_views as views
        from store import reads

        found = await known(connection, settings, batch_id)
        page: Page[str] | None = None
        if await reads.has_manifest(connection, batch_id):
            page = await reads.missing(connection, batch_id, after=after, limit=limit)
        as_object = {
            "batch_id": batch_id,
            "total": found.total,
            "missing": found.missing,
            # An empty manifest has nobody missing on it; without any, there is nothing to tell them by.
            "item_ids": list(page.rows) if page is not None else None if found.missing else [],
            "next": page and page.next,
        }
        return Answer(as_object, lambda: views.show_missing(found, page))

    answer(ask, as_json)


@app.command()
def why(
    batch_id: BatchId,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many ids and dead letters to name at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Why it isn't done: who is missing, what was refused, misplaced or not read yet, and what to do.

    Exit code 1 where nothing was applied of such a batch.
    """

    async def ask(connection: AsyncConnection, settings: Settings) -> Answer:
        from rollcall import batch_views as views
        from rollcall.reaching import failure
        from streams.why import why

        found = await why(
            connection,
            settings.kafka_connection(),
            topics_of(settings),
            possible(batch_id),
            now=datetime.now(UTC),
            limit=limit,
            say=lambda error: failure(error, settings, "Kafka") or str(error),
        )
        as_object = {**asdict(found.facts), "findings": [asdict(each) for each in found.findings]}
        return Answer(as_object, lambda: views.show_why(found), exit_code=int(found.facts.batch is None))

    answer(ask, as_json)


@app.command()
def summary(batch_id: BatchId, as_json: AsJson = False) -> None:
    """Statistics of a finalized batch: durations, rates, metrics, workers, groups of errors.

    They are computed after it ended, on their own; exit code 1 where there are none yet. As JSON: {"batch_id",
    "summary_state", "problem", "summary"}.
    """

    async def ask(connection: AsyncConnection, settings: Settings) -> Answer:
        from rollcall import batch_views as views
        from store import diagnosis

        found = await known(connection, settings, batch_id)
        summary = await diagnosis.summary(connection, batch_id)
        state = found.summary_state
        as_object = {
            "batch_id": batch_id,
            "summary_state": state,
            "problem": summary.problem if summary else None,
            "summary": summary.summary if summary else None,
        }
        there = summary is not None and summary.summary is not None
        return Answer(as_object, lambda: views.show_summary(found, summary), exit_code=int(not there))

    answer(ask, as_json)


app.command("as-of")(history_commands.as_of)
app.command()(history_commands.explain)
