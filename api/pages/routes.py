"""The pages' routes. What they show comes from the same functions that answer the API."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlsplit

from aiokafka.errors import KafkaError
from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse

from api import history, items, sessions
from api.access import VIEWER, Caller, Role, Viewer
from api.batches import known
from api.context import Context, Here
from api.models import Text
from api.pages import showing
from api.presenting import shown
from api.problems import Problem, not_found
from store import details, diagnosis, figures, reads, shares
from streams.observing import Group, administering, group

PAGE = 50
TILES = 1_000
DRAWN_ITEMS = 50_000
"""Of a larger batch, grid and chart are drawn when they are asked for."""
COLUMNS = 60
CHART_HEIGHT = 80
MOST_JOBS = 500
BROKER_TIMEOUT_S = 5.0
STATUSES = ("pending", "processing", "completed", "completed_with_errors", "failed", "cancelled", "expired")

_HERE = Path(str(files("api.pages")))
_STATIC = {"rollcall.css": "text/css", "live.js": "text/javascript"}

_templates = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(
    icons=showing.ICONS,
    segments=showing.segments,
    bar_text=showing.bar_text,
    eta=showing.eta,
    duration=showing.duration,
    age=showing.age,
    batch_url=showing.batch_url,
    item_url=showing.item_url,
    bar_width=showing.BAR_WIDTH,
)


class _Page(APIRoute):
    """A page's errors are pages, and whoever is not signed in is asked to."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps the handler."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as problem:
                if problem.status == 401 and request.url.path != "/sign-in":
                    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                    return RedirectResponse(f"/sign-in?next={quote(wanted, safe='')}", 303)
                return _rendered(request, "problem.html", None, problem.status, detail=problem.detail)
            except RequestValidationError:
                return _rendered(request, "problem.html", None, 422, detail="the address has a value that cannot be")

        return answer


router = APIRouter(route_class=_Page, include_in_schema=False)
viewing = Depends(VIEWER)

Cursor = Annotated[Text | None, Query()]
Filter = Annotated[Text, Query(max_length=200)]


@router.get("/")
async def batches(
    request: Request, here: Here, caller: Viewer, status: Filter = "", name: Filter = "", cursor: Cursor = None
) -> Response:
    """The list of batches."""
    if status and status not in STATUSES:
        raise Problem(422, f'there is no status "{status}"')
    async with here.snapshot() as connection:
        try:
            page = await reads.batches(
                connection,
                here.topics.events,
                status=status or None,  # type: ignore[arg-type]  # checked above
                name=name or None,
                after=cursor,
                limit=PAGE,
            )
        except LookupError:
            raise not_found("that page of the list is gone: begin anew") from None
    found = [shown(each, here.log_ends) for each in page.rows]
    return _rendered(
        request, "batches.html", caller, batches=found, next=page.next, status=status, name=name, statuses=STATUSES
    )


@router.get("/batches/{batch_id}")
async def batch(
    request: Request, batch_id: str, here: Here, caller: Viewer, draw: bool = False, find: Filter = ""
) -> Response:
    """One batch."""
    async with here.snapshot() as connection:
        status = await known(connection, here, batch_id)
        summary = await details.summary(connection, batch_id)
        size = status.answered + status.missing + status.retrying
        drawn = draw or size <= DRAWN_ITEMS
        tiles = await shares.tiles(connection, batch_id, TILES) if drawn else []
        begin, end = status.first_result_at, status.last_result_at
        has_chart = drawn and begin is not None and end is not None
        counts = (
            await shares.throughput(connection, batch_id, begin, end, COLUMNS) if has_chart and begin and end else []
        )
    found = shown(status, here.log_ends)
    return _rendered(
        request,
        "batch.html",
        caller,
        batch=found,
        missing=await items.list_missing(batch_id, here, cursor=None, limit=1_000 if find else 100),
        find=find,
        failures=await items.list_failures(batch_id, here),
        timeline=(await history.get_timeline(batch_id, here)).events,
        summary=summary[1] if summary else None,
        drawn=drawn,
        tiles=tiles,
        columns=showing.columns(counts, CHART_HEIGHT),
        column_count=COLUMNS,
        chart_height=CHART_HEIGHT,
        highest=max(counts, default=0),
        column_s=(end - begin).total_seconds() / COLUMNS if counts and begin and end else 0,
        may_act=caller.may(Role.OPERATOR),
    )


@router.get("/batches/{batch_id}/why")
async def why(request: Request, batch_id: str, here: Here, caller: Viewer) -> Response:
    """Why a batch isn't done."""
    return _rendered(request, "why.html", caller, batch_id=batch_id, why=await history.get_why(batch_id, here))


@router.get("/batches/{batch_id}/missing.csv", dependencies=[viewing])
async def missing_csv(batch_id: str, here: Here) -> Response:
    """The ids of all that have not answered."""
    async with here.reading() as connection:
        await known(connection, here, batch_id)
    headers = {"Content-Disposition": 'attachment; filename="missing.csv"'}
    return StreamingResponse(_missing_csv(batch_id, here), media_type="text/csv; charset=utf-8", headers=headers)


