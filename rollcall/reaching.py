"""What to say when Kafka or PostgreSQL cannot be worked with: which one, where it was looked for, and why."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rollcall.settings import Settings

Server = Literal["Kafka", "PostgreSQL"]


class ServerError(RuntimeError):
    """Kafka or PostgreSQL cannot be worked with; the message is one line and names its address and setting."""


@contextmanager
def naming(settings: Settings, server: Server | None = None) -> Iterator[None]:
    """Turn failures to work with a server into a `ServerError`.

    `server` is the one this code talks to: an operating system's error (refused, timed out) does not say whose it is.
    """
    reasons = _Overheard()
    log = logging.getLogger("aiokafka")
    if server == "Kafka":
        # aiokafka logs why it could not connect and raises that it could not: make one line of the two.
        log.addHandler(reasons)
        log.propagate = False
    try:
        yield
    except Exception as error:
        sentence = failure(error, settings, server, overheard=reasons.last)
        if sentence is None:
            raise
        raise ServerError(sentence) from error
    finally:
        log.removeHandler(reasons)
        log.propagate = True


def failure(
    error: BaseException, settings: Settings, server: Server | None = None, *, overheard: str | None = None
) -> str | None:
    """The failure as one line for the user; None where it is neither Kafka's nor PostgreSQL's."""
    import asyncpg
    from aiokafka.errors import KafkaConnectionError, KafkaError
    from sqlalchemy.exc import DBAPIError

    from streams.polling import SilentError

    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig.__cause__ or error.orig
        server = "PostgreSQL"
    if isinstance(error, asyncpg.PostgresError):
        return f"{_postgres(settings)} says: {_first_line(error)}"
    if isinstance(error, asyncpg.InterfaceError):
        return f"{_postgres(settings)}: {_first_line(error)}"
    if isinstance(error, KafkaConnectionError):
        # A broker that expects other security just hangs up.
        return f"{_kafka(settings)} cannot be reached with ROLLCALL_SECURITY_PROTOCOL={settings.security_protocol}" + (
            f": {overheard}" if overheard else ""
        )
    if isinstance(error, SilentError):
        return f"{_kafka(settings)} does not answer: {error}"
    if isinstance(error, KafkaError):
        return f"{_kafka(settings)} says: {_first_line(error)}"
    if server is not None and isinstance(error, OSError | TimeoutError):
        where = _kafka(settings) if server == "Kafka" else _postgres(settings)
        return f"{where} cannot be reached: {_reason(error)}"
    return None


class _Overheard(logging.Handler):
    """Keeps the last thing said."""

    last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            return
        arguments = record.args if isinstance(record.args, tuple) else ()
        reason = next((each for each in arguments if isinstance(each, BaseException)), None)
        self.last = _reason(reason) if reason is not None else record.getMessage()


def _postgres(settings: Settings) -> str:
    from sqlalchemy.engine import make_url

    url = make_url(settings.database_url)
    host, port = url.host or url.query.get("host", "localhost"), url.port or 5432
    return f"PostgreSQL at {host}:{port} (ROLLCALL_DATABASE_URL)"


def _kafka(settings: Settings) -> str:
    return f"Kafka at {settings.bootstrap_servers} (ROLLCALL_BOOTSTRAP_SERVERS)"


def _reason(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in text:
        return "connection refused"
    if isinstance(error, TimeoutError | asyncio.TimeoutError) and not text:
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}".lower()
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or text}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    from aiokafka.errors import KafkaError

    text = str(error).strip() or type(error).__name__
    if isinstance(error, KafkaError):
        text = text.removeprefix("[Error").lstrip(" -0123456789]")
    return text.splitlines()[0]
