"""The HTTP API as a test meets it: the real application on a port of its own, in the test's process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from api.app import create_app
from api.context import Context, Limits, opened
from api.serving import listening, serve
from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness.waiting import eventually

PARTITIONS = 12


@dataclass(frozen=True)
class ServedApi:
    """A running API, a client of it, and what it works with."""

    url: str
    client: httpx.AsyncClient
    context: Context
    app: FastAPI

    async def get(self, path: str, status: int = 200, /, **params: Any) -> Any:
        """The JSON that `/api/{path}` answers, which has to be of this status."""
        return await self.json("GET", path, status, params=params)

    async def post(self, path: str, body: Any = None, status: int = 200, /, **headers: str) -> Any:
        """The JSON that a POST to `/api/{path}` answers, which has to be of this status."""
        return await self.json("POST", path, status, json=body, headers=headers)

    async def json(self, method: str, path: str, status: int, **options: Any) -> Any:
        response = await self.client.request(method, f"/api/{path}", **options)
        assert response.status_code == status, f"{response.status_code}: {response.text}"
        return response.json()


@asynccontextmanager
async def serving(settings: Settings, *, partitions: int = PARTITIONS, **limits: Any) -> AsyncIterator[ServedApi]:
    """The API on these servers; the schema has to be migrated."""
    stop, ready = asyncio.Event(), asyncio.Event()
    context = opened(
        settings.kafka_connection(),
        settings.database(),
        Topics(settings.topic_prefix),
        partitions,
        auth=settings.auth,
        limits=Limits(**limits),
    )
    with listening("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with context as opened_context, httpx.AsyncClient(base_url=url, timeout=30) as client:
            app = create_app(opened_context)
            task = asyncio.create_task(serve(app, listener, stop, ready.set, opened_context.feed.close))
            try:
                await eventually(lambda: ready.is_set() or task.done(), message="the API listens")
                yield ServedApi(url, client, opened_context, app)
            finally:
                stop.set()
                await asyncio.wait_for(task, 30)
