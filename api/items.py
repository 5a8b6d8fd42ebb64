"""Reading a batch's items: results, who is missing, what failed."""

import csv
import io
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import StreamingResponse

from api.access import VIEWER, Role, Viewer
from api.batches import Limit, known
from api.context import Here
from api.models import FailureGroup, FailureGroups, Item, ItemDetail, ItemError, ItemPage, MissingPage, Text
from api.problems import documented, not_found
from handlers.finalization import rfc3339
from store import details, diagnosis, reads, statistics
from store.connection import driver

router = APIRouter(tags=["items"], dependencies=[Depends(VIEWER)])

Status = Annotated[reads.ItemStatus | None, Query(description="Only those of this status.")]
Cursor = Annotated[Text | None, Query(description="`next` of the page before.")]

_READING = documented(401, 403, 404, 422, 429, 503)

MAX_GROUPS = 20
NAMED = 5
SAMPLED = 20_000
"""Failed items of an open batch that are looked at for grouping, at most."""
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_TEXT_COLUMNS = frozenset({"item_id", "message", "error_code", "error_message", "output", "worker"})


@router.get("/batches/{batch_id}/items", responses=_READING)
async def list_items(
    batch_id: str,
    here: Here,
    status: Status = None,
    item_id: Annotated[
        Text | None, Query(description="Only the one of this id: for ids that a path cannot hold, as `..`.")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> ItemPage:
    """What is known of a batch's items, by id."""
    async with here.snapshot() as connection:
        await known(connection, here, batch_id)
        page = await reads.items(connection, batch_id, status=status, item_id=item_id, after=cursor, limit=limit)
    return ItemPage(items=[Item(**asdict(each)) for each in page.rows], next=page.next)


@router.get("/batches/{batch_id}/items/{item_id:path}", responses=documented(401, 403, 404, 429, 503))
async def get_item(batch_id: str, item_id: str, here: Here, caller: Viewer) -> ItemDetail:
    """All that is known of one item; its id is percent-encoded (a `/` may stay as it is)."""
    async with here.reading() as connection:
        storable = "\0" not in batch_id + item_id
        found = await details.item(connection, batch_id, item_id) if storable else None
    if found is None:
        raise not_found(f'the batch "{batch_id}" has no item "{item_id}"')
    fields = asdict(found)
    code, message, trace = fields.pop("error_code"), fields.pop("error_message"), fields.pop("stack_trace")
    has_error = code is not None or message is not None
    error = ItemError(code=code, message=message, stack_trace=trace if caller.may(Role.OPERATOR) else None)
    status = fields.pop("status") or ("missing" if found.expected else "late")
    return ItemDetail(**fields, batch_id=batch_id, status=status, error=error if has_error else None)


@router.get("/batches/{batch_id}/missing", responses=_READING)
async def list_missing(
    batch_id: str,
    here: Here,
    find: Annotated[Text, Query(max_length=200, description="Only ids with this in them, in capitals or not.")] = "",
    cursor: Cursor = None,
    limit: Limit = 100,
) -> MissingPage:
    """Who has not answered: ids on the manifest without a terminal result."""
    async with here.snapshot() as connection:
        found = await known(connection, here, batch_id)
        named = await reads.has_manifest(connection, batch_id)
        page = await reads.missing(connection, batch_id, find=find, after=cursor, limit=limit) if named else None
    return MissingPage(
        total=found.total,
        missing=found.missing,
        item_ids=list(page.rows) if page is not None else None if found.missing else [],
        next=page.next if page is not None else None,
    )


@router.get("/batches/{batch_id}/failures", responses=_READING)
async def list_failures(batch_id: str, here: Here) -> FailureGroups:
    """Failures grouped by error, the most frequent first: the summary's, and before there is one, of a sample."""
    async with here.snapshot() as connection:
        found = await known(connection, here, batch_id)
        summary = await diagnosis.summary(connection, batch_id) if found.outcome else None
        if summary is not None and summary.summary is not None and summary.summary["revision"] == found.revision:
            groups = [FailureGroup(**each) for each in summary.summary["error_groups"]]
            return FailureGroups(failed=found.failed, grouped=found.failed, groups=groups)
        same = await statistics.error_groups(
            await driver(connection), batch_id, groups=MAX_GROUPS, named=NAMED, among=SAMPLED
        )
    groups = [FailureGroup(error=each.error, count=each.items, item_ids=each.item_ids) for each in same]
    return FailureGroups(failed=found.failed, grouped=min(found.failed, SAMPLED), groups=groups)


@router.get(
    "/batches/{batch_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "All results, by item id.",
            "content": {
                "text/csv": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        },
        **_READING,
    },
)
async def download_results(
    batch_id: str,
    here: Here,
    caller: Viewer,
    format: Annotated[Literal["csv", "ndjson"], Query(description="What to stream.")] = "ndjson",  # noqa: A002
    status: Status = None,
) -> StreamingResponse:
    """All results of a batch, streamed. Stack traces are in NDJSON only, and only for operators."""
    async with here.reading() as connection:
        await known(connection, here, batch_id)
    stack_traces = format == "ndjson" and caller.may(Role.OPERATOR)
    pages = details.results(here.engine, batch_id, status=status, stack_traces=stack_traces)
    if format == "csv":
        content, media_type = _as_csv(pages), "text/csv; charset=utf-8; header=present"
    else:
        content, media_type = _as_ndjson(pages), "application/x-ndjson"
    headers = {"Content-Disposition": f'attachment; filename="results.{format}"'}
    return StreamingResponse(content, media_type=media_type, headers=headers)


async def _as_csv(pages: AsyncIterator[Sequence[Any]]) -> AsyncIterator[bytes]:
    yield csv_lines([details.RESULT_COLUMNS])
    async for rows in pages:
        yield csv_lines([csv_cell(name, getattr(row, name)) for name in details.RESULT_COLUMNS] for row in rows)


async def _as_ndjson(pages: AsyncIterator[Sequence[Any]]) -> AsyncIterator[bytes]:
    async for rows in pages:
        yield "".join(_ndjson_line(row) for row in rows).encode()


def _ndjson_line(row: Any) -> str:
    fields = {name: value if name in ("output", "metrics") else _plain(value) for name, value in row._mapping.items()}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"


def csv_lines(rows: Any) -> bytes:
    """Rows as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows(rows)
    return buffer.getvalue().encode()


def csv_cell(name: str, value: Any) -> Any:
    """A column's value as it goes into CSV; text that a spreadsheet would run is made text."""
    if name in ("output", "metrics") and value is not None:
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    value = _plain(value)
    if name in _TEXT_COLUMNS and isinstance(value, str) and value.startswith(_FORMULA_BEGINS):
        # A spreadsheet would take it for a formula, and run it.
        return "'" + value
    return value


def _plain(value: Any) -> Any:
    return rfc3339(value) if hasattr(value, "isoformat") else value
