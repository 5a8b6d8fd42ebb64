"""`rollcall dead-letters ...`: look at what could not be taken, send it to the log again, or give it up."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rollcall.settings import Settings, load_settings
from schemas.dead_letters import Reason

if TYPE_CHECKING:
    from store.connection import Connection
    from store.dead_letters import Chosen, DeadLetter, Key

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Look at what could not be taken, send it to the log again, or give it up.",
)

PAGE = 200
PAGE_BYTES = 4 * 1024 * 1024
"""What is sent again together has to be with Kafka within one time-out, however large it is."""
IDLE_IN_TRANSACTION_TIMEOUT_MS = "30000"
AWAKE_EVERY_S = 5.0

Position = Annotated[
    list[str] | None,
    typer.Argument(metavar="PARTITION:OFFSET...", help="Where their records were first read.", show_default=False),
]
OfReason = Annotated[Reason | None, typer.Option("--reason", help="Only those refused for this.", show_default=False)]
OfBatch = Annotated[
    str | None, typer.Option("--batch", metavar="ID", help="Only those of this batch.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="All open ones.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


class UnknownDeadLetterError(LookupError):
    """There is no such dead letter; the message is one line."""


@app.command("list")
def list_letters(
    status: Annotated[
        Literal["open", "redriven", "discarded", "any"], typer.Option(help="Only those of this status.")
    ] = "open",
    reason: OfReason = None,
    batch: OfBatch = None,
    after: Annotated[int, typer.Option(metavar="SEQ", help="Go on behind this one.", show_default=False)] = -1,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """What could not be taken, oldest first. As JSON: {"dead_letters": [...], "total", "next"}."""
    from rollcall.rendering import ColumnStyle, at, note, print_json, print_table, reader_may_leave
    from store import dead_letters
    from store.dead_letters import Chosen

    chosen = Chosen(None if status == "any" else status, reason and reason.value, batch)

    async def ask(connection: Connection, _: Settings) -> tuple[list[DeadLetter], int]:
        found = await dead_letters.page(connection, chosen, after=after, limit=limit, records=as_json)
        return found, await dead_letters.count(connection, chosen)

    letters, total = _asked(ask)
    following = letters[-1].seq if len(letters) == limit else None
    with reader_may_leave():
        if as_json:
            print_json({"dead_letters": [_as_object(each) for each in letters], "total": total, "next": following})
            return
        if not letters:
            note("no dead letter found")
            return
        print_table(
            [
                ColumnStyle("record"),
                ColumnStyle("appended", needed=False),
                ColumnStyle("reason"),
                ColumnStyle("status", needed=False),
                ColumnStyle("batch", "cut", needed=False),
                ColumnStyle("message", "cut"),
            ],
            [
                (
                    _place(each.key),
                    at(each.appended_at, milliseconds=False),
                    each.reason,
                    each.status,
                    each.batch_id,
                    each.message,
                )
                for each in letters
            ],
        )
        if following is not None:
            note(f"{len(letters):,} of {total:,} shown; go on with --after {following}")


@app.command()
def show(
    position: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="Where its record was first read.")],
    as_json: AsJson = False,
) -> None:
    """One dead letter: the reason, and the record's bytes as they are."""
    from rollcall.rendering import at, print_fields, print_json, reader_may_leave
    from streams.reading import decoded_headers

    async def ask(connection: Connection, settings: Settings) -> DeadLetter:
        return await _found(connection, settings, position)

    letter = _asked(ask)
    with reader_may_leave():
        if as_json:
            print_json(_as_object(letter))
            return
        print_fields(
            [
                ("record", f"{letter.key.topic}, partition {letter.key.partition}, offset {letter.key.record_offset}"),
                ("appended", at(letter.appended_at)),
                ("reason", letter.reason),
                ("message", letter.message),
                ("batch", letter.batch_id),
                ("status", letter.status + (f": {letter.discard_reason}" if letter.discard_reason else "")),
                ("redriven", at(letter.redriven_at)),
                ("discarded", at(letter.discarded_at)),
                ("published", at(letter.published_at) or "not yet"),
                ("key", _shown(letter.record_key)),
                *((f"header {name}", _shown(value)) for name, value in decoded_headers(letter.headers)),
                ("value", f"{len(letter.value):,} bytes" if letter.value is not None else "none (a tombstone)"),
                ("", _shown(letter.value) if letter.value else None),
            ]
        )


