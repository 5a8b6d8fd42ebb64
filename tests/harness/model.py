"""A naive model of what a log of records means, to hold the product against.

It shares no code with the product and keeps no counter: registers in a dictionary, ids in sets, and every number is
computed anew from them when somebody asks. One record at a time, in the order of the log. It takes only values that are
valid (broken ones never reach a fold). Texts are compared whole: the cutting of very long ones is not modelled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Effect = Literal["accepted", "duplicate", "late", "ignored", "pruned", "not_applicable", "summary"]

ANSWERS = ("succeeded", "partial", "failed", "skipped")
WRITES = ("created", "updated", "unchanged")
LISTED_IDS = 100
ABSENT = "(absent)"
"""What an event says where it lacks a field, which is not null."""

_AS_IT_IS = (
    *("batch_id", "revision", "supersedes", "outcome", "finalized_by", "item_counts", "write_counts", "error_summary"),
    *("failed_item_ids", "missing_item_ids", "name", "metadata", "retry_of"),
)
_TIMES = ("opened_at", "first_result_at", "finalized_at")


@dataclass(slots=True)
class Register:
    """The result that counts for one item: where it stood in the log, and all it said. It never changes.

    `generation` says how often a reopening has chosen the item; the register it leaves says nothing yet.
    """

    offset: int
    content: Mapping[str, Any]
    generation: int = 0
    # Read for each item of a batch again and again: not properties.
    status: str = field(init=False)
    attempt: int = field(init=False)
    answered: bool = field(init=False)

    def __post_init__(self) -> None:
        self.status = str(self.content["status"])
        self.attempt = int(self.content["attempt"])
        self.answered = self.status != "retrying"

    @property
    def rank(self) -> tuple[int, int, bool, int]:
        return (self.generation, self.attempt, self.answered, self.offset)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that its batch's state forbids: it must be a dead letter `not_applicable`."""

    batch_id: str
    offset: int
    why: str


@dataclass(frozen=True, slots=True)
class ExpectedOpen:
    """A batch that is not final yet. `total` and `missing` are None while no total is known."""

    batch_id: str
    status: Literal["pending", "processing"]
    sealed: bool
    item_counts: Mapping[str, int | None]
    write_counts: Mapping[str, int]
    opened_at_ms: int | None
    first_result_at_ms: int | None


@dataclass(frozen=True, slots=True)
class ExpectedFinalized:
    """What the finalized event must say. Times are append times in ms, `as_of_offset` is the deciding record's.

    `completed_at_ms`, of the last answer by then, only the tables say.
    """

    batch_id: str
    revision: int
    outcome: str
    finalized_by: str
    item_counts: Mapping[str, int]
    write_counts: Mapping[str, int]
    error_summary: str | None
    failed_item_ids: tuple[str, ...]
    missing_item_ids: tuple[str, ...]
    name: str | None
    metadata: Mapping[str, Any] | None
    retry_of: str | None
    opened_at_ms: int | None
    first_result_at_ms: int | None
    completed_at_ms: int | None
    finalized_at_ms: int
    as_of_offset: int

    def contradictions(self, event: Mapping[str, Any]) -> list[str]:
        """One line for each field in which a finalized event (decoded JSON) says something else."""
        said = {
            **{name: event.get(name, ABSENT) for name in _AS_IT_IS},
            **{name: _milliseconds(event[name]) if name in event else ABSENT for name in _TIMES},
            "as_of.offset": (event.get("as_of") or {}).get("offset"),
        }
        expected = {
            "batch_id": self.batch_id,
            "revision": self.revision,
            "supersedes": self.revision - 1 or None,
            "outcome": self.outcome,
            "finalized_by": self.finalized_by,
            "item_counts": dict(self.item_counts),
            "write_counts": dict(self.write_counts),
            "error_summary": self.error_summary,
            "failed_item_ids": list(self.failed_item_ids),
            "missing_item_ids": list(self.missing_item_ids),
            "name": self.name,
            "metadata": self.metadata,
            "retry_of": self.retry_of,
            "opened_at": self.opened_at_ms,
            "first_result_at": self.first_result_at_ms,
            "finalized_at": self.finalized_at_ms,
            "as_of.offset": self.as_of_offset,
        }
        return [
            f"{self.batch_id}: {name} is {said[name]!r}, expected {expected[name]!r}"
            for name in expected
            if canonical(said[name]) != canonical(expected[name])
        ]


