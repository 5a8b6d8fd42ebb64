"""``rollcall-job``: run a job, or listen for requests to run one."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rollcall_client.client import Rollcall
from rollcall_client.errors import ConfigurationError, InvalidMessageError, RollcallError
from rollcall_client.jobs import logs
from rollcall_client.jobs.job import Job, jobs_in, load_job
from rollcall_client.jobs.requests import listen
from rollcall_client.jobs.results import JobResult
from rollcall_client.jobs.running import run
from rollcall_client.jobs.stopping import JobStoppedError
from rollcall_client.jobs.threads import INTERRUPTED, ends_without_the_hung

OK, WENT_WRONG, WRONG_USE = 0, 1, 2
STOPPED = INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: exit code 0 where the run is COMPLETED, 1 where it isn't, 2 for wrong use, 130 stopped."""
    with ends_without_the_hung():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> NoReturn:
    options = _parser().parse_args(arguments)
    if options.path is not None:
        sys.path.insert(0, str(options.path))
    logs.to_stderr()
    try:
        if options.command == "listen":
            sys.exit(asyncio.run(_listen(options)))
        with asyncio.Runner() as runner:
            job = runner.run(_loaded(options.job))
            params, partition = _params(options.param), _partition(options.partition)
            items = _items(options.items)  # here, where a signal ends the wait for them as usual
            sys.exit(runner.run(_run(options, job, params, partition, items)))
    except JobStoppedError as error:
        print(f"rollcall-job: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(STOPPED)
    except (ConfigurationError, InvalidMessageError, _UsageError) as error:
        print(f"rollcall-job: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(WRONG_USE)
    except (RollcallError, TimeoutError) as error:
        print(f"rollcall-job: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(WENT_WRONG)


class _UsageError(Exception):
    pass


async def _loaded(job: str) -> Job:
    """In the event loop that it runs in: what its module makes may belong to that."""
    return load_job(job)


async def _run(
    options: argparse.Namespace,
    job: Job,
    params: dict[str, Any],
    partition: tuple[int, int] | None,
    items: list[Any] | None,
) -> int:
    with _stop_on_signals() as stop:
        result = await run(
            job,
            items,
            rc=None,
            batch_id=options.batch_id,
            after_batch_id=options.after,
            params=params,
            rerun="all" if options.all else "missing",
            partitions=options.partitions,
            partition=partition,
            worker=options.worker,
            stop=stop,
            wait_timeout_s=options.wait,
        )
    print(json.dumps(result.payload()) if options.json else _for_people(result))  # noqa: T201
    return OK if result.status == "COMPLETED" else WENT_WRONG


async def _listen(options: argparse.Namespace) -> int:
    jobs = jobs_in(options.jobs)
    with _stop_on_signals() as stop:
        async with Rollcall.from_environment() as client:
            group = options.group or f"{client.kafka.topic_prefix}jobs.{options.jobs}"
            print(f"listening for {', '.join(sorted(jobs))}", file=sys.stderr)  # noqa: T201
            await listen(jobs, client, group=group, stop=stop)
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rollcall-job", description="Run jobs whose every item answers to Rollcall.")
    parser.add_argument("--path", type=Path, default=Path.cwd(), help="where modules are looked for (default: here)")
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="run a job and print its result")
    run_.add_argument("job", help="module:job")
    run_.add_argument("--items", metavar="FILE", help="items, one a line (JSON, or text); - is stdin")
    run_.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="passed to the job's items()")
    run_.add_argument("--batch-id", help="run this batch, or what is left of it")
    run_.add_argument("--after", metavar="BATCH_ID", help="wait for this batch, and start if it ended well enough")
    run_.add_argument("--all", action="store_true", help="do all of a batch again, without asking the API what is done")
    run_.add_argument("--partitions", type=int, default=1, metavar="N", help="processes to spread the items over")
    run_.add_argument("--partition", metavar="K/N", help="do only the Kth of N shares: the others run elsewhere")
    run_.add_argument("--worker", help="the name to report under")
    run_.add_argument("--wait", type=float, default=600.0, metavar="SECONDS", help="for the end, after the last item")
    run_.add_argument("--json", action="store_true", help="print the result as JSON")
    listen_ = commands.add_parser("listen", help="run jobs, and retry items, as it is asked for on rollcall.requests")
    listen_.add_argument("jobs", help="module (all of its jobs), or module:job")
    listen_.add_argument("--group", help="listeners of one group share the requests")
    return parser


def _items(file: str | None) -> list[Any] | None:
    if file is None:
        return None
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise _UsageError(f"the items cannot be read: {error}") from error
    return [_item(line) for line in text.splitlines() if line.strip()]


def _item(line: str) -> Any:
    if line.lstrip()[0] not in '{["':
        return line.strip()
    try:
        item = json.loads(line)
    except ValueError:
        return line.strip()
    return tuple(item) if isinstance(item, list) else item


def _params(given: Sequence[str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise _UsageError(f"--param is written NAME=VALUE, not {each!r}")
        params[name] = value
    return params


def _partition(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    which, slash, of = given.partition("/")
    if not slash or not which.isdecimal() or not of.isdecimal():
        raise _UsageError(f"--partition is written K/N, like 2/3, not {given!r}")
    return int(which), int(of)


def _for_people(result: JobResult) -> str:
    lines = [
        f"{result.job}: {result.status} ({result.outcome}), batch {result.batch_id}",
        f"processed {result.processed}, created {result.created}, updated {result.updated}, "
        f"skipped {result.skipped}, partial {result.partial}, failed {result.failed}, missing {result.missing}",
    ]
    if not result.ran:
        lines.append("the batch was finalized before: nothing was done")
    if result.error:
        lines.append(result.error)
    for what, ids in (("failed", result.failed_item_ids), ("missing", result.missing_item_ids)):
        if ids:
            lines.append(f"{what}: {', '.join(ids[:20])}{' ...' if len(ids) > 20 else ''}")
    lines += [f"{name}: {value:g}" for name, value in sorted(result.metrics.items())]
    lines += [f"{each.worker}: {each.items} items, {each.failed} failed" for each in result.workers]
    return "\n".join(lines)


@contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second ends the process as usual.

    Not by the loop's own handlers: while a log line that nobody takes, or a job's own code, holds the loop up, a second
    one would do nothing either.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def as_usual() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_signal(number: int, frame: object) -> None:
        as_usual()  # both: the second one may be the other
        loop.call_soon_threadsafe(stop.set)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
    try:
        yield stop
    finally:
        as_usual()
