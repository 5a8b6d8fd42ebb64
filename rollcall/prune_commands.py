"""`rollcall prune`: items of batches that ended long ago are no longer kept."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from rollcall.settings import Settings, load_settings

if TYPE_CHECKING:
    from streams.pruning import Pruned

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

LINE_EVERY_S = 5.0
COMMAND_TIMEOUT_S = 600.0
"""Counting reads all batches."""

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_AGE = re.compile(r"(\d{1,6})([dhms])")


@app.command()
def prune(
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE", help="How long ago they ended: 90d, 12h, 30m, 10s; or before when, a time (RFC 3339)."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Delete the items of batches that were finalized long ago; the batches themselves and their summaries stay.

    For good: such a batch stays as it is, and results that still come for it change nothing. Run it again to go on
    where it was stopped. As JSON: {"batches", "rows", "finalized_before"}.
    """
    from rollcall.logs import configure_logging
    from rollcall.reaching import naming
    from rollcall.rendering import print_json, rfc3339

    finalized_before = _moment(older_than)
    settings = load_settings()
    configure_logging("warning", settings.log_format, role="prune")
    with naming(settings, "PostgreSQL"):
        if not yes:
            _agree(*asyncio.run(_due(settings, finalized_before)), finalized_before)
        pruned = asyncio.run(_prune(settings, finalized_before))
    if as_json:
        said = {"batches": pruned.batches, "rows": pruned.rows}
        print_json(said | {"finalized_before": rfc3339(finalized_before)})
    else:
        sys.stdout.write(f"pruned {pruned.batches:,} batches, {pruned.rows:,} rows deleted\n")


def _moment(text: str) -> datetime:
    found = _AGE.fullmatch(text)
    try:
        if found:
            return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter("--older-than takes an age (90d, 12h) or a time with its zone (2026-11-24T12:00:00Z)")
    return time


def _agree(batches: int, rows: int, finalized_before: datetime) -> None:
    from rollcall.rendering import rfc3339

    if not batches:
        return
    means = f"{rows:,} rows of {batches:,} batches that ended before {rfc3339(finalized_before)} are deleted for good"
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{means}; there is no terminal to ask on: say --yes")
    typer.confirm(f"{means}. Prune them?", abort=True, err=True)


async def _due(settings: Settings, finalized_before: datetime) -> tuple[int, int]:
    from migrations.version import check
    from store import pruning

    connection = await settings.database().connect("prune", command_timeout=COMMAND_TIMEOUT_S)
    try:
        await check(connection, settings.database_schema)
        return await pruning.count_due(connection, finalized_before)
    finally:
        await connection.close()


async def _prune(settings: Settings, finalized_before: datetime) -> Pruned:
    from contextlib import aclosing

    from migrations.version import check
    from rollcall.reaching import naming
    from schemas.topics import Topics
    from store.connection import BY_KEY, SERVING
    from streams.observing import home_partition_count
    from streams.pruning import prune as pruning
    from streams.reading import Homes
    from streams.sending import Sender

    topics, kafka = Topics(settings.topic_prefix), settings.kafka_connection()
    connection = await settings.database().connect("prune", command_timeout=COMMAND_TIMEOUT_S, **BY_KEY, **SERVING)
    try:
        await check(connection, settings.database_schema)
        with naming(settings, "Kafka"):
            homes = Homes(await home_partition_count(connection, kafka, topics))
        sender = Sender(kafka, topics, homes)
        try:
            async with aclosing(pruning(connection, sender, topics, finalized_before)) as progress:
                return await _shown(progress)
        finally:
            await sender.close()
    finally:
        await connection.close()


async def _shown(pruning: AsyncIterator[Pruned]) -> Pruned:
    """Show how far it is, as a bar on a terminal, a line now and then elsewhere; returns the last."""
    last: Pruned | None = None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bars:
            bar = bars.add_task("rows")
            async for last in pruning:
                bars.update(bar, completed=last.rows, total=max(last.of_rows, 1))
    else:
        said = time.monotonic()
        async for last in pruning:
            if time.monotonic() - said >= LINE_EVERY_S:
                said = time.monotonic()
                sys.stderr.write(
                    f"pruned {last.batches:,} of {last.of_batches:,} batches, {last.rows:,} of {last.of_rows:,} rows\n"
                )
                sys.stderr.flush()
    assert last is not None, "pruning says at least how much there is to do"
    return last
