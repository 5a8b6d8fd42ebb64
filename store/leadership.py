"""A role's lead: an advisory lock, held by a connection of its own for as long as that stands.

It spares work and quarrels, and is not what anything rests on: of two relays each fences the other and reads back
first, and what two clocks of a schema say or store twice changes nothing. So processes may name the lock otherwise
than older ones did.
"""

import hashlib

from store.connection import Connection

# Whether anybody holds the advisory lock whose key has these upper and lower halves.
_IS_LED = """
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::int8 = $1 AND objid::int8 = $2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
"""


async def database_name(connection: Connection) -> str:
    """The name of the database behind a connection."""
    return str(await connection.fetchval("SELECT current_database()"))


async def try_lead(connection: Connection, role: str, prefix: str, schema: str) -> bool:
    """Whether this connection now leads a role of the installation with that topic prefix and (live) schema.

    Asking again is harmless.
    """
    key = int.from_bytes(await _lock_name(connection, role, prefix, schema), "big", signed=True)
    return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", key))


async def is_led(connection: Connection, role: str, prefix: str, schema: str) -> bool:
    """Whether any connection leads that role; takes no lock itself."""
    name = await _lock_name(connection, role, prefix, schema)
    return bool(await connection.fetchval(_IS_LED, int.from_bytes(name[:4], "big"), int.from_bytes(name[4:], "big")))


async def heartbeat(connection: Connection) -> None:
    """Show the server that the leader is there, and the leader that its lock is. Raises what a lost connection does."""
    # A single message: nothing is to be prepared first.
    await connection.execute("SELECT 1")


async def _lock_name(connection: Connection, role: str, prefix: str, schema: str) -> bytes:
    # The schema by the name that is set: a promotion gives that to another one, which the same leader goes on with.
    name = f"rollcall {role} {prefix} {schema} {await database_name(connection)}"
    return hashlib.sha256(name.encode()).digest()[:8]
