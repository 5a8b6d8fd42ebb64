"""What upstream services publish during a round, and the record of what was sent and acknowledged.

It shares no code with the product. One seed decides all messages; when each is sent depends on the machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec
from aiokafka.partitioner import murmur2
from confluent_kafka import KafkaError, Producer

from tests.harness.broken_records import BROKEN

Kind = Literal["total", "manifest", "chunks"]

_SIZES = (0, 1, 1, 2, 3, 10, 10, 30, 100, 100, 300, 1_000)
_STATUSES = ("succeeded", "failed", "partial", "skipped")
_STATUS_WEIGHTS = (92, 96, 98, 100)
"""In percent, each with those before it."""

HELD_BACK = 0.3
"""The last part of the messages waits, but for a trickle, until the fault is over: something must flow behind it."""
TRICKLE = 0.05
DEADLINE = "2099-12-31T23:59:59Z"
"""So far away that only the one who sends the messages says that it has passed."""
KEPT_BACK = 0.1
"""Of the messages, not even trickling before the fault is over."""


@dataclass(frozen=True, slots=True)
class Message:
    """One record. `partition` is a wrong one on purpose, None lets the key decide; `broken` is the reason, if it is."""

    key: bytes | None
    value: bytes | None
    partition: int | None = None
    broken: str | None = None


def digest(key: bytes | None, value: bytes | None) -> str:
    """What identifies a record's bytes in the producer's record."""
    said = (b"-" if key is None else b"+" + key) + (b"|-" if value is None else b"|+" + value)
    return hashlib.sha1(said, usedforsecurity=False).hexdigest()[:20]


def home(key: bytes, partitions: int) -> int:
    """Where Java's and aiokafka's partitioner put a key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


# --- messages ----------------------------------------------------------------------------------------------------


