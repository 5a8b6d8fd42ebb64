"""Handling items: several at a time, under the job's limits, each reported as it is answered."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import AsyncGeneratorType, GeneratorType
from typing import Any, NamedTuple, Protocol

import structlog
from aiolimiter import AsyncLimiter
from anyio import CapacityLimiter, from_thread, to_thread

from rollcall_client.batch import Batch
from rollcall_client.errors import InvalidMessageError, RollcallError, UnreachableError
from rollcall_client.jobs.job import CriticalError, Current, Items, Job, set_current
from rollcall_client.jobs.memory import InFlight, MemoryGate
from rollcall_client.jobs.outcomes import Failed, Outcome, Succeeded
from rollcall_client.jobs.progress import Callback, Progress
from rollcall_client.jobs.rates import Rate
from rollcall_client.jobs.stopping import Stop
from rollcall_client.jobs.threads import handled
from rollcall_client.messages import Error, check_item_id, error_of

_log = structlog.get_logger(__name__)

LOGGED_FAILURES = 100
BREATHE_EVERY = 200
"""Items after which a job that never waits for anything lets others have the event loop."""


class ItemTimeoutError(Exception):
    """An attempt took longer than the job's ``item_timeout_s``."""


@dataclass(frozen=True)
class Prior:
    """What earlier runs of the batch left: ids that are done, and the last attempt of those that are not.

    ``revision`` is that of the batch's last finalization, 0 before the first; ``finalized`` says that it still stands,
    so that there is nothing to do.
    """

    done: frozenset[str] | set[str] = frozenset()
    attempts: Mapping[str, int] = field(default_factory=dict)
    revision: int = 0
    finalized: bool = False

    @property
    def next_revision(self) -> int:
        """The least revision that tells how the batch ends."""
        return self.revision if self.finalized else self.revision + 1


class Work(NamedTuple):
    """An item to handle, and the number of this attempt."""

    item: Any
    item_id: str
    attempt: int


class Tried(NamedTuple):
    """What came of an attempt: a value, or what was raised."""

    returned: Any
    raised: BaseException | None
    duration_ms: float


class Source(Protocol):
    """Where items to handle come from."""

    async def chunk(self, size: int) -> list[Work]:
        """The next so many, fewer at the end; none when there are no more."""
        ...


class Drawing:
    """Items as they are drawn: counted, and given out where they are this run's and not done yet.

    ``error`` is what the source raised: then nothing more comes. ``stop`` ends the wait for an asynchronous one.
    """

    def __init__(self, job: Job, items: Items, prior: Prior, is_ours: Callable[[str], bool], stop: Stop) -> None:
        self._job = job
        self._prior = prior
        self._is_ours = is_ours
        self._stop = stop
        self._items: Iterator[Any] | None = iter(items) if isinstance(items, Iterable) else None
        self._async_items: AsyncIterator[Any] | None = aiter(items) if isinstance(items, AsyncIterable) else None
        self._one_at_a_time = asyncio.Lock()
        self.drawn = 0
        self.done_before = 0
        self.error: Exception | None = None

    async def chunk(self, size: int) -> list[Work]:
        """The next so many, fewer at the end; none when there are no more."""
        chunk: list[Work] = []
        if self.error is not None:
            return chunk
        try:
            if self._items is not None:
                for item in self._items:
                    if (work := self._work(item)) is not None:
                        chunk.append(work)
                        if len(chunk) == size:
                            break
                    elif not self.drawn % BREATHE_EVERY:
                        await asyncio.sleep(0)
            elif self._async_items is not None:
                async with self._one_at_a_time, self._stop.cuts_short():
                    while len(chunk) < size and self.error is None and not self._stop.is_set():
                        if (work := self._work(await anext(self._async_items))) is not None:
                            chunk.append(work)
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self.error = RollcallError(f"{self._job.name}: something that its items come from was cancelled")
            self.error.__cause__ = error
        except Exception as error:
            # Where the wait for the next one was cut short, it is what the source made of that.
            if self._async_items is None or not self._stop.is_set():
                self.error = error
        return chunk

    def _work(self, item: Any) -> Work | None:
        item_id = check_item_id(self._job.item_id(item))  # before its work is done, not when that is reported
        self.drawn += 1
        if not self._is_ours(item_id):
            return None
        if item_id in self._prior.done:
            self.done_before += 1
            return None
        return Work(item, item_id, self._prior.attempts.get(item_id, 0) + 1)


