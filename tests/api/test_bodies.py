"""Requests that do not end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from fastapi import FastAPI, Request

from api import serving
from api.app import BodyLimit
from api.problems import add_handlers
from tests.harness.waiting import eventually


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[int]:
    """The port it is served on."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    serving = asyncio.create_task(server._serve())  # without taking the signals of the test's process
    try:
        await eventually(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def test_a_body_that_stops_coming_is_answered_and_holds_nothing() -> None:
    app = FastAPI()
    add_handlers(app)
    app.add_middleware(BodyLimit, limit=1_000, timeout_s=0.5)

    @app.post("/")
    async def take(request: Request) -> int:
        return len(await request.body())

    async def answer(port: int, *pieces: bytes) -> tuple[str, str]:
        """Headers and body of the answer to a body of ten bytes of which only these pieces come."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(30):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in head.lower().splitlines() if line.startswith("content-length: "))
            body = (await reader.readexactly(int(length.split()[1]))).decode()
            if " 200 " not in head:
                assert await reader.read() == b"", "the connection is closed"
        writer.close()
        return head, body

    async with served(app) as port:
        head, body = await answer(port, b"all ", b"of it!")
        assert (head.split()[1], body) == ("200", "10")
        head, body = await answer(port, b"half")
    assert head.split()[1] == "408"
    assert "content-type: application/problem+json" in head.lower()
    assert json.loads(body)["detail"] == "nothing more of the body came for 0.5 s"


async def test_a_request_whose_head_does_not_end_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", 0.5)
    app = FastAPI()

    @app.get("/")
    async def answer() -> str:
        await asyncio.sleep(1.0)  # longer than a head may take
        return "answered"

    whole = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    listener, stop, ready = serving.listening("127.0.0.1", 0), asyncio.Event(), asyncio.Event()
    served = asyncio.create_task(serving.serve(app, listener, stop, ready.set))
    try:
        await ready.wait()
        for asked, sent in ((b"", b""), (b"", whole[:20]), (whole, b""), (whole, whole[:20]), (whole, b"\r\n")):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(asked)
            async with asyncio.timeout(30):
                if asked:
                    assert (await reader.readuntil(b'"answered"')).startswith(b"HTTP/1.1 200 ")
                writer.write(sent)
                if sent or not asked:
                    with suppress(ConnectionResetError):
                        assert await reader.read() == b""
            writer.close()
    finally:
        stop.set()
        await served
