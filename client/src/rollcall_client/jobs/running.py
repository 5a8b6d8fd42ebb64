"""A run of a job from its opening to its result."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal
from zlib import crc32

import structlog

from rollcall_client.batch import Batch
from rollcall_client.client import Rollcall, fresh_id
from rollcall_client.errors import ApiError, ConfigurationError, RollcallError
from rollcall_client.events import FinalizedEvent
from rollcall_client.jobs.execution import Drawing, Execution, Prior
from rollcall_client.jobs.job import Items, Job, as_job, drawable
from rollcall_client.jobs.partitions import run_in_processes, worker_of
from rollcall_client.jobs.prior import prior_of, standing_of
from rollcall_client.jobs.progress import Callback, Progress, Showing, shown
from rollcall_client.jobs.results import JobResult, numbers_in
from rollcall_client.jobs.stopping import JobStoppedError, unless_stopped
from rollcall_client.messages import check_batch_id, check_worker

_log = structlog.get_logger(__name__)

WAIT_S = 600.0
DEPENDENCY_WAIT_S = 3600.0
SUMMARY_WAIT_S = 30.0

Rerun = Literal["missing", "all"]


class DependencyError(RollcallError):
    """The job to come before ended with another outcome than is accepted, or didn't end in time."""


async def run(
    job: Job | type[Job] | Callable[[Any], Any],
    items: Items | None = None,
    *,
    rc: Rollcall | None = None,
    batch_id: str | None = None,
    now: datetime | None = None,
    params: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    retry_of: str | None = None,
    after_batch_id: str | None = None,
    rerun: Rerun = "missing",
    partitions: int = 1,
    partition: tuple[int, int] | None = None,
    worker: str | None = None,
    progress: Showing = "auto",
    stop: asyncio.Event | None = None,
    wait_timeout_s: float = WAIT_S,
) -> JobResult:
    """Run a job on all items, and wait for what Rollcall makes of it.

    ``items``: a list (or another collection: then Rollcall knows which are missing), any iterable or asynchronous
    iterable, drawn as they are needed; by default ``job.items(**params)``. ``rc``: a started client; by default one
    from the environment (``ROLLCALL_BOOTSTRAP_SERVERS``, ``ROLLCALL_API_URL`` ...).

    With a ``batch_id``, or a job with a ``bucket`` (``now`` says which), this may be a run again: a finalized batch is
    only reported, of one that isn't, what is missing or failed is done. That asks the service's API; ``rerun="all"``
    does all of it again. Without the API that may report the result before, of a batch that was reopened.

    ``partitions`` spreads the items over so many processes of this machine, ``partition=(2, 3)`` does the second of
    three shares here and leaves the others to others, who are to use the same ``batch_id``. ``worker`` is the name
    under which this process reports. ``stop``, once set, ends the run early. ``retry_of`` names the batch that this
    one does items of again, ``after_batch_id`` the one to wait for, where that has no ``bucket`` to tell by.

    Raises JobStoppedError, DependencyError, ConfigurationError, DeliveryError, ApiError, TimeoutError where the batch
    isn't finalized within ``wait_timeout_s`` of the last item, and what ``items`` raises; the batch then stays open.
    """
    chosen = as_job(job)
    now = now or datetime.now(UTC)
    _check_shares(partitions, partition)
    worker = worker or worker_name(partition)
    check_worker(worker if partitions == 1 else worker_of(worker, partitions, partitions))
    async with _client(rc) as client:
        own_id = chosen.batch_id_at(now) if batch_id is None else check_batch_id(batch_id)
        if partition is not None and own_id is None:
            raise ConfigurationError(f"{chosen.name}: shares of a run need one batch_id (or a bucket) for all")
        if own_id is not None and rerun == "missing" and client.api is None:
            raise ConfigurationError(
                f"{chosen.name}: what is done of batch {own_id} is asked of Rollcall's API: "
                'give api_url (ROLLCALL_API_URL), or rerun="all" to do everything again'
            )
        await unless_stopped(
            _await_dependency(chosen, client, now, after_batch_id), stop, f"what {chosen.name} is to come after"
        )
        given = chosen.items(**(params or {})) if items is None else items
        started = _Run(
            job=chosen,
            client=client,
            items=await unless_stopped(drawable(chosen, given), stop, f"the items of {chosen.name}"),
            batch_id=own_id or fresh_id(chosen.name),
            fresh=own_id is None,
            rerun=rerun,
            partitions=partitions,
            partition=partition,
            worker=worker,
            progress=progress,
            stop=stop,
            wait_timeout_s=wait_timeout_s,
            retry_of=retry_of,
            metadata={"job": chosen.name, **({"params": params} if params else {}), **(metadata or {})},
        )
        try:
            return await started.to_the_end()
        except JobStoppedError as stopped:
            started.log.warning("job stopped", reason=str(stopped))
            raise
        except Exception as error:
            told = isinstance(error, RollcallError | TimeoutError)  # its one line says it all
            started.log.error("job went wrong", error=str(error), exc_info=None if told else error)
            raise


