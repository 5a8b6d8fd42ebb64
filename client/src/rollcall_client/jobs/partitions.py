"""A run spread over processes of this machine: one draws the items, the others handle them and report.

Each child asks for more through a pipe of its own, so that a quick one gets more, and one that is killed takes nothing
with it but what it had in hand. Through another it says at once what stopped it: who draws from a slow source hears
nothing of the first.
"""

import asyncio
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from anyio import CapacityLimiter, to_thread

from rollcall_client.client import Rollcall
from rollcall_client.errors import RollcallError
from rollcall_client.jobs import logs
from rollcall_client.jobs.execution import Drawing, Execution, Work
from rollcall_client.jobs.job import CriticalError, Job
from rollcall_client.jobs.progress import Callback, Progress
from rollcall_client.jobs.rates import Rate
from rollcall_client.jobs.results import numbers_in
from rollcall_client.jobs.threads import ends_without_the_hung
from rollcall_client.messages import error_of

_log = structlog.get_logger(__name__)

ENDING_S = 30.0
LOOK_EVERY_S = 1.0
FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM)
"""Ctrl+C and systemd reach all processes: the parent says when to end."""


class More(NamedTuple):
    """A child asks for items, and says how many it has answered so far."""

    succeeded: int
    failed: int


class Ended(NamedTuple):
    """A child is through: all that it reported is acknowledged."""

    critical: Mapping[str, Any] | None
    job_metrics: Mapping[str, float]


async def run_in_processes(
    job: Job,
    client: Rollcall,
    batch_id: str,
    drawing: Drawing,
    execution: Execution,
    count: int,
    worker: str,
    progress: Progress,
    tell: Callback,
) -> None:
    """Have ``count`` processes handle all that can be drawn; what stopped one stops ``execution``.

    Raises RollcallError where one of them ended before its time: what it had in hand is unanswered then.
    """
    context = multiprocessing.get_context("spawn")
    threads = CapacityLimiter(3 * count)
    children: list[tuple[SpawnProcess, Connection]] = []
    watching: list[tuple[asyncio.Task[None], Connection]] = []
    answered = [More(0, 0)] * count

    def heard(number: int, more: More) -> None:
        answered[number] = more
        progress.succeeded, progress.failed = (sum(each) for each in zip(*answered, strict=True))
        progress.done = progress.succeeded + progress.failed
        tell(progress)

    async def feed(number: int, process: SpawnProcess, pipe: Connection) -> bool:
        """Whether the child came to its end."""
        backlog = job.concurrency * job.chunk_size
        try:
            while True:
                said = await to_thread.run_sync(_heard, pipe, process, abandon_on_cancel=True, limiter=threads)
                if isinstance(said, Ended):
                    for name, value in said.job_metrics.items():
                        execution.job_metrics[name] = execution.job_metrics.get(name, 0) + value
                    if said.critical is not None:
                        execution.end_by(CriticalError(said.critical["message"]), said.critical)
                    return True
                heard(number, said)
                chunk = [] if execution.stopped else await drawing.chunk(backlog)
                chunk = [] if execution.stopped else chunk  # it was, while this one waited for what to draw
                await to_thread.run_sync(pipe.send, chunk, abandon_on_cancel=True, limiter=threads)
        except (EOFError, OSError):
            return False

    async def watch(process: SpawnProcess, stops: Connection) -> None:
        with suppress(EOFError, OSError):
            error = await to_thread.run_sync(_heard, stops, process, abandon_on_cancel=True, limiter=threads)
            execution.end_by(CriticalError(error["message"]), error)

    try:
        for number in range(1, count + 1):
            ours, theirs = context.Pipe()
            heard_of, says = context.Pipe(duplex=False)
            arguments = (job, client.options, batch_id, worker_of(worker, number, count), count, theirs, says)
            process = context.Process(target=_child, args=arguments, daemon=True, name=f"{job.name}-{number}")
            try:
                await to_thread.run_sync(_start, process)
            except Exception as error:
                raise RollcallError(
                    f"{job.name} cannot be handed to another process ({error}): define it at the top of a module, and "
                    "give Kafka's options by the environment"
                ) from error
            theirs.close()
            says.close()
            children.append((process, ours))
            watching.append((asyncio.create_task(watch(process, heard_of)), heard_of))
        ended = await asyncio.gather(*(feed(number, *child) for number, child in enumerate(children)))
        for process, _ in children:
            await to_thread.run_sync(process.join, ENDING_S)
    finally:
        for task, stops in watching:
            task.cancel()
            stops.close()
        for process, pipe in children:
            pipe.close()
            if process.is_alive():
                process.kill()  # they ignore what is milder
    lost = [process for (process, _), through in zip(children, ended, strict=True) if not through]
    if lost:
        codes = ", ".join(f"{process.name} with {process.exitcode}" for process in lost)
        raise RollcallError(f"processes ended before their time ({codes}); run batch {batch_id} again to do the rest")


