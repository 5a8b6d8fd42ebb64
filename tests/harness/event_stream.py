"""A listener to server-sent events on a bare socket: hundreds of them cost little, and one can stop reading."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.harness.waiting import eventually


@dataclass(frozen=True)
class Event:
    """An event as it came."""

    name: str
    id: str
    data: Any


@dataclass
class EventListener:
    """What a stream has said so far."""

    status: int = 0
    headers: str = ""
    events: list[Event] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    ended: bool = False

    def named(self, name: str) -> list[Any]:
        """The data of all events of that name."""
        return [event.data for event in self.events if event.name == name]

    async def until(self, name: str, count: int = 1) -> list[Any]:
        """The data of the events of that name, once there are so many."""

        def enough() -> bool:
            names = [event.name for event in self.events]
            assert names.count(name) >= count, f"{names[-20:]}, ended: {self.ended}"
            return True

        await eventually(enough, 60)
        return self.named(name)


@asynccontextmanager
async def listening(
    url: str, path: str, *, last_event_id: str | None = None, reading: bool = True
) -> AsyncIterator[EventListener]:
    """A listener, connected; with ``reading=False`` it asks, and then takes nothing, with the smallest of buffers."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    raw = socket.socket()
    raw.setblocking(False)
    if not reading:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(raw, (address.hostname, address.port))
    request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: text/event-stream\r\n"
    request += f"Last-Event-ID: {last_event_id}\r\n" if last_event_id is not None else ""
    listener = EventListener()
    if not reading:
        try:
            await asyncio.get_running_loop().sock_sendall(raw, f"{request}\r\n".encode())
            yield listener
        finally:
            raw.close()
        return
    reader, writer = await asyncio.open_connection(sock=raw, limit=1 << 20)
    task = asyncio.create_task(_read(reader, listener))
    try:
        writer.write(f"{request}\r\n".encode())
        await eventually(lambda: listener.status or task.done(), 60, message="the stream's answer")
        yield listener
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


async def _read(reader: asyncio.StreamReader, listener: EventListener) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        listener.headers = head.lower()
        listener.status = int(head.split()[1])
        chunked = "transfer-encoding: chunked" in listener.headers
        pending = b""
        while chunked and (size := int(await reader.readline(), 16)):
            pending += (await reader.readexactly(size + 2))[:-2]
            *whole, pending = pending.split(b"\n\n")
            for text in whole:
                _take(text.decode(), listener)
    except (asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        listener.ended = True


def _take(text: str, listener: EventListener) -> None:
    fields = dict(line.split(": ", 1) for line in text.split("\n") if not line.startswith(":"))
    listener.comments += [line[1:].strip() for line in text.split("\n") if line.startswith(":")]
    if "event" in fields:
        listener.events.append(Event(fields["event"], fields.get("id", ""), json.loads(fields["data"])))
