"""`rollcall verify`: folds the log once more and holds the live state, and what was published, against it."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rollcall.replay_commands import Processes
from rollcall.settings import Settings, load_settings

if TYPE_CHECKING:
    from rollcall.replaying import Live
    from store.connection import Connection
    from streams.verifying import Difference, Verified

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

COMPARE_TIMEOUT_S = 3600.0
"""One statement that compares two tables."""
MAX_LISTED = 10_000
"""Differences in the JSON, at most; of the others it has the number."""


@dataclass(frozen=True)
class Chosen:
    """What to verify: one batch, batches touched since a time, or all."""

    batch_id: str | None = None
    since: datetime | None = None


@dataclass
class Found:
    """The differences: how many, and the first ones, at most ``to_list``, to be listed in the end."""

    to_list: int
    count: int = 0
    listed: list[Difference] = field(default_factory=list)

    def add(self, difference: Difference) -> None:
        """One more."""
        self.count += 1
        if len(self.listed) < self.to_list:
            self.listed.append(difference)


@app.command()
def verify(
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Only this batch.", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only batches that something happened to since (RFC 3339).", show_default=False
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All batches (the default).")] = False,
    processes: Processes = 2,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Fold the log once more and say where the state, or what was published, differs: exit code 1 if it does.

    The workers may go on. As JSON: {"differences": [{"what", "message", "batch_id", "item_id", "partition",
    "offsets"}] (10,000 at most), "difference_count", "batches", "events", "left_out", "replayable_from",
    "not_comparable_events"}.
    """
    from rollcall.interrupting import run
    from rollcall.logs import configure_logging
    from rollcall.reaching import naming

    if sum((batch is not None, since is not None, all_)) > 1:
        raise typer.BadParameter("--batch, --since and --all exclude each other")
    settings = load_settings()
    configure_logging("warning", settings.log_format, role="verify")
    chosen = Chosen(batch, _time(since))
    with naming(settings, "PostgreSQL"):
        found, verified = run(_verify(settings, chosen, processes, said=not as_json))
    if as_json:
        from rollcall.rendering import print_json

        differences = [asdict(each) for each in found.listed]
        print_json({"differences": differences, "difference_count": found.count, **_facts(verified)})
    else:
        _conclude(found.count, verified)
    raise typer.Exit(1 if found.count else 0)


async def _verify(settings: Settings, chosen: Chosen, processes: int, *, said: bool) -> tuple[Found, Verified]:
    """Compare. What is ``said``, each difference as it is found, is not listed."""
    from contextlib import aclosing

    from rollcall.interrupting import to_its_end
    from rollcall.rendering import print_line, reader_may_leave, showable
    from rollcall.replaying import look
    from store import promotion, shadows
    from streams.verifying import Verified

    connection = await settings.database().connect("verify")
    schema = f"{settings.database_schema[:56]}_verify"
    verified, found = Verified(), Found(0 if said else MAX_LISTED)
    try:
        await _reserve(settings, connection, schema)
        try:
            await _fold(settings, await look(settings, connection), schema, chosen, processes)
            live = await look(settings, connection)
            identity = await promotion.identity(connection, settings.database_schema)
            async with aclosing(_compare(settings, live, schema, chosen, verified)) as comparing:
                async for difference in comparing:
                    await _check_not_promoted(settings, connection, identity)
                    found.add(difference)
                    if said:
                        with reader_may_leave():
                            print_line(showable(difference.message))
            await _check_not_promoted(settings, connection, identity)
        finally:
            await to_its_end(shadows.drop(connection, schema))
    finally:
        await connection.close()
    return found, verified


async def _reserve(settings: Settings, connection: Connection, schema: str) -> None:
    """One verification at a time, in a schema of its own; what one that was killed has left goes first."""
    from migrations.version import check
    from rollcall.replaying import ReplayError
    from store import shadows

    await check(connection, settings.database_schema)
    if not await shadows.reserve(connection, schema):
        raise ReplayError("another `rollcall verify` is at work here: wait for its end")
    await shadows.drop(connection, schema)


async def _fold(settings: Settings, live: Live, schema: str, chosen: Chosen, processes: int) -> None:
    """Fold nearly all of it, in several processes and many transactions."""
    from rollcall.replay_progress import shown
    from rollcall.replaying import fold_in_processes, prepare_shadow
    from store.shadows import Shadow

    starts, ends = dict(live.span.starts), _ends(live)
    if chosen.batch_id is not None:
        home = live.homes.of(chosen.batch_id)
        starts, ends = {home: starts[home]}, {home: ends.get(home, starts[home])}
    await prepare_shadow(settings, live, schema, starts, Shadow(settings.database_schema, chosen.batch_id))
    await shown(fold_in_processes(settings, live, schema, ends, processes=processes, batch_id=chosen.batch_id))