def worker_of(worker: str, number: int, count: int) -> str:
    """The name that one of so many processes reports under."""
    return f"{worker}-{number}of{count}"


def _start(process: SpawnProcess) -> None:
    """Start it with signals blocked, as it inherits from this thread: one would kill it while it imports."""
    resource_tracker.ensure_running()  # which else is started on the way, and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heard(pipe: Connection, process: SpawnProcess) -> Any:
    """What a child says next. Raises EOFError where it has ended, though one that it forked may hold its pipe's end."""
    while not pipe.poll(LOOK_EVERY_S):
        if not process.is_alive() and not pipe.poll():
            raise EOFError
    return pipe.recv()


def _child(
    job: Job, options: Mapping[str, Any], batch_id: str, worker: str, count: int, pipe: Connection, stops: Connection
) -> None:
    _keep_to_oneself()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # programs that the job starts would inherit SIG_IGN
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_PARENT)
    logs.to_stderr()
    if job.rate is not None:
        rate = Rate.of(job.rate) if isinstance(job.rate, str) else job.rate
        job.rate = replace(rate, count=rate.count / count)
    with ends_without_the_hung():  # within ENDING_S
        asyncio.run(_work(job, options, batch_id, worker, pipe, stops))


def _keep_to_oneself() -> None:
    """Let no program that the job starts have the pipes by which the parent, and the resource tracker, see our end."""
    with suppress(FileNotFoundError):  # no /dev/fd, as in a chroot: then they do have it
        for each in list(Path("/dev/fd").iterdir()):
            if int(each.name) > 2:
                with suppress(OSError):  # the one by which these were listed is gone
                    os.set_inheritable(int(each.name), False)


async def _work(
    job: Job, options: Mapping[str, Any], batch_id: str, worker: str, pipe: Connection, stops: Connection
) -> None:
    progress = Progress()
    async with Rollcall(**options) as client:
        execution = Execution(job, client.batch(batch_id), worker=worker, progress=progress, tell=lambda _: None)
        await job.begin()
        try:
            async with _said_when_critical(execution, stops):
                await execution.run(_Received(pipe, execution, progress))
        finally:
            await job.end()
        await client.flush()
        execution.check_not_cut_short()
        critical = None if execution.critical is None else error_of(execution.critical)
        await to_thread.run_sync(pipe.send, More(progress.succeeded, progress.failed))
        await to_thread.run_sync(pipe.recv)
        await to_thread.run_sync(pipe.send, Ended(critical, numbers_in(execution.job_metrics)))


@asynccontextmanager
async def _said_when_critical(execution: Execution, stops: Connection) -> AsyncIterator[None]:
    async def say() -> None:
        await execution.stopping.wait()
        if execution.critical is not None:
            with suppress(OSError):  # nobody is there any more
                await to_thread.run_sync(stops.send, error_of(execution.critical))

    saying = asyncio.create_task(say())
    try:
        yield
    finally:
        if execution.critical is None:
            saying.cancel()
        else:
            await saying  # it may not have begun, where nothing was waited for since


class _Received:
    """Items as they come through the pipe."""

    def __init__(self, pipe: Connection, execution: Execution, progress: Progress) -> None:
        self._pipe = pipe
        self._execution = execution
        self._progress = progress
        self._backlog: deque[Work] = deque()
        self._ended = False
        self._one_at_a_time = asyncio.Lock()

    async def chunk(self, size: int) -> list[Work]:
        """The next so many, fewer at the end; none when there are no more."""
        async with self._one_at_a_time:
            if not self._backlog and not self._ended:
                try:
                    self._backlog.extend(await to_thread.run_sync(self._ask, abandon_on_cancel=True))
                except (EOFError, OSError):
                    # Nobody is there any more: come to an end with what is in hand.
                    self._execution.stop()
                self._ended = not self._backlog
            return [self._backlog.popleft() for _ in range(min(size, len(self._backlog)))]

    def _ask(self) -> list[Work]:
        self._pipe.send(More(self._progress.succeeded, self._progress.failed))
        received: list[Work] = self._pipe.recv()
        return received
