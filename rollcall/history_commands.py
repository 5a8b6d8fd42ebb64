"""`rollcall batch as-of` and `rollcall batch explain`: what the log, not the database, says of a batch."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollcall.settings import Settings, load_settings

if TYPE_CHECKING:
    from rollcall.replaying import Live
    from store.reads import BatchStatus
    from streams.explaining import Told

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


class NoHistoryError(LookupError):
    """The log has nothing to say of that batch; the message is one line."""


def as_of(
    batch_id: BatchId,
    offset: Annotated[int, typer.Option(min=0, metavar="N", help="The last offset of its partition that counts.")],
    as_json: AsJson = False,
) -> None:
    """The batch as the log had it once the record at that offset was applied. As JSON: as `batch show` has it."""
    from rollcall.rendering import print_json

    found = _run(lambda settings: _as_of(settings, batch_id, offset))
    if as_json:
        print_json(asdict(found))
        return
    from rollcall.batch_views import show_batch

    show_batch(found)


def explain(batch_id: BatchId, as_json: AsJson = False) -> None:
    """Every record that touched a batch, in order, and what each did; the ones that finalized it are marked.

    So are those that no worker has applied yet: what they will do. As JSON: {"batch_id", "topic", "partition",
    "replayable_from", "next_offset", "records": [{"offset", "received_at", "type", "item_id", "said", "did", "why",
    "revision", "outcome", "place", "applied"}]}.
    """
    _run(lambda settings: _explain(settings, batch_id, as_json))


def _run(work: Any) -> Any:
    from rollcall.interrupting import run
    from rollcall.logs import configure_logging
    from rollcall.reaching import naming
    from rollcall.rendering import reader_may_leave

    settings = load_settings()
    configure_logging("warning", settings.log_format, role="batch")
    with naming(settings, "PostgreSQL"), reader_may_leave():
        return run(work(settings))


async def _as_of(settings: Settings, batch_id: str, offset: int) -> BatchStatus:
    """Folds this one batch into a schema that is gone again afterwards."""
    from rollcall.interrupting import to_its_end
    from rollcall.replaying import ReplayError, prepare_shadow, replaying, shadow_database
    from store import reads, shadows
    from store.shadows import Shadow

    schema = f"{settings.database_schema[:56]}_as_of"
    connection = await settings.database().connect("as-of")
    try:
        live = await _live(settings, connection)
        home = live.homes.of(batch_id)
        start, end = live.span.starts[home], live.span.ends[home]
        if not start <= offset < end:
            raise ReplayError(f"partition {home}, the batch's, holds the offsets {start} to {end - 1}")
        if not await shadows.reserve(connection, schema):
            raise ReplayError("another `rollcall batch as-of` is at work here: try again")
        await shadows.drop(connection, schema)
        try:
            await prepare_shadow(settings, live, schema, {home: start}, Shadow(settings.database_schema, batch_id))
            async with replaying(settings, schema, live.homes, batch_id) as replay:
                await replay.fold_to({home: offset + 1})
            engine = shadow_database(settings, schema).engine("as-of")
            try:
                async with reads.snapshot(engine) as snapshot:
                    found = await reads.batch(snapshot, live.topics.events, batch_id)
            finally:
                await engine.dispose()
        finally:
            await to_its_end(shadows.drop(connection, schema))
    finally:
        await connection.close()
    if found is None:
        raise NoHistoryError(f"up to offset {offset} of partition {home} there is nothing of that batch")
    return found


async def _explain(settings: Settings, batch_id: str, as_json: bool) -> None:
    from rollcall.rendering import note, print_json, print_line
    from streams.explaining import Story
    from streams.verifying import beginning

    connection = await settings.database().connect("explain")
    try:
        live = await _live(settings, connection)
    finally:
        await connection.close()
    home = live.homes.of(batch_id)
    start, end = live.span.starts[home], live.span.ends[home]
    next_offset = live.positions[home].next_offset if home in live.positions else start
    story = Story(live.topics, live.homes, batch_id)
    told: list[dict[str, Any]] = []
    count = 0
    async with aclosing(story.tell(settings.kafka_connection(), start, end)) as telling:
        async for each in telling:
            count += 1
            applied = each.offset < next_offset
            if as_json:
                told.append(asdict(each) | {"applied": applied})
            else:
                if count == 1:
                    note(f"{live.topics.events}, partition {home}")
                print_line(_line(each, applied=applied))
    if not count:
        raise NoHistoryError(f"the log has no record of that batch in partition {home}, its home")
    if as_json:
        place = {"batch_id": batch_id, "topic": live.topics.events, "partition": home}
        print_json(place | {"replayable_from": start, "next_offset": next_offset, "records": told})
    elif start > 0:
        note(f"replayable_from {beginning(start, None)}: what came before is gone")


async def _live(settings: Settings, connection: Any) -> Live:
    from migrations.version import check
    from rollcall.replaying import look

    await check(connection, settings.database_schema)
    return await look(settings, connection)


def _line(told: Told, *, applied: bool) -> str:
    from rollcall.rendering import at, showable

    about = f'{told.type} "{told.item_id}" {told.said}' if told.item_id is not None else told.type
    place = f" (first read at partition {told.place[0]}, offset {told.place[1]})" if told.place else ""
    why = f": {told.why}" if told.why else ""
    decided = f"  <- finalized: {told.outcome}, revision {told.revision}" if told.revision else ""
    to_come = "" if applied else "  (not applied yet)"
    return showable(f"{told.offset:>10}  {at(told.received_at)}  {told.did:<15}  {about}{place}{why}{decided}{to_come}")
