"""Plays rounds: results flow, a fault hits, the dust settles, the checker judges.

python -m tests.faults [--short] [--faults NAME,...] [--rounds N] [--results N] [--seed N] [--budget SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from rollcall.settings import Settings
from tests.faults.faults import FAULTS, WORKERS, Fault, Round, unmount_all
from tests.faults.producing import Flow, Message, traffic
from tests.faults.stage import PARTITIONS, Installation, Stage, stage
from tests.harness.topics import create_topic

PATIENCE_S = 120.0
"""After which what has not recovered, or settled, is stuck."""
STOP_TIMEOUT_S = 15.0
MAX_EVENTS_BYTES = 1024 * 1024

SHORT_RESULTS = 40_000
RESULTS = 200_000
FLOW_S = 6.0
"""How long the results flow where nothing holds them up."""


@dataclass
class Result:
    """How a round went; `problems` is empty where everything was right."""

    fault: str
    seed: int
    recovery_s: float | None
    problems: list[str]
    said: str
    took_s: float

    def line(self) -> str:
        recovered = "-" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        verdict = "right" if not self.problems else "WRONG"
        return f"{self.fault:<26} seed {self.seed:<10} recovered in {recovered:<7} {verdict}  {self.said}"


async def play(
    stage: Stage, fault: Fault, seed: int, *, results: int, short: bool, keep: bool, patience_s: float
) -> Result:
    """One round with a topic prefix and a schema of its own."""
    began = time.monotonic()
    unique = f"f{uuid.uuid4().hex[:7]}"
    direct = Settings(
        bootstrap_servers=stage.kafka.bootstrap_servers,
        database_url=stage.postgres.database_url,
        topic_prefix=f"{unique}.",
        database_schema=unique,
    )
    product = Installation(stage, direct, stage.directory / f"{unique}.log", fault.proxied)
    this = Round(stage, product, Random(seed), short)
    problems: list[str] = []
    recovery_s: float | None = None
    await create_topic(
        direct.bootstrap_servers,
        product.topics.events,
        partitions=PARTITIONS,
        configs={"max.message.bytes": str(MAX_EVENTS_BYTES)},
    )
    extra = await fault.prepare(this) if fault.prepare is not None else []
    flow = this.flow = Flow(
        direct.bootstrap_servers,
        product.topics.events,
        _mixed(this.random, traffic(seed, results, PARTITIONS, prefix=unique), extra),
        rate=results / FLOW_S,
    )
    sent_file = stage.directory / f"{unique}.sent"
    watching: asyncio.Task[None] | None = None
    try:
        await product.migrate()
        await (product.start_separately(WORKERS) if fault.separate else product.start(WORKERS))
        await product.ready(WORKERS)
        watching = asyncio.create_task(product.watch_memory())
        flow.start()
        moment = this.some(0.1, 0.6)
        while flow.share < moment and not flow.done:  # noqa: ASYNC110 - a thread sends
            await asyncio.sleep(0.01)
        await fault.harm(this)
        recovery_s = await _recovered(product, problems, patience_s)
        flow.fault_is_over()
        sent, unknown = await asyncio.to_thread(flow.finish, sent_file)
        await product.settled(patience_s)
    except (TimeoutError, AssertionError) as error:
        problems.append(f"stuck: {error}")
        flow.abandon()
        sent, unknown = await asyncio.to_thread(flow.finish, sent_file)
    finally:
        stage.kafka_proxy.heal()
        stage.postgres_proxy.heal()
        flow.abandon()
        if watching is not None:
            watching.cancel()
        stopped_s = await product.stop()
    if stopped_s > STOP_TIMEOUT_S:
        problems.append(f"stopping took {stopped_s:.1f} s")
    problems += [f"left behind: {each}" for each in await product.left_behind()]
    report = await _checked(product, stage, sent_file, this.refused)
    problems += [f"{kind}: {what}" for kind, what in report["findings"]]
    said = ", ".join(
        [
            f"{sent} sent ({unknown} unknown)",
            f"{report['counts']['events']} events",
            f"{report['counts']['dead_letters']} dead letters",
            " ".join(f"{count} {kind}" for kind, count in report["found"].items()),
            _latency(report, this.flood),
            f"workers up to {product.largest_mb} MB",
            f"stopped in {stopped_s:.1f} s",
            *this.notes,
        ]
    )
    if problems:
        said += f"\n    log of the processes: {product.log}"
    if not keep and not problems:
        await _clean_up(product, sent_file)
    return Result(fault.name, seed, recovery_s, problems, said, time.monotonic() - began)


async def _played(stage: Stage, fault: Fault, seed: int, **how: Any) -> Result:
    """Play a round; one that breaks does not end the run, but counts as wrong."""
    began = time.monotonic()
    try:
        return await play(stage, fault, seed, **how)
    except Exception:
        problems = ["the round itself broke", *traceback.format_exc().splitlines()[-12:]]
        await stage.restore()
        return Result(fault.name, seed, None, problems, "", time.monotonic() - began)


def _mixed(random: Random, messages: list[Message], extra: Sequence[Message]) -> list[Message]:
    """The extra ones in their order, at random places."""
    places = sorted(random.randrange(len(messages) + 1) for _ in extra)
    for shift, (place, message) in enumerate(zip(places, extra, strict=True)):
        messages.insert(place + shift, message)
    return messages


async def _recovered(product: Installation, problems: list[str], patience_s: float) -> float | None:
    """Seconds until all that was in the log at the fault's end is applied and what came of it is published."""
    begun = time.monotonic()
    try:
        await product.caught_up(await product.ends(), patience_s)
    except TimeoutError as error:
        problems.append(f"not recovered within {patience_s:g} s: {error}")
        return None
    return time.monotonic() - begun


