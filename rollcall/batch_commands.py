"""`rollcall batch ...`: ask the database about batches, their items, and who has not answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollcall import history_commands
from rollcall.settings import Settings, load_settings
from store.reads import BatchStatusName, ItemStatus

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from schemas.topics import Topics
    from store.reads import BatchStatus, Page

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Ask about batches: their status and counts, their items, and who has not answered.",
    epilog='With --json every command prints one JSON object; "next", where not null, is what --after takes.',
)

MAX_LIMIT = 100_000

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; times in RFC 3339.")]
Limit = Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="How many at most.")]


class UnknownBatchError(LookupError):
    """There is no such batch; the message is one line."""


@dataclass(frozen=True)
class _Answer:
    """What a command found: the object for --json, and how to show it to people."""

    as_json: dict[str, Any]
    show: Callable[[], None]
    exit_code: int = 0


@app.command()
def show(batch_id: BatchId, as_json: AsJson = False) -> None:
    """One batch: status, counts, times, and the place in the log they stand on."""

    async def ask(connection: AsyncConnection, settings: Settings) -> _Answer:
        from rollcall import batch_views as views

        found = await _known(connection, settings, batch_id)
        return _Answer(asdict(found), lambda: views.show_batch(found))

    _answer(ask, as_json)


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

    async def ask(connection: AsyncConnection, settings: Settings) -> _Answer:
        from rollcall import batch_views as views
        from store import reads

        try:
            page = await reads.batches(
                connection, _topics(settings).events, status=status, name=name, after=after, limit=limit
            )
        except LookupError:
            raise _unknown(after or "") from None
        as_object = {"batches": [asdict(each) for each in page.rows], "next": page.next}
        return _Answer(as_object, lambda: views.show_batches(page))

    _answer(ask, as_json)


@app.command()
def items(
    batch_id: BatchId,
    status: Annotated[ItemStatus | None, typer.Option(help="Only those of this status.", show_default=False)] = None,
    limit: Limit = 100,
    after: Annotated[
        str | None, typer.Option(metavar="ITEM", help="Go on behind this item.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is known of a batch's items, by id. As JSON: {"batch_id", "items": [...], "next"}."""

    async def ask(connection: AsyncConnection, settings: Settings) -> _Answer:
        from rollcall import batch_views as views
        from store import reads

        await _known(connection, settings, batch_id)
        page = await reads.items(connection, batch_id, status=status, after=after, limit=limit)
        as_object = {"batch_id": batch_id, "items": [asdict(each) for each in page.rows], "next": page.next}
        return _Answer(as_object, lambda: views.show_items(page))

    _answer(ask, as_json)


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

    async def ask(connection: AsyncConnection, settings: Settings) -> _Answer:
        from rollcall import batch_views as views
        from store import reads

        found = await _known(connection, settings, batch_id)
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
        return _Answer(as_object, lambda: views.show_missing(found, page))

    _answer(ask, as_json)


@app.command()
def why(
    batch_id: BatchId,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many ids and dead letters to name at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Why it isn't done: who is missing, what was refused, misplaced or not read yet, and what to do.

    Exit code 1 where nothing was applied of such a batch.
    """

    async def ask(connection: AsyncConnection, settings: Settings) -> _Answer:
        from rollcall import batch_views as views
        from rollcall.reaching import failure
        from streams.why import why

        found = await why(
            connection,
            settings.kafka_connection(),
            _topics(settings),
            _possible(batch_id),
            now=datetime.now(UTC),
            limit=limit,
            say=lambda error: failure(error, settings, "Kafka") or str(error),
        )
        as_object = {**asdict(found.facts), "findings": [asdict(each) for each in found.findings]}
        return _Answer(as_object, lambda: views.show_why(found), exit_code=int(found.facts.batch is None))

    _answer(ask, as_json)


app.command("as-of")(history_commands.as_of)
app.command()(history_commands.explain)


def _answer(ask: Callable[[AsyncConnection, Settings], Awaitable[_Answer]], as_json: bool) -> None:
    from rollcall.rendering import print_json, reader_may_leave

    settings = load_settings()
    answer = asyncio.run(_asked(ask, settings))
    with reader_may_leave():
        if as_json:
            print_json(answer.as_json)
        else:
            answer.show()
    if answer.exit_code:
        raise typer.Exit(answer.exit_code)


async def _asked(ask: Callable[[AsyncConnection, Settings], Awaitable[_Answer]], settings: Settings) -> _Answer:
    from rollcall.reaching import naming

    with naming(settings, "PostgreSQL"):
        async with _snapshot(settings) as connection:
            return await ask(connection, settings)


@asynccontextmanager
async def _snapshot(settings: Settings) -> AsyncIterator[AsyncConnection]:
    from migrations.version import check
    from store import reads

    database = settings.database()
    engine = database.engine("batch")
    try:
        async with reads.snapshot(engine) as connection:
            raw = await connection.get_raw_connection()
            assert raw.driver_connection is not None
            await check(raw.driver_connection, database.schema)
            yield connection
    finally:
        await engine.dispose()


async def _known(connection: AsyncConnection, settings: Settings, batch_id: str) -> BatchStatus:
    from store import reads

    found = await reads.batch(connection, _topics(settings).events, _possible(batch_id))
    if found is None:
        raise _unknown(batch_id)
    return found


def _unknown(batch_id: str) -> UnknownBatchError:
    from rollcall.rendering import showable

    return UnknownBatchError(f'there is no batch "{showable(batch_id)}"')


def _possible(batch_id: str) -> str:
    # PostgreSQL has no U+0000 in text; neither can a batch have it in its id.
    if "\0" in batch_id:
        raise _unknown(batch_id)
    return batch_id


def _topics(settings: Settings) -> Topics:
    from schemas.topics import Topics

    return Topics(settings.topic_prefix)
