"""A naive model of what a log of records means, to hold the product against.

It shares no code with the product and keeps no counter: registers in a dictionary, ids in sets, and every number is
computed anew from them when somebody asks. One record at a time, in the order of the log. It knows the messages
`batch.opened`, `batch.items_expected`, `batch.sealed` and `item.result`, and takes only values that are valid
(broken ones never reach a fold). Texts are compared whole: the cutting of very long ones is not modelled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Effect = Literal["accepted", "duplicate", "late", "ignored", "not_applicable"]

ANSWERS = ("succeeded", "partial", "failed", "skipped")
WRITES = ("created", "updated", "unchanged")
LISTED_IDS = 100


@dataclass(frozen=True, slots=True)
class Register:
    """The result that counts for one item: where it stood in the log, and all it said."""

    offset: int
    content: Mapping[str, Any]

    @property
    def status(self) -> str:
        return str(self.content["status"])

    @property
    def attempt(self) -> int:
        return int(self.content["attempt"])

    @property
    def answered(self) -> bool:
        return self.status != "retrying"

    @property
    def rank(self) -> tuple[int, bool, int]:
        return (self.attempt, self.answered, self.offset)


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
    """What the finalized event must say. Times are append times in ms, `as_of_offset` is the deciding record's."""

    batch_id: str
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
    finalized_at_ms: int
    as_of_offset: int

    def contradictions(self, event: Mapping[str, Any]) -> list[str]:
        """One line for each field in which a finalized event (decoded JSON) says something else."""
        said = {
            "batch_id": event.get("batch_id"),
            "revision": event.get("revision"),
            "outcome": event.get("outcome"),
            "finalized_by": event.get("finalized_by"),
            "item_counts": event.get("item_counts"),
            "write_counts": event.get("write_counts"),
            "error_summary": event.get("error_summary"),
            "failed_item_ids": list(event.get("failed_item_ids") or ()),
            "missing_item_ids": list(event.get("missing_item_ids") or ()),
            "name": event.get("name"),
            "metadata": event.get("metadata") or None,
            "retry_of": event.get("retry_of"),
            "opened_at": _milliseconds(event.get("opened_at")),
            "first_result_at": _milliseconds(event.get("first_result_at")),
            "finalized_at": _milliseconds(event.get("finalized_at")),
            "as_of.offset": (event.get("as_of") or {}).get("offset"),
        }
        expected = {
            "batch_id": self.batch_id,
            "revision": 1,
            "outcome": self.outcome,
            "finalized_by": self.finalized_by,
            "item_counts": dict(self.item_counts),
            "write_counts": dict(self.write_counts),
            "error_summary": self.error_summary,
            "failed_item_ids": list(self.failed_item_ids),
            "missing_item_ids": list(self.missing_item_ids),
            "name": self.name,
            "metadata": self.metadata or None,
            "retry_of": self.retry_of,
            "opened_at": self.opened_at_ms,
            "first_result_at": self.first_result_at_ms,
            "finalized_at": self.finalized_at_ms,
            "as_of.offset": self.as_of_offset,
        }
        return [
            f"{self.batch_id}: {name} is {said[name]!r}, expected {expected[name]!r}"
            for name in expected
            if said[name] != expected[name]
        ]


