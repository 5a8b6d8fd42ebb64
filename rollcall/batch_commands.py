"""`rollcall batch ...`: ask the database about batches, their items, and who has not answered."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollcall.settings import Settings, load_settings
from store.reads import BatchStatusName, ItemStatus

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from store.reads import BatchStatus, ItemResult, Page

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


@app.command()
def show(batch_id: BatchId, as_json: AsJson = False) -> None:
    """One batch: status, counts, times, and the place in the log they stand on."""

    async def ask(connection: AsyncConnection, settings: Settings) -> _Answer:
        found = await _known(connection, settings, batch_id)
        return _Answer(asdict(found), lambda: _show_batch(found))

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
        from store import reads

        try:
            page = await reads.batches(
                connection, _events_topic(settings), status=status, name=name, after=after, limit=limit
            )
        except LookupError:
            raise _unknown(after or "") from None
        as_object = {"batches": [asdict(each) for each in page.rows], "next": page.next}
        return _Answer(as_object, lambda: _show_batches(page))

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
        from store import reads

        await _known(connection, settings, batch_id)
        page = await reads.items(connection, batch_id, status=status, after=after, limit=limit)
        as_object = {"batch_id": batch_id, "items": [asdict(each) for each in page.rows], "next": page.next}
        return _Answer(as_object, lambda: _show_items(page))

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
        return _Answer(as_object, lambda: _show_missing(found, page))

    _answer(ask, as_json)


def _answer(ask: Callable[[AsyncConnection, Settings], Awaitable[_Answer]], as_json: bool) -> None:
    from rollcall.rendering import print_json, reader_may_leave

    settings = load_settings()
    answer = asyncio.run(_asked(ask, settings))
    with reader_may_leave():
        if as_json:
            print_json(answer.as_json)
        else:
            answer.show()


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

    # PostgreSQL has no U+0000 in text; neither can a batch have it in its id.
    found = None if "\0" in batch_id else await reads.batch(connection, _events_topic(settings), batch_id)
    if found is None:
        raise _unknown(batch_id)
    return found


def _unknown(batch_id: str) -> UnknownBatchError:
    from rollcall.rendering import showable

    return UnknownBatchError(f'there is no batch "{showable(batch_id)}"')


def _events_topic(settings: Settings) -> str:
    from schemas.topics import Topics

    return Topics(settings.topic_prefix).events


def _show_batch(batch: BatchStatus) -> None:
    import json

    from rollcall.rendering import at, print_fields, progress_bar

    answered = f"{batch.answered:,} answered"
    of_total = f", {batch.total:,} expected" if batch.total is not None else ", total not known yet"
    items = {"succeeded": batch.succeeded, "partial": batch.partial, "failed": batch.failed, "skipped": batch.skipped}
    others = {"missing": batch.missing, "retrying": batch.retrying, "unexpected": batch.unexpected}
    writes = {"created": batch.created, "updated": batch.updated, "unchanged": batch.unchanged}
    records = {"duplicates": batch.duplicates, "late": batch.late}
    state = f"{batch.state}, {batch.finalized_by}" if batch.finalized_by else batch.state
    as_of = batch.as_of
    print_fields(
        [
            ("batch", batch.batch_id),
            ("name", batch.name),
            ("status", batch.status),
            ("state", state if batch.outcome else f"{state}, {'sealed' if batch.sealed else 'not sealed: open-ended'}"),
            ("outcome", batch.outcome),
            ("progress", progress_bar(batch.progress_percent)),
            ("items", answered + of_total),
            ("", _counted(items)),
            ("", _counted(others)),
            ("errors", batch.error_summary),
            ("writes", _counted(writes) if any(writes.values()) else None),
            ("records", _counted(records) if any(records.values()) else None),
            ("retry of", batch.retry_of),
            ("metadata", json.dumps(batch.metadata, ensure_ascii=False) if batch.metadata else None),
            ("deadline", at(batch.deadline_at)),
            ("opened", at(batch.opened_at)),
            ("first result", at(batch.first_result_at)),
            ("last result", at(batch.last_result_at)),
            ("completed", at(batch.completed_at)),
            ("finalized", at(batch.finalized_at)),
            ("published", at(batch.published_at) or ("not yet" if batch.revision else None)),
            ("revision", str(batch.revision) if batch.revision else None),
            ("as of", f"{as_of.topic}, partition {as_of.partition}, offset {as_of.offset}" if as_of else None),
        ]
    )


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _show_batches(page: Page[BatchStatus]) -> None:
    from rollcall.rendering import ColumnStyle, at, note, print_table

    if not page.rows:
        note("no batch found")
        return
    print_table(
        [
            ColumnStyle("batch", "folded"),
            ColumnStyle("status"),
            ColumnStyle("done", right=True),
            ColumnStyle("items", right=True),
            ColumnStyle("failed", right=True),
            ColumnStyle("missing", right=True),
            ColumnStyle("since", needed=False),
            ColumnStyle("name", "cut", needed=False),
        ],
        [
            (
                each.batch_id,
                each.status,
                None if each.progress_percent is None else f"{each.progress_percent:.1f}%",
                f"{each.answered}/{'?' if each.total is None else each.total}",
                str(each.failed),
                str(each.missing),
                at(each.opened_at or each.first_result_at, milliseconds=False),
                each.name,
            )
            for each in page.rows
        ],
    )
    _say_how_to_go_on(page)


def _show_items(page: Page[ItemResult]) -> None:
    from rollcall.rendering import ColumnStyle, lasted, note, print_table

    if not page.rows:
        note("no item found")
        return
    print_table(
        [
            ColumnStyle("item", "folded"),
            ColumnStyle("status"),
            ColumnStyle("try", right=True),
            ColumnStyle("took", right=True),
            ColumnStyle("at", right=True),
            ColumnStyle("worker", "cut", needed=False),
            ColumnStyle("error", "cut"),
        ],
        [
            (
                each.item_id,
                each.status,
                str(each.attempt),
                lasted(each.duration_ms),
                f"{each.partition}/{each.offset}",
                each.worker,
                _error(each),
            )
            for each in page.rows
        ],
    )
    _say_how_to_go_on(page)


def _error(item: ItemResult) -> str | None:
    if item.error_code and item.error_message:
        return f"{item.error_code}: {item.error_message}"
    return item.error_code or item.error_message


def _show_missing(batch: BatchStatus, page: Page[str] | None) -> None:
    from rollcall.rendering import note, print_line, showable

    if page is None and batch.missing:
        print_line(
            f"{batch.missing:,} of {batch.total:,} items are missing; which ones is not known:"
            " the batch has a total, but no manifest to name them"
        )
        return
    if not batch.missing:
        total_unknown = batch.total is None
        print_line("no item is missing" + (" as far as known: neither total nor manifest was given" * total_unknown))
        return
    assert page is not None
    for item_id in page.rows:
        # To be read by a program they stay as they are.
        print_line(showable(item_id) if sys.stdout.isatty() else item_id)
    note(f"{batch.missing:,} of {batch.total:,} items are missing")
    _say_how_to_go_on(page)


def _say_how_to_go_on(page: Page[Any]) -> None:
    from shlex import quote

    from rollcall.rendering import note, showable

    if page.next is not None:
        note(f"there are more: --after {quote(showable(page.next))}")
