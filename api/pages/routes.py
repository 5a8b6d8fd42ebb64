"""The pages' routes. What they show comes from the same functions that answer the API."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse

from api import history, items, sessions
from api.access import VIEWER, Role, Viewer
from api.batches import known, list_batches
from api.context import Context, Here
from api.jobs import list_runs
from api.models import Text
from api.pages import showing
from api.pages.rendering import HERE, PageRoute, rendered
from api.presenting import shown
from api.problems import Problem, not_found
from store import diagnosis, reads, shares

PAGE = 50
TILES = 1_000
DRAWN_ITEMS = 50_000
"""Of a larger batch, grid and chart are drawn when they are asked for."""
COLUMNS = 60
CHART_HEIGHT = 80
MOST_JOBS = 500
MISSING = 100
STATUSES = ("pending", "processing", "completed", "completed_with_errors", "failed", "cancelled", "expired")

_STATIC = {"rollcall.css": "text/css", "live.js": "text/javascript"}

router = APIRouter(route_class=PageRoute, include_in_schema=False)
viewing = Depends(VIEWER)

Cursor = Annotated[Text | None, Query()]
Filter = Annotated[Text, Query(max_length=200)]


@router.get("/")
async def batches(
    request: Request,
    here: Here,
    caller: Viewer,
    status: Filter = "",
    name: Filter = "",
    metadata: Filter = "",
    opened_since: Filter = "",
    cursor: Cursor = None,
) -> Response:
    """The list of batches."""
    if status and status not in STATUSES:
        raise Problem(422, f'there is no status "{status}"')
    page = await list_batches(
        here,
        status=status or None,  # type: ignore[arg-type]  # checked above
        name=name or None,
        metadata=[metadata] if metadata else [],
        opened_since=_midnight(opened_since) if opened_since else None,
        batch_id=None,
        cursor=cursor,
        limit=PAGE,
    )
    filters = {"status": status, "name": name, "metadata": metadata, "opened_since": opened_since}
    return rendered(request, "batches.html", caller, page=page, filters=filters, statuses=STATUSES)


@router.get("/batches/{batch_id}")
async def batch(
    request: Request,
    batch_id: str,
    here: Here,
    caller: Viewer,
    draw: bool = False,
    find: Filter = "",
    after: Cursor = None,
) -> Response:
    """One batch."""
    async with here.snapshot() as connection:
        status = await known(connection, here, batch_id)
        summary = await diagnosis.summary(connection, batch_id)
        size = status.answered + status.missing + status.retrying
        drawn = draw or size <= DRAWN_ITEMS
        tiles = await shares.tiles(connection, batch_id, TILES) if drawn else []
        begin, end = status.first_result_at, status.last_result_at
        has_chart = drawn and begin is not None and end is not None
        counts = (
            await shares.throughput(connection, batch_id, begin, end, COLUMNS) if has_chart and begin and end else []
        )
    found = shown(status, here.log_ends)
    return rendered(
        request,
        "batch.html",
        caller,
        batch=found,
        missing=await items.list_missing(batch_id, here, find=find, cursor=after, limit=MISSING),
        find=find,
        after=after,
        failures=await items.list_failures(batch_id, here),
        timeline=(await history.get_timeline(batch_id, here, caller)).events,
        summary=summary.summary if summary else None,
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
    return rendered(request, "why.html", caller, batch_id=batch_id, why=await history.get_why(batch_id, here))


@router.get("/batches/{batch_id}/missing.csv", dependencies=[viewing])
async def missing_csv(batch_id: str, here: Here, find: Filter = "") -> Response:
    """The ids of all that have not answered, or of those with something in them."""
    async with here.reading() as connection:
        await known(connection, here, batch_id)
    headers = {"Content-Disposition": 'attachment; filename="missing.csv"'}
    return StreamingResponse(_missing_csv(batch_id, here, find), media_type="text/csv; charset=utf-8", headers=headers)


async def _missing_csv(batch_id: str, here: Context, find: str) -> AsyncIterator[bytes]:
    yield items.csv_lines([("item_id",)])
    after: str | None = None
    while True:
        async with here.reading() as connection:
            page = await reads.missing(connection, batch_id, find=find, after=after, limit=10_000)
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
            # One more than is shown: where the next page begins.
            found = await shares.items_between(connection, batch_id, first, last, TILES + 1)
            following, found = (found[TILES][0], found[:TILES]) if len(found) > TILES else (None, found)
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
    return rendered(
        request, "items.html", caller, batch_id=batch_id, items=found, status=status, next=following, last=last
    )


@router.get("/batches/{batch_id}/item")
async def item(request: Request, batch_id: str, id: Text, here: Here, caller: Viewer) -> Response:  # noqa: A002
    """One item."""
    return rendered(request, "item.html", caller, item=await items.get_item(batch_id, id, here, caller))


@router.get("/jobs")
async def jobs(request: Request, here: Here, caller: Viewer, name: Filter = "", cursor: Cursor = None) -> Response:
    """Jobs, or the runs of one."""
    if name:
        return rendered(request, "runs.html", caller, page=await list_runs(name, here, caller, cursor, PAGE))
    async with here.snapshot() as connection:
        found = await shares.jobs(connection, MOST_JOBS)
    return rendered(request, "jobs.html", caller, jobs=found)


@router.get("/sign-in")
async def sign_in(request: Request, next: str = "/") -> Response:  # noqa: A002
    """Where a browser brings its API key."""
    return rendered(request, "sign_in.html", None, next=_local(next), problem="")


@router.post("/sign-in")
async def signed_in(request: Request, here: Here) -> Response:
    """Start a session, without JavaScript."""
    fields = parse_qs((await request.body()).decode(errors="replace"))
    wanted = _local(fields.get("next", ["/"])[0])
    try:
        started = await sessions.sign_in(sessions.SignIn(key=fields.get("key", ["-"])[0][:200]), request, here)
    except Problem as problem:
        return rendered(request, "sign_in.html", None, problem.status, next=wanted, problem=problem.detail)
    answer = RedirectResponse(wanted, 303)
    answer.raw_headers += [(name, value) for name, value in started.raw_headers if name == b"set-cookie"]
    return answer


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Style and script; nothing is loaded from anywhere else."""
    if name not in _STATIC:
        raise not_found(f'there is no file "{name}"')
    return FileResponse(HERE / "static" / name, media_type=_STATIC[name], headers={"Cache-Control": "no-cache"})


def _midnight(day: str) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(day), time(), UTC)
    except ValueError:
        raise Problem(422, f'"{day}" is no day: write it as 2026-11-30') from None


def _local(address: str) -> str:
    """An address of this site, whatever was asked for: nobody is sent elsewhere from here."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "/"
    is_local = not parts.scheme and not parts.netloc and address.startswith("/") and "\\" not in address
    return address if is_local and not address.startswith("//") else "/"