class _Run:
    def __init__(
        self,
        *,
        job: Job,
        client: Rollcall,
        items: Items,
        batch_id: str,
        fresh: bool,
        rerun: Rerun,
        partitions: int,
        partition: tuple[int, int] | None,
        worker: str,
        progress: Showing,
        stop: asyncio.Event | None,
        wait_timeout_s: float,
        retry_of: str | None,
        metadata: Mapping[str, Any],
    ) -> None:
        self._job = job
        self._client = client
        self._items = items
        self._batch_id = batch_id
        self._fresh = fresh
        self._rerun = rerun
        self._partitions = partitions
        self._partition = partition
        self._worker = worker
        self._showing = progress
        self._stop = stop
        self._wait_timeout_s = wait_timeout_s
        self._retry_of = retry_of
        self._metadata = metadata
        self._revision = 1
        self.log = _log.bind(job=job.name, batch_id=batch_id)

    async def to_the_end(self) -> JobResult:
        ids = self._manifest()
        opened = await self._client.open(
            name=self._job.name,
            items=ids,
            deadline=self._job.deadline,
            policy=self._job.policy,
            metadata=self._metadata,
            batch_id=None if self._fresh else self._batch_id,
            retry_of=self._retry_of,
        )
        batch = self._client.batch(opened.batch_id)  # which holds no ids: the items are counted as they are drawn
        self._batch_id = batch.batch_id
        self.log = self.log.bind(batch_id=batch.batch_id)
        prior = Prior()
        if not self._fresh:
            asking = prior_of(self._client, batch.batch_id) if self._rerun == "missing" else self._standing()
            prior = await unless_stopped(asking, self._stop, f"what is done of batch {batch.batch_id}")
        self._revision = prior.next_revision
        if prior.finalized and self._rerun == "missing":
            self.log.info("the batch is finalized: nothing to do")
            return await self._result(await self._finalized(), {}, True, None, ran=False)
        self.log.info("job started", items=None if ids is None else len(ids), done_before=len(prior.done))
        with shown(self._job.name, self._showing) as tell:
            progress = Progress(total=None if ids is None else self._share_of(ids, prior))
            execution = Execution(self._job, batch, worker=self._worker, progress=progress, tell=tell)
            drawing = Drawing(self._job, self._items, prior, self._is_ours, execution.stopping)
            await execution.take_back(prior, self._is_ours)
            async with stopping(execution, self._stop):
                await self._work(execution, drawing, progress, tell)
        return await self._conclude(batch, execution, drawing, sealed=ids is not None)

    async def _standing(self) -> Prior:
        """For a run that does all again: nothing is done, but which revision it will end as is known, with an API."""
        await self._client.flush()  # else a run that is tried again would do all its work for nothing each time
        if self._client.api is not None:
            try:
                return await standing_of(self._client, self._client.api, self._batch_id)
            except ApiError as error:
                self.log.warning("nobody says how the batch stands: the result may be an old one", error=str(error))
        return Prior()

    def _manifest(self) -> list[str] | None:
        if not isinstance(self._items, Collection):
            return None
        return [self._job.item_id(item) for item in self._items]

    def _share_of(self, ids: Collection[str], prior: Prior) -> int:
        return sum(1 for item_id in ids if self._is_ours(item_id) and item_id not in prior.done)

    def _is_ours(self, item_id: str) -> bool:
        if self._partition is None:
            return True
        number, shares = self._partition
        return crc32(item_id.encode()) % shares == number - 1

    async def _work(self, execution: Execution, drawing: Drawing, progress: Progress, tell: Callback) -> None:
        if self._partitions == 1:
            async with begun(self._job):
                await execution.run(drawing)
            return
        await self._client.flush()
        await run_in_processes(
            self._job,
            self._client,
            self._batch_id,
            drawing,
            execution,
            count=self._partitions,
            worker=self._worker,
            progress=progress,
            tell=tell,
        )

    async def _conclude(self, batch: Batch, execution: Execution, drawing: Drawing, *, sealed: bool) -> JobResult:
        await end_of_work(self._client, self._job, batch, execution, drawing)
        if execution.critical is None and not sealed:
            await batch.seal(total_items=drawing.drawn)
            await self._client.flush()
        critical = None if execution.critical is None else str(execution.critical)
        # Only these have something in the summary that the event has not.
        counted = execution.item_metrics or self._partitions > 1 or self._partition is not None or not self._fresh
        try:
            event = await self._finalized()
        except TimeoutError as error:
            if sealed:
                raise
            raise TimeoutError(f"{error}; it has {drawing.drawn} items: are their ids distinct?") from None
        return await self._result(event, numbers_in(execution.job_metrics), counted, critical, ran=True)

    async def _finalized(self) -> FinalizedEvent:
        waiting = self._client.wait(self._batch_id, revision=self._revision, timeout=self._wait_timeout_s)
        return await unless_stopped(waiting, self._stop, f"the end of batch {self._batch_id}")

    async def _result(
        self, event: FinalizedEvent, metrics: Mapping[str, float], counted: bool, error: str | None, *, ran: bool
    ) -> JobResult:
        summary = None
        if counted:
            try:
                summary = await self._client.summary(self._batch_id, revision=event.revision, timeout=SUMMARY_WAIT_S)
            except TimeoutError:
                self.log.warning("no summary yet: the result is without metrics and shares")
        result = JobResult.of(self._job.name, event, summary, job_metrics=metrics, error=error, ran=ran)
        self.log.info(
            "job finished", **result.payload(), outcome=result.outcome, missing=result.missing, partial=result.partial
        )
        return result


