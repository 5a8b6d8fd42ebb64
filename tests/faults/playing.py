"""Plays one round after the other on the same servers, and while it can with the same running processes."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from rollcall.settings import Settings
from tests.faults.cluster import BROKER_IDS
from tests.faults.producing import Flow, Message, traffic
from tests.faults.round import WORKERS, Fault, Round
from tests.faults.stage import PARTITIONS, Installation, Stage
from tests.harness import commands
from tests.harness.topics import create_topic

STOP_TIMEOUT_S = 15.0
MAX_WORKER_MB = 250
"""Its imports take 75, and what it holds is bounded: two micro-batches of 4 MiB, and 1 MiB a partition fetched."""
FEWEST_EVENTS, SLOWER_BY, SLOW_MS, SLOWEST_MS = 50, 4, 500, 10_000
"""A flood of broken records may make events wait so many times as long as right before it, or so long (the median, and
the 99th percentile: what lies in the log right behind it waits for its turn). The machine is shared by all."""
FEWEST_ACKNOWLEDGED = 0.9
"""Of the results of a round; there are openings besides."""
MAX_EVENTS_BYTES = 1024 * 1024
FLOW_S = 6.0
"""How long the results flow where nothing holds them up."""
MAX_ROUNDS = 12
"""Of one installation: it bounds what lies in topics and tables."""
STOPPING = "(stopping)"
VERIFY_TIMEOUT_S = 600.0
CHECK_TIMEOUT_S = 600.0


@dataclass
class Result:
    """How a round went; `problems` is empty where everything was right."""

    fault: str
    seed: int
    recovery_s: float | None
    problems: list[str]
    said: str
    took_s: float = 0.0

    def line(self) -> str:
        recovered = "-" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        verdict = "right" if not self.problems else "WRONG"
        return f"{self.fault:<26} seed {self.seed:<10} recovered in {recovered:<7} {verdict} {self.said}"


@dataclass
class Player:
    """Plays rounds. Each has batches of its own, and is judged by what came into the topics since it began."""

    stage: Stage
    short: bool
    keep: bool
    patience_s: float
    results: int
    product: Installation | None = None
    must_begin_anew: bool = False

    async def play(self, fault: Fault, seed: int) -> Result:
        """One round. One that breaks does not end the run, but counts as wrong."""
        begun = time.monotonic()
        try:
            result = await self._play(fault, seed)
        except Exception:
            problems = ["the round itself broke", *traceback.format_exc().splitlines()[-12:]]
            result = Result(fault.name, seed, None, problems, "")
        self.must_begin_anew = bool(result.problems) or fault.own
        result.took_s = time.monotonic() - begun
        return result

    def goes_on_with(self, fault: Fault) -> bool:
        """Whether the processes that run are of use for this fault."""
        product = self.product
        return (
            product is not None
            and not self.must_begin_anew
            and not fault.own
            and (product.proxied, product.separate, product.clustered)
            == (fault.proxied, fault.separate, fault.clustered)
            and product.rounds < MAX_ROUNDS
        )

    async def stop(self) -> Result | None:
        """SIGTERM to all processes, if there are any: wrong if that takes long, or leaves anything behind.

        Or if `rollcall verify` then finds that what all the rounds left is not what the log gives.
        """
        product, self.product = self.product, None
        if product is None:
            return None
        await self.stage.restore()
        leaked = await product.leaked()
        stopped_s = await product.stop()
        problems = [f"leaked: {each}" for each in leaked]
        problems += [f"stopping took {stopped_s:.1f} s"] if stopped_s > STOP_TIMEOUT_S else []
        problems += [f"left behind: {each}" for each in await product.left_behind()]
        verified = await commands.rollcall(product.direct, "verify", "--all", timeout_s=VERIFY_TIMEOUT_S)
        said = (verified.stdout or verified.stderr).splitlines() or ["it said nothing"]
        if verified.exit_code:
            problems += [f"verify: {each}" for each in said]
        if not self.keep and not problems:
            await _clean_up(product)
        await self.stage.cluster.stop()
        ended = f"ended in {stopped_s:.1f} s after {product.rounds} rounds; {said[-1]}"
        return Result(STOPPING, 0, None, problems, ended, stopped_s)

    async def _play(self, fault: Fault, seed: int) -> Result:
        product = self.product or await self._installed(fault)
        product.rounds += 1
        product.largest_mb = 0
        patience_s = max(self.patience_s, fault.patience_s)
        prefix = f"{fault.name}-{seed}"  # the same at each replay: it decides where batches are at home
        this = Round(self.stage, product, Random(seed), self.short, prefix, patience_s)
        problems: list[str] = []
        recovery_s: float | None = None
        results = min(self.results, fault.results or self.results)
        extra = await fault.prepare(this) if fault.prepare is not None else []
        flow = this.flow = Flow(
            product.direct.bootstrap_servers,
            product.topics.events,
            _mixed(this.random, traffic(seed, results, PARTITIONS, prefix=this.prefix), extra),
            rate=results / FLOW_S * fault.pace,
        )
        sent_file = self.stage.directory / f"{this.prefix}.sent"
        watching: asyncio.Task[None] | None = None
        begin: dict[str, dict[int, int]] = {}
        unharmed = self._harmed_on_the_way()
        try:
            await product.start_all(WORKERS)
            await product.ready(WORKERS)
            begin = await product.all_ends()
            watching = asyncio.create_task(product.watch_memory())
            flow.start()
            moment = this.some(0.1, 0.6)
            while flow.share < moment and not flow.done:  # noqa: ASYNC110 - a thread sends
                await asyncio.sleep(0.01)
            recovery_s = await _harmed(fault, this, problems)
            flow.let_go()
            sent, unknown = await asyncio.to_thread(flow.finish, sent_file)
            await product.settled(patience_s)
        except (TimeoutError, AssertionError) as error:
            problems.append(f"stuck: {error}")
            flow.abandon()
            sent, unknown = await asyncio.to_thread(flow.finish, sent_file)
        finally:
            self.stage.kafka_proxy.heal()
            self.stage.postgres_proxy.heal()
            flow.abandon()
            if watching is not None:
                watching.cancel()
        report = await _checked(this, sent_file, begin)
        problems += this.problems
        if fault.proxied and self._harmed_on_the_way() == unharmed:
            problems.append("there was no harm: nothing on the way to Kafka or PostgreSQL was cut, held or late")
        if flow.too_large:
            problems.append(f"{flow.too_large} records were too large for the topic")
        if sent - unknown + flow.forgotten < FEWEST_ACKNOWLEDGED * results:
            problems.append(f"{sent - unknown} records were acknowledged, of {results} results")
        problems += [f"{kind}: {what}" for kind, what in report["findings"]]
        if product.largest_mb > MAX_WORKER_MB:
            problems.append(f"a worker took {product.largest_mb} MB, at most {MAX_WORKER_MB} are bounded memory")
        if this.flood is not None and (slowed := _slowed_by(report, this.flood)):
            problems.append(slowed)
        said = ", ".join(
            [
                f"{sent} sent ({unknown} unknown)",
                f"{report['counts']['events']} events",
                f"{report['counts']['dead_letters']} dead letters",
                " ".join(f"{count} {kind}" for kind, count in report["found"].items()),
                _latency(report, this.flood),
                f"workers up to {product.largest_mb} MB",
                *this.notes,
            ]
        )
        if not problems and not self.keep:
            await asyncio.to_thread(sent_file.unlink)
        return Result(fault.name, seed, recovery_s, problems, said)

    def _harmed_on_the_way(self) -> int:
        return self.stage.kafka_proxy.harmed + self.stage.postgres_proxy.harmed

    async def _installed(self, fault: Fault) -> Installation:
        """A topic prefix and a schema of its own; nothing runs yet."""
        unique = f"f{uuid.uuid4().hex[:7]}"
        if fault.clustered:
            await self.stage.cluster.start()
        kafka = self.stage.cluster if fault.clustered else self.stage.kafka
        direct = Settings(
            bootstrap_servers=kafka.bootstrap_servers,
            database_url=self.stage.postgres.database_url,
            topic_prefix=f"{unique}.",
            database_schema=unique,
            api_port=0,
            metrics_port=0,
        )
        product = Installation(
            self.stage, direct, self.stage.directory / f"{unique}.log", fault.proxied, fault.separate, fault.clustered
        )
        await create_topic(
            direct.bootstrap_servers,
            product.topics.events,
            partitions=PARTITIONS,
            replication=len(BROKER_IDS) if fault.clustered else 1,
            configs={"max.message.bytes": str(MAX_EVENTS_BYTES)},
        )
        await product.migrate()
        self.product = product
        return product


def _mixed(random: Random, messages: list[Message], extra: Sequence[Message]) -> list[Message]:
    """The extra ones in their order, at random places."""
    places = sorted(random.randrange(len(messages) + 1) for _ in extra)
    for shift, (place, message) in enumerate(zip(places, extra, strict=True)):
        messages.insert(place + shift, message)
    return messages


async def _harmed(fault: Fault, this: Round, problems: list[str]) -> float | None:
    """Do the harm to its last line; returns how long recovery took from when it was over, which may be before that."""
    harming = asyncio.ensure_future(fault.harm(this))
    over = asyncio.create_task(this.over.wait(), name="over")
    try:
        await asyncio.wait({harming, over}, return_when=asyncio.FIRST_COMPLETED)
        if harming.done():
            harming.result()
        recovery_s = await _recovered(this, problems)
        await harming
        return recovery_s
    finally:
        for task in (harming, over):
            task.cancel()
        await asyncio.gather(harming, over, return_exceptions=True)


async def _recovered(this: Round, problems: list[str]) -> float | None:
    """Seconds until all that was in the log at the fault's end is applied and what came of it is published."""
    begun = time.monotonic()
    try:
        await this.product.caught_up(await this.product.ends(), this.patience_s)
    except TimeoutError as error:
        problems.append(f"not recovered within {this.patience_s:g} s: {error}")
        return None
    return time.monotonic() - begun