async def _checked(product: Installation, stage: Stage, sent: Path, refused: Sequence[str]) -> dict[str, Any]:
    """Run the checker, a program of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.checker", "--json"),
        *("--bootstrap", product.direct.bootstrap_servers, "--prefix", product.direct.topic_prefix),
        *("--database", stage.dsn, "--schema", product.direct.database_schema),
        *("--sent", str(sent), "--refused", ",".join(refused)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode not in (0, 1) or not output:
        return {
            "findings": [("checker", f"ended with {process.returncode}")],
            "counts": Counter(),
            "found": {},
            "latencies": [],
        }
    report: dict[str, Any] = json.loads(output)
    return report


def _latency(report: dict[str, Any], flood: tuple[float, float] | None) -> str:
    """How long after the deciding record events were appended, by the broker's clock."""
    if flood is None:
        return f"events after {_quantiles([wait for _, wait in report['latencies']])}"
    inside = [wait for at, wait in report["latencies"] if flood[0] <= at <= flood[1]]
    outside = [wait for at, wait in report["latencies"] if not flood[0] <= at <= flood[1]]
    return f"events after {_quantiles(outside)} without, {_quantiles(inside)} with the flood"


def _quantiles(waits: list[int]) -> str:
    if len(waits) < 2:
        return f"{waits} ms"
    return f"{statistics.median(waits):.0f} ms (p99 {statistics.quantiles(waits, n=100)[98]:.0f})"


async def _clean_up(product: Installation, sent: Path) -> None:
    async with product.connection() as connection:
        await connection.execute(f"DROP SCHEMA {product.direct.database_schema} CASCADE")
    admin = AIOKafkaAdminClient(bootstrap_servers=product.direct.bootstrap_servers)
    await admin.start()
    try:
        mine = [topic for topic in await admin.list_topics() if topic.startswith(product.direct.topic_prefix)]
        await admin.delete_topics(mine)
    finally:
        await admin.close()
    for file in (sent, product.log):
        await asyncio.to_thread(file.unlink, missing_ok=True)


def chosen(names: str, seed: int, *, short: bool) -> list[Fault]:
    """The faults of these names or groups; in short one of each group first, all in a seeded order."""
    wanted = set(names.split(",")) - {""}
    found = [fault for fault in FAULTS if not wanted or fault.name in wanted or fault.group in wanted]
    if unknown := wanted - {fault.name for fault in found} - {fault.group for fault in found}:
        known = ", ".join(fault.name for fault in FAULTS)
        raise SystemExit(f"faults: no such fault: {', '.join(sorted(unknown))}; there are {known}")
    if not short or wanted:
        return found
    # One process after the other covers the failpoints in little time.
    found = [fault for fault in found if fault.group != "each-failpoint"]
    random = Random(seed)
    random.shuffle(found)
    seen: set[str] = set()
    first = [fault for fault in found if not (fault.group in seen or seen.add(fault.group))]  # type: ignore[func-returns-value]
    return first + [fault for fault in found if fault not in first]