@dataclass(slots=True)
class Batch:
    """All that is remembered of one batch.

    `chunks` are what each record has added to the manifest, by its offset; `last_offset` is of the last record that did
    anything.
    """

    batch_id: str
    last_offset: int = -1
    total: int | None = None
    manifest: set[str] | None = None
    chunks: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    sealed: bool = False
    registers: dict[str, Register] = field(default_factory=dict)
    late: dict[str, Register] = field(default_factory=dict)
    late_at_ms: dict[int, int] = field(default_factory=dict)
    duplicate_offsets: list[int] = field(default_factory=list)
    policy: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    metadata: Mapping[str, Any] | None = None
    retry_of: str | None = None
    request_retry: bool = False
    deadline_at: str | None = None
    opened_at_ms: int | None = None
    reopened_at_ms: int | None = None
    first_result_at_ms: int | None = None
    last_counted_offset: int | None = None
    last_counted_at_ms: int | None = None
    last_answer_at_ms: int | None = None
    generation: int = 0
    reason: str | None = None
    error: Mapping[str, Any] | None = None
    is_final: bool = False
    revision: int = 0
    pruned_at_ms: int | None = None
    revisions: list[ExpectedFinalized] = field(default_factory=list)
    alerts: list[tuple[str, int]] = field(default_factory=list)
    requests: list[tuple[int, str, tuple[str, ...]]] = field(default_factory=list)

    @property
    def finalized(self) -> ExpectedFinalized | None:
        """How it stands finalized now."""
        return self.revisions[-1] if self.is_final else None

    @property
    def answered(self) -> set[str]:
        return {item_id for item_id, register in self.registers.items() if register.answered}

    def known_total(self) -> int | None:
        if self.manifest is not None:
            return len(self.manifest)
        return len(self.answered) if self.total is None and self.is_final else self.total

    def some_are_missing(self) -> bool:
        return bool(self.item_counts()["missing"])

    def may_be_missing(self, item_id: str) -> bool:
        """Whether an item without an answer is one that is waited for."""
        return self.some_are_missing() and (self.manifest is None or item_id in self.manifest)

    def failed(self) -> int:
        return sum(register.status == "failed" for register in self.registers.values())

    def is_complete(self) -> bool:
        total = self.known_total() if self.sealed else None
        if total is None or len(self.registers) < total:
            return False
        if self.manifest is not None:
            # Before the set of all that is answered is made: most often some expected item has no register.
            return self.manifest <= self.registers.keys() and self.manifest <= self.answered
        return self.total is not None and len(self.answered) >= self.total

    def item_counts(self) -> dict[str, int | None]:
        answered = self.answered
        statuses = [self.registers[item_id].status for item_id in answered]
        counts: dict[str, int | None] = {status: statuses.count(status) for status in ANSWERS}
        counts["total"] = self.known_total()
        if self.manifest is not None:
            counts["unexpected"] = len(answered - self.manifest)
            counts["missing"] = len(self.manifest - answered)
        elif self.total is not None:
            counts["unexpected"] = max(0, len(answered) - self.total)
            counts["missing"] = max(0, self.total - len(answered))
        else:
            counts["unexpected"] = 0
            counts["missing"] = 0 if self.is_final else None
        return counts

    def write_counts(self) -> dict[str, int]:
        effects = [self.registers[item_id].content["effect"] for item_id in self.answered]
        return {effect: effects.count(effect) for effect in WRITES}


