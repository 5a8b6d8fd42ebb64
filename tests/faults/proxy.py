"""A TCP proxy between the product and a server, which can be slow, cut, black-holed, or late."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

CHUNK = 32 * 1024
MAX_HELD_BYTES = 512 * 1024
"""On the way, in each direction of a connection; with `delay_s` that bounds how much passes in a second."""
SOCKET_BYTES = 64 * 1024
MAX_SEGMENT_BYTES = 1460
"""As on an Ethernet. On the loopback's of 64 KiB a sender's kernel would take 4 MB before it lets the sender wait."""


@dataclass(eq=False)
class _Connection:
    """Both directions of one connection. Bytes pass while `passing` is set."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    passing: asyncio.Event = field(default_factory=asyncio.Event)

    def abort(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Listens on 127.0.0.1:`port` for what is at 127.0.0.1:`target()`.

    `delay_s` holds each piece that a client sends that long (a server that answers late). Where nothing is delivered
    nothing is read either, so that sockets fill and senders have to wait. What a client's kernel took is delivered, if
    late: to a server also when the client has gone, as a network does.
    """

    def __init__(self, target: Callable[[], int | None]) -> None:
        self._target = target
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._black_hole = False
        self._refusing = False
        self.delay_s = 0.0
        self.port = 0
        self.harmed = 0
        """Connections cut, refused or silenced, and pieces held back, so far."""

    async def start(self) -> None:
        listening = socket.socket()
        # Before it listens: what it accepts inherits them.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT_BYTES)
        listening.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._accept, sock=listening, limit=CHUNK)
        self.port = listening.getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections."""
        for connection in list(self._connections):
            connection.abort()
            self.harmed += 1

    def refuse(self, refusing: bool = True) -> None:
        """Reset new connections at once, or let them pass again."""
        self._refusing = refusing

    def black_hole(self) -> None:
        """Take connections, and deliver nothing."""
        self._black_hole = True
        self.stall()

    def stall(self) -> None:
        """Deliver nothing on the connections that there are; new ones work."""
        for connection in self._connections:
            connection.passing.clear()
            self.harmed += 1

    def heal(self) -> None:
        """Deliver everything that was held, and be a good network from here on."""
        self._black_hole = self._refusing = False
        self.delay_s = 0.0
        for connection in self._connections:
            connection.passing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.harmed += 1
            writer.transport.abort()
            return
        try:
            port = self._target()
            if port is None:
                raise ConnectionRefusedError("the server has never run")
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(writer, server_writer)
        if not self._black_hole:
            connection.passing.set()
        self._connections.add(connection)
        both = asyncio.gather(
            self._pump(connection, reader, server_writer, slow=True),
            self._pump(connection, server_reader, writer, slow=False),
        )
        task = asyncio.create_task(self._while_open(connection, both))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _while_open(self, connection: _Connection, both: asyncio.Future[tuple[None, None]]) -> None:
        try:
            await both
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        held, has_room = 0, asyncio.Event()
        has_room.set()

        async def read() -> None:
            nonlocal held
            data = b"-"
            while data:
                await connection.passing.wait()
                await has_room.wait()
                try:
                    data = await reader.read(CHUNK)
                except OSError:
                    data = b""
                delay_s = self.delay_s if slow else 0.0
                self.harmed += bool(data and delay_s)
                pieces.put_nowait((loop.time() + delay_s, data))
                held += len(data)
                if held >= MAX_HELD_BYTES:
                    has_room.clear()

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await pieces.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await connection.passing.wait()
                if not data:
                    # The other side has gone: what it had said is delivered, now this side may know.
                    if writer.can_write_eof():
                        with contextlib.suppress(OSError):
                            writer.write_eof()
                    return
                writer.write(data)
                try:
                    await writer.drain()
                except OSError:
                    return  # that side has gone; what it said before still gets to the other one
                held -= len(data)
                if held < MAX_HELD_BYTES:
                    has_room.set()
        finally:
            reading.cancel()
