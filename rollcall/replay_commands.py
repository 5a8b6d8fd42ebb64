"""`rollcall replay`: fold the log again into a schema of its own, while the workers go on."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rollcall.settings import Settings, load_settings

if TYPE_CHECKING:
    from rollcall.replaying import Live

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Processes = Annotated[int, typer.Option(min=1, max=64, help="Processes that fold; each takes its share of partitions.")]

_OFFSETS = re.compile(r"\d+:\d+(,\d+:\d+)*")


@app.command()
def replay(
    into: Annotated[
        str, typer.Option(metavar="SCHEMA", help="The PostgreSQL schema to fold into; made where it is missing.")
    ],
    from_: Annotated[
        str,
        typer.Option(
            "--from", metavar="WHERE", help="Where to begin: earliest, a time (RFC 3339), or partition:offset,... ."
        ),
    ] = "earliest",
    to: Annotated[
        str,
        typer.Option(
            metavar="WHERE", help="Where to end: live (what the workers have applied), end, a time, or offsets."
        ),
    ] = "live",
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Fold only this batch.", show_default=False)] = None,
    processes: Processes = 2,
) -> None:
    """Fold the log again into a schema of its own; publishes nothing. Run it again to go on where it was stopped."""
    from rollcall.interrupting import run
    from rollcall.logs import configure_logging
    from rollcall.reaching import naming

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format, role="replay")
    with naming(settings, "PostgreSQL"):
        run(_replay(settings, into, from_, to, batch, processes))


async def _replay(settings: Settings, schema: str, from_: str, to: str, batch_id: str | None, processes: int) -> None:
    from migrations.version import check
    from rollcall.replay_progress import shown
    from rollcall.replaying import ReplayError, begins_midway, fold_in_processes, look, prepare_shadow, shadow_database
    from store import shadows
    from store.promotion import Promotion
    from store.shadows import Shadow

    _check_where(from_, "--from", ("earliest",))
    _check_where(to, "--to", ("live", "end"))
    connection = await settings.database().connect("replay")
    try:
        await check(connection, settings.database_schema)
        live = await look(settings, connection)
    finally:
        await connection.close()
    starts, ends = await _offsets(settings, live, from_), await _offsets(settings, live, to)
    if batch_id is not None:
        home = live.homes.of(batch_id)
        starts, ends = {home: starts[home]}, {home: ends[home]}
    for partition, start in starts.items():
        if start < live.span.starts[partition]:
            raise ReplayError(
                f"partition {partition} begins at offset {live.span.starts[partition]}, {start} is gone:"
                " begin there, or at earliest"
            )
    started = time.monotonic()
    await prepare_shadow(settings, live, schema, starts, Shadow(settings.database_schema, batch_id))
    folding = fold_in_processes(settings, live, schema, ends, processes=processes, batch_id=batch_id)
    last = await shown(folding)
    connection = await shadow_database(settings, schema).connect("replay")
    try:
        begins = await begins_midway(settings, live, connection)
        await Promotion(connection, settings.database_schema, schema).mark_incomplete(begins)
        incomplete = await shadows.count_incomplete(connection)
    finally:
        await connection.close()
    folded = last.done - last.done_before
    sys.stdout.write(
        f"replayed {folded:,} records into {schema} in {time.monotonic() - started:.1f} s"
        f" ({last.rate:,.0f} a second); it stands at {_said({p: at for p, (_, at, _) in last.partitions.items()})}\n"
    )
    if incomplete:
        sys.stdout.write(f"{incomplete:,} batches were not seen from their beginning: marked incomplete_history\n")
    if any(end > live.positions[p].next_offset if p in live.positions else end > 0 for p, end in ends.items()):
        sys.stdout.write(
            "beyond what the workers have applied: records on wrong partitions that they have not forwarded yet are not"
            " in it\n"
        )


def _check_where(where: str, option: str, words: tuple[str, ...]) -> None:
    if where in words or _OFFSETS.fullmatch(where):
        return
    try:
        time = datetime.fromisoformat(where)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter(
            f"{option} takes {', '.join(words)}, a time with its zone (2026-11-24T12:00:00Z) or partition:offset,..."
        )


async def _offsets(settings: Settings, live: Live, where: str) -> dict[int, int]:
    """What is meant, by partition; of partitions that offsets do not name, their beginning."""
    from rollcall.replaying import ReplayError
    from streams.log_span import offsets_at

    span = live.span
    if where == "earliest":
        return dict(span.starts)
    if where == "end":
        return dict(span.ends)
    if where == "live":
        return span.starts | {partition: position.next_offset for partition, position in live.positions.items()}
    if not _OFFSETS.fullmatch(where):
        return await offsets_at(settings.kafka_connection(), live.topics.events, span, datetime.fromisoformat(where))
    given = {int(partition): int(offset) for partition, offset in (pair.split(":") for pair in where.split(","))}
    for partition, offset in given.items():
        if partition not in span.ends:
            raise ReplayError(f"{live.topics.events} has no partition {partition}")
        if offset > span.ends[partition]:
            raise ReplayError(f"partition {partition} ends at offset {span.ends[partition]}, before {offset}")
    return span.starts | given


def _said(offsets: dict[int, int]) -> str:
    return ", ".join(f"{partition}:{offset}" for partition, offset in sorted(offsets.items()))
