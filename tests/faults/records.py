"""Harm by what is in the records, or in what the output topics take."""

from __future__ import annotations

import asyncio
import json
import string
import time
from random import Random

from tests.faults.producing import Message, broken_records, home
from tests.faults.round import Round, batch_of_one, during, feed
from tests.faults.stage import PARTITIONS
from tests.harness.broken_records import BROKEN, TOO_LARGE
from tests.harness.topics import create_topic

FED_S = 4.0
"""How long events flow by themselves before the flood."""


async def poison_flood(each: Round) -> None:
    """Events are fed before it and while it lasts, so that there are some to compare."""
    count = 20_000 if each.short else 100_000
    async with during(feed(each)):
        await asyncio.sleep(FED_S)
        await each.running.await_interjected()
        begun = time.time()
        each.running.interject(list(broken_records(each.random, count, prefix=f"{each.prefix}-flood")))
        await each.running.await_interjected()
        await each.running.acknowledged()
        each.over.set()
        await each.product.caught_up(await each.product.ends(), each.patience_s)
        each.flood = (begun * 1000, time.time() * 1000)
    each.notes.append(f"{count} broken records in a row, worked off and published in {time.time() - begun:.1f} s")


async def with_oversize(each: Round) -> list[Message]:
    messages = [
        Message(defect.key, defect.value, broken=defect.reason)
        for defect in BROKEN
        if defect.reason == TOO_LARGE and defect.key and not defect.headers and len(defect.value or b"") < 1_000_000
    ]
    for number in range(60):
        batch_id = f"{each.prefix}-large-{number}"
        has_huge = number % 10 == 0
        opened = {"type": "batch.opened", "batch_id": batch_id, "total_items": 3 if has_huge else 2}
        messages.append(Message(batch_id.encode(), json.dumps(opened).encode()))
        for item in range(2):
            result = {"batch_id": batch_id, "item_id": str(item), "status": "succeeded", "x_note": "x" * 200_000}
            messages.append(Message(batch_id.encode(), json.dumps(result).encode()))
        if has_huge:
            # Fits the topic, but not with the headers that a forward needs, unless that is compressed.
            astray = (home(batch_id.encode(), PARTITIONS) + 1) % PARTITIONS
            result = {"batch_id": batch_id, "item_id": "huge", "status": "failed", "x_note": "x" * 1_048_350}
            messages.append(Message(batch_id.encode(), json.dumps(result).encode(), astray))
    return messages


async def with_refused_events(each: Round) -> list[Message]:
    """The topic of finalized events takes 10 kB at most; some batches' metadata are larger, also compressed."""
    await create_topic(
        each.product.direct.bootstrap_servers,
        each.product.topics.finalized,
        partitions=3,
        configs={"max.message.bytes": "10000", "cleanup.policy": "compact"},
    )
    messages = []
    for number in range(5):
        batch_id = f"{each.prefix}-refused-{number}"
        each.refused.append(batch_id)
        messages += batch_of_one(batch_id, metadata={"x": _noise(each.random, 15_500)})
    return messages


async def with_refused_dead_letters(each: Round) -> list[Message]:
    """The topic of dead letters takes 3 kB at most; some broken records are larger, also compressed."""
    await create_topic(
        each.product.direct.bootstrap_servers,
        each.product.topics.dead_letters,
        partitions=3,
        configs={"max.message.bytes": "3000"},
    )
    each.refused_above = 2_500
    broken = [f"no JSON {number} {_noise(each.random, 5_000)}".encode() for number in range(20)]
    return [
        Message(f"{each.prefix}-{number}".encode(), value, broken="invalid_json") for number, value in enumerate(broken)
    ]


def _noise(random: Random, length: int) -> str:
    """Characters that compression makes a quarter shorter, and no more."""
    return "".join(random.choices(string.ascii_letters + string.digits + "-_", k=length))


async def nothing(each: Round) -> None:
    """The harm is in the messages."""
