"""Serves the application with uvicorn, inside a process whose signals and logs are somebody else's."""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = structlog.get_logger(__name__)

DRAIN_S = 7
"""What requests in flight are given to end."""

HEAD_TIMEOUT_S = 30.0
"""For a request's head, from when the connection or the request began; its body has a time of its own."""
STALLED_S = 120.0
"""A client that takes nothing of its answer for so long is cut off."""


class CannotListenError(OSError):
    """The address cannot be listened on; the message is one line and names the settings."""


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise CannotListenError(
            f"cannot listen on {host}:{port} (ROLLCALL_API_HOST, ROLLCALL_API_PORT): {error.strerror or error}"
        ) from None
    if sys.platform == "linux":
        # Its connections inherit it. A time-out of ours would free what makes an answer, but not what the socket still
        # holds of it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
    return listener


async def serve(
    app: FastAPI,
    listener: socket.socket,
    stop: asyncio.Event,
    ready: Callable[[], None],
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until ``stop`` is set, then let those in flight end.

    ``stopping`` is called in between: to end what has no end of its own.
    """
    config = uvicorn.Config(
        app,
        http=_HeadInTime,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=30,
    )
    server = _Server(config, ready)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopping()
        server.should_exit = True
        await serving
    finally:
        stopped.cancel()
        serving.cancel()


class _HeadInTime(HttpToolsProtocol):
    """Ends the connection of a client that does not say what it asks; uvicorn would keep it for ever."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Anything that comes ends uvicorn's own time for a connection kept alive, also what begins no request.
        if self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def on_headers_complete(self) -> None:
        self._have_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _have_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()