class Model:
    """Folds records, one `apply` each, and answers what every batch must look like."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.refusals: list[Refusal] = []

    def apply(self, offset: int, timestamp_ms: int, value: Mapping[str, Any]) -> Effect:
        """Take one valid record, at `offset` of its batch's partition; returns what it did."""
        batch_id = value["batch_id"]
        is_new = batch_id not in self.batches
        batch = Batch(batch_id) if is_new else self.batches[batch_id]
        kind = value.get("type") or "item.result"
        effect: Effect = "accepted"
        match kind:
            case "item.result":
                effect = _take_result(batch, offset, timestamp_ms, value)
            case "batch.finalize_requested" if batch.is_final:
                effect = self._refuse(batch_id, offset, _objection_to_pruned(batch))
                effect = "summary" if effect == "accepted" else effect
            case "batch.reopened" if batch.is_final and value.get("revision") in (None, batch.revision):
                effect = self._refuse(batch_id, offset, _objection_to_pruned(batch))
                if effect == "accepted":
                    effect = _reopen(batch, offset, timestamp_ms, value)
            case "batch.reopened":
                effect = "ignored"
            case "batch.corrected":
                objection = "nobody knows this batch" if is_new else None
                if batch.is_final and batch.revision <= value["revision"]:
                    objection = _objection_to_pruned(batch)
                effect = self._refuse(batch_id, offset, objection)
                if effect == "accepted":
                    effect = _correct(batch, offset, timestamp_ms, value["revision"])
            case "batch.pruned":
                at_it = batch.is_final and batch.pruned_at_ms is None and value["revision"] == batch.revision
                batch.pruned_at_ms = timestamp_ms if at_it else batch.pruned_at_ms
                effect = "accepted" if at_it else "ignored"
            case _ if batch.is_final:
                effect = "ignored"
            case "batch.cancelled":
                batch.reason = value.get("reason")
                _finalize(batch, "cancelled", offset, timestamp_ms)
            case "batch.aborted":
                batch.reason = None
                batch.error = {name: said for name, said in value["error"].items() if said is not None}
                _finalize(batch, "aborted", offset, timestamp_ms)
            case "batch.expired":
                current = batch.deadline_at is not None and (
                    _instant(value["deadline_at"]) == _instant(batch.deadline_at)
                    and value["generation"] == batch.generation
                )
                if current:
                    _finalize(batch, "deadline", offset, timestamp_ms)
                effect = "accepted" if current else "ignored"
            case "batch.finalize_requested":
                effect = self._refuse(batch_id, offset, "nobody knows this batch" if is_new else None)
                if effect == "accepted":
                    batch.reason = value.get("reason")
                    _finalize(batch, "forced", offset, timestamp_ms)
            case "batch.opened":
                effect = self._refuse(batch_id, offset, _objection_to_opened(batch, value))
                if effect == "accepted":
                    _open(batch, offset, timestamp_ms, value)
            case "batch.items_expected":
                effect = self._refuse(batch_id, offset, _objection_to_items_expected(batch))
                if effect == "accepted":
                    _expect(batch, offset, value["item_ids"])
            case "batch.sealed":
                effect = self._refuse(batch_id, offset, _objection_to_sealed(batch, value))
                if effect == "accepted":
                    _set_total(batch, value)
                    batch.sealed = True
            case other:
                raise ValueError(f"the model does not know {other!r}")
        if effect in ("accepted", "duplicate", "late"):
            self.batches[batch_id] = batch
            batch.last_offset = offset
        if effect == "accepted" and not batch.is_final and batch.is_complete():
            _finalize(batch, "all_items_in", offset, timestamp_ms)
        if kind != "item.result" or value["status"] == "failed":
            _raise_alerts(batch, offset)
        return effect

    def finalized(self, batch_id: str) -> ExpectedFinalized | None:
        """What the batch's one finalized event must say; None where there must be none."""
        return self.batches[batch_id].finalized if batch_id in self.batches else None

    def all_finalized(self) -> dict[str, ExpectedFinalized]:
        return {b.batch_id: b.finalized for b in self.batches.values() if b.finalized}

    def all_revisions(self) -> dict[str, list[ExpectedFinalized]]:
        """Every finalization there was, also those that a later one supersedes or a reopening took back."""
        return {b.batch_id: b.revisions for b in self.batches.values() if b.revisions}

    def all_open(self) -> dict[str, ExpectedOpen]:
        """Every batch that is not final yet, by id."""
        return {b.batch_id: _open_picture(b) for b in self.batches.values() if not b.finalized}

    def status(self, batch_id: str) -> str:
        """The one word: the outcome once there is one, else the state."""
        batch = self.batches[batch_id]
        return batch.revisions[-1].outcome if batch.is_final else _open_picture(batch).status

    def duplicates(self, batch_id: str) -> int:
        return len(self.batches[batch_id].duplicate_offsets)

    def late_item_ids(self, batch_id: str) -> frozenset[str]:
        return frozenset(self.batches[batch_id].late)

    def _refuse(self, batch_id: str, offset: int, why: str | None) -> Effect:
        if why is None:
            return "accepted"
        self.refusals.append(Refusal(batch_id, offset, why))
        return "not_applicable"


