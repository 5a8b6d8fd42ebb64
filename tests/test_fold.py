"""The fold, rule by rule: what each record means for its batch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from handlers.records import Disposition
from schemas.dead_letters import Reason, Refused
from tests.harness.told import EPOCH, Told

Tell = Callable[[], Disposition]


@pytest.fixture
def told() -> Told:
    return Told()


def refusal_of(refused: pytest.ExceptionInfo[Refused]) -> str:
    assert refused.value.reason is Reason.NOT_APPLICABLE
    return refused.value.message


# --- registers ---------------------------------------------------------------------------------------------------


def test_a_higher_attempt_replaces_a_lower_one_and_its_counts(told: Told) -> None:
    told.result("x", "failed", effect="created")
    assert told.result("x", "succeeded", attempt=2, effect="updated") is Disposition.ACCEPTED
    assert told.counts == (1, 0, 0, 0)
    assert (told.batch.created, told.batch.updated) == (0, 1)


def test_a_lower_attempt_that_comes_late_is_superseded_whatever_it_says(told: Told) -> None:
    told.result("x", attempt=2)
    assert told.result("x", "failed", attempt=1) is Disposition.SUPERSEDED
    assert told.counts == (1, 0, 0, 0)
    assert told.batch.duplicates == 1


def test_of_two_results_of_one_attempt_the_later_in_the_log_counts(told: Told) -> None:
    told.result("x", "failed")
    assert told.result("x", "partial") is Disposition.ACCEPTED
    assert told.counts == (0, 1, 0, 0)


def test_retrying_never_overrules_a_terminal_status_of_its_attempt(told: Told) -> None:
    told.result("x", "failed")
    assert told.result("x", "retrying") is Disposition.SUPERSEDED
    assert told.counts == (0, 0, 1, 0)


def test_retrying_at_a_higher_attempt_makes_an_item_unanswered_again(told: Told) -> None:
    told.result("x", "failed", effect="created")
    assert told.result("x", "retrying", attempt=2) is Disposition.ACCEPTED
    assert told.counts == (0, 0, 0, 0)
    assert (told.batch.retrying, told.batch.created) == (1, 0)


def test_an_answer_overrules_the_retrying_of_its_attempt(told: Told) -> None:
    told.result("x", "retrying")
    assert told.result("x", "succeeded") is Disposition.ACCEPTED
    assert (told.batch.retrying, told.batch.succeeded) == (0, 1)


def test_a_repeated_result_is_a_duplicate_and_moves_nothing_but_its_count(told: Told) -> None:
    told.result("x", output={"tx": 1}, metrics={"m": 1.5}, worker="w")
    assert told.result("x", output={"tx": 1}, metrics={"m": 1.5}, worker="w") is Disposition.DUPLICATE
    assert told.batch.duplicates == 1
    assert told.registers.items["x"].version == 0
    assert (told.batch.last_result_offset, told.batch.last_result_at) == (0, EPOCH)


def test_a_result_that_differs_only_in_an_absent_field_spelled_null_is_a_duplicate(told: Told) -> None:
    told.result("x")
    assert told.result("x", message=None, attempt=1, effect=None, type="item.result") is Disposition.DUPLICATE


def test_a_repetition_is_a_duplicate_after_finalization_too(told: Told) -> None:
    told.opened(total_items=1)
    told.result("x")
    assert told.result("x") is Disposition.DUPLICATE
    assert (told.batch.duplicates, told.batch.late) == (1, 0)


# --- opening, manifests, sealing ---------------------------------------------------------------------------------


def test_a_batch_is_pending_until_its_first_result(told: Told) -> None:
    told.opened(total_items=2)
    assert told.batch.state == "pending"
    told.result("x", "retrying")
    assert told.batch.state == "processing"


def test_a_total_or_a_manifest_seals_unless_said_otherwise(told: Told) -> None:
    told.opened(item_ids=["x"], sealed=False)
    assert not told.batch.sealed
    told.opened(item_ids=["x"])
    assert told.batch.sealed


def test_a_redelivered_opening_does_not_unseal(told: Told) -> None:
    told.opened()
    told.sealed(total_items=5)
    told.opened()
    assert told.batch.sealed
    assert told.batch.total_items == 5


def test_a_repeated_opening_replaces_what_it_says_and_adds_to_the_manifest(told: Told) -> None:
    told.opened(item_ids=["x"], name="first", policy={"tolerated_failure_count": 1}, metadata={"a": 1})
    told.opened(item_ids=["x", "y"], name="second")
    assert (told.batch.name, told.batch.policy, told.batch.metadata) == ("second", None, None)
    assert (told.batch.expected, told.registers.added) == (2, ["x", "y"])
    assert told.batch.opened_at == EPOCH


def test_a_result_before_the_opening_is_matched_by_the_manifest_that_comes(told: Told) -> None:
    told.result("x")
    told.result("y", "retrying")
    told.opened(item_ids=["x", "y"])
    assert (told.batch.expected, told.batch.matched) == (2, 1)
    told.result("y")
    assert told.batch.outcome == "completed"


def test_chunks_add_to_the_manifest_until_it_is_sealed(told: Told) -> None:
    told.opened()
    told.expected("x", "y")
    told.expected("y", "z")
    assert told.batch.expected == 3
    told.sealed()
    with pytest.raises(Refused) as refused:
        told.expected("late")
    assert "sealed" in refusal_of(refused)
    assert told.batch.expected == 3


def test_ids_for_a_batch_with_a_total_are_refused(told: Told) -> None:
    told.opened(total_items=3, sealed=False)
    tells: list[Tell] = [lambda: told.expected("x"), lambda: told.opened(item_ids=["x"])]
    for tell in tells:
        with pytest.raises(Refused) as refused:
            tell()
        assert "total" in refusal_of(refused)
    assert told.batch.expected is None


def test_a_total_for_a_batch_with_a_manifest_is_refused(told: Told) -> None:
    told.opened(item_ids=["x"], sealed=False)
    tells: list[Tell] = [lambda: told.sealed(total_items=1), lambda: told.opened(total_items=1)]
    for tell in tells:
        with pytest.raises(Refused) as refused:
            tell()
        assert "manifest" in refusal_of(refused)
    assert (told.batch.total_items, told.batch.sealed) == (None, False)


def test_sealing_without_total_or_manifest_is_refused_and_changes_nothing(told: Told) -> None:
    told.opened(name="n")
    before = (told.batch.sealed, told.batch.name)
    tells: list[Tell] = [told.sealed, lambda: told.opened(sealed=True, name="other")]
    for tell in tells:
        with pytest.raises(Refused) as refused:
            tell()
        assert "sealed without" in refusal_of(refused)
    assert (told.batch.sealed, told.batch.name) == before


# --- after finalization ------------------------------------------------------------------------------------------


def test_lifecycle_on_a_finalized_batch_changes_nothing_even_what_would_be_refused(told: Told) -> None:
    told.opened(total_items=0)
    assert told.batch.outcome == "completed"
    before = repr(told.batch)
    tells: list[Tell] = [lambda: told.opened(item_ids=["x"]), lambda: told.expected("x"), told.sealed]
    for tell in tells:
        assert tell() is Disposition.NO_EFFECT
    assert repr(told.batch) == before


def test_a_changing_result_after_finalization_is_late_and_never_counted(told: Told) -> None:
    told.opened(total_items=1)
    told.result("x")
    assert told.result("x", "failed", attempt=2) is Disposition.LATE
    assert told.result("y") is Disposition.LATE
    assert told.counts == (1, 0, 0, 0)
    assert (told.batch.late, told.batch.last_result_offset) == (2, 1)
    assert told.registers.late.keys() == {"x", "y"}


def test_late_results_of_one_item_are_one_register(told: Told) -> None:
    told.opened(total_items=0)
    assert told.result("x", "failed") is Disposition.LATE
    assert told.result("x", "succeeded", attempt=2) is Disposition.LATE
    assert told.result("x", "failed") is Disposition.SUPERSEDED
    assert told.result("x", "succeeded", attempt=2) is Disposition.DUPLICATE
    assert (told.batch.late, told.batch.duplicates) == (1, 2)
    assert told.registers.late["x"].status == "succeeded"


def test_the_deciding_record_gives_the_times_and_the_offset(told: Told) -> None:
    told.result("x")
    told.result("x")
    told.opened(total_items=1)
    assert told.batch.decided_offset == 2
    assert told.batch.finalized_at == EPOCH + timedelta(seconds=2)
    assert told.batch.completed_at == EPOCH
    assert (told.batch.state, told.batch.finalized_by, told.batch.revision) == ("finalized", "all_items_in", 1)
