"""Seeded histories: what upstream services publish about their batches, in the order they publish it.

It shares no code with the product. One `random.Random(seed)` decides everything, so a seed and its parameters give
the same bytes always. Hand the messages to any producer, one after the other:

    for message in history:
        await producer.send(topic, key=message.key, value=message.value, headers=message.headers)  # aiokafka
        producer.produce(topic, key=message.key, value=message.value, headers=list(message.headers))  # confluent

and give what Kafka made of them (`(offset, append time, value)`) to `tests.harness.model.fold`, or, without Kafka,
`fold(history.as_log())`. Only the order within a batch means something, since a batch lives in one partition.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from random import Random
from typing import Any

MAX_CHUNK = 10_000
FIRST_TIMESTAMP_MS = 1_767_225_600_000


class Shape(StrEnum):
    """How a batch is announced (exactly one of the first four), and what else befalls it."""

    TOTAL = "total"  # batch.opened gives total_items
    MANIFEST = "manifest"  # batch.opened gives item_ids
    CHUNKS = "chunks"  # batch.opened unsealed, batch.items_expected chunks, batch.sealed
    TOTAL_AT_END = "total_at_end"  # batch.opened unsealed, batch.sealed gives total_items at the end
    OPENED_LATE = "opened_late"  # nothing but results at first; the announcement comes behind them
    OPENED_TWICE = "opened_twice"  # a redelivered batch.opened
    STRANGERS = "strangers"  # results beyond the manifest or the total
    STALE = "stale"  # an older attempt delivered behind a newer one
    CONFLICTS = "conflicts"  # two different results of one attempt
    LATE = "late"  # changing results behind the batch's completion
    UNFINISHED = "unfinished"  # a few items never answer, so the batch must not be finalized
    FORBIDDEN = "forbidden"  # lifecycle records that the batch's state forbids: dead letters `not_applicable`


ANNOUNCEMENTS = (Shape.TOTAL, Shape.MANIFEST, Shape.CHUNKS, Shape.TOTAL_AT_END)
FINISHING_SHAPES = tuple(shape for shape in Shape if shape not in (Shape.UNFINISHED, Shape.FORBIDDEN))


@dataclass(frozen=True, slots=True)
class Message:
    """One record to publish. `headers` fit aiokafka as they are, and confluent-kafka as a list."""

    key: bytes
    value: bytes
    batch_id: str
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a history was made from; shares are of the items (`duplicates`: of the result messages)."""

    seed: int
    sizes: tuple[int, ...]
    duplicates: float
    retried: float
    failed: float
    partial: float
    skipped: float
    shapes: tuple[Shape, ...]
    prefix: str


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One batch as its upstream meant it. `item_ids` are the expected items, without strangers."""

    batch_id: str
    size: int
    shapes: frozenset[Shape]
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)
class History:
    """Messages in publishing order, and the parameters they were made from."""

    parameters: Parameters
    batches: tuple[BatchPlan, ...]
    messages: tuple[Message, ...]

    def __repr__(self) -> str:
        p = self.parameters
        return f"<History seed={p.seed} batches={len(self.batches)} items={sum(p.sizes)} messages={len(self.messages)}>"

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def as_log(self, *, first_offset: int = 0, per_millisecond: int = 7) -> Iterator[tuple[int, int, bytes]]:
        """The history as one partition's log: made-up offsets without holes, several records to a millisecond."""
        for position, message in enumerate(self.messages):
            yield first_offset + position, FIRST_TIMESTAMP_MS + position // per_millisecond, message.value


def mixed_sizes(seed: int, *, batches: int, large: int, large_size: int = 5_000) -> tuple[int, ...]:
    """Sizes for `make_history`: `large` batches of `large_size`, the others of 0, 1, 2 and 100, shuffled."""
    small = (0, 1, 2, 100)
    sizes = [large_size] * large + [small[n % 4] for n in range(batches - large)]
    Random(seed).shuffle(sizes)
    return tuple(sizes)