async def end_of_work(client: Rollcall, job: Job, batch: Batch, execution: Execution, drawing: Drawing) -> None:
    """Once all items had their turn: see that Kafka has their results, and abort the batch of a critical error.

    Raises JobStoppedError, DeliveryError, UnreachableError, and what the items' source raised: it then stays open.
    """
    await client.flush()
    execution.check_not_cut_short()
    if execution.critical is not None:
        error = str(execution.critical)
        _log.error("job stopped by a critical error", job=job.name, batch_id=batch.batch_id, error=error)
        await batch.abort(execution.critical_details)
        await client.flush()
        return
    if drawing.error is not None:
        raise drawing.error
    if execution.stopped:
        raise JobStoppedError(f"{job.name} was stopped; batch {batch.batch_id} stays open: run it again to do the rest")
    client.check_opened(batch.batch_id)


async def _await_dependency(job: Job, client: Rollcall, now: datetime, batch_id: str | None) -> None:
    if batch_id is None:
        if job.after is None:
            return
        before = as_job(job.after)
        batch_id = before.batch_id_at(now)
        if batch_id is None:
            raise ConfigurationError(
                f"{job.name} is to come after {before.name}, which needs a bucket for that, or after_batch_id"
            )
    _log.info("waiting for the batch before", job=job.name, after=batch_id)
    try:
        event = await client.wait(batch_id, timeout=DEPENDENCY_WAIT_S)
    except TimeoutError as error:
        raise DependencyError(f"{job.name} is to come after another: {error}") from error
    if event.outcome not in job.after_outcomes:
        raise DependencyError(
            f"{job.name} doesn't start: batch {batch_id} ended {event.outcome}, "
            f"accepted is {', '.join(job.after_outcomes)}"
        )


def _check_shares(partitions: int, partition: tuple[int, int] | None) -> None:
    if partitions < 1:
        raise ConfigurationError(f"partitions is from 1, not {partitions}")
    if partition is not None and not 1 <= partition[0] <= partition[1]:
        raise ConfigurationError(f"partition is (which, of how many), like (2, 3), not {partition}")
    if partition is not None and partitions > 1:
        raise ConfigurationError("give partitions (here) or partition (this one of several machines), not both")


def worker_name(partition: tuple[int, int] | None) -> str:
    """This process's name among those that report into a batch."""
    here = f"{socket.gethostname()[:100]}-{os.getpid()}"
    return here if partition is None else f"{here}-{partition[0]}of{partition[1]}"


@asynccontextmanager
async def _client(rc: Rollcall | None) -> AsyncIterator[Rollcall]:
    if rc is not None:
        yield rc
        return
    async with Rollcall.from_environment() as own:
        yield own


@asynccontextmanager
async def begun(job: Job) -> AsyncIterator[None]:
    """Between a job's ``begin`` and its ``end``."""
    await job.begin()
    try:
        yield
    finally:
        await job.end()


@asynccontextmanager
async def stopping(execution: Execution, stop: asyncio.Event | None) -> AsyncIterator[None]:
    """Have an execution stopped once ``stop`` is set."""
    if stop is None:
        yield
        return

    async def when_set() -> None:
        await stop.wait()
        execution.stop()

    watching = asyncio.create_task(when_set())
    try:
        yield
    finally:
        watching.cancel()
