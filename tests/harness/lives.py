"""Seeded logs in which batches live through everything: ended, expired, reopened, revised, retried, and told nonsense.

It shares no code with the product. Half of the batches are plain (an announcement, then each item once), so that most
of what a worker does in sums happens too; the others are told one record after the other of whatever there is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Event = dict[str, Any]

FIRST_TIMESTAMP_MS = 1_767_225_600_000
DEADLINES = ("2026-02-01T00:00:00Z", "2026-02-01T01:00:00.000+01:00", "2027-01-01T00:00:00.5Z")
STATUSES = ("succeeded",) * 6 + ("failed", "failed", "partial", "skipped", "retrying")
POLICIES = (
    {"late_results": "revise"},
    {"late_results": "revise", "tolerated_failure_percentage": 20},
    {"tolerated_failure_count": 1},
    {"tolerated_failure_count": 0, "late_results": "record"},
)


def make_lives(seed: int, messages: int) -> list[tuple[int, int, bytes]]:
    """`(offset, append time in ms, value)` of one partition's log; the same for the same arguments."""
    random = Random(seed)
    timed: list[tuple[float, int, Event]] = []
    number = 0
    while len(timed) < messages:
        batch_id = f"life-{seed}-{number:05d}"
        events = list(_plain(random) if number % 2 else _turbulent(random))
        start, span = random.random(), 0.02 + random.random() * 0.1
        moments = sorted(start + random.random() * span for _ in events)
        for moment, event in zip(moments, events, strict=True):
            timed.append((moment, len(timed), {"batch_id": batch_id} | event))
        number += 1
    timed.sort()
    return [
        (offset, FIRST_TIMESTAMP_MS + offset // 3, json.dumps(event).encode())
        for offset, (_, _, event) in enumerate(timed[:messages])
    ]


def _plain(random: Random) -> Iterator[Event]:
    size = random.choice((0, 1, 5, 40, 120))
    ids = [f"i{number:03d}" for number in range(size)]
    opened: Event = {"type": "batch.opened"}
    if random.random() < 0.4:
        opened["policy"] = random.choice(POLICIES)
    yield opened | ({"total_items": size} if random.random() < 0.5 else {"item_ids": ids})
    random.shuffle(ids)
    for item_id in ids:
        yield {"item_id": item_id, "status": "failed" if random.random() < 0.04 else "succeeded"}


def _turbulent(random: Random) -> Iterator[Event]:
    ids = [f"i{number:02d}" for number in range(random.choice((1, 3, 8, 20)))]
    told: list[Event] = []
    sayings: list[tuple[int, Callable[[], Event]]] = [
        (30, lambda: _result(random, [*ids, "stranger"])),
        (4, lambda: random.choice(told) if told else _result(random, ids)),
        (3, lambda: _opened(random, ids)),
        (2, lambda: {"type": "batch.items_expected", "item_ids": random.sample(ids, random.randint(0, len(ids)))}),
        (2, lambda: {"type": "batch.sealed"} | random.choice(({}, {"total_items": len(ids)}))),
        (1, lambda: {"type": "batch.cancelled"} | random.choice(({}, {"reason": "wrong day"}))),
        (1, lambda: {"type": "batch.aborted", "error": {"message": "disk full", "code": "E"}}),
        (2, lambda: _expired(random)),
        (1, lambda: {"type": "batch.finalize_requested"} | random.choice(({}, {"reason": "enough"}))),
        (4, lambda: _reopened(random, ids)),
        (1, lambda: {"type": "batch.corrected", "revision": random.randint(0, 3)}),
        (1, lambda: {"type": "batch.pruned", "revision": random.randint(0, 3)}),
    ]
    weights = [weight for weight, _ in sayings]
    if random.random() < 0.8:
        yield _opened(random, ids)
    for _ in range(random.choice((3, 20, 60))):
        [(_, say)] = random.choices(sayings, weights)
        told.append(say())
        yield told[-1]


def _result(random: Random, ids: list[str]) -> Event:
    result: Event = {"item_id": random.choice(ids), "status": random.choice(STATUSES)}
    if random.random() < 0.3:
        result["attempt"] = random.randint(1, 3)
    if random.random() < 0.3:
        result["effect"] = random.choice(("created", "updated", "unchanged"))
    if result["status"] == "failed" and random.random() < 0.5:
        result["error"] = {"message": "no such customer", "code": random.choice(("E1", "E2"))}
    return result


def _opened(random: Random, ids: list[str]) -> Event:
    opened: Event = {"type": "batch.opened"}
    opened |= random.choice(({}, {"total_items": len(ids)}, {"item_ids": ids}, {"item_ids": ids, "sealed": False}))
    if random.random() < 0.6:
        opened["policy"] = random.choice(POLICIES)
    if random.random() < 0.5:
        opened["deadline_at"] = random.choice(DEADLINES)
    if random.random() < 0.2:
        opened |= {"retry_of": "life-before", "request_retry": True}
    return opened


def _expired(random: Random) -> Event:
    generation = random.choice((0, 0, 0, 1, 2))
    return {"type": "batch.expired", "deadline_at": random.choice(DEADLINES[:2]), "generation": generation}


def _reopened(random: Random, ids: list[str]) -> Event:
    reopened: Event = {"type": "batch.reopened"}
    if random.random() < 0.4:
        reopened["item_ids"] = random.sample(ids, random.randint(0, len(ids)))
    if random.random() < 0.3:
        reopened["revision"] = random.randint(1, 3)
    if random.random() < 0.3:
        reopened["deadline_at"] = DEADLINES[0]
    return reopened