def _ends(live: Live) -> dict[int, int]:
    """Behind the last record applied, as far as there is a log; a position itself may be wrong."""
    from streams.verifying import applied

    return {
        partition: min(applied(position, live.span.starts[partition]), live.span.ends[partition])
        for partition, position in live.positions.items()
        if partition in live.span.ends
    }


async def _check_not_promoted(settings: Settings, connection: Connection, identity: int | None) -> None:
    """Names mean what they mean now, rows are those of the comparison's snapshot: after a promotion they do not fit."""
    from rollcall.replaying import ReplayError
    from store import promotion

    if await promotion.identity(connection, settings.database_schema) != identity:
        raise ReplayError("there was a promotion meanwhile, so nothing can be said of the state: run it again")


async def _compare(
    settings: Settings, live: Live, schema: str, chosen: Chosen, verified: Verified
) -> AsyncGenerator[Difference, None]:
    from dataclasses import replace

    from rollcall.replaying import replaying
    from store import positions
    from store.comparison import Comparison
    from streams.log_span import log_span, times_at
    from streams.scanning import Scan
    from streams.verifying import event_differences, position_differences, scan_into, state_differences

    kafka, topics = settings.kafka_connection(), live.topics
    async with _snapshot(settings, schema) as connection:
        stored = await positions.load_all(connection, settings.database_schema, topics.events)
        live = replace(live, positions=stored, span=await log_span(kafka, topics.events))
        ends = _ends(live)
        if chosen.batch_id is not None:
            home = live.homes.of(chosen.batch_id)
            ends = {home: ends.get(home, 0)}
            live = replace(live, positions={home: stored[home]} if home in stored else {})
        compared = Comparison(connection, settings.database_schema, is_chosen=chosen != Chosen())
        async with replaying(settings, schema, live.homes, chosen.batch_id, connection) as replay:
            await replay.fold_to(ends)
            folded = await positions.load_all(connection, schema, topics.events)
            whole = not any(live.span.starts.values())
            for difference in await position_differences(replay, live.positions, live.span, folded, whole=whole):
                yield difference
        await compared.prepare(chosen.batch_id, chosen.since)
        kept_since = datetime.now(UTC) - settings.dead_letters_kept
        await compared.note_spans(topics.events, live.span.starts, ends, kept_since)
        begins = {partition: start for partition, start in live.span.starts.items() if start > 0}
        times = await times_at(kafka, topics.events, begins) if begins else {}
        for partition, start in begins.items():
            verified.replayable_from[partition] = (start, times[partition])
            await compared.leave_out(partition, times[partition])
        verified.batches, verified.left_out = await compared.count()
        async for difference in state_differences(compared, live.homes):
            yield difference
        scan = Scan()
        verified.events = await scan_into(compared, scan, kafka, topics)
        now = await settings.database().connect("verify")
        try:
            async for difference in event_differences(compared, scan, now, topics, live.homes, verified):
                yield difference
        finally:
            await now.close()


@asynccontextmanager
async def _snapshot(settings: Settings, schema: str) -> AsyncIterator[Connection]:
    """A connection for which all that it reads is of one moment, and of what it writes nothing stays.

    Whatever fails, it is dropped: after a time-out or a cancellation a ROLLBACK would wait, for as long again.
    """
    from rollcall.replaying import shadow_database

    connection = await shadow_database(settings, schema).connect("verify", command_timeout=COMPARE_TIMEOUT_S)
    try:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        yield connection
        await transaction.rollback()
    finally:
        connection.terminate()


def _conclude(differences: int, verified: Verified) -> None:
    from streams.verifying import beginning

    found = f"{differences:,} differences" if differences else "no difference"
    if verified.replayable_from:
        where = ", ".join(f"partition {p}: {beginning(*at)}" for p, at in sorted(verified.replayable_from.items()))
        sys.stdout.write(
            f"replayable_from {where}: the log holds nothing before, so {verified.left_out:,} batches that began"
            " earlier cannot be verified\n"
        )
    if verified.not_comparable_events:
        sys.stdout.write(
            f"{verified.not_comparable_events:,} events are older than what their topics still hold: not verified\n"
        )
    sys.stdout.write(f"verified {verified.batches:,} batches and {verified.events:,} published records: {found}\n")


def _facts(verified: Verified) -> dict[str, object]:
    return {
        "batches": verified.batches,
        "events": verified.events,
        "left_out": verified.left_out,
        "replayable_from": {
            str(partition): {"offset": offset, "time": time}
            for partition, (offset, time) in verified.replayable_from.items()
        },
        "not_comparable_events": verified.not_comparable_events,
    }


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter("--since takes a time with its zone (2026-11-24T12:00:00Z)")
    return time
