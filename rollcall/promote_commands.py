"""`rollcall promote`: makes a shadow the live schema while everything runs."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rollcall.replay_commands import Processes
from rollcall.settings import Settings, load_settings

if TYPE_CHECKING:
    from rollcall.replaying import Live
    from store.connection import Connection
    from store.promotion import Changed, Promotion
    from streams.replay import Replay

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CLOSE = 20_000
"""Records behind the workers at which a single process takes up the pursuit."""
ROUNDS = 20
TAKE_OVER_TIMEOUT_S = 25.0
"""What writers may be kept waiting for, at most; their own commands time out after 30 s."""
PREPARE_TIMEOUT_S = 600.0
"""One statement before the pause."""
WORK_MEM = "256MB"
"""Whole tables are joined; spilled to disk they take several times as long."""
COMMIT_TIMEOUT_S = 30.0
LOCK_TIMEOUT_MS = 2_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000
"""Were this process cut off while it holds the locks, the workers would wait for as long."""
LOCK_ATTEMPTS = 10


@dataclass(frozen=True)
class Promoted:
    """How it went: the old schema's new name, the pause in seconds, and what is not as it was."""

    old: str
    pause_s: float
    changed: list[Changed]
    dropped: list[str]
    carried: int
    corrected: int
    has_pruned: bool | None = False


