"""Runs and retries that are asked for on ``rollcall.requests``, taken up by whoever has the job."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from itertools import count
from typing import Any, NamedTuple

import structlog

from rollcall_client import listening
from rollcall_client.client import ASK_EVERY_S, Rollcall
from rollcall_client.errors import RollcallError
from rollcall_client.jobs.execution import Drawing, Execution, Prior
from rollcall_client.jobs.job import Items, Job, drawable
from rollcall_client.jobs.prior import CAUGHT_UP_S, DONE, prior_of, standing_of
from rollcall_client.jobs.progress import Progress
from rollcall_client.jobs.rates import Retry
from rollcall_client.jobs.running import begun, end_of_work, run, stopping, worker_name
from rollcall_client.jobs.stopping import JobStoppedError, unless_stopped
from rollcall_client.messages import Message, check_batch_id, check_item_id

_log = structlog.get_logger(__name__)

RUN_REQUESTED = "job.run_requested"
RETRY_REQUESTED = "batch.retry_requested"
AGAIN = Retry(initial_s=1, max_s=60)


async def listen(jobs: Mapping[str, Job], client: Rollcall, *, group: str, stop: asyncio.Event | None = None) -> None:
    """Take up requests for these jobs, one after the other, until cancelled or ``stop`` is set.

    Listeners of a ``group`` share the requests. A request is committed once it is done with; one that is interrupted
    comes again, and is then gone on with where the API is known. So does one whose partition Kafka gives to another
    listener meanwhile, since some come or go: both then do what each finds undone, items perhaps twice. While Kafka or
    the API is away, or Rollcall far behind, one is tried again and again, since the next would fare no better; what
    else goes wrong with one is logged, and the next is taken.
    """
    topic = client.kafka.topic("requests")
    stream = listening.records(client.kafka, topic, group=group, start="earliest", max_body_s=listening.DAY_S)
    async with aclosing(stream) as requests:
        while True:
            try:
                record = await unless_stopped(anext(requests), stop, "requests")
            except JobStoppedError:
                return
            headers = dict(record.headers)
            kind = (
                (headers.get("ce_type") or b"").decode(errors="replace").removeprefix("rollcall.").removesuffix(".v1")
            )
            if kind not in _READ:
                continue
            try:
                request = _READ[kind](json.loads(record.value or b"null"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                _log.error("a request that cannot be understood", kind=kind, error=repr(error), offset=record.offset)
                continue
            try:
                await _take_up(jobs, client, kind, request, stop)
            except Exception as error:
                if stop is not None and stop.is_set():
                    return  # it was interrupted: not committed, so it comes again
                _log.error("a request went wrong", kind=kind, error=str(error), offset=record.offset, exc_info=error)


class _Run(NamedTuple):
    job: str
    run_id: str
    params: Mapping[str, Any]


class _Retry(NamedTuple):
    batch_id: str
    retry_of: str
    item_ids: Sequence[str]
    """None of them: all that is left."""


def _run_of(message: Message) -> _Run:
    return _Run(str(message["job"]), check_batch_id(message["run_id"]), dict(message.get("params") or {}))


def _retry_of(message: Message) -> _Retry:
    item_ids = [check_item_id(each) for each in message["item_ids"]]
    return _Retry(check_batch_id(message["batch_id"]), check_batch_id(message["retry_of"]), item_ids)


_READ: Mapping[str, Callable[[Message], _Run | _Retry]] = {RUN_REQUESTED: _run_of, RETRY_REQUESTED: _retry_of}


async def _take_up(
    jobs: Mapping[str, Job], client: Rollcall, kind: str, request: _Run | _Retry, stop: asyncio.Event | None
) -> None:
    """Do what is asked for, as often as it takes where the cause of a failure may pass."""
    for tries in count(1):
        try:
            if isinstance(request, _Run):
                await _run_requested(jobs, client, request, stop)
            else:
                await _retry_requested(jobs, client, request, stop)
            return
        except RollcallError as error:
            if not error.may_pass:
                raise
            wait_s = AGAIN.wait_s(tries)
            _log.warning("a request is tried again", kind=kind, error=str(error), in_s=round(wait_s, 1))
        await unless_stopped(asyncio.sleep(wait_s), stop, "another try")


async def _run_requested(jobs: Mapping[str, Job], client: Rollcall, request: _Run, stop: asyncio.Event | None) -> None:
    job = jobs.get(request.job)
    if job is None:
        return  # somebody else's
    _log.info("run requested", job=job.name, run_id=request.run_id)
    await run(
        job,
        rc=client,
        batch_id=request.run_id,
        params=request.params,
        metadata={"run_id": request.run_id},
        rerun="missing" if client.api is not None else "all",
        progress=None,
        stop=stop,
    )


async def _retry_requested(
    jobs: Mapping[str, Job], client: Rollcall, request: _Retry, stop: asyncio.Event | None
) -> None:
    """Do items again for a new batch, which is open already and has them as its manifest."""
    batch_id, retry_of, item_ids = request
    job = await unless_stopped(_job_of(jobs, client, request), stop, f"which job batch {retry_of} is of")
    if job is None:
        return  # somebody else's
    _log.info("retry requested", job=job.name, batch_id=batch_id, retry_of=retry_of, items=len(item_ids) or "all left")
    done = await unless_stopped(_done_of(client, batch_id), stop, f"what is done of batch {batch_id}")
    if done.finalized:
        _log.info("the batch is finalized: nothing to do", job=job.name, batch_id=batch_id)
        return
    wanted = drawable(job, job.items_for(item_ids)) if item_ids else _left_of(job, client, retry_of)
    items = await unless_stopped(wanted, stop, f"the items of {job.name}")
    batch = client.batch(batch_id)
    execution = Execution(job, batch, worker=worker_name(None), progress=Progress(), tell=lambda _: None)
    drawing = Drawing(job, items, done, lambda _: True, execution.stopping)
    # Of a retry of many items there are several requests: what another has left failed is not done again by this one.
    await execution.take_back(done, set(item_ids).__contains__ if item_ids else lambda _: True)
    async with stopping(execution, stop), begun(job):
        await execution.run(drawing)
    await end_of_work(client, job, batch, execution, drawing)


async def _job_of(jobs: Mapping[str, Job], client: Rollcall, request: _Retry) -> Job | None:
    """The job of ours to do a batch's items again: as its metadata says, or, without the API, by how its id begins."""
    batch_id = request.retry_of
    if client.api is None:
        ours = [job for name, job in jobs.items() if batch_id.startswith(f"{name}-")]
        return max(ours, key=lambda job: len(job.name), default=None)
    found = await client.api.batch(batch_id)
    if found is None and await listening.is_there(client.kafka, client.kafka.topic("events"), batch_id):
        # Its database is behind the log: restored, or begun anew, or on a replica that lags. Or all of it was refused.
        await standing_of(client, client.api, request.batch_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(CAUGHT_UP_S):
                while (found := await client.api.batch(batch_id)) is None:  # noqa: ASYNC110 - the API says nothing by itself
                    await asyncio.sleep(ASK_EVERY_S)
    if found is None:
        _log.error("a retry of a batch that Rollcall does not know", batch_id=request.batch_id, retry_of=batch_id)
        return None
    named = (found["metadata"] or {}).get("job")
    return jobs.get(named) if isinstance(named, str) else None


async def _left_of(job: Job, client: Rollcall, batch_id: str) -> Items:
    """The items of a batch that aren't done: all of the job's where the API can't tell."""
    if client.api is None:
        return await drawable(job, job.items())
    await standing_of(client, client.api, batch_id)
    found = await client.api.batch(batch_id)
    params = ((found or {}).get("metadata") or {}).get("params") or {}
    done = {item["item_id"] async for item in client.api.items(batch_id) if item["status"] in DONE}
    return _without(job, await drawable(job, job.items(**params)), done)


async def _without(job: Job, items: Items, done: set[str]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            if job.item_id(item) not in done:
                yield item
    else:
        for item in items:
            if job.item_id(item) not in done:
                yield item


async def _done_of(client: Rollcall, batch_id: str) -> Prior:
    """What of the new batch is done already, by a listener that was interrupted."""
    return Prior() if client.api is None else await prior_of(client, batch_id)
