"""Jobs: ask for a run, and look at the runs there were."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.responses import JSONResponse

from api.access import Operator, Viewer
from api.batches import Limit
from api.context import Here
from api.idempotency import Answer, IdempotencyKey, Try, once
from api.models import RequestBody, Text
from api.problems import Problem, documented, invalid
from handlers.finalization import rfc3339
from schemas.events import MAX_METADATA_BYTES
from schemas.headers import cloud_event, headers_text
from schemas.published import JobRunRequested
from store import access, details, reads
from store.reads import BatchStatus
from store.rows import OutboxRow

router = APIRouter(tags=["jobs"])

EVENT = "job.run_requested"

JobName = Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[^/\u0000-\u001f\u007f-\u009f]+$")]


class NewRun(RequestBody):
    """A run of a job."""

    params: dict[str, Any] = Field(default_factory=dict, description="Whatever the job takes.")


class RequestedRun(BaseModel):
    """A run that was asked for; a listener of the job takes it up."""

    job: str
    run_id: str


class Run(BaseModel):
    """One run of a job: the same result for every job."""

    batch_id: str
    status: str
    processed: int = Field(description="Items that were answered.")
    created: int
    updated: int
    skipped: int = Field(description="Items that were skipped, or left unchanged.")
    failed: int
    duration_ms: int | None = Field(description="From its opening to its end; null while it is not over.")
    metrics: dict[str, float] = Field(description="Sums of the items' metrics; empty while there is no summary.")
    opened_at: datetime | None
    finalized_at: datetime | None


class RunPage(BaseModel):
    """Runs, newest first; `next` is the `cursor` of the next page, null: there is none."""

    job: str
    runs: list[Run]
    next: str | None


@router.post(
    "/jobs/{name}/runs",
    status_code=202,
    response_model=RequestedRun,
    responses=documented(400, 401, 403, 404, 408, 409, 413, 422, 429, 503),
)
async def request_run(
    name: JobName,
    here: Here,
    caller: Operator,
    body: NewRun | None = None,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Ask for a run of a job: `job.run_requested` goes out on the requests topic."""
    params = body.params if body else {}
    _check_params(params)

    async def act(this: Try) -> Answer:
        run_id = this.new_id()
        event = JobRunRequested(job=name, params=params, run_id=run_id)
        event_id = f"{EVENT}/{run_id}"
        headers = cloud_event(
            event_id=event_id,
            event_type=f"rollcall.{EVENT}.v1",
            source=here.topics.source,
            time=rfc3339(datetime.now(UTC)),
            subject=run_id,
            traceparent=None,
        )
        row = OutboxRow(event_id, "requests", None, None, event.model_dump_json(), headers_text(headers))
        # Together: what is asked for is written down, and goes out once. The event's id makes a repetition harmless.
        async with here.writing() as connection:
            await access.record_action(
                connection, caller=caller.name, key_id=caller.key_id, action=f"run {name}", batch_id=None, items=None
            )
            await access.ask(connection, row)
        return Answer(202, RequestedRun(job=name, run_id=run_id).model_dump())

    request = {"route": "run", "job": name, "params": params}
    return (await once(here, caller, idempotency_key, request, act)).response()


@router.get("/jobs/{name}/runs", responses=documented(401, 403, 404, 422, 429, 503))
async def list_runs(name: JobName, here: Here, _: Viewer, cursor: Text | None = None, limit: Limit = 50) -> RunPage:
    """The runs of a job: the batches of its name, newest first."""
    async with here.snapshot() as connection:
        try:
            page = await reads.batches(connection, here.topics.events, name=name, after=cursor, limit=limit)
        except LookupError:
            raise invalid("cursor", "there is no such run (any more)") from None
        metrics = await details.job_metrics(connection, [each.batch_id for each in page.rows])
    runs = [_run(each, metrics.get(each.batch_id, {})) for each in page.rows]
    return RunPage(job=name, runs=runs, next=page.next)


def _run(found: BatchStatus, metrics: dict[str, float]) -> Run:
    begun, ended = found.opened_at or found.first_result_at, found.finalized_at
    return Run(
        batch_id=found.batch_id,
        status=found.status,
        processed=found.answered,
        created=found.created,
        updated=found.updated,
        skipped=found.skipped + found.unchanged,
        failed=found.failed,
        duration_ms=round((ended - begun).total_seconds() * 1000) if begun and ended else None,
        metrics=metrics,
        opened_at=found.opened_at,
        finalized_at=ended,
    )


def _check_params(params: dict[str, Any]) -> None:
    try:
        text = json.dumps(params, ensure_ascii=False, allow_nan=False).encode()
        to_json(params)  # which takes less of nesting
    except ValueError as error:
        raise invalid("params", f"cannot be sent as JSON: {error}") from None
    if b"\\u0000" in text:
        raise invalid("params", "a string contains U+0000")
    if len(text) > MAX_METADATA_BYTES:
        raise Problem(413, f"params: {len(text)} bytes of JSON, at most {MAX_METADATA_BYTES} are taken")
