"""The yardstick itself: hand-computed histories for the model, and what the generator promises."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from tests.harness.histories import (
    ANNOUNCEMENTS,
    FINISHING_SHAPES,
    History,
    Message,
    Shape,
    make_history,
    mixed_sizes,
)
from tests.harness.model import ExpectedFinalized, Model, fold

SEEDS = (1, 2, 3)


class Log:
    """A batch `b` told record by record: offsets 0, 1, 2 …, a second apart."""

    def __init__(self) -> None:
        self.model = Model()
        self.next_offset = 0

    def opened(self, **fields: Any) -> str:
        return self._append({"type": "batch.opened"} | fields)

    def expected(self, *item_ids: str) -> str:
        return self._append({"type": "batch.items_expected", "item_ids": list(item_ids)})

    def sealed(self, **fields: Any) -> str:
        return self._append({"type": "batch.sealed"} | fields)

    def result(self, item_id: str, status: str = "succeeded", **fields: Any) -> str:
        return self._append({"item_id": item_id, "status": status} | fields)

    @property
    def finalized(self) -> ExpectedFinalized | None:
        return self.model.finalized("b")

    @property
    def final(self) -> ExpectedFinalized:
        assert self.finalized is not None
        return self.finalized

    @property
    def open(self) -> dict[str, int | None]:
        return dict(self.model.all_open()["b"].item_counts)

    def _append(self, fields: dict[str, Any]) -> str:
        offset, self.next_offset = self.next_offset, self.next_offset + 1
        return self.model.apply(offset, offset * 1_000, {"batch_id": "b"} | fields)


@pytest.fixture
def log() -> Log:
    return Log()


def counts(**given: int) -> dict[str, int]:
    names = ("total", "succeeded", "partial", "failed", "skipped", "missing", "unexpected")
    return dict.fromkeys(names, 0) | given


# --- the model: beginning and completing -------------------------------------------------------------------------


def test_a_batch_is_final_with_its_last_result_and_names_that_record(log: Log) -> None:
    log.opened(total_items=2, name="n", metadata={"a": 1})
    log.result("x")
    assert log.finalized is None
    log.result("y", "skipped")
    assert log.final.outcome == "completed"
    assert log.final.item_counts == counts(total=2, succeeded=1, skipped=1)
    assert (log.final.as_of_offset, log.final.finalized_at_ms) == (2, 2_000)
    assert (log.final.opened_at_ms, log.final.first_result_at_ms) == (0, 1_000)
    assert (log.final.name, log.final.metadata) == ("n", {"a": 1})
    assert log.final.finalized_by == "all_items_in"


def test_an_empty_total_completes_at_once(log: Log) -> None:
    log.opened(total_items=0)
    assert (log.final.outcome, log.final.item_counts, log.final.first_result_at_ms) == ("completed", counts(), None)


def test_an_empty_manifest_completes_at_once(log: Log) -> None:
    log.opened(item_ids=[])
    assert (log.final.outcome, log.final.as_of_offset) == ("completed", 0)


def test_an_empty_manifest_that_is_unsealed_waits_for_its_sealing(log: Log) -> None:
    log.opened(item_ids=[], sealed=False)
    assert log.finalized is None
    assert log.sealed() == "accepted"
    assert log.final.as_of_offset == 1


def test_a_batch_goes_from_pending_to_processing_with_its_first_result_even_a_retrying_one(log: Log) -> None:
    log.opened(total_items=1)
    assert log.model.status("b") == "pending"
    log.result("x", "retrying")
    assert log.model.status("b") == "processing"
    assert log.open == counts(total=1, missing=1)
    log.result("x", attempt=2)
    assert log.model.status("b") == "completed"


def test_results_of_a_batch_nobody_opened_keep_it_open_without_a_total(log: Log) -> None:
    log.result("x")
    assert log.open == counts(succeeded=1) | {"total": None, "missing": None}
    assert log.finalized is None


def test_a_late_opening_completes_the_batch_and_is_the_deciding_record(log: Log) -> None:
    log.result("x")
    log.result("y")
    log.opened(total_items=2, name="late")
    assert (log.final.as_of_offset, log.final.opened_at_ms, log.final.name) == (2, 2_000, "late")


def test_a_batch_sealed_with_a_total_needs_no_opening(log: Log) -> None:
    log.result("x")
    log.sealed(total_items=1)
    assert (log.final.outcome, log.final.opened_at_ms) == ("completed", None)


def test_an_unsealed_batch_with_all_its_items_in_waits_for_its_sealing(log: Log) -> None:
    log.opened(total_items=1, sealed=False)
    log.result("x")
    assert log.finalized is None
    log.sealed()
    assert log.final.as_of_offset == 2


def test_a_manifest_in_chunks_completes_only_when_sealed_and_every_id_answered(log: Log) -> None:
    log.opened(sealed=False)
    log.expected("x", "y")
    log.result("x")
    log.result("y")
    log.expected("z", "y")
    log.sealed()
    assert log.finalized is None
    assert log.open == counts(total=3, succeeded=2, missing=1)
    log.result("z")
    assert log.final.item_counts == counts(total=3, succeeded=3)


def test_a_stranger_is_counted_as_unexpected_and_completes_nothing(log: Log) -> None:
    log.opened(item_ids=["x", "y"])
    log.result("x")
    log.result("stranger", "failed")
    assert log.finalized is None
    log.result("y")
    assert log.final.item_counts == counts(total=2, succeeded=2, failed=1, unexpected=1)
    assert log.final.failed_item_ids == ("stranger",)


def test_more_items_than_the_total_leave_the_total_standing(log: Log) -> None:
    log.result("x")
    log.result("y")
    log.result("z")
    log.opened(total_items=2)
    assert log.final.item_counts == counts(total=2, succeeded=3, unexpected=1)


# --- the model: registers ----------------------------------------------------------------------------------------


def test_an_equal_result_is_a_duplicate_and_changes_nothing(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", duration_ms=5)
    assert log.result("x", duration_ms=5, attempt=1, worker=None) == "duplicate"
    assert log.open["succeeded"] == 1
    assert log.model.duplicates("b") == 1


def test_a_duplicate_behind_the_finalization_is_counted_and_not_late(log: Log) -> None:
    log.opened(total_items=1)
    log.result("x")
    assert log.result("x") == "duplicate"
    assert (log.model.duplicates("b"), log.model.late_item_ids("b")) == (1, frozenset())


def test_the_later_of_two_different_results_of_one_attempt_counts(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", "failed")
    assert log.result("x", "succeeded") == "accepted"
    log.result("y")
    assert log.final.item_counts == counts(total=2, succeeded=2)


def test_a_higher_attempt_overrules_a_terminal_status(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", "failed")
    log.result("x", "succeeded", attempt=2)
    log.result("y")
    assert (log.final.outcome, log.final.failed_item_ids) == ("completed", ())


def test_an_older_attempt_delivered_late_is_a_duplicate(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", attempt=2)
    assert log.result("x", "failed", attempt=1) == "duplicate"
    assert log.open == counts(total=2, succeeded=1, missing=1)


def test_retrying_never_overrules_a_terminal_status_of_its_attempt(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", "failed")
    assert log.result("x", "retrying") == "duplicate"
    assert log.open["failed"] == 1


def test_a_terminal_status_overrules_retrying_of_its_attempt(log: Log) -> None:
    log.opened(total_items=1)
    log.result("x", "retrying")
    log.result("x", "partial")
    assert log.final.item_counts == counts(total=1, partial=1)


def test_retrying_with_a_higher_attempt_makes_an_answered_item_unanswered(log: Log) -> None:
    log.opened(item_ids=["x", "y"])
    log.result("x", "failed")
    log.result("x", "retrying", attempt=2)
    log.result("y")
    assert log.finalized is None
    assert log.open == counts(total=2, succeeded=1, missing=1)
    log.result("x", attempt=2)
    assert log.final.item_counts == counts(total=2, succeeded=2)


def test_true_and_1_in_an_output_are_two_results_and_two_spellings_of_a_moment_are_one(log: Log) -> None:
    log.opened(total_items=3)
    log.result("x", output={"a": True})
    assert log.result("x", output={"a": 1}) == "accepted"
    log.result("y", occurred_at="2026-01-01T00:00:00Z")
    assert log.result("y", occurred_at="2026-01-01T02:00:00+02:00") == "duplicate"


def test_writes_are_counted_of_what_counts_in_the_end(log: Log) -> None:
    log.opened(total_items=3)
    log.result("x", effect="created")
    log.result("x", effect="updated", attempt=2)
    log.result("y", effect="unchanged")
    log.result("z")
    assert log.final.write_counts == {"created": 0, "updated": 1, "unchanged": 1}


# --- the model: behind the finalization --------------------------------------------------------------------------


def test_a_changing_result_behind_the_finalization_is_late_and_never_counted(log: Log) -> None:
    log.opened(total_items=1)
    log.result("x")
    before = log.final
    assert log.result("x", "failed", attempt=2) == "late"
    assert log.result("new") == "late"
    assert log.final == before
    assert log.model.late_item_ids("b") == {"x", "new"}


def test_a_repeated_late_result_is_a_duplicate_and_a_changed_one_is_late_again(log: Log) -> None:
    log.opened(total_items=1)
    log.result("x")
    log.result("x", "failed", attempt=2)
    assert log.result("x", "failed", attempt=2) == "duplicate"
    assert log.result("x", "succeeded", attempt=2) == "late"
    assert log.result("x", "retrying", attempt=2) == "duplicate"
    assert log.model.duplicates("b") == 2


def test_the_counted_result_sent_again_behind_a_late_one_is_a_duplicate(log: Log) -> None:
    log.opened(total_items=1)
    log.result("x")
    log.result("x", "failed")
    assert log.result("x") == "duplicate"


def test_lifecycle_records_behind_the_finalization_change_nothing_and_are_no_dead_letters(log: Log) -> None:
    log.opened(total_items=0, name="first")
    assert log.opened(item_ids=["x"], name="second") == "ignored"
    assert log.expected("x") == "ignored"
    assert log.sealed() == "ignored"
    assert (log.final.name, log.model.refusals) == ("first", [])


# --- the model: opening again, and what is forbidden -------------------------------------------------------------


def test_a_repeated_opening_replaces_name_metadata_and_policy_also_by_leaving_them_out(log: Log) -> None:
    log.opened(total_items=1, name="n", metadata={"a": 1}, policy={"tolerated_failure_count": 0})
    log.opened(name="m")
    log.result("x", "partial")
    assert (log.final.name, log.final.metadata) == ("m", None)
    assert (log.final.opened_at_ms, log.final.item_counts["total"]) == (0, 1)


def test_a_repeated_opening_adds_to_the_manifest_and_never_unseals(log: Log) -> None:
    log.opened(item_ids=["x"])
    assert log.opened(item_ids=["y"], sealed=False) == "accepted"
    log.result("x")
    assert log.finalized is None
    log.result("y")
    assert log.final.item_counts == counts(total=2, succeeded=2)


def test_a_repeated_opening_with_another_total_replaces_it(log: Log) -> None:
    log.opened(total_items=5)
    log.result("x")
    log.opened(total_items=1)
    assert (log.final.as_of_offset, log.final.item_counts) == (2, counts(total=1, succeeded=1))


def test_sealing_with_neither_total_nor_manifest_is_forbidden_and_creates_nothing(log: Log) -> None:
    assert log.sealed() == "not_applicable"
    assert log.opened(sealed=True) == "not_applicable"
    assert log.model.batches == {}
    assert [refusal.offset for refusal in log.model.refusals] == [0, 1]


def test_ids_for_a_batch_with_a_total_are_forbidden(log: Log) -> None:
    log.opened(total_items=2, name="n")
    assert log.expected("x") == "not_applicable"
    assert log.opened(item_ids=["x"], name="m") == "not_applicable"
    assert log.model.batches["b"].name == "n"


def test_a_total_for_a_batch_with_a_manifest_is_forbidden(log: Log) -> None:
    log.expected("x")
    assert log.sealed(total_items=1) == "not_applicable"
    assert log.opened(total_items=1) == "not_applicable"
    assert log.sealed() == "accepted"


def test_a_chunk_for_a_sealed_manifest_is_forbidden(log: Log) -> None:
    log.opened(item_ids=["x"])
    assert log.expected("y") == "not_applicable"
    log.result("x")
    assert log.final.item_counts["total"] == 1


# --- the model: outcomes -----------------------------------------------------------------------------------------


def test_nothing_succeeded_and_something_failed_is_failed(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", "failed")
    log.result("y", "skipped")
    assert (log.final.outcome, log.final.error_summary) == ("failed", "1 of 2 failed")


def test_all_failed_says_so(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", "failed")
    log.result("y", "failed")
    assert (log.final.outcome, log.final.error_summary) == ("failed", "All 2 failed")


def test_all_skipped_is_completed(log: Log) -> None:
    log.opened(total_items=1)
    log.result("x", "skipped")
    assert (log.final.outcome, log.final.error_summary) == ("completed", None)


def test_a_partial_item_counts_as_done(log: Log) -> None:
    log.opened(total_items=2)
    log.result("x", "partial")
    log.result("y", "failed")
    assert log.final.outcome == "completed_with_errors"


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        ({}, "completed_with_errors"),
        ({"tolerated_failure_count": 2}, "completed_with_errors"),
        ({"tolerated_failure_count": 1}, "failed"),
        ({"tolerated_failure_percentage": 50}, "completed_with_errors"),
        ({"tolerated_failure_percentage": 49.5}, "failed"),
        ({"tolerated_failure_count": 9, "tolerated_failure_percentage": 0}, "failed"),
    ],
)
def test_a_batch_fails_when_a_tolerated_limit_is_exceeded_and_not_when_it_is_met(
    log: Log, policy: dict[str, Any], outcome: str
) -> None:
    log.opened(total_items=4, policy=policy)
    for item_id, status in zip("abcd", ("failed", "failed", "succeeded", "succeeded"), strict=True):
        log.result(item_id, status)
    assert log.final.outcome == outcome


def test_the_first_hundred_failed_ids_are_listed_in_codepoint_order(log: Log) -> None:
    ids = [f"{n:03d}" for n in range(98)] + ["\U0001f600", "\uff5e", "Z", "a"]
    log.opened(total_items=len(ids))
    for item_id in reversed(ids):
        log.result(item_id, "failed")
    assert log.final.failed_item_ids[-3:] == ("097", "Z", "a")
    assert len(log.final.failed_item_ids) == 100
    assert "\U0001f600" > "\uff5e" > "a"  # and not as UTF-16 would have it


def test_contradictions_of_an_event_are_told_by_field(log: Log) -> None:
    log.opened(total_items=1)
    log.result("x", "failed")
    event: dict[str, Any] = {
        "batch_id": "b",
        "revision": 1,
        "outcome": "failed",
        "finalized_by": "all_items_in",
        "item_counts": counts(total=1, failed=1),
        "write_counts": {"created": 0, "updated": 0, "unchanged": 0},
        "error_summary": "All 1 failed",
        "failed_item_ids": ["x"],
        "missing_item_ids": [],
        **dict.fromkeys(("supersedes", "name", "metadata", "retry_of")),
        "opened_at": "1970-01-01T00:00:00Z",
        "first_result_at": "1970-01-01T00:00:01+00:00",
        "finalized_at": "1970-01-01T00:00:01.000Z",
        "as_of": {"topic": "t", "partition": 0, "offset": 1},
    }
    assert log.final.contradictions(event) == []
    wrong = event | {"outcome": "completed", "as_of": None}
    assert [line.split(" is ")[0] for line in log.final.contradictions(wrong)] == ["b: outcome", "b: as_of.offset"]


# --- the generator -----------------------------------------------------------------------------------------------


def decoded(messages: tuple[Message, ...] | list[Message]) -> list[dict[str, Any]]:
    return [json.loads(message.value) for message in messages]


def small_history(seed: int, **parameters: Any) -> History:
    history = make_history(seed, sizes=mixed_sizes(seed, batches=60, large=2, large_size=900), **parameters)
    print(history)
    return history


def test_one_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert small_history(7).messages == small_history(7).messages
    assert small_history(7).messages != small_history(8).messages


@pytest.mark.parametrize("seed", SEEDS)
def test_every_batch_of_a_default_history_is_finalized_and_nothing_is_refused(seed: int) -> None:
    history = small_history(seed)
    model = fold(history.as_log())
    assert set(model.all_finalized()) == {plan.batch_id for plan in history.batches}
    assert model.refusals == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("announcement", ANNOUNCEMENTS)
def test_each_announcement_finalizes_every_batch_by_itself(seed: int, announcement: Shape) -> None:
    history = small_history(seed, shapes=(announcement,), duplicates=0.5, retried=0.3)
    model = fold(history.as_log())
    assert len(model.all_finalized()) == len(history.batches)
    assert {plan.shapes for plan in history.batches} == {frozenset({announcement})}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_default_history_holds_every_shape_but_the_unfinished_and_the_forbidden(seed: int) -> None:
    history = small_history(seed)
    assert set().union(*(plan.shapes for plan in history.batches)) == set(FINISHING_SHAPES)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_situation_that_is_named_comes_about(seed: int) -> None:
    history = small_history(seed, failed=0.2)
    effects: Counter[str] = Counter()
    model = Model()
    results_before_opening = results_behind_opening = 0
    for offset, timestamp_ms, value in history.as_log():
        record = json.loads(value)
        effect = model.apply(offset, timestamp_ms, record)
        if record.get("type", "item.result") == "item.result":
            effects[effect] += 1
            opened = model.batches[record["batch_id"]].opened_at_ms is not None
            results_behind_opening += opened
            results_before_opening += not opened
    unexpected = sum(batch.item_counts["unexpected"] for batch in model.all_finalized().values())
    outcomes = {batch.outcome for batch in model.all_finalized().values()}
    assert min(effects["accepted"], effects["duplicate"], effects["late"]) > 10
    assert min(results_before_opening, results_behind_opening, unexpected) > 10
    assert outcomes == {"completed", "completed_with_errors", "failed"}
    statuses = Counter(record.get("status") for record in decoded(history.messages))
    assert min(statuses[s] for s in ("succeeded", "partial", "failed", "skipped", "retrying")) > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_with_silent_items_are_never_finalized(seed: int) -> None:
    history = small_history(seed, shapes=tuple(Shape))
    model = fold(history.as_log())
    unfinished = {plan.batch_id for plan in history.batches if Shape.UNFINISHED in plan.shapes}
    assert unfinished
    assert set(model.all_open()) == unfinished


@pytest.mark.parametrize("seed", SEEDS)
def test_forbidden_records_are_refused_and_harm_no_batch(seed: int) -> None:
    history = small_history(seed, shapes=(*FINISHING_SHAPES, Shape.FORBIDDEN))
    model = fold(history.as_log())
    assert len(model.all_finalized()) == len(history.batches)
    assert len({refusal.why for refusal in model.refusals}) >= 2


def test_results_of_different_batches_are_shuffled_into_each_other() -> None:
    history = make_history(5, sizes=[500] * 8)
    changes = sum(a.batch_id != b.batch_id for a, b in pairwise(history))
    assert changes > len(history) / 3


def test_the_shares_asked_for_are_about_the_shares_given() -> None:
    history = make_history(9, sizes=[10_000], duplicates=0.10, retried=0.05, failed=0.2, shapes=(Shape.TOTAL,))
    values = Counter(message.value for message in history)
    again = len(history) - len(values)
    assert 0.08 < again / len(values) < 0.12
    attempts = Counter(record.get("attempt", 1) > 1 for record in map(json.loads, values) if "item_id" in record)
    assert 0.03 < attempts[True] / 10_000 < 0.07
    final = fold(history.as_log()).finalized(history.batches[0].batch_id)
    assert final is not None
    assert 0.17 < final.item_counts["failed"] / 10_000 < 0.24


def test_a_duplicate_never_comes_before_its_first_and_attempts_are_sent_in_order() -> None:
    history = make_history(4, sizes=[300] * 5, duplicates=0, retried=1, shapes=(Shape.TOTAL,))
    attempts: dict[tuple[str, str], list[int]] = {}
    for record in decoded(history.messages):
        if "item_id" in record:
            attempts.setdefault((record["batch_id"], record["item_id"]), []).append(record.get("attempt", 1))
    assert len(attempts) == 1_500
    assert all(sent[0] == 1 and sent == sorted(sent) and len(sent) == 2 for sent in attempts.values())


def test_keys_are_the_batch_ids_and_ids_keep_to_the_wire() -> None:
    for message in small_history(1):
        assert message.key == message.batch_id.encode()
        assert json.loads(message.value)["batch_id"] == message.batch_id
        assert "/" not in message.batch_id
        assert len(message.value) < 500_000


def test_a_manifest_too_long_for_one_message_comes_in_chunks() -> None:
    history = make_history(1, sizes=[10_500], shapes=(Shape.MANIFEST,))
    chunks = [record["item_ids"] for record in decoded(history.messages) if record.get("item_ids")]
    assert max(map(len, chunks)) <= 10_000
    assert sum(map(len, chunks)) == 10_500
    assert len(fold(history.as_log()).all_finalized()) == 1


def test_a_history_needs_an_announcement() -> None:
    with pytest.raises(ValueError, match="total_at_end"):
        make_history(1, sizes=[1], shapes=(Shape.LATE,))


def test_two_hundred_thousand_results_are_made_and_folded_whole() -> None:
    history = make_history(11, sizes=[2_000] * 100)
    assert len(history) >= 200_000
    assert len(fold(history.as_log()).all_finalized()) == 100