@app.command()
def promote(
    schema: Annotated[str, typer.Argument(help="The shadow, made by `rollcall replay`.", show_default=False)],
    emit_changes: Annotated[
        bool,
        typer.Option(
            "--emit-changes", help="Publish a new revision of batches whose outcome is not what was published."
        ),
    ] = False,
    processes: Processes = 2,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Make a shadow the live schema: it catches up with the workers, then takes over in one transaction.

    Workers, relay and API go on in it by themselves. The old schema stays, under another name, until you drop it.
    """
    from rollcall.interrupting import run
    from rollcall.logs import configure_logging
    from rollcall.reaching import naming

    settings = load_settings()
    configure_logging("warning", settings.log_format, role="promote")
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is no terminal to ask on: say --yes")
        typer.confirm(f'Make "{schema}" the live schema "{settings.database_schema}"?', abort=True)
    with naming(settings, "PostgreSQL"):
        promoted = run(_promote(settings, schema, emit_changes, processes))
    _conclude(settings, schema, promoted, emit_changes)


async def _promote(settings: Settings, schema: str, emit_changes: bool, processes: int) -> Promoted:
    from rollcall.rendering import note
    from rollcall.replaying import ReplayError, begins_midway, shadow_database
    from store.positions import LostRaceError
    from store.promotion import Promotion
    from streams.applying import connect_to_apply

    promoted: Promoted | None = None
    try:
        async with AsyncExitStack() as stack:
            connection = await settings.database().connect(
                "promote",
                command_timeout=PREPARE_TIMEOUT_S,
                lock_timeout=str(LOCK_TIMEOUT_MS),
                work_mem=WORK_MEM,
                idle_in_transaction_session_timeout=str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
            )
            stack.callback(connection.terminate)
            live = await _checked(settings, connection, schema)
            await _catch_up(settings, live, schema, processes)
            folding = await connect_to_apply(shadow_database(settings, schema), "promote")
            stack.callback(folding.terminate)
            from rollcall.replaying import replaying

            replay = await stack.enter_async_context(replaying(settings, schema, live.homes, connection=folding))
            promotion = Promotion(connection, settings.database_schema, schema)
            await _pursue(settings, connection, live, replay)
            await promotion.prepare(datetime.now(UTC) - settings.dead_letters_kept)
            await _pursue(settings, connection, live, replay)
            begins = await begins_midway(settings, live, folding)
            promoted = await _take_over(settings, connection, live, promotion, replay, begins, emit_changes)
            promoted = replace(promoted, has_pruned=await _has_pruned(connection))
    except LostRaceError:
        raise ReplayError(f'somebody else replays into "{schema}": wait for its end') from None
    except asyncio.CancelledError:
        if promoted is not None:
            note(f'"{schema}" is "{settings.database_schema}" now; the old one is "{promoted.old}"')
        raise
    return promoted


async def _has_pruned(connection: Connection) -> bool | None:
    """Whether pruned items are back; None where that is not to be known. By now the promotion has happened."""
    import asyncpg

    from store import pruning

    try:
        return bool(await pruning.left(connection, "", 1))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        return None


async def _checked(settings: Settings, connection: Connection, schema: str) -> Live:
    """The live schema's place in the log, and that the shadow can follow it there."""
    from migrations.version import WrongSchemaError, check
    from rollcall.replaying import ReplayError, look, shadow_database
    from store import positions, shadows

    await check(connection, settings.database_schema)
    found = await shadows.find(connection, schema)
    if found is None:
        raise ReplayError(f'there is no schema "{schema}": make it with `rollcall replay --into {schema}`')
    if found.of != settings.database_schema or found.batch_id is not None:
        of = f'batch "{found.batch_id}" alone' if found.batch_id else f'"{found.of}"'
        raise ReplayError(f'"{schema}" is a shadow of {of}: it cannot become "{settings.database_schema}"')
    if not await shadows.reserve(connection, schema):
        raise ReplayError(f'another `rollcall promote` is at work on "{schema}": wait for its end')
    live = await look(settings, connection)
    shadow = await shadow_database(settings, schema).connect("promote")
    try:
        try:
            await check(shadow, schema)
        except WrongSchemaError:
            again = f"run `rollcall replay --into {schema}` again, which brings it to this one's"
            raise ReplayError(f'"{schema}" was made by another version of Rollcall: {again}') from None
        missing = live.positions.keys() - (await positions.load_all(shadow, schema, live.topics.events)).keys()
        await positions.create(shadow, live.topics.events, {each: live.span.starts[each] for each in missing})
        stands = await positions.load_all(shadow, schema, live.topics.events)
    finally:
        await shadow.close()
    for partition, position in stands.items():
        if position.next_offset > (live.positions[partition].next_offset if partition in live.positions else 0):
            raise ReplayError(
                f'"{schema}" is ahead of the workers on partition {partition} (it was replayed to beyond what they have'
                " applied): wait until they have passed it, or replay anew"
            )
    return live


async def _catch_up(settings: Settings, live: Live, schema: str, processes: int) -> None:
    """Most of the way, in as many processes as asked for."""
    from rollcall.replay_progress import shown
    from rollcall.replaying import fold_in_processes

    ends = {partition: position.next_offset for partition, position in live.positions.items()}
    await shown(fold_in_processes(settings, live, schema, ends, processes=processes))


async def _pursue(settings: Settings, connection: Connection, live: Live, replay: Replay) -> None:
    """Fold what the workers have applied meanwhile, until little is left to be folded while they wait."""
    behind: dict[int, int] = {}
    for _ in range(ROUNDS):
        ends = await _live_ends(settings, connection, live)
        await replay.fold_to(ends)
        if behind and sum(ends.values()) - sum(behind.values()) < CLOSE:
            return
        behind = ends


async def _live_ends(settings: Settings, connection: Connection, live: Live) -> dict[int, int]:
    from store import positions

    stored = await positions.load_all(connection, settings.database_schema, live.topics.events)
    return {partition: position.next_offset for partition, position in stored.items()}


async def _take_over(
    settings: Settings,
    connection: Connection,
    live: Live,
    promotion: Promotion,
    replay: Replay,
    begins: dict[int, datetime | None],
    emit_changes: bool,
) -> Promoted:
    """The pause: lock, fold the rest, copy what is not in the log, rename.

    Nothing has changed unless it commits, but for corrections, which may be on the log.
    """
    from rollcall.replaying import ReplayError

    topic = live.topics.events
    started = await _locked(connection, promotion)
    deadline = asyncio.get_running_loop().time() + TAKE_OVER_TIMEOUT_S
    try:
        async with asyncio.timeout_at(deadline):
            await _check_not_migrated(settings, connection, promotion.shadow)
            await replay.fold_to(await _live_ends(settings, connection, live))
            await _check_same_place(settings, connection, live, promotion.shadow)
            changed, dropped, carried = await promotion.take_over(
                topic,
                begins,
                events_kept_since=datetime.now(UTC) - settings.events_kept,
                letters_kept_since=datetime.now(UTC) - settings.dead_letters_kept,
                emit_changes=emit_changes,
            )
            if not emit_changes:
                _refuse_repeated_numbers(changed)
            corrections = [each for each in changed if each.needs_correction and (emit_changes or each.is_open)]
            old = await promotion.rename(datetime.now(UTC))
    except TimeoutError:
        raise ReplayError(
            f"taking over took longer than {TAKE_OVER_TIMEOUT_S:g} s, so it was given up; nothing has changed."
            " Try again when less is going on"
        ) from None
    # Before the commit: sent for nothing they change little, lost nobody would send them again. Whoever reads them
    # waits for us.
    await _correct(settings, live, corrections, deadline)
    await _commit(settings, connection, promotion.shadow, old, len(corrections))
    return Promoted(old, time.monotonic() - started, changed, dropped, carried, len(corrections))


def _refuse_repeated_numbers(changed: list[Changed]) -> None:
    """Raise ReplayError where a later end of a batch would go out to nobody, unless it is corrected now."""
    from rollcall.replaying import ReplayError

    found = [each.batch_id for each in changed if each.would_repeat_a_number and not each.is_open]
    if found:
        some = ", ".join(found[:5]) + (" ..." if len(found) > 5 else "")
        raise ReplayError(
            f"{len(found):,} batches have ended fewer times than was published ({some}): reopened, their next end"
            " would go by a number that was published, and so out to nobody. Nothing has changed; with --emit-changes"
            " they are published once more, as they are"
        )


async def _commit(settings: Settings, connection: Connection, shadow: str, old: str, corrections: int) -> None:
    """Outside the time for the rest: what gives no answer to this may have happened."""
    from rollcall.reaching import failure
    from rollcall.rendering import note
    from rollcall.replaying import ReplayError
    from store.failures import is_transient

    but_for = f" but that {corrections:,} corrections are on the log" if corrections else ""
    unknown = (
        f'there was no answer to the COMMIT, so look whether there is a schema "{old}" now: if so, "{shadow}" is'
        f' "{settings.database_schema}"; if not, nothing has changed{but_for}, and you can try again'
    )
    try:
        await connection.execute("COMMIT", timeout=COMMIT_TIMEOUT_S)
    except asyncio.CancelledError:
        note(unknown)
        raise
    except Exception as error:
        if is_transient(error):
            raise ReplayError(f"{failure(error, settings, 'PostgreSQL') or error}; {unknown}") from error
        if corrections:
            note(f"nothing has changed{but_for}: each has its batch published once more, with the outcome that it had")
        raise


async def _correct(settings: Settings, live: Live, corrections: list[Changed], deadline: float) -> None:
    """Have the log say which published revisions were wrong: a later replay numbers what follows alike."""
    from aiokafka.errors import KafkaError

    from rollcall.reaching import failure
    from rollcall.rendering import note
    from rollcall.replaying import ReplayError
    from streams.sending import Sender

    if not corrections:
        return
    sender = Sender(settings.kafka_connection(), live.topics, live.homes)
    reason = "a replay that was promoted gives another outcome"
    given_up = (
        f"it was given up, and the schemas are what they were. But some of the {len(corrections):,} corrections may be"
        " on the log by now: each has its batch published once more, with the outcome that it had"
    )
    try:
        async with AsyncExitStack() as until_sent, asyncio.timeout_at(deadline):
            until_sent.push_async_callback(sender.close)
            await sender.events(
                [
                    {
                        "type": "batch.corrected",
                        "batch_id": each.batch_id,
                        "revision": each.old_revision,
                        "reason": reason,
                    }
                    for each in corrections
                ]
            )
    except asyncio.CancelledError:
        note(given_up)
        raise
    except (KafkaError, TimeoutError) as error:
        raise ReplayError(
            f"{failure(error, settings, 'Kafka')}; so {given_up}. Try again when Kafka answers"
        ) from error


async def _locked(connection: Connection, promotion: Promotion) -> float:
    """Begin the transaction and lock; gives way to writers that hold what it wants. Returns when the pause began.

    A migration that began before us would go on in the other schema, so it is waited for before any table is locked.
    """
    import asyncpg

    from migrations.version import keep_migrations_off
    from rollcall.replaying import ReplayError

    for attempt in range(LOCK_ATTEMPTS):
        await connection.execute("BEGIN")
        try:
            await keep_migrations_off(connection)
            started = time.monotonic()
            await promotion.lock()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            await connection.execute("ROLLBACK")
            await asyncio.sleep(0.2 * (attempt + 1))
        else:
            return started
    raise ReplayError(
        "writers, or a migration, hold their locks for too long; nothing has changed. Try again when less is going on"
    )


async def _check_not_migrated(settings: Settings, connection: Connection, schema: str) -> None:
    """Neither schema may have been migrated since `_checked` looked, which may be hours ago."""
    from migrations.version import WrongSchemaError, check_still
    from rollcall.replaying import ReplayError

    try:
        await check_still(connection, settings.database_schema, schema)
    except WrongSchemaError as error:
        raise ReplayError(
            f"{error}; nothing has changed. With the Rollcall of that version, run `rollcall replay --into {schema}`"
            " again, and then this"
        ) from None


async def _check_same_place(settings: Settings, connection: Connection, live: Live, schema: str) -> None:
    """Both must be the state of the very same records."""
    from rollcall.replaying import ReplayError
    from store import positions

    theirs = await positions.load_all(connection, settings.database_schema, live.topics.events)
    ours = await positions.load_all(connection, schema, live.topics.events)
    for partition, position in theirs.items():
        here = ours[partition]
        same = here.next_offset == position.next_offset and (here.last_offset is None or here[2:5] == position[2:5])
        if not same:
            raise ReplayError(
                f"partition {partition}: the live schema has applied the log up to {position.last_offset}, the shadow"
                f" up to {here.last_offset}: run `rollcall verify` to see why; nothing has changed"
            )


def _conclude(settings: Settings, schema: str, promoted: Promoted, emit_changes: bool) -> None:
    say = sys.stdout.write
    live = settings.database_schema
    say(f'"{schema}" is "{live}" now; writers were kept waiting for {promoted.pause_s * 1000:,.0f} ms\n')
    say(f'the old one is "{promoted.old}"; drop it when you no longer need it\n')
    if promoted.carried:
        say(f"{promoted.carried:,} batches that began before the replay were carried over as they were\n")
    if promoted.dropped:
        say(f"{len(promoted.dropped):,} batches that the log does not know are in the old one only\n")
    if promoted.has_pruned:
        say("items that were pruned are back: `rollcall prune` deletes them again\n")
    if promoted.has_pruned is None:
        say("whether items that were pruned are back is not known: if so, `rollcall prune` deletes them again\n")
    for each in promoted.changed[:20]:
        say(
            f"{each.batch_id}: was {each.old_outcome or 'open'} (revision {each.old_revision}), is"
            f" {each.new_outcome or 'open'} (revision {each.new_revision})\n"
        )
    if promoted.changed:
        told = f"{promoted.corrected:,} corrections were sent"
        if not emit_changes:
            told = "nothing of it was published"
            if promoted.corrected:
                told += f"; the log says of {promoted.corrected:,} that are open by which number they are to end"
        say(f"{len(promoted.changed):,} batches have another outcome or revision than before; {told}\n")
        if pruned := sum(each.is_pruned for each in promoted.changed):
            say(f"{pruned:,} of them are pruned: what was published of these stays\n")
