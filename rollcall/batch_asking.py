"""What the commands of `rollcall batch` share: a snapshot of the database, the batch they are about, the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollcall.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from schemas.topics import Topics
    from store.reads import BatchStatus

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; times in RFC 3339.")]


class UnknownBatchError(LookupError):
    """There is no such batch; the message is one line."""


@dataclass(frozen=True)
class Answer:
    """What a command found: the object for --json, and how to show it to people."""

    as_json: dict[str, Any]
    show: Callable[[], None]
    exit_code: int = 0


def answer(ask: Callable[[AsyncConnection, Settings], Awaitable[Answer]], as_json: bool) -> None:
    """Ask on a snapshot of the database and print the answer."""
    settings = load_settings()
    print_answer(asyncio.run(_asked(ask, settings)), as_json)


def print_answer(found: Answer, as_json: bool) -> None:
    """Print an answer; raises typer.Exit where its exit code isn't 0."""
    from rollcall.rendering import print_json, reader_may_leave

    with reader_may_leave():
        if as_json:
            print_json(found.as_json)
        else:
            found.show()
    if found.exit_code:
        raise typer.Exit(found.exit_code)


async def _asked(ask: Callable[[AsyncConnection, Settings], Awaitable[Answer]], settings: Settings) -> Answer:
    from rollcall.reaching import naming

    with naming(settings, "PostgreSQL"):
        async with snapshot(settings) as connection:
            return await ask(connection, settings)


@asynccontextmanager
async def snapshot(settings: Settings) -> AsyncIterator[AsyncConnection]:
    """A connection on which everything read is of one moment. Raises WrongSchemaError and what asyncpg does."""
    from migrations.version import check
    from store import reads
    from store.connection import driver

    database = settings.database()
    engine = database.engine("batch")
    try:
        async with reads.snapshot(engine) as connection:
            await check(await driver(connection), database.schema)
            yield connection
    finally:
        await engine.dispose()


async def known(connection: AsyncConnection, settings: Settings, batch_id: str) -> BatchStatus:
    """The batch of that id. Raises UnknownBatchError."""
    found = await known_or_not(connection, settings, batch_id)
    if found is None:
        raise unknown(batch_id)
    return found


async def known_or_not(connection: AsyncConnection, settings: Settings, batch_id: str) -> BatchStatus | None:
    """The batch of that id, if there is one. Raises UnknownBatchError where none can have it."""
    from store import reads

    return await reads.batch(connection, topics_of(settings).events, possible(batch_id))


def unknown(batch_id: str) -> UnknownBatchError:
    """The error to raise where there is no such batch."""
    from rollcall.rendering import showable

    return UnknownBatchError(f'there is no batch "{showable(batch_id)}"')


def possible(batch_id: str) -> str:
    """The id, where a batch can have it. Raises UnknownBatchError."""
    # PostgreSQL has no U+0000 in text; neither can a batch have it in its id.
    if "\0" in batch_id:
        raise unknown(batch_id)
    return batch_id


def topics_of(settings: Settings) -> Topics:
    """The installation's topics."""
    from schemas.topics import Topics

    return Topics(settings.topic_prefix)