def traffic(seed: int, results: int, partitions: int, *, prefix: str = "b") -> list[Message]:
    """About this many results in batches of all kinds and sizes, interleaved; some late, repeated, retried or astray.

    Sizes run from 0 to 1,000, a few are a twentieth of the whole; every kind of announcement comes early, in the midst
    and behind the results; manifest batches also get results for items nobody expects; a third of the batches end in
    another way, are reopened or revised; one message in 100 is broken.
    """
    random = Random(seed)
    timed: list[tuple[float, int, Message]] = []
    left, number = results, 0
    while left > 0:
        size = random.choice(_SIZES) if random.random() > 0.02 else results // 20
        size = min(left, size)
        left -= max(size, 1)
        batch_id = f"{prefix}-{seed}-{number:05}"
        number += 1
        start = random.random() * 0.9
        span = min(1.0 - start, 0.02 + random.random() * 0.4)
        for moment, message in _batch(random, batch_id, size, partitions):
            timed.append((start + span * moment, len(timed), message))
    for broken in broken_records(random, results // 100 + 1, prefix=f"{prefix}-{seed}"):
        timed.append((random.random(), len(timed), broken))
    timed.sort()
    return [message for _, _, message in timed]


def broken_records(random: Random, count: int, *, prefix: str) -> Iterator[Message]:
    """Records that must become dead letters, each with bytes of its own."""
    for number in range(count):
        value = f"{prefix}: no JSON {number}".encode()
        if number % 50 == 0:
            # One of the whole catalogue; where its bytes hold no id of their own it may come twice.
            defect = random.choice(BROKEN)
            if not defect.headers and defect.key is not None and defect.value:
                yield Message(defect.key, defect.value, broken=defect.reason)
                continue
        yield Message(f"{prefix}-broken-{number % 97}".encode(), value, broken="invalid_json")


def _batch(random: Random, batch_id: str, size: int, partitions: int) -> Iterator[tuple[float, Message]]:
    """One batch's messages, each with its moment in 0..1."""
    kind: Kind = random.choice(("total", "total", "manifest", "chunks"))
    items = [f"i{n:05}" for n in range(size)]
    announced = random.choice((0.0, 0.0, 0.0, 0.5, 0.97))
    may_differ = size <= 1_000
    yield from _announcement(random, batch_id, kind, items, announced, revise=may_differ and random.random() < 0.1)
    if may_differ:
        yield from _another_end(random, batch_id, items)
    own = home(batch_id.encode(), partitions)
    for item in items:
        at = 0.02 + random.random() * 0.9
        astray = random.randrange(partitions) if random.random() < 0.02 else own
        partition = None if astray == own else astray
        [status] = random.choices(_STATUSES, cum_weights=_STATUS_WEIGHTS)
        if random.random() < 0.01:
            yield at - 0.01, _result(batch_id, item, "retrying", 1)
            yield at, _result(batch_id, item, status, 2, partition)
            continue
        effect = random.choice(("created", "updated", "unchanged", None))
        result = _result(batch_id, item, status, 1, partition, effect)
        yield at, result
        if random.random() < 0.02:
            yield at + random.random() * (1.0 - at), result
        if random.random() < 0.003:
            yield 1.0, _result(batch_id, item, "failed", 3)  # late, where the batch is complete by then
    if kind != "total" and size > 1:
        for n in range(max(1, size // 50)):
            yield 0.02 + random.random() * 0.8, _result(batch_id, f"unexpected-{n}", "succeeded", 1)


def _announcement(
    random: Random, batch_id: str, kind: Kind, items: list[str], at: float, *, revise: bool
) -> Iterator[tuple[float, Message]]:
    about: dict[str, Any] = {"type": "batch.opened", "batch_id": batch_id, "name": f"batch {batch_id}"}
    if len(items) % 3:
        about["metadata"] = {"size": len(items), "is_large": False, "of": [batch_id]}
    if random.random() < 0.2:
        about["policy"] = {"tolerated_failure_percentage": 3}
    elif revise:
        about["policy"] = {"late_results": "revise"}
    if random.random() < 0.3:
        about["deadline_at"] = DEADLINE
    if random.random() < 0.05:
        about |= {"retry_of": f"{batch_id}-before", "request_retry": True}
    if kind == "total":
        yield at, _message(about | {"total_items": len(items)})
    elif kind == "manifest":
        yield at, _message(about | {"item_ids": items})
    else:
        yield at, _message(about | {"sealed": False})
        for begin in range(0, len(items), 500):
            chunk = items[begin : begin + 500]
            yield at + 0.01, _message({"type": "batch.items_expected", "batch_id": batch_id, "item_ids": chunk})
        if not items:
            yield at + 0.01, _message({"type": "batch.items_expected", "batch_id": batch_id, "item_ids": []})
        yield at + 0.02, _message({"type": "batch.sealed", "batch_id": batch_id})


def _another_end(random: Random, batch_id: str, items: list[str]) -> Iterator[tuple[float, Message]]:
    """What somebody says of the batch besides its results, in the midst of them or behind; most often nothing."""
    said: dict[str, dict[str, Any]] = {
        "batch.cancelled": {"reason": "not needed"},
        "batch.aborted": {"error": {"message": "out of paper"}},
        "batch.expired": {"deadline_at": DEADLINE, "generation": 0},
        "batch.finalize_requested": {},
    }
    kind = random.choice((*said, *[None] * 9))
    if kind is not None:
        # Of a batch that is revised every result behind its end is a revision: some, not hundreds.
        yield (
            random.choice((0.3, 0.8, 0.9, 0.95)) + random.random() * 0.05,
            _message({"type": kind, "batch_id": batch_id, **said[kind]}),
        )
    for generation in range(random.choice((0, 0, 0, 0, 0, 1, 1, 2))):
        at = 0.6 + 0.15 * generation + random.random() * 0.1
        chosen = random.sample(items, min(len(items), 5))
        which: dict[str, Any] = {"item_ids": chosen} if chosen and random.random() < 0.5 else {}
        why = {"reason": f"again, {generation}"} if which else {}
        yield at, _message({"type": "batch.reopened", "batch_id": batch_id, **which, **why})
        for item in random.sample(items, min(len(items), 30)):
            yield at + 0.2 + random.random() * 0.1, _result(batch_id, item, "succeeded", 4 + generation)
    if random.random() < 0.1:
        for item in random.sample(items, min(len(items), 5)):
            yield 0.95 + random.random() * 0.05, _result(batch_id, item, random.choice(("failed", "succeeded")), 9)


def _result(
    batch_id: str, item: str, status: str, attempt: int, partition: int | None = None, effect: str | None = None
) -> Message:
    value: dict[str, Any] = {"batch_id": batch_id, "item_id": item, "status": status, "attempt": attempt}
    if effect is not None:
        value["effect"] = effect
    if status == "failed":
        value["error"] = {"code": "E42", "message": f"no such thing as {item}"}
    if item.endswith("7"):
        value |= _details(item, attempt)
        if status == "failed":
            value["error"]["stack_trace"] = f"line {attempt}"
    return _message(value, partition)


def _details(item: str, attempt: int) -> dict[str, Any]:
    """All that a result may say besides: a tenth of them do."""
    return {
        "duration_ms": attempt + 0.5,
        "message": f"did {item}",
        "output": {"id": item, "is_new": True, "parts": [attempt, None]},
        "metrics": {"rows": attempt, "share": 0.25},
        "worker": f"w{attempt}",
        "occurred_at": f"2026-03-04T05:06:{attempt:02}.789+02:00",
    }


def _message(value: dict[str, Any], partition: int | None = None) -> Message:
    return Message(value["batch_id"].encode(), msgspec.json.encode(value), partition)


# --- sending -----------------------------------------------------------------------------------------------------


class Flow:
    """Sends messages in a thread of its own at a steady rate and writes down what became of each.

    The record has one line of JSON a message: [partition or null, offset or null, digest, reason if it is broken]; null
    stands for an unknown outcome.
    """

    def __init__(self, bootstrap: str, topic: str, messages: Sequence[Message], *, rate: float) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._messages = list(messages)
        self._rate = self._usual_rate = rate
        self._interjected: deque[Message] = deque()
        # Only who interjects counts the one, only the thread the other.
        self._asked = self._answered = 0
        self._let_go = threading.Event()
        self._stop = threading.Event()
        self.begun_at = 0.0
        self.sent = 0
        self.too_large = 0
        self.paused = threading.Event()
        self.forgotten = 0
        """Of how many records a producer that ended knew no outcome yet, and nobody ever will."""
        self._must_begin_anew = threading.Event()
        self._outcomes: list[tuple[int, int] | None] = []
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)
        self._error: BaseException | None = None

    @property
    def share(self) -> float:
        """How much of it is sent, 0 to 1."""
        return self.sent / max(1, len(self._messages))

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def start(self) -> None:
        self.begun_at = time.monotonic()
        self._thread.start()

    def interject(self, messages: Sequence[Message]) -> None:
        """Send these next, as fast as they go, before the rest."""
        self._asked += len(messages)
        self._interjected.extend(messages)

    @property
    def has_interjected(self) -> bool:
        """Whether all that was interjected is sent."""
        return self._answered == self._asked

    async def await_interjected(self) -> None:
        """Wait until all that was interjected is sent."""
        while not self.has_interjected and not self.done:  # noqa: ASYNC110 - a thread sends
            await asyncio.sleep(0.005)

    async def acknowledged(self) -> None:
        """Wait until the outcome of everything that was sent so far is known. Where Kafka is away it may never be."""
        sent = len(self._outcomes)
        while not self.done and None in self._outcomes[:sent]:  # noqa: ASYNC110 - a thread sends
            await asyncio.sleep(0.02)

    async def begin_anew(self) -> None:
        """End with records under way, and go on behind them as a producer that knows nothing of those."""
        forgotten = self.forgotten
        while self.forgotten == forgotten and not self.done:
            self._must_begin_anew.set()
            await asyncio.sleep(0.005)

    def last(self, seconds: float) -> None:
        """Let what is not sent and not held back last so long, as long as nobody lets go."""
        left = len(self._messages) * (1 - HELD_BACK - self.share)
        self._rate = max(1.0, min(self._usual_rate, left / seconds))

    def let_go(self) -> None:
        """Let go of what was held back, at the usual rate."""
        self._rate = self._usual_rate
        self.paused.clear()
        self._let_go.set()

    def finish(self, record: Path) -> tuple[int, int]:
        """Wait for the thread and write the record; returns how many were sent, and of how many nobody knows."""
        if self.begun_at:
            self._thread.join()
        if self._error is not None:
            raise self._error
        lines = [
            (*(outcome or (None, None)), digest(message.key, message.value), message.broken)
            for message, outcome in zip(self._messages, self._outcomes, strict=bool(self.begun_at))
        ]
        record.write_bytes(msgspec.json.Encoder().encode_lines(lines))
        return len(self._outcomes), sum(outcome is None for outcome in self._outcomes)

    def abandon(self) -> None:
        """Send nothing more."""
        self._stop.set()
        self.let_go()

    def _run(self) -> None:
        try:
            self._send_all()
        except BaseException as error:
            self._error = error

    def _new_producer(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "partitioner": "murmur2_random",
                "queue.buffering.max.messages": 1_000_000,
                "message.max.bytes": 4 * 1024 * 1024,
                "message.timeout.ms": 90_000,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            },
            logger=None,
        )

    def _send_all(self) -> None:
        producer = self._new_producer()
        planned, position = self._messages, 0
        sent: list[Message] = []
        held_back_from = int(len(planned) * (1 - HELD_BACK))
        kept_back_from = int(len(planned) * (1 - KEPT_BACK))
        allowance, last = 0.0, time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            until = len(planned) if self._let_go.is_set() else kept_back_from
            if position == len(planned) and not self._interjected:
                break
            holding = position >= held_back_from and not self._let_go.is_set()
            rate = 0.0 if self.paused.is_set() else self._rate * (TRICKLE if holding else 1.0)
            allowance, last = min(allowance + rate * (now - last), self._rate / 10), now
            interjected = min(len(self._interjected), 5_000)
            for _ in range(interjected):
                self._produce(producer, sent, self._interjected.popleft())
            self._answered += interjected
            taken = min(int(allowance), until - position)
            for message in planned[position : position + taken]:
                self._produce(producer, sent, message)
            position, allowance, self.sent = position + taken, allowance - taken, position + taken
            producer.poll(0)
            if self._must_begin_anew.is_set():
                self._must_begin_anew.clear()
                self.forgotten += len(producer)
                producer.purge()  # in its queue, and what it has sent and heard nothing of
                producer.flush(0)
                producer = self._new_producer()
            if not interjected:
                time.sleep(0.005)
        producer.flush(120)
        self._messages = sent

    def _produce(self, producer: Producer, sent: list[Message], message: Message) -> None:
        number = len(sent)
        sent.append(message)
        self._outcomes.append(None)
        where: dict[str, Any] = {} if message.partition is None else {"partition": message.partition}
        while True:
            try:
                producer.produce(
                    self._topic,
                    key=message.key,
                    value=message.value,
                    on_delivery=partial(self._delivered, number),
                    **where,
                )
                return
            except BufferError:
                producer.poll(0.1)

    def _delivered(self, number: int, error: Any, sent: Any) -> None:
        if error is None:
            self._outcomes[number] = (sent.partition(), sent.offset())
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self.too_large += 1