def fold(records: Iterable[tuple[int, int, bytes]]) -> Model:
    """Model of a log: `(offset, append time in ms, value)` as Kafka assigned them.

    The records of one batch must come in the order of their partition; several partitions may follow one another or
    be mixed. Where records reached a wrong partition, give the forwarded copies in the home partition instead.
    """
    model = Model()
    for offset, timestamp_ms, value in records:
        model.apply(offset, timestamp_ms, json.loads(value))
    return model


def _objection_to_opened(batch: Batch, value: Mapping[str, Any]) -> str | None:
    gives_total = value.get("total_items") is not None
    gives_ids = value.get("item_ids") is not None
    if gives_ids and batch.total is not None:
        return "item ids for a batch with a total"
    if gives_total and batch.manifest is not None:
        return "a total for a batch with a manifest"
    if value.get("sealed") and not gives_total and not gives_ids and batch.known_total() is None:
        return "sealed with neither total nor manifest"
    return None


def _objection_to_pruned(batch: Batch) -> str | None:
    return None if batch.pruned_at_ms is None else "its items were pruned"


def _objection_to_items_expected(batch: Batch) -> str | None:
    if batch.total is not None:
        return "item ids for a batch with a total"
    if batch.sealed:
        return "item ids for a sealed batch"
    return None


def _objection_to_sealed(batch: Batch, value: Mapping[str, Any]) -> str | None:
    gives_total = value.get("total_items") is not None
    if gives_total and batch.manifest is not None:
        return "a total for a batch with a manifest"
    if not gives_total and batch.known_total() is None:
        return "sealed with neither total nor manifest"
    return None


def _open(batch: Batch, offset: int, timestamp_ms: int, value: Mapping[str, Any]) -> None:
    item_ids, sealed = value.get("item_ids"), value.get("sealed")
    _set_total(batch, value)
    batch.retry_of = value.get("retry_of") or batch.retry_of
    was_asked, batch.request_retry = batch.request_retry, bool(value.get("request_retry")) or batch.request_retry
    if value.get("request_retry") is False:
        batch.request_retry = False
    if item_ids is not None:
        _expect(batch, offset, item_ids)
    elif batch.request_retry and not was_asked and batch.retry_of:
        batch.requests.append((offset, batch.retry_of, ()))
    if sealed is None:
        sealed = value.get("total_items") is not None or item_ids is not None
    batch.sealed = batch.sealed or sealed
    batch.policy = value.get("policy") or {}
    batch.name = value.get("name")
    batch.metadata = value.get("metadata")
    batch.deadline_at = value.get("deadline_at")
    if batch.opened_at_ms is None:
        batch.opened_at_ms = timestamp_ms


def _set_total(batch: Batch, value: Mapping[str, Any]) -> None:
    if value.get("total_items") is not None:
        batch.total = value["total_items"]


def _expect(batch: Batch, offset: int, item_ids: Iterable[str]) -> None:
    known = batch.manifest or set()
    new = tuple(item_id for item_id in item_ids if item_id not in known)
    batch.manifest = known | set(new)
    batch.chunks.append((offset, new))
    if new and batch.request_retry and batch.retry_of:
        batch.requests.append((offset, batch.retry_of, new))


