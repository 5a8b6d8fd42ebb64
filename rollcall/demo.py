"""`rollcall demo`: a real job through a real Kafka, a real PostgreSQL and all of Rollcall, start to finish."""

import asyncio
import os
import secrets
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from rollcall.demo_job import CheckJob, installed_distributions, with_tampered_copies
from rollcall.demo_report import FinalizedEvents, lines, print_table, show_progress, total_line
from rollcall.settings import ENV_PREFIX
from rollcall.stack import embedded_stack, until_interrupted
from schemas.topics import Topics

STALLED_AFTER_S = 60.0
PLAIN_WIDTH = 140


class DemoError(RuntimeError):
    """The demo did not come to its end; the message is one line."""


def demo(*, tamper: bool, workers: int) -> int:
    """Run the demo on servers of its own and say on stdout how it went; the exit code.

    Raises `DemoError`, and what `embedded_stack` raises.
    """
    # The processes' log lines share the terminal with the progress bars: only what went wrong is shown.
    os.environ.setdefault(f"{ENV_PREFIX}LOG_LEVEL", "error")
    finished = False

    async def to_the_end() -> None:
        nonlocal finished
        await _demo(_console(), tamper=tamper, workers=workers)
        finished = True

    until_interrupted(to_the_end())
    return 0 if finished else 1


def _console() -> Console:
    # Without a terminal there is no width to keep to: wide enough that no line of the table breaks.
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


async def _demo(console: Console, *, tamper: bool, workers: int) -> None:
    started = time.perf_counter()
    run = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(2)}"
    distributions = installed_distributions(run)
    with tempfile.TemporaryDirectory(prefix="rollcall-demo-") as copies:
        if tamper:
            distributions = with_tampered_copies(distributions, Path(copies))
        job = CheckJob(distributions, run=run, threads=os.cpu_count() or 2)
        _say(console, f"Starting Kafka, PostgreSQL and Rollcall (workers: {workers}) ...")
        async with embedded_stack(workers=workers, progress=lambda line: _say(console, line)) as stack:
            _say(console, f"Kafka at {stack.bootstrap_servers}, PostgreSQL at {stack.database_url}")
            events = FinalizedEvents(list(job.progress))
            topics = Topics(stack.settings.topic_prefix)
            await _until_finalized(console, job, events, stack.bootstrap_servers, topics)
            batches = lines(job.progress, events.seen)
            print_table(console, batches)
            _say(console, total_line(batches, time.perf_counter() - started))


async def _until_finalized(
    console: Console, job: CheckJob, events: FinalizedEvents, bootstrap_servers: str, topics: Topics
) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            display = group.create_task(show_progress(console, job.progress, events))
            stalled = group.create_task(_fail_when_stalled(job, events))
            publishing = group.create_task(job.publish(bootstrap_servers, topics.events))
            reading = group.create_task(events.read(bootstrap_servers, topics.finalized))
            await asyncio.wait({publishing, reading})
            display.cancel()
            stalled.cancel()
    except ExceptionGroup as errors:
        cause = _first_of(errors)
        raise DemoError(str(cause) or type(cause).__name__) from cause
    if events.repeated:
        raise DemoError(f"finalized more than once: {', '.join(sorted(set(events.repeated)))}")


async def _fail_when_stalled(job: CheckJob, events: FinalizedEvents) -> None:
    last, since = (-1, -1), time.monotonic()
    while True:
        now = (sum(batch.published for batch in job.progress.values()), len(events.seen))
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > STALLED_AFTER_S:
            open_batches = sorted(job.progress.keys() - events.seen.keys())
            raise DemoError(
                f"nothing happened for {STALLED_AFTER_S:g} s and {len(open_batches)} batches have no finalized event: "
                f"{', '.join(open_batches[:5])}{' ...' if len(open_batches) > 5 else ''}"
            )
        await asyncio.sleep(0.5)


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
