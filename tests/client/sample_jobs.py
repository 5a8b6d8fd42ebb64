"""Jobs for the tests, importable by processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rollcall_client.jobs import (
    Created,
    CriticalError,
    Failed,
    Job,
    Partial,
    Retry,
    Skipped,
    Unchanged,
    Updated,
    current,
    job,
)

QUICK = Retry(attempts=3, initial_s=0.01, max_s=0.05)


class FlakyError(Exception):
    """Goes away when tried again."""


@job(concurrency=4, retries={FlakyError: QUICK}, item_timeout_s=0.5)
async def every_kind(item: str) -> Any:
    """What happens is what the item is called."""
    kind = item.partition("-")[0]
    if kind == "flaky" and current().attempt < 3:
        raise FlakyError("not yet")
    if kind == "broken":
        raise ValueError(f"cannot do {item}")
    if kind == "hopeless":
        raise FlakyError("never")
    if kind == "slow":
        await asyncio.sleep(30)
    if kind == "given":
        return {"price": 12}
    current().job_metrics["seen"] = current().job_metrics.get("seen", 0) + 1
    return {
        "created": Created(message="there it is", metrics={"bytes": 10}),
        "updated": Updated(),
        "unchanged": Unchanged(),
        "skipped": Skipped(message="nothing to do"),
        "partial": Partial({"code": "smtp", "message": "no mail"}, metrics={"bytes": 5}),
        "refused": Failed("not a customer"),
        "unstorable": Created(output=float("nan")),
        "wrong": Partial(404),  # type: ignore[arg-type]
    }.get(kind)


@job(concurrency=2)
async def stops_at_the_third(item: str) -> None:
    if item == "03":
        raise CriticalError("the account is blocked")
    if item > "03":
        await asyncio.sleep(0.05)


@job(concurrency=1)
async def alone_stops_at_the_third(item: str) -> None:
    await stops_at_the_third(item)


class InThreads(Job):
    """A blocking function, several items a thread."""

    name = "in-threads"
    concurrency = 3
    chunk_size = 5
    retries = QUICK

    def handle(self, item: int) -> Created:
        time.sleep(0.001)
        if item % 20 == 7 and current().attempt == 1:
            raise FlakyError("first time")
        if item % 20 == 13:
            raise ValueError("thirteen")
        return Created(metrics={"rows": item})


class Recorded(Job):
    """Writes a line for each item it does, and can be told to kill its process at one of them."""

    name = "recorded"
    concurrency = 4
    bucket = "1d"

    def items(self, count: str = "200", log: str = "", kill_at: str = "", fail: str = "", **_: str) -> Iterator[Any]:
        failing = set(fail.split(",")) - {""}
        for number in range(int(count)):
            yield f"{number:04d}", log, kill_at == str(number), f"{number:04d}" in failing

    def items_for(self, item_ids: Collection[str]) -> Iterator[Any]:
        for item_id in item_ids:
            yield item_id, os.environ["RECORDED_LOG"], False, False

    async def handle(self, item: tuple[str, str, bool, bool]) -> Created:
        item_id, log, kill, fail = item
        await asyncio.sleep(0.002)
        if kill:
            await asyncio.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        if fail:
            raise ValueError("told to fail")
        with Path(log).open("a") as opened:  # noqa: ASYNC230 - a line to a local file
            opened.write(f"{item_id} {current().worker}\n")
        return Created()


class Meeting(Recorded):
    """Nobody's first items are through before three processes have some: each of them takes part."""

    name = "meeting"
    _met = False

    async def handle(self, item: tuple[str, str, bool, bool]) -> Created:
        present = Path(f"{item[1]}.present")
        with present.open("a") as opened:  # noqa: ASYNC230 - a line to a local file
            opened.write(f"{current().worker}\n")
        async with asyncio.timeout(120):
            while not self._met:
                self._met = len(set(present.read_text().splitlines())) == 3  # noqa: ASYNC240 - a small local file
                await asyncio.sleep(0.02)
        return await super().handle(item)


@job(name="first-step", bucket="1d")
async def first_step(item: str) -> None:
    if item == "bad":
        raise ValueError("bad")


@job(name="second-step", bucket="1d", after=first_step, after_outcomes=("completed",))
async def second_step(item: str) -> None:
    pass