@app.command()
def redrive(
    positions: Position = None, reason: OfReason = None, batch: OfBatch = None, all_: All = False, yes: Yes = False
) -> None:
    """Send records to the log again, as they were: after the cause is mended. They never beat newer results.

    One that is refused again is an open dead letter again. One that Kafka does not take stays as it is, and is named:
    exit code 1.
    """
    from rollcall.rendering import note

    async def act(connection: Connection, settings: Settings) -> tuple[int, int, int]:
        from rollcall.reaching import failure, naming
        from schemas.topics import Topics
        from store import dead_letters
        from streams.redriving import can_be_redriven
        from streams.redriving import redrive as send
        from streams.topics import log_identity

        chosen = _chosen(positions, reason, batch, all_)
        await _confirmed(connection, settings, positions, chosen, yes, "Send {} to the log again?")
        with naming(settings, "Kafka"):
            log_id = await log_identity(settings.kafka_connection(), Topics(settings.topic_prefix))
        sent, refused, left = 0, 0, 0
        async for letters in _pages(connection, settings, positions, chosen):
            sendable = [each for each in letters if can_be_redriven(each)]
            left += len(letters) - len(sendable)
            if sendable:
                # Held until it is noted that the log has them: a worker that refuses one again waits to say so.
                async with connection.transaction():
                    held = await dead_letters.hold(connection, [each.key for each in sendable])
                    # Trimmed meanwhile, one that is refused again would be a new one.
                    sendable = [each for each in sendable if each.key in held]
                    async with _awake(connection):
                        with naming(settings, "Kafka"):
                            not_taken = await send(settings.kafka_connection(), sendable, log_id)
                    await dead_letters.note_redriven(
                        connection, [each.key for each in sendable if each.key not in not_taken]
                    )
                for key, error in not_taken.items():
                    note(f"{_place(key)} was not sent: {failure(error, settings)}")
                sent, refused = sent + len(sendable) - len(not_taken), refused + len(not_taken)
        return sent, refused, left

    sent, refused, left = _asked(act)
    passed_over = f"; {left:,} have no value and can only be discarded" if left > 0 else ""
    sys.stdout.write(f"{sent:,} sent to the log again{passed_over}\n")
    if refused:
        raise typer.Exit(1)


@app.command()
def discard(
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why they may be given up; kept with them.")],
    positions: Position = None,
    reason: OfReason = None,
    batch: OfBatch = None,
    all_: All = False,
    yes: Yes = False,
) -> None:
    """Give dead letters up, for a reason; they stay to be looked at."""
    if not why.strip():
        raise typer.BadParameter("--why must say something")

    async def act(connection: Connection, settings: Settings) -> int:
        from store import dead_letters

        chosen = _chosen(positions, reason, batch, all_)
        await _confirmed(connection, settings, positions, chosen, yes, "Give {} up?")
        count = 0
        async for letters in _pages(connection, settings, positions, chosen, records=False):
            await dead_letters.discard(connection, [each.key for each in letters], why)
            count += len(letters)
        return count

    sys.stdout.write(f"{_asked(act):,} discarded\n")


@asynccontextmanager
async def _awake(connection: Connection) -> AsyncIterator[None]:
    """Show PostgreSQL that we are at work, though not with it: not so once we are stopped, or cut off."""
    done = asyncio.Event()

    async def keep_awake() -> None:
        while not done.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), AWAKE_EVERY_S)
            await connection.execute("SELECT")

    keeping = asyncio.create_task(keep_awake())
    try:
        yield
    finally:
        done.set()
        await keeping


