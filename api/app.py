"""The HTTP application: routes, errors, limits and headers put together."""

import asyncio
from typing import Any

from fastapi import Depends, FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import (
    access,
    actions,
    batches,
    documents,
    event_streams,
    history,
    items,
    jobs,
    operations,
    problems,
    publishing,
    sessions,
)
from api.context import Context
from api.pages import routes as pages
from api.pages import system
from api.problems import Problem

PREFIX = "/api"

_ROUTERS = (
    batches.router,
    event_streams.router,
    history.router,
    items.router,
    publishing.router,
    actions.router,
    jobs.router,
    sessions.router,
)

# Pages load nothing from elsewhere and run no script that is not a file of ours.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


def create_app(context: Context) -> FastAPI:
    """The application over a context that is open for as long as it serves.

    Raises ValueError where a route does not say who may use it.
    """
    app = _Documented(
        title="Rollcall",
        description="Tells you when a batch is done, exactly once, and who did not answer.",
        version="1",
        openapi_url="/openapi.json",
        # The stock pages load their scripts from a CDN.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    problems.add_handlers(app)
    for router in _ROUTERS:
        app.include_router(router, prefix=PREFIX)
    app.include_router(pages.router)
    app.include_router(system.router)
    app.router.routes.extend([*operations.health_routes(), *documents.routes(context.topics)])
    app.add_api_route("/metrics", operations.metrics, dependencies=[Depends(access.VIEWER)], include_in_schema=False)
    app.add_middleware(BodyLimit, limit=context.limits.body_bytes)
    app.add_middleware(SecurityHeaders)
    access.check_rules(app.routes)
    return app


class _Documented(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The contract, with what the API's errors are."""
        if self.openapi_schema is None:
            problems.describe(super().openapi())
        return super().openapi()


class SecurityHeaders:
    """Puts the security headers on every answer; what API and pages say is for nobody's cache."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in _HEADERS if each[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


BODY_TIMEOUT_S = 30.0
"""How long the next piece of a body may take."""


class BodyLimit:
    """Refuses bodies above a size with 413, by what they say of themselves or by what comes, and with 408 what stops.

    Starlette's own answers in plain text, and nobody waits for the next piece with a time-out.
    """

    def __init__(self, app: ASGIApp, limit: int, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._app = app
        self._limit = limit
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = f"the body is larger than {self._limit} bytes"
        said = Headers(scope=scope).get("content-length", "")
        if said.isdigit() and int(said) > self._limit:
            await Problem(413, too_large).response()(scope, receive, send)
            return
        size, is_whole = 0, False

        async def receive_bounded() -> Message:
            nonlocal size, is_whole
            if is_whole:
                return await receive()  # that the client has gone, which may well take its time
            try:
                async with asyncio.timeout(self._timeout_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"nothing more of the body came for {self._timeout_s:g} s") from None
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > self._limit:
                raise HTTPException(413, too_large)
            return message

        await self._app(scope, receive_bounded, send)
