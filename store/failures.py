"""Which failures pass by themselves."""

import asyncpg
from asyncpg.exceptions import InterfaceError

# SQLSTATE classes and codes that a later attempt may not meet (PostgreSQL: Appendix A).
_TRANSIENT_CLASSES = ("08", "40", "53", "57", "58")
# Read-only after a failover, lock time-out, being restored; a transaction that took or idled too long.
_TRANSIENT_CODES = ("25006", "55P03", "3D000", "3F000", "25P03", "25P04")

# How asyncpg says that a connection was lost, or is still busy with a statement that was given up.
_LOST = ("is closed", "is closing", "another operation is")

# Of the operating system's errors those that speak of files, not of connections.
_LOCAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_transient(error: BaseException) -> bool:
    """Whether waiting may help: connections, restarts, deadlocks, a full disk, a broker away."""
    if isinstance(error, asyncpg.PostgresError):
        code = getattr(error, "sqlstate", None) or ""
        return code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT_CODES
    if isinstance(error, InterfaceError):
        # asyncpg's own: improper use, unless the connection went away.
        return any(words in str(error) for words in _LOST)
    if isinstance(error, OSError):
        return not isinstance(error, _LOCAL)
    return isinstance(error, asyncpg.InternalClientError)