def _take_result(batch: Batch, offset: int, timestamp_ms: int, value: Mapping[str, Any]) -> Effect:
    if batch.pruned_at_ms is not None:
        return "pruned"
    item_id = value["item_id"]
    held = batch.registers.get(item_id)
    new = Register(offset, _content(value), held.generation if held else 0)
    if not _changes(held, new):
        batch.duplicate_offsets.append(offset)
        return "duplicate"
    if batch.is_final:
        if batch.policy.get("late_results") == "revise" and batch.revisions[-1].finalized_by not in (
            "cancelled",
            "aborted",
        ):
            _revise(batch, item_id, new, timestamp_ms)
            return "late"
        if not _changes(batch.late.get(item_id), new):
            batch.duplicate_offsets.append(offset)
            return "duplicate"
        batch.late[item_id] = new
        batch.late_at_ms[offset] = timestamp_ms
        return "late"
    _count(batch, item_id, new, timestamp_ms)
    return "accepted"


def _count(batch: Batch, item_id: str, new: Register, timestamp_ms: int) -> None:
    batch.registers[item_id] = new
    batch.last_counted_offset, batch.last_counted_at_ms = new.offset, timestamp_ms
    if new.answered:
        batch.last_answer_at_ms = timestamp_ms
    if batch.first_result_at_ms is None:
        batch.first_result_at_ms = timestamp_ms


def _revise(batch: Batch, item_id: str, new: Register, timestamp_ms: int) -> None:
    """A late result that counts; a new revision where an expected item now stands otherwise."""
    held = batch.registers.get(item_id)
    if batch.manifest is not None:
        is_expected = item_id in batch.manifest
    else:
        is_expected = held is not None or batch.total is None or batch.some_are_missing()
    _count(batch, item_id, new, timestamp_ms)
    if is_expected and (held is None or held.status != new.status):
        _finalize(batch, batch.revisions[-1].finalized_by, new.offset, timestamp_ms)


def _reopen(batch: Batch, offset: int, timestamp_ms: int, value: Mapping[str, Any]) -> Effect:
    named = value.get("item_ids")
    if named is None:
        chosen = {item_id for item_id, register in batch.registers.items() if register.status == "failed"}
        unanswered = (batch.registers.keys() | batch.late.keys() | (batch.manifest or set())) - batch.answered
        chosen |= {item_id for item_id in unanswered if batch.may_be_missing(item_id)}
        if not chosen and not batch.some_are_missing():
            return "ignored"
    else:
        chosen = {item_id for item_id in named if item_id in batch.registers or batch.may_be_missing(item_id)}
        if not chosen:
            return "ignored"
    batch.is_final = False
    batch.generation += 1
    batch.reopened_at_ms = timestamp_ms
    batch.deadline_at = value.get("deadline_at")
    batch.reason, batch.error = value.get("reason"), None
    # What came late and was overruled by what counted since, a reopening of other items lying between, stays aside.
    held_before = {item_id: batch.registers[item_id].rank for item_id in chosen & batch.registers.keys()}
    adopted = sorted(chosen & batch.late.keys(), key=lambda item_id: batch.late[item_id].offset)
    adopted = [each for each in adopted if each not in held_before or batch.late[each].rank > held_before[each]]
    for item_id in chosen & batch.registers.keys():
        asked = _content({"status": "retrying", "attempt": 0})
        batch.registers[item_id] = Register(offset, asked, batch.registers[item_id].generation + 1)
    for item_id in adopted:
        late, held = batch.late.pop(item_id), batch.registers.get(item_id)
        generation = held.generation if held else 0
        _count(batch, item_id, Register(late.offset, late.content, generation), batch.late_at_ms.pop(late.offset))
    return "accepted"


def _correct(batch: Batch, offset: int, timestamp_ms: int, revision: int) -> Effect:
    """The revision of that number was published, and wrongly: what holds goes out under a number behind it."""
    if batch.revision > revision or (batch.revision == revision and not batch.is_final):
        return "ignored"
    batch.revision = revision
    if batch.is_final:
        _finalize(batch, batch.revisions[-1].finalized_by, offset, timestamp_ms)
    return "accepted"


def _raise_alerts(batch: Batch, offset: int) -> None:
    """What failures call for, each once a batch."""
    raised = {alert for alert, _ in batch.alerts}
    if "batch.first_failure" not in raised and any(each.status == "failed" for each in batch.registers.values()):
        batch.alerts.append(("batch.first_failure", offset))
    if "batch.failure_threshold_exceeded" not in raised and _is_intolerable(batch, batch.sealed or batch.is_final):
        batch.alerts.append(("batch.failure_threshold_exceeded", offset))


