"""Bodies that do not end."""

import asyncio
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request

from api.app import BodyLimit
from api.problems import add_handlers


async def test_a_body_that_stops_coming_is_answered_and_holds_nothing() -> None:
    app = FastAPI()
    add_handlers(app)
    app.add_middleware(BodyLimit, limit=1_000, timeout_s=0.1)

    @app.post("/")
    async def take(request: Request) -> int:
        return len(await request.body())

    async def body(*, ends: bool) -> AsyncIterator[bytes]:
        yield b"half of "
        if not ends:
            await asyncio.Event().wait()
        yield b"it"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post("/", content=body(ends=True))).json() == 10
        async with asyncio.timeout(30):
            refused = await client.post("/", content=body(ends=False))
    assert (refused.status_code, refused.headers["content-type"]) == (408, "application/problem+json")
    assert refused.json()["detail"] == "nothing more of the body came for 0.1 s"
