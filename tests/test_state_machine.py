"""A batch told anything at any time, on the fold and on a real PostgreSQL at once, against a model of sets.

The machine tells a batch one record after the other. The fold takes each at once; the store takes them in micro-batches
that end where the machine says, some of which crash before their commit. Whatever happened, both agree with the model,
which keeps no counter.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from datetime import timedelta
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from handlers import fold
from handlers.records import Record, Registers
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.dead_letters import Refused
from store import batches, items
from store.connection import Connection
from store.rows import RETRYING, Batch
from streams.decoding import decode
from tests.harness.micro_batches import EPOCH, applied, emptied, micro_batch
from tests.harness.model import Model
from tests.harness.told import Told

ITEMS = ["a", "b", "c", "d"]
DEADLINE = "2026-02-01T00:00:00Z"
ENDS: list[dict[str, Any]] = [
    {"type": "batch.cancelled", "reason": "r"},
    {"type": "batch.aborted", "error": {"message": "m"}},
    {"type": "batch.finalize_requested"},
]
POLICIES: list[dict[str, Any]] = [
    {},
    {"policy": {"late_results": "revise"}},
    {"policy": {"tolerated_failure_count": 0}},
]

# What the model says a record did, and in the fold's words.
MEANINGS = {
    "accepted": {"accepted", "unexpected"},
    "duplicate": {"duplicate", "superseded"},
    "late": {"late"},
    "ignored": {"no_effect"},
    "pruned": {"pruned"},
    "not_applicable": {"refused"},
    "summary": {"summary_requested"},
}

subsets = st.lists(st.sampled_from(ITEMS), unique=True, max_size=4)
items_told = st.sampled_from([*ITEMS, "stranger"])
answers = st.sampled_from(["succeeded", "succeeded", "failed", "partial", "skipped"])


class BatchMachine(RuleBasedStateMachine):
    """One batch, from its first record to wherever the rules lead it."""

    connection: Connection
    runner: asyncio.Runner
    seen: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.registers, self.model = Batch("b", 0), Registers(), Model()
        self.records: list[Record] = []
        self.told: list[dict[str, Any]] = []
        self.applied = 0
        self.ends: list[tuple[int, int]] = []
        self.runner.run(emptied(self.connection))

    # --- what upstream, operators and the clock say

    @rule(
        announced=st.sampled_from([{}, {"total_items": 3}]) | subsets.map(lambda ids: {"item_ids": ids}),
        sealed=st.sampled_from([{}, {}, {"sealed": False}]),
        policy=st.sampled_from(POLICIES),
        deadline=st.booleans(),
    )
    def open(self, announced: dict[str, Any], sealed: dict[str, Any], policy: dict[str, Any], deadline: bool) -> None:
        deadline_at = {"deadline_at": DEADLINE} if deadline else {}
        self.tell({"type": "batch.opened"} | announced | sealed | policy | deadline_at)

    @rule(ids=subsets)
    def expect(self, ids: list[str]) -> None:
        self.tell({"type": "batch.items_expected", "item_ids": ids})

    @rule(total=st.sampled_from([{}, {"total_items": 2}]))
    def seal(self, total: dict[str, Any]) -> None:
        self.tell({"type": "batch.sealed"} | total)

    @rule(item_id=items_told, status=answers)
    def result(self, item_id: str, status: str) -> None:
        self.tell({"item_id": item_id, "status": status})

    @rule(status=answers)
    def answer_all(self, status: str) -> None:
        for item_id in ITEMS:
            self.tell({"item_id": item_id, "status": status})

    @rule(item_id=items_told, status=answers | st.just(RETRYING), attempt=st.integers(1, 3))
    def retry(self, item_id: str, status: str, attempt: int) -> None:
        self.tell({"item_id": item_id, "status": status, "attempt": attempt, "effect": "updated"})

    @rule(item_id=items_told, status=answers)
    def conflict(self, item_id: str, status: str) -> None:
        self.tell({"item_id": item_id, "status": status, "message": f"said {len(self.told)}"})

    @rule(end=st.sampled_from(ENDS))
    def end(self, end: dict[str, Any]) -> None:
        self.tell(end)

    @rule(current=st.booleans())
    def expire(self, current: bool) -> None:
        generation = self.batch.generation + (0 if current else 1)
        self.tell({"type": "batch.expired", "deadline_at": DEADLINE, "generation": generation})

    @precondition(lambda self: self.batch.outcome is not None)
    @rule(ids=subsets)
    def reopen_these(self, ids: list[str]) -> None:
        self.tell({"type": "batch.reopened", "revision": self.batch.revision, "item_ids": ids})

    @rule(ids=st.none() | subsets, current=st.booleans())
    def reopen(self, ids: list[str] | None, current: bool) -> None:
        revision = self.batch.revision if current else self.batch.revision + 1
        chosen = {} if ids is None else {"item_ids": ids}
        self.tell({"type": "batch.reopened", "revision": revision, "deadline_at": DEADLINE} | chosen)

    @rule(current=st.sampled_from([True, False, False]))
    def prune(self, current: bool) -> None:
        self.tell({"type": "batch.pruned", "revision": self.batch.revision + (0 if current else 1)})

    @precondition(lambda self: self.told)
    @rule()
    def redeliver(self) -> None:
        """The last record once more changes nothing, but that a repeated result is counted as such."""
        before, registers = copy.deepcopy(self.batch), copy.deepcopy(self.registers)
        disposition = self.tell(self.told[-1])
        self.seen[f"redelivered: {disposition}"] += 1
        assert self.batch.duplicates - before.duplicates == (disposition in ("duplicate", "superseded"))
        before.duplicates = self.batch.duplicates
        assert (self.batch, self.registers) == (before, registers)

    @rule(ahead=st.integers(-1, 2))
    def correct(self, ahead: int) -> None:
        self.tell({"type": "batch.corrected", "revision": max(0, self.batch.revision + ahead)})

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def redeliver_an_old_one(self, data: st.DataObject) -> None:
        """What it does then, the model knows: an overtaken attempt nothing, an overruled conflict something."""
        self.tell(data.draw(st.sampled_from(self.told)))

    # --- what the store makes of it

    @precondition(lambda self: self.applied < len(self.records))
    @rule(optimistic=st.booleans())
    def flush(self, optimistic: bool) -> None:
        self.runner.run(self._flush(optimistic))

    @precondition(lambda self: self.applied < len(self.records))
    @rule()
    def crash_before_commit(self) -> None:
        self.runner.run(self._crash())

    async def _flush(self, optimistic: bool) -> None:
        await applied(
            self.connection, micro_batch(self.records, self.applied, len(self.records)), optimistic=optimistic
        )
        self.applied = len(self.records)

    async def _crash(self) -> None:
        crash = self.connection.transaction()
        await crash.start()
        await applied(self.connection, micro_batch(self.records, self.applied, len(self.records)), optimistic=False)
        await crash.rollback()

    # --- what holds

    @invariant()
    def the_total_is_accounted_for(self) -> None:
        if self.batch.total is not None:
            assert self.batch.total == self.batch.answered - self.batch.unexpected + self.batch.missing

    @invariant()
    def counts_are_those_of_the_rows(self) -> None:
        statuses = Counter(row.status for row in self.registers.items.values())
        for status in ("succeeded", "partial", "failed", "skipped", "retrying"):
            assert getattr(self.batch, status) == statuses[status]
        assert self.batch.late == len(self.registers.late)
        assert self.batch.matched == sum(
            item in self.registers.manifest for item in self.registers.items if self.registers.has_answered(item)
        )

    @invariant()
    def revisions_rise_and_each_is_decided_once(self) -> None:
        revisions = [revision for revision, _ in self.ends]
        assert revisions == sorted(set(revisions))
        offsets = [offset for _, offset in self.ends]
        assert offsets == sorted(set(offsets))

    @invariant()
    def it_is_never_early_and_never_stuck(self) -> None:
        if (wanted := self.model.batches.get("b")) is None:
            return
        assert (self.batch.outcome or self.batch.state) == self.model.status("b")
        assert self.batch.revision == wanted.revision
        assert [revision for revision, _ in self.ends] == [each.revision for each in wanted.revisions]
        if wanted.is_final and wanted.revisions[-1].revision == self.batch.revision:
            assert self.batch.decided_offset == wanted.revisions[-1].as_of_offset
        assert wanted.is_final or not wanted.is_complete()

    def teardown(self) -> None:
        if self.applied < len(self.records):
            self.runner.run(self._flush(optimistic=True))
        self.runner.run(self._compare())
        self.seen["ended"] += self.batch.outcome is not None
        self.seen["reopened"] += self.batch.generation > 0

    async def _compare(self) -> None:
        stored = (await batches.load(self.connection, ["b"])).get("b", Batch("b", 0))
        assert stored == self.batch
        ids = {"b": [*ITEMS, "stranger"]}
        assert (await items.load(self.connection, ids)).get("b", {}) == self.registers.items
        assert (await items.load_late(self.connection, ids)).get("b", {}) == self.registers.late
        others = await items.unexpected(self.connection, {"b": items.Lines.of(ids["b"])})
        assert others["b"] == {item for item in ids["b"] if item not in self.registers.manifest}
        await self._compare_events()

    async def _compare_events(self) -> None:
        """Each revision went into the outbox once, saying what the model says; each alert and request, too."""
        rows = await self.connection.fetch("SELECT id, channel, value FROM outbox")
        wanted = self.model.batches.get("b")
        revisions = [] if wanted is None else wanted.revisions
        said = {row["id"]: json.loads(row["value"]) for row in rows if row["channel"] == "finalized"}
        assert said.keys() == {f"batch.finalized/b/{each.revision}" for each in revisions}
        for each in revisions:
            assert each.contradictions(said[f"batch.finalized/b/{each.revision}"]) == []
        alerts = {row["id"] for row in rows if row["channel"] == "alerts" and "failure_rate" not in row["id"]}
        assert alerts == {f"{alert}/b" for alert, _ in (wanted.alerts if wanted else ())}
        dead = await self.connection.fetch("SELECT record_offset FROM dead_letters")
        assert {row["record_offset"] for row in dead} == {refusal.offset for refusal in self.model.refusals}

    def tell(self, event: dict[str, Any]) -> str:
        offset = len(self.records)
        moment = EPOCH + timedelta(seconds=offset)
        self.told.append(event)
        self.records.append(decode(json.dumps({"batch_id": "b"} | event).encode(), offset, moment))
        effect = self.model.apply(offset, round(moment.timestamp() * 1000), {"batch_id": "b"} | event)
        revision = self.batch.revision
        try:
            disposition = str(fold.step(self.batch, self.registers, self.records[-1]))
        except Refused:
            disposition = "refused"
        assert disposition in MEANINGS[effect]
        if self.batch.revision != revision and self.batch.outcome is not None:
            self.ends.append((self.batch.revision, offset))
        self.seen[disposition] += 1
        return disposition


def test_whatever_a_batch_is_told_fold_store_and_model_agree(settings_of_store: Settings) -> None:
    class Machine(BatchMachine):
        seen: ClassVar[Counter[str]] = Counter()

    machine = Machine
    with asyncio.Runner() as runner:
        machine.runner = runner
        runner.run(migrate(settings_of_store.database_url, settings_of_store.database_schema))
        machine.connection = runner.run(
            settings_of_store.database().connect("test", plan_cache_mode="force_generic_plan", synchronous_commit="off")
        )
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=50,
                    stateful_step_count=50,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                ),
            )
        finally:
            runner.run(machine.connection.close())
    print(dict(machine.seen))
    assert machine.seen["reopened"] > 0
    assert {"accepted", "late", "duplicate", "superseded", "no_effect", "summary_requested"} <= machine.seen.keys()


@pytest.fixture
def settings_of_store(settings: Settings) -> Settings:
    return settings


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_results_in_any_order_before_the_deciding_record_give_the_same_counts(data: st.DataObject) -> None:
    said = data.draw(
        st.dictionaries(st.tuples(items_told, st.integers(1, 3)), answers | st.just(RETRYING), min_size=1, max_size=12)
    )
    ids = data.draw(subsets)
    pictures = []
    results = list(said.items())
    for order in range(3):
        told = Told()
        told.opened(item_ids=ids, sealed=False)
        Random(order).shuffle(results)
        for (item_id, attempt), status in results:
            told.result(item_id, status, attempt=attempt)
        told.finalize_requested()
        batch = told.batch
        pictures.append((told.counts, batch.retrying, batch.matched, batch.missing, batch.unexpected, batch.outcome))
    assert pictures[0] == pictures[1] == pictures[2]
