"""What a fault is, and what it gets into its hands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import psutil

from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.postgres import EmbeddedPostgres
from rollcall.embedded.servers import EmbeddedServerError
from tests.faults.producing import Flow, Message
from tests.faults.stage import Installation, Stage
from tests.harness.waiting import eventually

WORKERS = 2
LARGE_BATCHES, LARGE_RESULTS, LARGE_BYTES = 16, 20, 60_000
BACKLOG_BATCHES = 340
"""Of 400 MB of large results: the half of it alone that a worker reads would be far more than it may take."""

T = TypeVar("T")


@dataclass
class Round:
    """What a fault gets into its hands; the batches it adds are named `<prefix>-...`.

    `notes` are printed with the round's result, `problems` make it wrong. `refused` are batches, `refused_above` is the
    size of dead letters, that the output topics refuse. A harm that has more to do once it is over sets `over`: the
    product recovers from then on.
    """

    stage: Stage
    product: Installation
    random: Random
    short: bool
    prefix: str
    patience_s: float
    flow: Flow | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    refused_above: int | None = None
    flood: tuple[float, float] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> Flow:
        assert self.flow is not None, "the flow has begun before the fault"
        return self.flow

    def some(self, low: float, high: float) -> float:
        """A random number of seconds."""
        return self.random.uniform(low, high)

    @property
    def away_s(self) -> float:
        return 6.0 if self.short else 20.0


Harm = Callable[[Round], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """`prepare` comes before the flow and may return more messages for it; before the product, where that is its `own`.

    `clustered`: on a Kafka of two brokers. `pace` multiplies how fast results flow, `results` bounds how many,
    `patience_s` is how long it may well be stuck.
    """

    name: str
    group: str
    harm: Harm
    proxied: bool = False
    separate: bool = False
    own: bool = False
    clustered: bool = False
    only_long: bool = False
    pace: float = 1.0
    results: int = 0
    patience_s: float = 0.0
    prepare: Callable[[Round], Awaitable[list[Message]]] | None = None


def send_signal(process: psutil.Process, signum: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """A process that does nothing while it is open (SIGSTOP), and then goes on."""
    send_signal(process, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(process, signal.SIGCONT)


@contextlib.asynccontextmanager
async def during(*running: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let these run in the background while it is open."""
    tasks = [asyncio.create_task(each) for each in running]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def until(condition: Callable[[], Awaitable[T]], what: str, timeout_s: float = 60.0) -> T:
    """Wait until the harm is real, and return what the condition does then: a busy machine may take its time.

    Raises AssertionError, by which the round is wrong, where it does not come true.
    """
    return await eventually(condition, timeout_s, message=what)


def batch_of_one(batch_id: str, **fields: Any) -> list[Message]:
    """A batch that its only result finalizes; `fields` are further ones of its opening."""
    opened = {"type": "batch.opened", "batch_id": batch_id, "total_items": 1, **fields}
    result = {"batch_id": batch_id, "item_id": "a", "status": "succeeded"}
    return [Message(batch_id.encode(), json.dumps(said).encode()) for said in (opened, result)]


def large_results(each: Round, batches: int = LARGE_BATCHES) -> list[Message]:
    """Batches whose results have large outputs, on all partitions: what a worker takes of them at once is megabytes."""
    messages = []
    for number in range(batches):
        batch_id = f"{each.prefix}-large-{number}"
        opened = {"type": "batch.opened", "batch_id": batch_id, "total_items": LARGE_RESULTS}
        messages.append(Message(batch_id.encode(), json.dumps(opened).encode()))
        for item in range(LARGE_RESULTS):
            output = {"text": f"{number} {item} ".ljust(LARGE_BYTES, "x")}
            result = {"batch_id": batch_id, "item_id": str(item), "status": "succeeded", "output": output}
            messages.append(Message(batch_id.encode(), json.dumps(result).encode()))
    return messages


async def feed(each: Round) -> None:
    """Whatever the flow is doing, there is always something to write, to finalize and to put aside."""
    number = 0
    while True:
        if each.running.has_interjected:
            fed = []
            for _ in range(12):
                number += 1
                batch_id = f"{each.prefix}-fed-{number}"
                fed += batch_of_one(batch_id)
                fed.append(Message(batch_id.encode(), f"no JSON {batch_id}".encode(), broken="invalid_json"))
            each.running.interject(fed)
        await asyncio.sleep(0.25)


async def restart(server: EmbeddedKafka | EmbeddedPostgres, away_s: float = 0.0) -> None:
    """Stop a server in peace, and start it again so many seconds later."""
    await server.stop()
    await asyncio.sleep(away_s)
    await start_again(server.start)


async def start_again(start: Callable[[], Awaitable[None]]) -> None:
    """A server killed just now may leave its port or shared memory behind for another moment."""
    for _ in range(20):
        with contextlib.suppress(EmbeddedServerError):
            await start()
            return
        await asyncio.sleep(0.5)
    await start()
