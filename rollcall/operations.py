"""The small server of each process for its health and its metrics, on a port of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import structlog
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.operations import routes
from rollcall.probing import UnhealthyError, probe, url_of
from rollcall.settings import Settings, SettingsError
from rollcall.supervisor import Supervisor
from streams.health import NotReadyError, health

STOP_TIMEOUT_S = 2
TURN_TIMEOUT_S = 30.0
"""For a request to come and its answer to be taken; readiness takes a few seconds where servers are silent."""
WATCH_EVERY_S = 5.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[None]:
    """Serve `/livez`, `/readyz` and `/metrics` while the context is open.

    Raises `SettingsError` where the port is taken or may not be used.
    """
    listening = _listen(settings.metrics_host, settings.metrics_port)
    host, port = listening.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            Starlette(routes=routes()),
            http=_Timed,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    )
    serves = asyncio.create_task(server.serve(sockets=[listening]), name="operations")
    log.info("metrics and health", url=url_of(host, port, "/metrics"))
    try:
        yield
    finally:
        # Who asks just now is not waited for: a check of readiness may take as long as what it asks is silent.
        server.should_exit = server.force_exit = True
        with suppress(TimeoutError):
            await asyncio.wait_for(serves, STOP_TIMEOUT_S + 1)


@asynccontextmanager
async def watching(settings: Settings, supervisor: Supervisor) -> AsyncIterator[None]:
    """Make the health of the processes kept this one's own: alive while each of them says so, ready once all are.

    Where their ports are any free ones nobody knows them: then it only counts that they run.
    """
    health.checks["processes"] = partial(_all_run, supervisor, supervisor.processes())
    watches = []
    if settings.metrics_port:
        for number, process in enumerate(supervisor.processes(), 1):
            name = f"{process['role']}-{number}"
            port = settings.metrics_port + number
            health.checks[name] = partial(_ready, url_of(settings.metrics_host, port, "/readyz"))
            watches.append(asyncio.create_task(_watch(name, url_of(settings.metrics_host, port, "/livez"))))
    try:
        yield
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def _watch(name: str, url: str) -> None:
    """Pass a process's sign of life on as one of ours; one that gives none for long makes this one count as stuck."""
    health.beat(name)
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        try:
            await asyncio.to_thread(probe, url)
        except UnhealthyError as error:
            log.debug("no sign of life", process=name, error=str(error))
        else:
            health.beat(name)


async def _ready(url: str) -> None:
    try:
        await asyncio.to_thread(probe, url)
    except UnhealthyError as error:
        raise NotReadyError(str(error)) from None


async def _all_run(supervisor: Supervisor, started: Sequence[object]) -> None:
    running = len(supervisor.processes())
    if running < len(started):
        raise NotReadyError(f"{running} of {len(started)} processes run")


class _Timed(HttpToolsProtocol):
    """Ends the connection of a client that sends nothing, or takes nothing; uvicorn would keep it for ever."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._begin_turn()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._turn.cancel()
        self._begin_turn()

    def connection_lost(self, exc: Exception | None) -> None:
        self._turn.cancel()
        super().connection_lost(exc)

    def _begin_turn(self) -> None:
        # Not closed: that would wait until the client has taken what is written.
        self._turn = self.loop.call_later(TURN_TIMEOUT_S, self.transport.abort)


class _Server(uvicorn.Server):
    """Signals are the role's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        raise SettingsError(
            f"cannot serve metrics at {host}:{port} ({why}): set ROLLCALL_METRICS_PORT to a free port, or to 0 for any"
        ) from error