class Execution:
    """One process's work on a batch. ``critical`` is what stopped it, where a CriticalError did."""

    def __init__(self, job: Job, batch: Batch, *, worker: str, progress: Progress, tell: Callback) -> None:
        self._job = job
        self._batch = batch
        self._worker = worker
        self._progress = progress
        self._tell = tell
        self._gate = MemoryGate(job.memory_limit_mb)
        self._in_flight = InFlight()
        rate = Rate.of(job.rate) if isinstance(job.rate, str) else job.rate
        self._limiter: AsyncLimiter | None = None if rate is None else rate.limiter()
        self._threads = None if job.is_async else CapacityLimiter(job.concurrency)
        self._stop = Stop()
        self._started = 0
        self._unanswered = 0
        self._source_is_empty = False
        self._failures = 0
        self._cut_short = False
        self.critical: CriticalError | None = None
        self.critical_details: Error = ""
        self.job_metrics: dict[str, float] = {}
        self.item_metrics = False

    def stop(self) -> None:
        """Start no more items; those being handled come to their end, without further attempts."""
        self._stop.set()

    @property
    def stopping(self) -> Stop:
        """Set where it was told to stop."""
        return self._stop

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before all was known to be done."""
        return self._stop.is_set() and not (self._source_is_empty and self._unanswered == 0)

    def check_not_cut_short(self) -> None:
        """Raises UnreachableError where it ended since Kafka did not take what was published.

        To be asked after the flush that names these messages: of a client that is shared, another flush may have been
        told instead.
        """
        if self._cut_short:
            raise UnreachableError(
                f"Kafka did not take all that was published meanwhile; batch {self._batch.batch_id} stays open"
            )

    async def take_back(self, prior: Prior, is_ours: Callable[[str], bool]) -> None:
        """Say of what failed before that it is tried again.

        Else the batch would be finalized, with those failures, by the last of the missing items.
        """
        for item_id, attempt in prior.attempts.items():
            if is_ours(item_id):
                await self._batch.retrying(item_id, attempt=attempt + 1, worker=self._worker)

    async def run(self, source: Source) -> None:
        """Handle all that can be drawn, ``job.concurrency`` at a time."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(self._job.concurrency):
                lanes.create_task(self._lane(source))

    async def _lane(self, source: Source) -> None:
        while chunk := await self._next(source):
            self._in_flight.count += len(chunk)
            try:
                if self._threads is not None:
                    await self._handle_in_thread(chunk, self._threads)
                else:
                    for work in chunk:
                        await self._handle(work, 1)
            finally:
                self._in_flight.count -= len(chunk)

    async def _next(self, source: Source) -> list[Work]:
        try:
            await self._gate.passed(self._in_flight, self._stop)
        except CriticalError as error:
            self.end_by(error)
        if self._stop.is_set():
            return []
        if self._batch.undelivered:
            self._cut_short = True
        if self._cut_short:
            return []
        self._started += 1
        if not self._started % BREATHE_EVERY:
            await asyncio.sleep(0)
        chunk = await source.chunk(self._job.chunk_size)
        self._unanswered += len(chunk)
        self._source_is_empty |= not chunk and not self._stop.is_set()
        return chunk

    async def _handle(self, work: Work, tries: int) -> None:
        """Attempt until the item is answered, or the run is stopped."""
        while await self._may_start():
            wait_s = await self._settle(work, tries, await self._try(work))
            if wait_s is None or not await self._waited(wait_s):
                return
            work = work._replace(attempt=work.attempt + 1)
            tries += 1

    async def _may_start(self) -> bool:
        """Wait for the rate; False where it was stopped."""
        if self._limiter is not None:
            async with self._stop.cuts_short():
                await self._limiter.acquire()
        return not self._stop.is_set()

    async def _handle_in_thread(self, chunk: Sequence[Work], threads: CapacityLimiter) -> None:
        """Attempt a chunk in one thread; once all of it is reported, what has to be tried again is tried alone."""
        if len(chunk) == 1:
            await self._handle(chunk[0], 1)
            return
        for _ in chunk:
            if not await self._may_start():
                return
        try:
            tried = await to_thread.run_sync(handled, self._try_all, chunk, limiter=threads)
        except BaseException:
            self._stop.set()  # cancelled: the thread is to begin no further item, for which no loop may be left
            raise
        again: list[tuple[float, Work]] = []
        for work, each in zip(chunk, tried, strict=False):  # fewer where it was stopped
            wait_s = await self._settle(work, 1, each)
            if wait_s is not None:
                again.append((time.monotonic() + wait_s, work._replace(attempt=work.attempt + 1)))
        for due, work in again:
            if await self._waited(max(0.0, due - time.monotonic())):
                await self._handle(work, 2)

    async def _try(self, work: Work) -> Tried:
        set_current(Current(self._batch.batch_id, work.item_id, work.attempt, self._worker, self.job_metrics))
        started = time.perf_counter()
        returned: Any = None
        raised: BaseException | None = None
        limit = self._job.item_timeout_s
        try:
            if limit is None:
                returned = await self._call(work)
            else:
                async with asyncio.timeout(limit) as timeout:
                    returned = await self._call(work)
        except TimeoutError as error:
            raised = error
            if limit is not None and timeout.expired():
                raised = ItemTimeoutError(f"took longer than {limit:g} s")
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raised = error  # something that the item waited for was cancelled, not this run
        except Exception as error:
            raised = error
        return Tried(returned, raised, round((time.perf_counter() - started) * 1000, 3))

    async def _call(self, work: Work) -> Any:
        if self._threads is None:
            returned = self._job.handle(work.item)
        else:
            handle = self._job.handle
            returned = await to_thread.run_sync(
                handled, handle, work.item, abandon_on_cancel=True, limiter=self._threads
            )
        return await _awaited(returned)

    def _try_all(self, chunk: Sequence[Work]) -> list[Tried]:
        tried: list[Tried] = []
        for work in chunk:
            if self._stop.is_set():
                break
            set_current(Current(self._batch.batch_id, work.item_id, work.attempt, self._worker, self.job_metrics))
            started = time.perf_counter()
            returned: Any = None
            raised: BaseException | None = None
            try:
                returned = self._job.handle(work.item)
                if inspect.isawaitable(returned):
                    returned = from_thread.run(_awaited, returned)
            except (Exception, asyncio.CancelledError) as error:  # nobody cancels a thread: that is the job's own
                raised = error
            tried.append(Tried(returned, raised, round((time.perf_counter() - started) * 1000, 3)))
            if isinstance(raised, CriticalError):
                break
        return tried

    async def _settle(self, work: Work, tries: int, tried: Tried) -> float | None:
        """Report an attempt; how long to wait for the next, None where the item is answered."""
        error = tried.raised
        if error is None:
            await self._report(work, tried)
            return None
        if isinstance(error, CriticalError):
            self.end_by(error)
        retry = None if isinstance(error, CriticalError) else self._job.retry_for(error)
        if retry is not None and tries < retry.attempts and not self._stop.is_set():
            await self._batch.retrying(
                work.item_id,
                error,
                attempt=work.attempt,
                duration_ms=tried.duration_ms,
                worker=self._worker,
            )
            return retry.wait_s(tries)
        self._log_failure(work, error)
        await self._batch.failed(
            work.item_id, error, attempt=work.attempt, duration_ms=tried.duration_ms, worker=self._worker
        )
        self._count("failed")
        return None

    async def _report(self, work: Work, tried: Tried) -> None:
        outcome = self._outcome_of(tried.returned)
        try:
            await self._send(work, tried, outcome)
        except InvalidMessageError as error:
            # The work is done: what it said about it must not make it undone.
            _log.warning("what a job says of an item cannot be kept", item_id=work.item_id, error=str(error))
            problem = None if outcome.problem is None else {"message": str(outcome.problem)}
            await self._batch.result(
                work.item_id,
                outcome.status,
                error=problem,
                effect=outcome.effect,
                attempt=work.attempt,
                duration_ms=tried.duration_ms,
                worker=self._worker,
                message=f"not all of what the job says could be kept: {error}",
            )
        if outcome.metrics:
            self.item_metrics = True
        self._count(outcome.status)

    def _outcome_of(self, returned: Any) -> Outcome:
        if isinstance(returned, Outcome):
            return returned
        if isinstance(returned, GeneratorType | AsyncGeneratorType):
            return Failed(
                f"handle of {self._job.name} gave a generator, whose work nobody does: no yield in handle, and no "
                "generator as what it returns"
            )
        return Succeeded(output=returned)

    async def _send(self, work: Work, tried: Tried, outcome: Outcome) -> None:
        if outcome.status == "failed":
            self._log_failure(work, outcome.problem)
        await self._batch.result(
            work.item_id,
            outcome.status,
            error=outcome.problem,
            effect=outcome.effect,
            message=outcome.message,
            output=outcome.output,
            metrics=outcome.metrics,
            attempt=work.attempt,
            duration_ms=tried.duration_ms,
            worker=self._worker,
        )

    def _count(self, status: str) -> None:
        self._unanswered -= 1
        self._progress.count(status)
        self._tell(self._progress)

    def end_by(self, error: CriticalError, details: Error | None = None) -> None:
        """Stop by a critical error; ``details`` say more of it than the exception here does."""
        if self.critical is None:
            self.critical = error
            self.critical_details = details or error
        self.stop()

    def _log_failure(self, work: Work, error: Any) -> None:
        self._failures += 1
        if self._failures > LOGGED_FAILURES:
            return
        _log.warning(
            "item failed",
            job=self._job.name,
            batch_id=self._batch.batch_id,
            item_id=work.item_id,
            attempt=work.attempt,
            error=error_of(error)["message"],
            exc_info=error if isinstance(error, BaseException) else None,
        )
        if self._failures == LOGGED_FAILURES:
            _log.warning("further failures of this run are not logged", batch_id=self._batch.batch_id)

    async def _waited(self, seconds: float) -> bool:
        """Wait; False where it was stopped meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return not self._stop.is_set()


async def _awaited(returned: Any) -> Any:
    """What comes of what ``handle`` returned: where that is a coroutine, its work is yet to be done."""
    while inspect.isawaitable(returned):
        returned = await returned
    return returned