def _rounds(faults: Sequence[Fault], rounds: int, seed: int, replay: int) -> Iterator[tuple[Fault, int]]:
    if replay:
        yield from ((fault, replay) for fault in faults)
        return
    for number in range(rounds):
        for fault in faults:
            yield fault, Random(f"{seed} {fault.name} {number}").randrange(10**9)


async def run(
    faults: Sequence[Fault],
    *,
    rounds: int,
    seed: int,
    replay: int,
    results: int,
    short: bool,
    budget_s: float,
    keep: Path | None,
    patience_s: float,
) -> list[Result]:
    """Play all rounds, as far as the budget (seconds) goes, and print each."""
    played: list[Result] = []
    deadline = time.monotonic() + budget_s
    with tempfile.TemporaryDirectory(prefix="rollcall-faults-", ignore_cleanup_errors=True) as throw_away:
        directory = keep or Path(throw_away)
        try:
            async with stage(directory) as servers:
                for fault, round_seed in _rounds(faults, rounds, seed, replay):
                    longest = max((result.took_s for result in played), default=0.0)
                    if time.monotonic() + longest > deadline:
                        print(f"the budget of {budget_s:g} s is spent; not played from here on: {fault.name}")
                        break
                    result = await _played(
                        servers,
                        fault,
                        round_seed,
                        results=results,
                        short=short,
                        keep=keep is not None,
                        patience_s=patience_s,
                    )
                    played.append(result)
                    print(result.line(), *result.problems[:15], sep="\n    ", flush=True)
                    if result.problems:
                        _show_log(directory)
        finally:
            unmount_all(directory)
    return played


def _show_log(directory: Path) -> None:
    """The last lines of the processes of the round that went wrong: the directory may be thrown away."""
    logs = sorted(directory.glob("*.log"), key=lambda path: path.stat().st_mtime)
    for line in logs[-1].read_text(errors="replace").splitlines()[-25:] if logs else ():
        print(f"    | {line}")


def _summary(played: Sequence[Result]) -> None:
    print(f"\n{'fault':<26} rounds  wrong  recovery, s: median  longest")
    for name in dict.fromkeys(result.fault for result in played):
        of_it = [result for result in played if result.fault == name]
        times = sorted(result.recovery_s for result in of_it if result.recovery_s is not None)
        wrong = sum(bool(result.problems) for result in of_it)
        shown = f"{statistics.median(times):19.1f} {times[-1]:8.1f}" if times else f"{'-':>19} {'-':>8}"
        print(f"{name:<26} {len(of_it):6} {wrong:6}  {shown}")
    print(f"{len(played)} rounds, {sum(bool(result.problems) for result in played)} wrong")


def main() -> int:
    arguments = argparse.ArgumentParser(prog="faults", description="Faults against Rollcall, judged by a checker.")
    arguments.add_argument("--faults", default="", help="names or groups, with commas between (default: all)")
    arguments.add_argument("--rounds", type=int, default=0, help="of each fault (default: 5, in short 1)")
    arguments.add_argument("--results", type=int, default=0, help="item results a round (default: 200000)")
    arguments.add_argument("--seed", type=int, default=0, help="default: by the clock")
    arguments.add_argument("--replay", type=int, default=0, help="the seed of the one round to play again")
    arguments.add_argument("--short", action="store_true", help="few results, one round of as many as the budget lets")
    arguments.add_argument("--budget", type=float, default=0, help="seconds after which no round begins")
    arguments.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds until a round is stuck")
    arguments.add_argument("--keep", type=Path, help="keep servers' data and logs in this directory")
    given = arguments.parse_args()
    seed = given.seed or int(time.time())
    faults = chosen(given.faults, seed, short=given.short)
    print(f"seed {seed}: {', '.join(fault.name for fault in faults)}", flush=True)
    played = asyncio.run(
        run(
            faults,
            rounds=given.rounds or (1 if given.short else 5),
            seed=seed,
            replay=given.replay,
            results=given.results or (SHORT_RESULTS if given.short else RESULTS),
            short=given.short,
            budget_s=given.budget or (330.0 if given.short else 1e9),
            keep=given.keep,
            patience_s=given.patience,
        )
    )
    _summary(played)
    return 1 if any(result.problems for result in played) else 0