def make_history(
    seed: int,
    *,
    sizes: Sequence[int],
    duplicates: float = 0.10,
    retried: float = 0.05,
    failed: float = 0.05,
    partial: float = 0.03,
    skipped: float = 0.02,
    shapes: Collection[Shape] = FINISHING_SHAPES,
    prefix: str = "batch",
) -> History:
    """History of one batch for each of `sizes`, their messages interleaved.

    Announcements among `shapes` are dealt out evenly, each other shape befalls about every third batch. Without
    `Shape.UNFINISHED` every batch gets complete, without `Shape.FORBIDDEN` nothing becomes a dead letter.
    Raises ValueError where `shapes` holds no announcement.
    """
    announcements = [shape for shape in ANNOUNCEMENTS if shape in shapes]
    traits = [shape for shape in Shape if shape in shapes and shape not in ANNOUNCEMENTS]
    if not announcements:
        raise ValueError(f"shapes must hold one of {', '.join(ANNOUNCEMENTS)}")
    random = Random(seed)
    parameters = Parameters(
        seed=seed,
        sizes=tuple(sizes),
        duplicates=duplicates,
        retried=retried,
        failed=failed,
        partial=partial,
        skipped=skipped,
        shapes=tuple(shape for shape in Shape if shape in shapes),
        prefix=prefix,
    )
    dealt = [announcements[n % len(announcements)] for n in range(len(sizes))]
    random.shuffle(dealt)
    plans: list[BatchPlan] = []
    timed: list[tuple[float, int, Message]] = []
    for number, (size, announcement) in enumerate(zip(sizes, dealt, strict=True)):
        befalling = frozenset(trait for trait in traits if random.random() < 0.35)
        plan = _plan(random, parameters, number, size, befalling | {announcement})
        plans.append(plan)
        start = random.random() * 0.7
        span = 0.1 + random.random() * (0.9 - start)
        timed.extend(
            (start + span * moment, len(timed) + sequence, message)
            for sequence, (moment, message) in enumerate(_Upstream(random, parameters, plan).publish())
        )
    timed.sort()  # the running number settles ties, so messages are never compared
    return History(parameters, tuple(plans), tuple(message for _, _, message in timed))


# --- one batch ---------------------------------------------------------------------------------------------------

# Moments of a batch: results fall into 0..1, its announcement somewhere in -1..2, what is late behind 2.
_BEFORE_RESULTS, _BEHIND_RESULTS, _BEHIND_COMPLETION, _END = -1.0, 1.0, 2.0, 3.0

_BATCH_WORDS = ("", "", "-import", "-Übersicht", "-заказ", "-批次", "-\U0001f9fe", "-q'uo\"te", "-a b")
_ITEM_PREFIXES = ("",) * 12 + ("Z", "a", "é", "orders/", "ﬀ", "\U0001f600", "項", 'q"', "back\\slash", " ")
_TEXTS = (
    "ok",
    "took the slow path",
    "no such customer",
    "größer als erlaubt",
    "счёт не найден",
    "不正な値です",
    "\U0001f6a8 upstream said no \U0001f6a8",
    "line one\nline two\ttabbed",
    'a "quoted" \\ path C:\\u0000',
    "",
)
_CODES = ("TIMEOUT", "NOT_FOUND", "E-42", "ungültig")
_EFFECTS = ("created", "updated", "unchanged")
_WORKERS = ("worker-1", "worker-2", "работник-3", "pod/ab12\U0001f427")
_ZONES = (UTC, UTC, timezone(timedelta(hours=2)), timezone(timedelta(hours=-9, minutes=-30)))
_HEADERS = (
    (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),),
    (("content-type", b"application/json"),),
    (("x-binary", b"\xff\xfe\x00"), ("x-binary", b"")),
)
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_encode_ascii = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode

Timed = tuple[float, Message]
Result = dict[str, Any]