@dataclass(slots=True)
class Batch:
    """All that is remembered of one batch."""

    batch_id: str
    total: int | None = None
    manifest: set[str] | None = None
    sealed: bool = False
    registers: dict[str, Register] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    late: dict[str, Register] = field(default_factory=dict)
    duplicate_offsets: list[int] = field(default_factory=list)
    policy: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    metadata: Mapping[str, Any] | None = None
    retry_of: str | None = None
    deadline_at: str | None = None
    opened_at_ms: int | None = None
    first_result_at_ms: int | None = None
    finalized: ExpectedFinalized | None = None

    def known_total(self) -> int | None:
        return len(self.manifest) if self.manifest is not None else self.total

    def is_complete(self) -> bool:
        if not self.sealed:
            return False
        if self.manifest is not None:
            return self.manifest <= self.answered
        return self.total is not None and len(self.answered) >= self.total

    def item_counts(self) -> dict[str, int | None]:
        statuses = [self.registers[item_id].status for item_id in self.answered]
        counts: dict[str, int | None] = {status: statuses.count(status) for status in ANSWERS}
        counts["total"] = self.known_total()
        if self.manifest is not None:
            counts["unexpected"] = len(self.answered - self.manifest)
            counts["missing"] = len(self.manifest - self.answered)
        elif self.total is not None:
            counts["unexpected"] = max(0, len(self.answered) - self.total)
            counts["missing"] = max(0, self.total - len(self.answered))
        else:
            counts["unexpected"] = 0
            counts["missing"] = None
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
        batch = self.batches.get(batch_id) or Batch(batch_id)
        match value.get("type") or "item.result":
            case "item.result":
                effect = _take_result(batch, offset, timestamp_ms, value)
            case "batch.opened" | "batch.items_expected" | "batch.sealed" if batch.finalized:
                effect = "ignored"
            case "batch.opened":
                effect = self._refuse(batch_id, offset, _objection_to_opened(batch, value))
                if effect == "accepted":
                    _open(batch, timestamp_ms, value)
            case "batch.items_expected":
                effect = self._refuse(batch_id, offset, _objection_to_items_expected(batch))
                if effect == "accepted":
                    batch.manifest = (batch.manifest or set()) | set(value["item_ids"])
            case "batch.sealed":
                effect = self._refuse(batch_id, offset, _objection_to_sealed(batch, value))
                if effect == "accepted":
                    _set_total(batch, value)
                    batch.sealed = True
            case other:
                raise ValueError(f"the model does not know {other!r}")
        if effect != "not_applicable":
            self.batches[batch_id] = batch
        if effect == "accepted" and batch.is_complete():
            batch.finalized = _finalize(batch, offset, timestamp_ms)
        return effect

    def finalized(self, batch_id: str) -> ExpectedFinalized | None:
        """What the batch's one finalized event must say; None where there must be none."""
        return self.batches[batch_id].finalized if batch_id in self.batches else None

    def all_finalized(self) -> dict[str, ExpectedFinalized]:
        return {b.batch_id: b.finalized for b in self.batches.values() if b.finalized}

    def all_open(self) -> dict[str, ExpectedOpen]:
        """Every batch that is not final yet, by id."""
        return {b.batch_id: _open_picture(b) for b in self.batches.values() if not b.finalized}

    def status(self, batch_id: str) -> str:
        """The one word: the outcome once there is one, else the state."""
        batch = self.batches[batch_id]
        return batch.finalized.outcome if batch.finalized else _open_picture(batch).status

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


def _open(batch: Batch, timestamp_ms: int, value: Mapping[str, Any]) -> None:
    item_ids, sealed = value.get("item_ids"), value.get("sealed")
    _set_total(batch, value)
    if item_ids is not None:
        batch.manifest = (batch.manifest or set()) | set(item_ids)
    if sealed is None:
        sealed = value.get("total_items") is not None or item_ids is not None
    batch.sealed = batch.sealed or sealed
    batch.policy = value.get("policy") or {}
    batch.name = value.get("name")
    batch.metadata = value.get("metadata")
    batch.deadline_at = value.get("deadline_at")
    batch.retry_of = value.get("retry_of") or batch.retry_of
    if batch.opened_at_ms is None:
        batch.opened_at_ms = timestamp_ms


def _set_total(batch: Batch, value: Mapping[str, Any]) -> None:
    if value.get("total_items") is not None:
        batch.total = value["total_items"]


def _take_result(batch: Batch, offset: int, timestamp_ms: int, value: Mapping[str, Any]) -> Effect:
    item_id = value["item_id"]
    new = Register(offset, _content(value))
    if not _changes(batch.registers.get(item_id), new):
        batch.duplicate_offsets.append(offset)
        return "duplicate"
    if batch.finalized:
        if not _changes(batch.late.get(item_id), new):
            batch.duplicate_offsets.append(offset)
            return "duplicate"
        batch.late[item_id] = new
        return "late"
    batch.registers[item_id] = new
    if new.answered:
        batch.answered.add(item_id)
    else:
        batch.answered.discard(item_id)
    if batch.first_result_at_ms is None:
        batch.first_result_at_ms = timestamp_ms
    return "accepted"


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


def _finalize(batch: Batch, offset: int, timestamp_ms: int) -> ExpectedFinalized:
    total = batch.known_total()
    counts = {name: count for name, count in batch.item_counts().items() if count is not None}
    if total is None or "missing" not in counts:
        raise AssertionError(f"{batch.batch_id} is complete without a total")
    failed_ids = sorted(item for item in batch.answered if batch.registers[item].status == "failed")
    missing_ids = sorted(batch.manifest - batch.answered) if batch.manifest is not None else []
    return ExpectedFinalized(
        batch_id=batch.batch_id,
        outcome=_outcome(counts, batch.policy),
        finalized_by="all_items_in",
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
        finalized_at_ms=timestamp_ms,
        as_of_offset=offset,
    )


def _outcome(counts: Mapping[str, int], policy: Mapping[str, Any]) -> str:
    failed, missing = counts["failed"], counts["missing"]
    if (failed or missing) and not counts["succeeded"] and not counts["partial"]:
        return "failed"
    count_limit = policy.get("tolerated_failure_count")
    if count_limit is not None and failed > count_limit:
        return "failed"
    percentage_limit = policy.get("tolerated_failure_percentage")
    if percentage_limit is not None and failed * 100 > percentage_limit * counts["total"]:
        return "failed"
    return "completed_with_errors" if failed or missing else "completed"


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


def _milliseconds(text: str | None) -> int | None:
    return None if text is None else round(datetime.fromisoformat(text).timestamp() * 1000)