def _asked(ask: Any) -> Any:
    from rollcall.reaching import naming

    settings = load_settings()

    async def asked() -> Any:
        from migrations.version import check

        # Were we cut off or stopped while records are sent, workers that refuse one again would wait for as long.
        connection = await settings.database().connect(
            "dead-letters", idle_in_transaction_session_timeout=IDLE_IN_TRANSACTION_TIMEOUT_MS
        )
        try:
            await check(connection, settings.database_schema)
            return await ask(connection, settings)
        finally:
            await connection.close()

    with naming(settings, "PostgreSQL"):
        return asyncio.run(asked())


def _chosen(positions: Sequence[str] | None, reason: Reason | None, batch_id: str | None, all_: bool) -> Chosen:
    from store.dead_letters import Chosen

    by_group = reason is not None or batch_id is not None
    if (bool(positions) + by_group + all_) != 1:
        raise typer.BadParameter("say which: PARTITION:OFFSET..., or --reason and/or --batch, or --all")
    return Chosen("open", reason and reason.value, batch_id)


async def _confirmed(
    connection: Connection, settings: Settings, positions: Sequence[str] | None, chosen: Chosen, yes: bool, asks: str
) -> None:
    """Ask whether so many are meant, unless told not to."""
    from store import dead_letters

    count = len(set(positions)) if positions else await dead_letters.count(connection, chosen)
    for position in positions or ():
        await _found(connection, settings, position)
    if yes or not count:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: say --yes")
    what = "1 dead letter" if count == 1 else f"{count:,} dead letters"
    typer.confirm(asks.format(what), abort=True)


async def _pages(
    connection: Connection,
    settings: Settings,
    positions: Sequence[str] | None,
    chosen: Chosen,
    *,
    records: bool = True,
) -> AsyncIterator[list[DeadLetter]]:
    """The dead letters meant, some at a time, none that came after we began."""
    from store import dead_letters

    if positions:
        some: list[DeadLetter] = []
        for position in dict.fromkeys(positions):
            some.append(await _found(connection, settings, position))
            if len(some) == PAGE or sum(each.bytes for each in some) >= PAGE_BYTES:
                yield some
                some = []
        if some:
            yield some
        return
    after, left = -1, await dead_letters.count(connection, chosen)
    while left > 0:
        most = PAGE_BYTES if records else None
        letters = await dead_letters.page(
            connection, chosen, after=after, limit=min(PAGE, left), max_bytes=most, records=records
        )
        if not letters:
            return
        after, left = letters[-1].seq, left - len(letters)
        yield letters


async def _found(connection: Connection, settings: Settings, position: str) -> DeadLetter:
    from schemas.events import MAX_INT
    from schemas.topics import Topics
    from store import dead_letters
    from store.dead_letters import Key

    partition, _, offset = position.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()) or int(partition) > MAX_INT or len(offset) > 18:
        raise typer.BadParameter(f"a dead letter is named PARTITION:OFFSET, as in 3:17; not {position}")
    key = Key(Topics(settings.topic_prefix).events, int(partition), int(offset))
    letter = await dead_letters.find(connection, key)
    if letter is None:
        raise UnknownDeadLetterError(f"there is no dead letter of {key.topic}, partition {partition}, offset {offset}")
    return letter


def _place(key: Key) -> str:
    return f"{key.partition}:{key.record_offset}"


def _shown(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="backslashreplace")


def _as_object(letter: DeadLetter) -> dict[str, Any]:
    def encoded(value: bytes | None) -> str | None:
        return None if value is None else base64.b64encode(value).decode()

    return {
        "record": _place(letter.key),
        "topic": letter.key.topic,
        "partition": letter.key.partition,
        "offset": letter.key.record_offset,
        "appended_at": letter.appended_at,
        "status": letter.status,
        "reason": letter.reason,
        "message": letter.message,
        "batch_id": letter.batch_id,
        "key_base64": encoded(letter.record_key),
        "value_base64": encoded(letter.value),
        "headers": json.loads(letter.headers),
        "published_at": letter.published_at,
        "redriven_at": letter.redriven_at,
        "discarded_at": letter.discarded_at,
        "discard_reason": letter.discard_reason,
    }
