"""PostgreSQL: its version, our schema and privileges, what waits there to be published, and who leads."""

from collections.abc import AsyncIterator, Iterator

from migrations.version import SCHEMA_VERSION, WrongSchemaError, check
from rollcall.checkup.check import Check, noted, ok, wrong
from schemas.topics import Topics
from store import health, leadership
from store.connection import Connection
from store.health import DeadLetterCount, Leaving

_LEADERS = {
    "relay": "publishes finalized events and dead letters",
    "clock": "ends batches at their deadlines, computes summaries, raises alerts about time and trims tables",
}


async def schema_check(connection: Connection, schema: str) -> AsyncIterator[Check]:
    """The server and the schema; where one is wrong, nothing further of ours can be read."""
    version = str(await connection.fetchval("SHOW server_version")).split()[0]
    try:
        await check(connection, schema)
    except WrongSchemaError as error:
        yield wrong(f"PostgreSQL {version}", str(error))
        return
    yield ok(f"PostgreSQL {version}", f'schema "{schema}" is at version {SCHEMA_VERSION}, as it should be')


async def privilege_checks(connection: Connection) -> AsyncIterator[Check]:
    """What our user may do with the tables, and what the server's settings keep of it."""
    lacking = await health.lacking_privileges(connection)
    if lacking:
        named = ", ".join(f"{privilege} on {table}" for table, privilege in lacking[:5])
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        yield wrong("privileges", f"this user lacks {named}{more}: GRANT them (README, what to grant)")
    else:
        yield ok("privileges", "this user may read and write all tables")
    for setting in await health.settings_that_forget(connection):
        yield noted(
            f"PostgreSQL {setting}", "is off: a crash may take what was committed; events already published stay out"
        )


async def leaders(connection: Connection, topics: Topics, schema: str) -> AsyncIterator[Check]:
    """Whether each role of which one process works has one."""
    for role, what in _LEADERS.items():
        if await leadership.is_led(connection, role, topics.prefix, schema):
            yield ok(role, f"one leads: it {what}")
        else:
            yield wrong(role, f"none leads, so nobody {what}: start `rollcall {role}` or `rollcall run`")


async def stored_checks(connection: Connection) -> AsyncIterator[Check]:
    """What is in the tables that somebody should know of."""
    for each in _leaving(await health.leaving(connection)):
        yield each
    yield _dead_letters(await health.dead_letters(connection))
    failed, first = await health.failed_summaries(connection)
    if failed:
        yield noted("summaries", f"{failed:,} could not be computed; `rollcall batch finalize {first}` tries one again")


def _leaving(found: Leaving) -> Iterator[Check]:
    waiting = found.events + found.dead_letters
    if waiting:
        yield noted("outbox", f"{found.events:,} events and {found.dead_letters:,} dead letters wait for the relay")
    else:
        yield ok("outbox", "everything is published")
    refused = found.refused_events + found.refused_dead_letters
    if refused:
        yield wrong(
            "quarantine",
            f"Kafka refuses {found.refused_events:,} events and {found.refused_dead_letters:,} dead letters for good:"
            ' the column "refused" of outbox and dead_letters says why (most often a topic takes no larger messages)',
        )


def _dead_letters(found: list[DeadLetterCount]) -> Check:
    if not found:
        return ok("dead letters", "none is open")
    by_reason = ", ".join(f"{each.records:,} {each.reason}" for each in found)
    newest = max(each.newest for each in found).isoformat(" ", "seconds").replace("+00:00", "Z")
    return noted("dead letters", f"{by_reason}; the newest of {newest}; `rollcall dead-letters list` shows them")