def _is_intolerable(batch: Batch, total_stands: bool) -> bool:
    count, percentage = batch.policy.get("tolerated_failure_count"), batch.policy.get("tolerated_failure_percentage")
    if count is not None and batch.failed() > count:
        return True
    if percentage is None or not total_stands:
        return False
    failed, total = batch.failed(), batch.known_total()
    return failed > 0 and bool(failed * 100 > percentage * (len(batch.answered) if total is None else total))


def _changes(old: Register | None, new: Register) -> bool:
    return old is None or (new.rank > old.rank and not _same(old.content, new.content))


def _content(value: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a result, absent ones as None, so that `null` and absent are one."""
    error = value.get("error")
    return {
        "status": value["status"],
        "attempt": 1 if value.get("attempt") is None else value["attempt"],
        "effect": value.get("effect"),
        "duration_ms": value.get("duration_ms"),
        "message": value.get("message"),
        "error": error and {part: said for part, said in error.items() if said is not None},
        "output": value.get("output"),
        "metrics": value.get("metrics"),
        "worker": value.get("worker"),
        "occurred_at": _instant(value.get("occurred_at")),
    }


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values: unlike Python's, `true` is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _finalize(batch: Batch, finalized_by: str, offset: int, timestamp_ms: int) -> None:
    """End the batch, or end it anew."""
    batch.is_final = True
    batch.revision += 1
    total = batch.known_total()
    counts = {name: count for name, count in batch.item_counts().items() if count is not None}
    if total is None or "missing" not in counts:
        raise AssertionError(f"{batch.batch_id} is complete without a total")
    answered = batch.answered
    failed_ids = sorted(item for item in answered if batch.registers[item].status == "failed")
    missing_ids = sorted(batch.manifest - answered) if batch.manifest is not None else []
    final = ExpectedFinalized(
        batch_id=batch.batch_id,
        revision=batch.revision,
        outcome=_outcome(batch, counts, finalized_by),
        finalized_by=finalized_by,
        item_counts=counts,
        write_counts=batch.write_counts(),
        error_summary=_error_summary(counts["failed"], total),
        failed_item_ids=tuple(failed_ids[:LISTED_IDS]),
        missing_item_ids=tuple(missing_ids[:LISTED_IDS]),
        name=batch.name,
        metadata=batch.metadata,
        retry_of=batch.retry_of,
        opened_at_ms=batch.opened_at_ms,
        first_result_at_ms=batch.first_result_at_ms,
        completed_at_ms=batch.last_answer_at_ms,
        finalized_at_ms=timestamp_ms,
        as_of_offset=offset,
    )
    batch.revisions.append(final)


def _outcome(batch: Batch, counts: Mapping[str, int], finalized_by: str) -> str:
    if finalized_by in ("cancelled", "deadline", "aborted"):
        return {"cancelled": "cancelled", "deadline": "expired", "aborted": "failed"}[finalized_by]
    is_flawed = counts["failed"] > 0 or counts["missing"] > 0
    if is_flawed and not counts["succeeded"] and not counts["partial"]:
        return "failed"
    if _is_intolerable(batch, total_stands=True):
        return "failed"
    return "completed_with_errors" if is_flawed else "completed"


def _error_summary(failed: int, total: int) -> str | None:
    if failed == 0:
        return None
    return f"All {total} failed" if failed == total else f"{failed} of {total} failed"


def _open_picture(batch: Batch) -> ExpectedOpen:
    return ExpectedOpen(
        batch_id=batch.batch_id,
        status="processing" if batch.first_result_at_ms is not None else "pending",
        sealed=batch.sealed,
        item_counts=batch.item_counts(),
        write_counts=batch.write_counts(),
        opened_at_ms=batch.opened_at_ms,
        first_result_at_ms=batch.first_result_at_ms,
    )


def _instant(text: str | None) -> datetime | str | None:
    """Two spellings of one moment are one value; what Python cannot read stays text."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def canonical(value: Any) -> str:
    """JSON as text, so that `true` is not 1."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _milliseconds(text: str | None) -> int | None:
    return None if text is None else round(datetime.fromisoformat(text).timestamp() * 1000)