def _plan(random: Random, parameters: Parameters, number: int, size: int, shapes: frozenset[Shape]) -> BatchPlan:
    if size > MAX_CHUNK and Shape.MANIFEST in shapes:
        shapes = shapes - {Shape.MANIFEST} | {Shape.CHUNKS}  # more ids than one message may hold
    if size == 0:
        shapes = shapes - {Shape.UNFINISHED}  # nobody is there who could stay silent
    batch_id = f"{parameters.prefix}-{parameters.seed}-{number:04d}{random.choice(_BATCH_WORDS)}"
    item_ids = tuple(f"{random.choice(_ITEM_PREFIXES)}{position:05d}" for position in range(size))
    return BatchPlan(batch_id, size, shapes, item_ids)


class _Upstream:
    """Publishes one batch: yields its messages, each with the moment at which it is sent."""

    def __init__(self, random: Random, parameters: Parameters, plan: BatchPlan) -> None:
        self._random = random
        self._parameters = parameters
        self._plan = plan
        self._key = plan.batch_id.encode()

    def publish(self) -> Iterator[Timed]:
        yield from self._lifecycle()
        silent = self._silent()
        for item_id in self._plan.item_ids:
            if item_id not in silent:
                yield from self._with_duplicates(self._course(item_id), 0.0, _BEHIND_RESULTS)
        yield from self._silent_attempts(silent)
        if Shape.STRANGERS in self._plan.shapes:
            yield from self._strangers()
        if Shape.LATE in self._plan.shapes:
            yield from self._late(silent)

    # lifecycle

    def _lifecycle(self) -> Iterator[Timed]:
        plan, random = self._plan, self._random
        opened, followers = self._announcement()
        if Shape.OPENED_LATE in plan.shapes:
            moments = self._moments(1 + len(followers), 1.05, 1.9)
        elif Shape.TOTAL_AT_END in plan.shapes:
            moments = [self._opening_moment(), 0.9 + random.random()]
        else:
            moments = [self._opening_moment()]
            moments += self._moments(len(followers), moments[0], random.choice((moments[0] + 0.1, 1.9)))
        messages = [self._message(value) for value in (opened, *followers)]
        yield from zip(moments, messages, strict=True)
        if Shape.OPENED_TWICE in plan.shapes:
            yield moments[0] + random.random() * (_END - moments[0]), messages[0]
        if Shape.FORBIDDEN in plan.shapes:
            # Behind the announcement only: before it the same records would be taken.
            since = moments[0] if Shape.TOTAL_AT_END in plan.shapes else moments[-1]
            for moment in self._moments(3, since, min(since + 0.6, _END)):
                yield moment, self._message(self._forbidden())

    def _forbidden(self) -> Result:
        """What a sealed batch with a total, one with a manifest, or an open one without either must refuse."""
        batch_id, shapes = self._plan.batch_id, self._plan.shapes
        if Shape.TOTAL_AT_END in shapes:
            return {"type": "batch.sealed", "batch_id": batch_id}
        ids: Result = {"type": "batch.items_expected", "batch_id": batch_id, "item_ids": ["one-more"]}
        if Shape.TOTAL in shapes:
            return self._random.choice((ids, {"type": "batch.opened", "batch_id": batch_id, "item_ids": ["one-more"]}))
        total = self._random.choice(("batch.opened", "batch.sealed"))
        return self._random.choice((ids, {"type": total, "batch_id": batch_id, "total_items": 1}))

    def _opening_moment(self) -> float:
        """Half of the batches are opened before their first result, half among their results."""
        return _BEFORE_RESULTS if self._random.random() < 0.5 else self._random.random() * 0.9

    def _announcement(self) -> tuple[Result, list[Result]]:
        """`batch.opened`, and what must follow it until the batch is sealed."""
        plan, random = self._plan, self._random
        opened: Result = {"type": "batch.opened", "batch_id": plan.batch_id, **self._description()}
        sealed: Result = {"type": "batch.sealed", "batch_id": plan.batch_id}
        if Shape.TOTAL in plan.shapes:
            return opened | {"total_items": plan.size}, []
        if Shape.TOTAL_AT_END in plan.shapes:
            return opened, [sealed | {"total_items": plan.size}]
        ids = list(plan.item_ids)
        random.shuffle(ids)
        if Shape.MANIFEST in plan.shapes:
            return opened | {"item_ids": ids}, []
        length = random.choice((1, 7, 40, 1_000, MAX_CHUNK)) if plan.size <= 200 else random.choice((500, 4_000))
        chunks = [ids[at : at + length] for at in range(0, len(ids), length)]
        opened["sealed"] = False
        if not chunks or random.random() < 0.3:
            opened["item_ids"] = chunks.pop(0) if chunks else []
        expected: Result = {"type": "batch.items_expected", "batch_id": plan.batch_id}
        return opened, [expected | {"item_ids": chunk} for chunk in chunks] + [sealed]

    def _description(self) -> Result:
        random = self._random
        description: Result = {}
        if random.random() < 0.6:
            description["name"] = f"Nightly {random.choice(_TEXTS)} {random.randrange(100)}"
        if random.random() < 0.4:
            description["metadata"] = {
                "tenant": random.choice(_TEXTS),
                "run": random.randrange(10**6),
                "tags": ["a", "é"],
            }
        if random.random() < 0.3:
            description["policy"] = random.choice(
                (
                    {"tolerated_failure_count": random.choice((0, 1, 3, 250))},
                    {"tolerated_failure_percentage": random.choice((0, 2.5, 12.5, 50))},
                    {"tolerated_failure_count": 1_000, "tolerated_failure_percentage": 5, "late_results": "record"},
                )
            )
        if random.random() < 0.2:
            description["deadline_at"] = "2099-12-31T23:59:59Z"
        if random.random() < 0.3:
            description["occurred_at"] = self._time()
        if random.random() < 0.3:
            description["schema_version"] = 1
        return description

    # results

    def _course(self, item_id: str) -> list[Result]:
        """The results of one item in the order they are sent; it ends answered."""
        plan, random = self._plan, self._random
        lot = random.random()
        if lot < self._parameters.retried:
            first = self._result(item_id, 1, random.choice(("retrying", "failed")))
            return [first, self._result(item_id, random.choice((2, 2, 3)))]
        if Shape.STALE in plan.shapes and random.random() < 0.10:
            newer = self._result(item_id, random.choice((2, 3)))
            older = self._result(item_id, 1, random.choice(("retrying", "failed", "succeeded")))
            return [newer, older]
        if Shape.CONFLICTS in plan.shapes and random.random() < 0.10:
            return self._conflict(item_id)
        return [self._result(item_id, 1)]

    def _conflict(self, item_id: str) -> list[Result]:
        pair = [self._result(item_id, 1), self._result(item_id, 1)]
        if pair[0] == pair[1]:
            pair[1] = pair[0] | {"message": "another word on the same attempt"}
        return pair

    def _silent(self) -> frozenset[str]:
        plan = self._plan
        if Shape.UNFINISHED not in plan.shapes:
            return frozenset()
        return frozenset(self._random.sample(plan.item_ids, self._random.randint(1, min(5, plan.size))))

    def _silent_attempts(self, silent: frozenset[str]) -> Iterator[Timed]:
        """Some of the silent tried at least, which is no answer."""
        for item_id in sorted(silent):
            if self._random.random() < 0.5:
                yield self._random.random(), self._message(self._result(item_id, 1, "retrying"))

    def _strangers(self) -> Iterator[Timed]:
        """Nobody expects them. Beside a mere total a stranger would fill a silent item's place: then there are none."""
        plan = self._plan
        if Shape.UNFINISHED in plan.shapes and not plan.shapes & {Shape.MANIFEST, Shape.CHUNKS}:
            return
        for number in range(self._random.randint(1, 1 + plan.size // 20)):
            course = [self._result(f"stranger-{number}", 1)]
            yield from self._with_duplicates(course, 0.0, 1.2)

    def _late(self, silent: frozenset[str]) -> Iterator[Timed]:
        plan, random = self._plan, self._random
        if not plan.item_ids:
            yield from self._with_duplicates([self._result("nobody", 1)], _BEHIND_COMPLETION, _END)
            return
        heard = [item_id for item_id in plan.item_ids if item_id not in silent]
        for item_id in random.sample(heard, min(len(heard), 1 + plan.size // 50)):
            attempt = random.choice((1, 4, 4, 5))
            course = [self._result(item_id, attempt, random.choice(("failed", "succeeded", "retrying")))]
            if random.random() < 0.3:
                course.append(self._result(item_id, attempt + random.choice((-1, 0, 1)) or 1, "succeeded"))
            yield from self._with_duplicates(course, _BEHIND_COMPLETION, _END)

    def _with_duplicates(self, course: list[Result], since: float, until: float) -> Iterator[Timed]:
        """Send `course` in order between two moments, and some of it byte for byte again at any time behind."""
        random = self._random
        for moment, value in zip(self._moments(len(course), since, until), course, strict=True):
            message = self._message(value)
            yield moment, message
            if random.random() < self._parameters.duplicates:
                again = moment + random.random() * (_END - moment if random.random() < 0.2 else until - moment)
                yield again, replace(message, headers=self._headers())

    def _result(self, item_id: str, attempt: int, status: str | None = None) -> Result:
        random = self._random
        value: Result = {"batch_id": self._plan.batch_id, "item_id": item_id, "status": status or self._status()}
        if attempt > 1 or random.random() < 0.2:
            value["attempt"] = attempt
        if random.random() < 0.5:
            value["type"] = "item.result"
        if random.random() < 0.7:
            value["duration_ms"] = (
                round(random.expovariate(0.01), 3) if random.random() < 0.5 else random.randrange(5_000)
            )
        if random.random() < 0.5:
            value["worker"] = random.choice(_WORKERS)
        if random.random() < 0.3:
            value["occurred_at"] = self._time()
        if value["status"] in ("failed", "partial", "retrying"):
            value |= self._error()
        elif random.random() < 0.4:
            value["effect"] = random.choice(_EFFECTS)
        if random.random() < 0.2:
            value["message"] = random.choice(_TEXTS)
        if random.random() < 0.2:
            value["output"] = self._output()
        if random.random() < 0.1:
            value["metrics"] = {"bytes": random.randrange(10**9), "größe": round(random.random(), 4)}
        if random.random() < 0.02:
            value |= {"x_unknown": {"nested": [None, True, "…"]}, "schema_version": 1, "effect": value.get("effect")}
        return value

    def _status(self) -> str:
        p, lot = self._parameters, self._random.random()
        if lot < p.failed:
            return "failed"
        if lot < p.failed + p.partial:
            return "partial"
        return "skipped" if lot < p.failed + p.partial + p.skipped else "succeeded"

    def _error(self) -> Result:
        random = self._random
        if random.random() < 0.1:
            return {}
        error: Result = {"message": f"{random.choice(_TEXTS)} #{random.randrange(1_000)}"}
        if random.random() < 0.6:
            error["code"] = random.choice(_CODES)
        if random.random() < 0.3:
            error["stack_trace"] = f'File "job.py", line {random.randrange(900)}\n  raise Fehler("…")'
        return {"error": error}

    def _output(self) -> Any:
        random = self._random
        tx = f"tx-{random.getrandbits(64):016x}"
        return random.choice(
            (tx, random.randrange(10**9), True, [tx, None, 0.5], {"id": tx, "путь": {"ok": False}}, "", [])
        )

    def _time(self) -> str:
        random = self._random
        moment = datetime(2026, 1, 1, tzinfo=random.choice(_ZONES)) + timedelta(seconds=random.randrange(10**6))
        if random.random() < 0.5:
            moment = moment.replace(microsecond=random.randrange(10**6))
        text = moment.isoformat()
        return text.replace("+00:00", "Z") if random.random() < 0.7 else text

    # sending

    def _moments(self, count: int, since: float, until: float) -> list[float]:
        if count == 1:
            return [since + self._random.random() * (until - since)]
        return sorted(since + self._random.random() * (until - since) for _ in range(count))

    def _message(self, value: Result) -> Message:
        encode = _encode_ascii if self._random.random() < 0.1 else _encode
        return Message(self._key, encode(value).encode(), self._plan.batch_id, self._headers())

    def _headers(self) -> tuple[tuple[str, bytes], ...]:
        return self._random.choice(_HEADERS) if self._random.random() < 0.03 else ()