async def _missing_csv(batch_id: str, here: Context) -> AsyncIterator[bytes]:
    yield items.csv_lines([("item_id",)])
    after: str | None = None
    while True:
        async with here.reading() as connection:
            page = await reads.missing(connection, batch_id, after=after, limit=10_000)
        yield items.csv_lines([(items.csv_cell("item_id", each),) for each in page.rows])
        after = page.next
        if after is None:
            return


@router.get("/batches/{batch_id}/items")
async def batch_items(
    request: Request,
    batch_id: str,
    here: Here,
    caller: Viewer,
    status: Filter = "",
    cursor: Cursor = None,
    first: Cursor = None,
    last: Cursor = None,
) -> Response:
    """A batch's items: all by page, those of a status, or those of a slice."""
    async with here.snapshot() as connection:
        await known(connection, here, batch_id)
        if first is not None and last is not None:
            found = await shares.items_between(connection, batch_id, first, last, TILES)
            following = None if len(found) < TILES else found[-1][0]
        else:
            if status and status not in ("succeeded", "partial", "failed", "skipped", "retrying"):
                raise Problem(422, f'there is no status "{status}" of items')
            page = await reads.items(
                connection,
                batch_id,
                status=status or None,  # type: ignore[arg-type]  # checked above
                after=cursor,
                limit=200,
            )
            found, following = [(each.item_id, each.status) for each in page.rows], page.next
    return _rendered(
        request, "items.html", caller, batch_id=batch_id, items=found, status=status, next=following, last=last
    )


@router.get("/batches/{batch_id}/item")
async def item(request: Request, batch_id: str, id: Text, here: Here, caller: Viewer) -> Response:  # noqa: A002
    """One item."""
    return _rendered(request, "item.html", caller, item=await items.get_item(batch_id, id, here, caller))


@router.get("/jobs")
async def jobs(request: Request, here: Here, caller: Viewer) -> Response:
    """Runs by name."""
    async with here.snapshot() as connection:
        found = await shares.jobs(connection, MOST_JOBS)
    return _rendered(request, "jobs.html", caller, jobs=found)


@router.get("/system")
async def system(request: Request, here: Here, caller: Viewer) -> Response:
    """Workers, lag, what waits to be published, misplaced records."""
    async with here.snapshot() as connection:
        applied = await diagnosis.applied(connection, here.topics.events)
        raw = (await connection.get_raw_connection()).driver_connection
        now = await figures.read(raw, here.topics.events)  # type: ignore[arg-type]  # it is asyncpg's
    group_found, problem = await _group(here)
    return _rendered(
        request,
        "system.html",
        caller,
        applied=dict(sorted(applied.items())),
        ends={partition: here.log_ends.of(partition) for partition in applied},
        figures=now,
        group=group_found,
        problem=problem,
        topics=here.topics,
    )


@router.get("/sign-in")
async def sign_in(request: Request, next: str = "/") -> Response:  # noqa: A002
    """Where a browser brings its API key."""
    return _rendered(request, "sign_in.html", None, next=_local(next), problem="")


@router.post("/sign-in")
async def signed_in(request: Request, here: Here) -> Response:
    """Start a session, without JavaScript."""
    fields = parse_qs((await request.body()).decode(errors="replace"))
    wanted = _local(fields.get("next", ["/"])[0])
    try:
        started = await sessions.sign_in(sessions.SignIn(key=fields.get("key", ["-"])[0][:200]), request, here)
    except Problem as problem:
        return _rendered(request, "sign_in.html", None, problem.status, next=wanted, problem=problem.detail)
    answer = RedirectResponse(wanted, 303)
    answer.raw_headers += [(name, value) for name, value in started.raw_headers if name == b"set-cookie"]
    return answer


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Style and script; nothing is loaded from anywhere else."""
    if name not in _STATIC:
        raise not_found(f'there is no file "{name}"')
    return FileResponse(_HERE / "static" / name, media_type=_STATIC[name], headers={"Cache-Control": "no-cache"})


async def _group(here: Context) -> tuple[Group | None, str | None]:
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S), administering(here.kafka) as admin:
            return await group(admin, here.topics.consumer_group, here.topics.events), None
    except (KafkaError, TimeoutError, OSError) as error:
        return None, f"Kafka does not say who reads: {type(error).__name__}"


def _local(address: str) -> str:
    """An address of this site, whatever was asked for: nobody is sent elsewhere from here."""
    parts = urlsplit(address)
    is_local = not parts.scheme and not parts.netloc and address.startswith("/") and "\\" not in address
    return address if is_local and not address.startswith("//") else "/"


def _rendered(request: Request, template: str, caller: Caller | None, code: int = 200, **values: Any) -> Response:
    text = _templates.get_template(template).render(
        **values, request=request, caller=caller, now=datetime.now(UTC), path=request.url.path, status_code=code
    )
    return HTMLResponse(text, code)
