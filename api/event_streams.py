"""Server-sent events: `GET /events` and `GET /batches/{id}/events`."""

import asyncio
from contextlib import AbstractContextManager, suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import feed
from api.access import VIEWER
from api.batches import known
from api.context import Here
from api.feed import Listener, MalformedCursorError
from api.models import Text
from api.problems import documented, invalid

router = APIRouter(tags=["events"], dependencies=[Depends(VIEWER)])

HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 30.0
"""A listener that takes nothing for so long is dropped."""
LIFETIME_S = 900.0
"""A stream ends after this long and the listener comes back: so a revoked key is shut out in time."""
MAX_WATCHED = 100

_HEARTBEAT = format_sse_event(comment="still here")
_RECONNECT = format_sse_event(comment="rollcall", retry=1_000)

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `batch` (its present state), `finalized` (the same, it has just ended), `ready` (all "
        "that was missed has been told) and `resync` (too much was missed, or a promotion replaced the state: load it "
        "again), each with an id to come back with.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event that was seen.")
]
LastEventIdInUrl = Annotated[
    str | None, Query(alias="last_event_id", description="The same, for a first connection; the header goes first.")
]


class EventStream(Response):
    """Sends what a listener is told until it goes, does not keep up, or the stream's time is over."""

    media_type = "text/event-stream"

    def __init__(self, listening: AbstractContextManager[Listener]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with self._listening as listener:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            telling = asyncio.create_task(_tell(listener, send))
            gone = asyncio.create_task(_until_gone(receive))
            try:
                await asyncio.wait({telling, gone}, timeout=LIFETIME_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (telling, gone):
                    task.cancel()
                await asyncio.gather(telling, gone, return_exceptions=True)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(1):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _tell(listener: Listener, send: Send) -> None:
    event: bytes | None = _RECONNECT
    while event is not None:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                event = await listener.queue.get()
        except TimeoutError:
            event = _HEARTBEAT


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/events",
    status_code=200,
    response_class=EventStream,
    responses={**_RESPONSES, **documented(401, 403, 422, 429, 503)},
)
async def all_events(
    here: Here,
    batch_id: Annotated[list[Text], Query(max_length=MAX_WATCHED, description="Only of these batches.")] = [],  # noqa: B006 (FastAPI copies it)
    last_event_id: LastEventId = None,
    last_event_id_in_url: LastEventIdInUrl = None,
) -> EventStream:
    """Batches as they end, and the progress of the newest ones; or all of that of some."""
    wanted = frozenset(batch_id) or None
    return EventStream(here.feed.listening(wanted, _since(last_event_id or last_event_id_in_url)))


@router.get(
    "/batches/{batch_id}/events",
    status_code=200,
    response_class=EventStream,
    responses={**_RESPONSES, **documented(401, 403, 404, 422, 429, 503)},
)
async def batch_events(
    batch_id: str,
    here: Here,
    last_event_id: LastEventId = None,
    last_event_id_in_url: LastEventIdInUrl = None,
) -> EventStream:
    """A batch's present state, its progress, and its end."""
    since = _since(last_event_id or last_event_id_in_url)
    async with here.reading() as connection:
        await known(connection, here, batch_id)
    return EventStream(here.feed.listening(frozenset((batch_id,)), since))


def _since(event_id: str | None) -> feed.Seen | None:
    if event_id is None:
        return None
    try:
        return feed.read(event_id)
    except MalformedCursorError:
        raise invalid("Last-Event-ID", "this is no id of an event from here") from None
