"""Random logs: however they are cut into slices, the fold gives what one record at a time gives, and the model."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers import fold
from handlers.finalization import finalized_event
from handlers.records import AllBut, Disposition, LifecycleRecord, Registers, TakenRecord
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.dead_letters import Refused
from store.rows import RETRYING, Batch, ItemRow
from tests.harness.histories import Shape, make_history
from tests.harness.micro_batches import EPOCH, TOPICS, applied, emptied, micro_batch, tables, taken
from tests.harness.model import Model
from tests.harness.model import fold as modelled

ITEMS = [f"i{n}" for n in range(8)]

Event = dict[str, Any]


def optional(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
    return st.one_of(st.just({}), values.map(lambda value: {name: value}))


def merged(*parts: st.SearchStrategy[Event]) -> st.SearchStrategy[Event]:
    return st.tuples(*parts).map(lambda dicts: {name: value for each in dicts for name, value in each.items()})


ids = st.lists(st.sampled_from(ITEMS), unique=True, max_size=6)
results = merged(
    st.fixed_dictionaries(
        {
            "item_id": st.sampled_from([*ITEMS, "stranger"]),
            "status": st.sampled_from(
                ["succeeded", "succeeded", "succeeded", "failed", "partial", "skipped", RETRYING]
            ),
        }
    ),
    st.sampled_from([{}, {}, {}, {}, {"attempt": 1}, {"attempt": 2}, {"attempt": 3}]),
    optional("effect", st.sampled_from(["created", "updated", "unchanged"])),
    optional("message", st.sampled_from(["", "m"])),
)
# All items once, in one order: what most of a real log looks like.
answers = st.permutations(ITEMS).flatmap(
    lambda order: st.lists(st.sampled_from(["succeeded", "failed"]), min_size=len(order), max_size=len(order)).map(
        lambda said: [{"item_id": item, "status": status} for item, status in zip(order, said, strict=True)]
    )
)
told_of_one: st.SearchStrategy[list[Event]] = st.sampled_from(
    [
        [{"status": "succeeded"}],
        [{"status": "failed"}, {"status": "failed"}],
        [{"status": RETRYING}, {"status": "succeeded", "attempt": 2}],
        [{"status": RETRYING}, {"status": RETRYING, "attempt": 2}, {"status": "failed", "attempt": 3}],
        [{"status": "succeeded", "attempt": 2}, {"status": RETRYING}],
    ]
)
# The same with repetitions and retries, each item's in their order.
repeated = st.lists(told_of_one, min_size=len(ITEMS), max_size=len(ITEMS)).flatmap(
    lambda told: st.permutations([n for n, of_one in enumerate(told) for _ in of_one]).map(
        lambda turns: [{"item_id": ITEMS[n]} | told[n][turns[:at].count(n)] for at, n in enumerate(turns)]
    )
)
policies = st.sampled_from(
    [
        {},
        {"tolerated_failure_count": 1},
        {"tolerated_failure_percentage": 25, "late_results": "revise"},
        {"tolerated_failure_count": 0, "late_results": "record"},
        {"late_results": "revise"},
    ]
)
REVISE = {"policy": {"late_results": "revise"}}
DEADLINE = "2026-02-01T00:00:00Z"
opened = merged(
    st.just({"type": "batch.opened"}),
    st.one_of(
        st.just({}), st.integers(0, 10).map(lambda total: {"total_items": total}), ids.map(lambda i: {"item_ids": i})
    ),
    optional("sealed", st.booleans()),
    st.one_of(st.just({}), policies.map(lambda policy: {"policy": policy}), st.just(REVISE)),
    optional("name", st.sampled_from(["n", "m"])),
    optional("deadline_at", st.sampled_from([DEADLINE, "2026-02-01T01:00:00+01:00", "2027-01-01T00:00:00Z"])),
    st.sampled_from(
        [
            {},
            {},
            {},
            {},
            {"retry_of": "a", "request_retry": True},
            {"retry_of": "b", "request_retry": True},
            {"retry_of": "a"},
        ]
    ),
)
expected = ids.map(lambda chunk: {"type": "batch.items_expected", "item_ids": chunk})
sealed = merged(st.just({"type": "batch.sealed"}), optional("total_items", st.integers(0, 10)))
ends = merged(
    st.sampled_from(
        [
            {"type": "batch.cancelled", "reason": "r"},
            {"type": "batch.aborted", "error": {"message": "m"}},
            {"type": "batch.finalize_requested"},
            {"type": "batch.expired", "deadline_at": DEADLINE, "generation": 0},
            {"type": "batch.expired", "deadline_at": DEADLINE, "generation": 1},
        ]
    )
)
reopened = merged(
    st.just({"type": "batch.reopened"}),
    st.one_of(st.just({}), ids.map(lambda chosen: {"item_ids": chosen})),
    optional("revision", st.integers(1, 2)),
    optional("deadline_at", st.just(DEADLINE)),
    optional("reason", st.just("once more")),
)
corrected = st.integers(0, 3).map(lambda revision: {"type": "batch.corrected", "revision": revision})
pruned = st.integers(0, 2).map(lambda revision: {"type": "batch.pruned", "revision": revision})
single = st.one_of(
    results, results, results, results, opened, expected, sealed, ends, reopened, reopened, corrected, pruned
).map(lambda event: [event])
logs = st.lists(st.one_of(single, single, answers, repeated), min_size=1, max_size=14).map(
    lambda parts: [{"batch_id": "b"} | event for part in parts for event in part]
)


def recorded(log: list[Event]) -> list[TakenRecord]:
    begun_ms = int(EPOCH.timestamp()) * 1_000
    return taken(
        (offset, begun_ms + offset // 3 * 1_000, json.dumps(event).encode()) for offset, event in enumerate(log)
    )


def stepped(records: list[TakenRecord]) -> tuple[Batch, Registers, list[int], Counter[Disposition]]:
    """One record at a time."""
    batch, registers, refused, dispositions = Batch("b", 0), Registers(), [], Counter[Disposition]()
    for record in fold.rows(records):
        try:
            dispositions[fold.step(batch, registers, record)] += 1
        except Refused:
            refused.append(record.version)
    return batch, registers, refused, dispositions


def sliced(
    records: list[TakenRecord], cuts: list[int]
) -> tuple[Batch, Registers, list[int], Counter[Disposition], Counter[str]]:
    """In slices, the harmless ones of them in sums; also how many were, and of which kinds."""
    batch, registers, refused = Batch("b", 0), Registers(), []
    dispositions, fast = Counter[Disposition](), Counter[str]()
    for begin, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
        part = records[begin:end]
        if batch.expected:
            registers.manifest = as_a_worker_sees_it(registers, part)
        leading = next((n for n, each in enumerate(part) if not isinstance(each, LifecycleRecord)), len(part))
        tail = [record for record in part[leading:] if not isinstance(record, LifecycleRecord)]
        for record in fold.rows(part[:leading]):
            try:
                dispositions[fold.step(batch, registers, record)] += 1
            except Refused:
                refused.append(record.version)
        sums = fold.sum_up(tail, registers.items) if tail and len(tail) == len(part) - leading else None
        if sums is not None and fold.is_fast(batch, tail, sums):
            fast["slices"] += 1
            fast["with what changes nothing"] += bool(sums.unchanged)
            fast["with what is displaced"] += bool(sums.displaced)
            fast["with what moves"] += bool(sums.moved)
            unread = fold.sum_up(tail, None)
            assert unread is None or registers.items.keys() & {row.item_id for row in tail} or unread == sums
            dispositions.update(fold.fold_fast(batch, registers, tail, sums))
            registers.items.update((row.item_id, row) for row in fold.rows(sums.new) if isinstance(row, ItemRow))
            continue
        for record in fold.rows(part[leading:]):
            try:
                dispositions[fold.step(batch, registers, record)] += 1
            except Refused:
                refused.append(record.version)
    registers.manifest = set(registers.added)
    return batch, registers, refused, +dispositions, fast


def as_a_worker_sees_it(registers: Registers, part: list[TakenRecord]) -> AllBut:
    """Of a manifest that was begun before it knows which of the items that it looked up are not on it."""
    looked_up: set[str] = set()
    for record in part:
        if not isinstance(record, LifecycleRecord):
            looked_up.add(record.item_id)
        elif record.type == "batch.reopened" and "item_ids" not in record.body:
            looked_up |= registers.items.keys() | registers.late.keys()
        else:
            looked_up |= {*record.body.get("item_ids", ())}

    class LookedUp(AllBut):
        def __contains__(self, item_id: str) -> bool:
            assert item_id in looked_up
            return super().__contains__(item_id)

    return LookedUp(looked_up - set(registers.added))


def _milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def assert_as_modelled(batch: Batch, registers: Registers, refused: list[int], log: list[Event]) -> None:
    model = Model()
    for offset, event in enumerate(log):
        moment = EPOCH + timedelta(seconds=offset // 3)
        model.apply(offset, round(moment.timestamp() * 1000), event)
    assert refused == [refusal.offset for refusal in model.refusals]
    if "b" not in model.batches:
        assert batch == Batch("b", 0)
        return
    wanted = model.batches["b"]
    assert (batch.outcome or batch.state) == model.status("b")
    assert batch.duplicates == model.duplicates("b")
    assert {item: row.version for item, row in registers.items.items()} == {
        item: register.offset for item, register in wanted.registers.items()
    }
    assert registers.late.keys() == wanted.late.keys()
    assert [(alert.alert, alert.offset) for alert in registers.alerts] == wanted.alerts
    assert [(asked.offset, asked.retry_of, tuple(asked.item_ids)) for asked in registers.retries] == wanted.requests
    assert (batch.revision, batch.generation) == (wanted.revision, wanted.generation)
    assert batch.reason == wanted.reason
    completed_at_ms = None if wanted.finalized is None else wanted.finalized.completed_at_ms
    assert [_milliseconds(each) for each in (batch.last_result_at, batch.last_answer_at, batch.completed_at)] == [
        wanted.last_counted_at_ms,
        wanted.last_answer_at_ms,
        completed_at_ms,
    ]
    assert registers.manifest == (wanted.manifest or set())
    counts = wanted.item_counts()
    assert [batch.succeeded, batch.partial, batch.failed, batch.skipped, batch.total, batch.unexpected] == [
        counts[name] for name in ("succeeded", "partial", "failed", "skipped", "total", "unexpected")
    ]
    assert batch.missing == (counts["missing"] or 0)
    # A stranger's late result may count without a revision: then the batch has moved on from what its event said.
    if wanted.finalized is not None and (batch.last_result_offset or 0) <= (batch.decided_offset or 0):
        rows = registers.items.values()
        said = finalized_event(
            batch,
            TOPICS,
            failed_item_ids=sorted(row.item_id for row in rows if row.status == "failed"),
            missing_item_ids=sorted(registers.manifest - {row.item_id for row in rows if row.status != RETRYING}),
            traceparent=None,
        )
        assert wanted.finalized.contradictions(json.loads(said.value)) == []


def test_slices_give_what_single_steps_give_and_what_the_model_says() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    @given(log=logs, data=st.data())
    def holds(log: list[Event], data: st.DataObject) -> None:
        records = recorded(log)
        batch, registers, refused, dispositions = stepped(records)
        assert_as_modelled(batch, registers, refused, log)
        for _ in range(2):
            cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(log) - 1)), max_size=6)))
            cuts = [cut for cut in cuts if cut < len(log)]
            other, others, also_refused, did, fast = sliced(records, cuts)
            seen.update(fast)
            seen["finalized"] += other.outcome is not None
            seen["reopened"] += other.generation > 0
            seen["revised"] += other.revision > other.generation + 1
            seen["pruned"] += other.pruned_at is not None
            seen["logs"] += 1
            assert other == batch
            for name in ("items", "late", "manifest", "alerts", "retries"):
                assert getattr(others, name) == getattr(registers, name), name
            assert also_refused == refused
            assert did == dispositions

    holds()
    print(dict(seen))
    assert seen["slices"] > 400
    assert seen["with what changes nothing"] > 100
    assert seen["with what is displaced"] > 20
    assert seen["with what moves"] > 20
    assert seen["finalized"] > 500
    assert seen["reopened"] > 25
    assert seen["revised"] > 10
    assert seen["pruned"] > 20


def test_slices_with_strangers_and_surpluses_in_any_order_give_what_single_steps_give() -> None:
    """All of them, where the one above tries some: what decides may be followed by what nobody expects."""
    items = ("a", "b", "x", "y")
    fast = 0
    for announced in ({"item_ids": ["a", "b"]}, {"item_ids": ["a"]}, {"total_items": 2}, {"total_items": 3}, {}):
        for count in range(1, len(items) + 1):
            for order in permutations(items, count):
                told = [
                    {"type": "batch.opened"} | announced,
                    *({"item_id": each, "status": "failed"} for each in order),
                ]
                log = [{"batch_id": "b"} | event for event in told]
                records = recorded(log)
                batch, registers, refused, _ = stepped(records)
                assert_as_modelled(batch, registers, refused, log)
                for cut in range(1, len(records)):
                    other, others, _, _, in_sums = sliced(records, [cut])
                    assert (other, others.items, others.late) == (batch, registers.items, registers.late), (log, cut)
                    fast += in_sums["slices"]
    assert fast > 500


def test_a_retry_at_the_end_of_slices_does_not_hide_the_last_answer_before_it() -> None:
    told = [{"item_id": f"i{n}", "status": RETRYING if n % 5 == 4 else "succeeded"} for n in range(15)]
    records = recorded([{"batch_id": "b"} | event for event in told])
    batch, _, _, _ = stepped(records)
    for cuts in ([], [5], [5, 10], [3], [3, 9]):
        other, _, _, _, in_sums = sliced(records, cuts)
        assert in_sums["slices"] == len(cuts) + 1
        assert other == batch, cuts


# --- the real thing: micro-batches of all sizes on PostgreSQL ----------------------------------------------------


@pytest.mark.asyncio(loop_scope="session")
async def test_micro_batches_of_any_size_give_the_same_tables_and_events(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test", plan_cache_mode="force_generic_plan")
    fast: list[int] = []
    retried = moved = displaced = 0
    fold_fast = fold.fold_fast

    def counted(batch: Batch, registers: Registers, rows: Any, sums: fold.Sums) -> dict[Disposition, int]:
        nonlocal moved, displaced
        fast.append(len(rows))
        moved += len(sums.moved)
        displaced += len(sums.displaced)
        return fold_fast(batch, registers, rows, sums)

    monkeypatch.setattr(fold, "fold_fast", counted)
    seed = 4711
    random = Random(seed)
    print("seed", seed)
    try:
        for example in range(8):
            history = make_history(
                seed + example,
                sizes=[random.choice((0, 1, 2, 5, 30, 120)) for _ in range(12)],
                duplicates=random.choice((0, 0.01, 0.1)),
                retried=random.choice((0, 0.01, 0.1)),
                shapes=list(Shape) if example % 2 else [Shape.TOTAL, Shape.MANIFEST, Shape.CHUNKS, Shape.TOTAL_AT_END],
            )
            log = list(history.as_log())
            records = taken(log)
            model = modelled((offset, ms, value) for offset, ms, value in log)
            pictures = []
            for sizes in ((1,), (7,), (len(log),), (1, 2, 13, 60, 250)):
                if sizes == (1,) and len(log) > 500:
                    sizes = (3,)
                await emptied(connection)
                begin = 0
                while begin < len(log):
                    end = min(begin + random.choice(sizes), len(log))
                    part = micro_batch(records, begin, end)
                    _, again = await applied(connection, part, optimistic=random.random() < 0.7)
                    retried += again
                    begin = end
                pictures.append(await tables(connection))
            for picture in pictures[1:]:
                for name, rows in picture.items():
                    assert rows == pictures[0][name], f"{name} of {history} differ"
            said = [row for row in pictures[0]["outbox"] if row[1] == "finalized"]
            events = {row[2]: json.loads(row[4]) for row in said}
            assert events.keys() == model.all_finalized().keys()
            for batch_id, wanted in model.all_finalized().items():
                assert wanted.contradictions(events[batch_id]) == []
    finally:
        await connection.close()
    print(f"{len(fast)} fast slices of {sum(fast)} results, {moved=}, {displaced=}, {retried} applied again")
    assert len(fast) > 1_000
    assert moved > 10
    assert displaced > 10
    assert retried > 10
