"""A role's lead: an advisory lock, held by a connection of its own for as long as that stands."""

import hashlib

from store.connection import Connection


async def database_name(connection: Connection) -> str:
    """The name of the database behind a connection."""
    return str(await connection.fetchval("SELECT current_database()"))


async def try_lead(connection: Connection, role: str, prefix: str) -> bool:
    """Whether this connection now leads a role of the installation of that topic prefix; asking again is harmless."""
    digest = hashlib.sha256(f"rollcall {role} {prefix} {await database_name(connection)}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", key))


async def heartbeat(connection: Connection) -> None:
    """Show the server that the leader is there, and the leader that its lock is. Raises what a lost connection does."""
    await connection.fetchval("SELECT 1")