async def _checked(this: Round, sent: Path, begin: dict[str, dict[int, int]]) -> dict[str, Any]:
    """Run the checker, a program of its own."""
    product = this.product
    command = [
        *(sys.executable, "-m", "tests.faults.checker", "--json"),
        *("--bootstrap", product.direct.bootstrap_servers, "--prefix", product.direct.topic_prefix),
        *("--database", this.stage.dsn, "--schema", product.direct.database_schema),
        *("--since", json.dumps(begin), "--batches", f"{this.prefix}-"),
        *("--sent", str(sent), "--refused", ",".join(this.refused)),
    ]
    if this.refused_above is not None:
        command += ["--refused-above", str(this.refused_above)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    ended, output = "", b""
    try:
        output, _ = await asyncio.wait_for(process.communicate(), CHECK_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        ended = f"did not end in {CHECK_TIMEOUT_S:g} s"
    if process.returncode not in (0, 1) or not output:
        return {
            "findings": [("checker", ended or f"ended with {process.returncode}")],
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
    before, during = _by_flood(report, flood)
    return f"events after {_quantiles(before)} before, {_quantiles(during)} with the flood"


def _slowed_by(report: dict[str, Any], flood: tuple[float, float]) -> str:
    """What is wrong with how long events took during the flood; "" where nothing is."""
    before, during = _by_flood(report, flood)
    if min(len(before), len(during)) < FEWEST_EVENTS:
        return f"{len(before)} events before the flood and {len(during)} with it: too few to compare"
    slower = statistics.median(during) > max(SLOWER_BY * statistics.median(before), SLOW_MS)
    if slower or _p99(during) > max(SLOWER_BY * _p99(before), SLOWEST_MS):
        return f"events took {_quantiles(during)} with the flood, {_quantiles(before)} before"
    return ""


def _by_flood(report: dict[str, Any], flood: tuple[float, float]) -> tuple[list[int], list[int]]:
    """How long events took that were decided before the flood, and while it was worked off."""
    begun, ended = flood
    before = [wait for at, wait in report["latencies"] if at < begun]
    return before, [wait for at, wait in report["latencies"] if begun <= at <= ended]


def _quantiles(waits: list[int]) -> str:
    if len(waits) < 2:
        return f"{waits} ms"
    return f"{statistics.median(waits):.0f} ms (p99 {_p99(waits):.0f})"


def _p99(waits: list[int]) -> float:
    return statistics.quantiles(waits, n=100)[98]


async def _clean_up(product: Installation) -> None:
    async with product.connection() as connection:
        await connection.execute(f"DROP SCHEMA {product.direct.database_schema} CASCADE")
    admin = AIOKafkaAdminClient(bootstrap_servers=product.direct.bootstrap_servers)
    await admin.start()
    try:
        mine = [topic for topic in await admin.list_topics() if topic.startswith(product.direct.topic_prefix)]
        await admin.delete_topics(mine)
    finally:
        await admin.close()
    await asyncio.to_thread(product.log.unlink, missing_ok=True)
