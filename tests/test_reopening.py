"""Ends on purpose, deadlines, reopening, and late results that count: rule by rule."""

from __future__ import annotations

import pytest

from handlers import completion
from handlers.records import Disposition
from schemas.dead_letters import Reason, Refused
from tests.harness.told import EPOCH, Told

DEADLINE = "2026-02-01T00:00:00Z"


@pytest.fixture
def told() -> Told:
    return Told()


# --- ends --------------------------------------------------------------------------------------------------------


def test_cancelling_a_batch_nobody_opened_creates_and_finalizes_it(told: Told) -> None:
    assert told.cancelled(reason="wrong day") is Disposition.ACCEPTED
    assert (told.status, told.batch.finalized_by, told.batch.total, told.batch.reason) == (
        "cancelled",
        "cancelled",
        0,
        "wrong day",
    )


def test_aborting_fails_a_batch_whatever_has_succeeded_and_names_the_unanswered(told: Told) -> None:
    told.opened(item_ids=["x", "y"])
    told.result("x")
    told.aborted("database gone")
    assert (told.status, told.batch.missing, told.batch.error) == ("failed", 1, '{"message":"database gone"}')


def test_where_no_total_is_known_at_the_end_it_is_what_was_answered(told: Told) -> None:
    told.result("x")
    told.result("y", "retrying")
    told.cancelled()
    assert (told.batch.total, told.batch.missing, told.batch.unexpected) == (1, 0, 0)


def test_a_deadline_ends_a_batch_with_its_unanswered_missing(told: Told) -> None:
    told.opened(item_ids=["x", "y"], deadline_at=DEADLINE)
    told.result("x")
    assert told.expired(DEADLINE) is Disposition.ACCEPTED
    assert (told.status, told.batch.finalized_by, told.batch.missing) == ("expired", "deadline", 1)


def test_a_deadline_that_is_no_longer_the_batchs_ends_nothing(told: Told) -> None:
    told.opened(total_items=1, deadline_at=DEADLINE)
    assert told.expired("2026-01-31T00:00:00Z") is Disposition.NO_EFFECT
    assert told.expired(DEADLINE, generation=1) is Disposition.NO_EFFECT
    told.opened(total_items=1)
    assert told.expired(DEADLINE) is Disposition.NO_EFFECT
    assert told.status == "pending"


def test_one_moment_spelled_in_two_zones_is_one_deadline(told: Told) -> None:
    told.opened(total_items=1, deadline_at="2026-02-01T01:00:00.5+01:00")
    assert told.expired("2026-02-01T00:00:00.500000Z") is Disposition.ACCEPTED


def test_a_forced_end_takes_the_outcome_from_what_is_in(told: Told) -> None:
    told.opened(total_items=3)
    told.result("x")
    told.finalize_requested(reason="good enough")
    assert (told.status, told.batch.finalized_by, told.batch.missing) == ("completed_with_errors", "forced", 2)


def test_a_forced_end_of_an_unsealed_batch_without_failures_completes_it(told: Told) -> None:
    told.result("x")
    told.finalize_requested()
    assert (told.status, told.batch.total) == ("completed", 1)


def test_forcing_the_end_of_a_batch_nobody_knows_is_refused(told: Told) -> None:
    with pytest.raises(Refused, match="nothing is known of this batch") as refused:
        told.finalize_requested()
    assert refused.value.reason is Reason.NOT_APPLICABLE


def test_on_a_finalized_batch_a_forced_end_only_asks_for_the_summary(told: Told) -> None:
    told.opened(total_items=0)
    before = repr(told.batch)
    assert told.finalize_requested() is Disposition.SUMMARY_REQUESTED
    assert repr(told.batch) == before


@pytest.mark.parametrize("end", ["cancelled", "aborted", "expired", "sealed", "expected", "opened"])
def test_what_ends_a_batch_changes_nothing_once_it_has_ended(told: Told, end: str) -> None:
    told.opened(item_ids=["x"], deadline_at=DEADLINE)
    told.result("x")
    before = repr(told.batch)
    tell = {"expired": lambda: told.expired(DEADLINE), "expected": lambda: told.expected("y")}
    assert tell.get(end, getattr(told, end))() is Disposition.NO_EFFECT
    assert repr(told.batch) == before


# --- reopening ---------------------------------------------------------------------------------------------------


def failed_and_missing(told: Told) -> None:
    """Items: x succeeded, y failed at its third attempt, z missing."""
    told.opened(item_ids=["x", "y", "z"], deadline_at=DEADLINE)
    told.result("x", effect="created")
    told.result("y", "failed", attempt=3, effect="unchanged")
    told.expired(DEADLINE)


def test_reopening_asks_again_for_the_failed_and_the_missing(told: Told) -> None:
    failed_and_missing(told)
    assert told.reopened(reason="fixed") is Disposition.ACCEPTED
    batch = told.batch
    assert (told.status, batch.generation, batch.revision, batch.reason) == ("processing", 1, 1, "fixed")
    assert (told.counts, batch.retrying, batch.matched, batch.missing) == ((1, 0, 0, 0), 1, 1, 2)
    assert (batch.created, batch.unchanged) == (1, 0)
    assert (batch.deadline_at, batch.finalized_at, batch.decided_offset) == (None, None, None)
    told.result("y")  # the first attempt of the new generation beats the third of the old one
    told.result("z")
    assert (told.status, batch.revision, batch.finalized_by) == ("completed", 2, "all_items_in")
    assert told.registers.items["y"].generation == 1


def test_reopening_leaves_what_succeeded_as_it_is(told: Told) -> None:
    failed_and_missing(told)
    told.reopened()
    assert told.result("x", effect="created") is Disposition.DUPLICATE
    assert told.registers.items["x"].generation == 0


def test_reopening_chosen_items_asks_for_those_alone_whatever_they_said(told: Told) -> None:
    failed_and_missing(told)
    told.reopened(item_ids=["x", "stranger"])
    assert (told.counts, told.batch.retrying) == ((0, 0, 1, 0), 1)
    told.result("x", "failed")
    told.result("z")
    assert (told.status, told.batch.revision) == ("completed_with_errors", 2)


def test_reopening_where_nothing_is_chosen_changes_nothing(told: Told) -> None:
    told.opened(item_ids=["x"])
    told.result("x")
    before = repr(told.batch)
    assert told.reopened() is Disposition.NO_EFFECT
    assert told.reopened(item_ids=["stranger"]) is Disposition.NO_EFFECT
    assert told.reopened(item_ids=[]) is Disposition.NO_EFFECT
    assert repr(told.batch) == before


def test_reopening_an_open_batch_changes_nothing(told: Told) -> None:
    assert told.reopened() is Disposition.NO_EFFECT
    told.opened(total_items=1)
    assert told.reopened() is Disposition.NO_EFFECT
    assert told.batch.generation == 0


def test_a_repeated_request_to_reopen_one_revision_is_harmless(told: Told) -> None:
    failed_and_missing(told)
    told.reopened(revision=1)
    told.result("y", "failed")
    told.result("z")
    assert (told.batch.revision, told.status) == (2, "completed_with_errors")
    before = repr(told.batch)
    assert told.reopened(revision=1) is Disposition.NO_EFFECT
    assert repr(told.batch) == before


def test_a_late_result_of_a_chosen_item_is_adopted(told: Told) -> None:
    failed_and_missing(told)
    assert told.result("z") is Disposition.LATE
    assert told.result("y", attempt=4) is Disposition.LATE
    assert told.batch.late == 2
    told.reopened()
    assert (told.status, told.batch.revision, told.batch.late) == ("completed", 2, 0)
    assert told.registers.adopted == {"y", "z"}
    assert told.registers.late == {}
    assert told.batch.decided_offset == told.next_offset - 1


def test_a_late_result_that_a_newer_one_has_overruled_is_not_adopted(told: Told) -> None:
    told.opened(item_ids=["x", "y"])
    told.result("x", "failed")
    told.finalize_requested()
    assert told.result("y") is Disposition.LATE
    told.reopened(item_ids=["x"])
    assert told.result("y", "failed", attempt=2) is Disposition.ACCEPTED
    told.result("x")
    assert (told.status, told.batch.revision) == ("completed_with_errors", 2)
    told.reopened()
    assert (told.status, told.batch.late, told.registers.adopted) == ("processing", 1, set())
    told.result("y", "failed")
    assert (told.status, told.batch.revision) == ("completed_with_errors", 3)
    told.reopened()
    assert told.status == "processing", "what was overruled in an earlier generation is none of this one's"


def test_a_late_result_of_a_stranger_stays_late(told: Told) -> None:
    failed_and_missing(told)
    told.result("stranger")
    told.reopened()
    assert (told.batch.late, told.batch.unexpected) == (1, 0)


def test_a_batch_cancelled_before_any_result_is_pending_again(told: Told) -> None:
    told.opened(item_ids=["x"])
    told.cancelled()
    told.reopened()
    assert (told.status, told.batch.finalized_by, told.batch.reopened_at) == (
        "pending",
        None,
        EPOCH.replace(second=2),
    )


def test_with_a_total_reopening_takes_any_late_result_while_some_are_missing(told: Told) -> None:
    told.opened(total_items=2)
    told.result("x")
    told.finalize_requested()
    told.result("y", "partial")
    told.reopened()
    assert (told.status, told.batch.revision, told.counts) == ("completed", 2, (1, 1, 0, 0))


# --- late results that count -------------------------------------------------------------------------------------


def test_under_revise_a_changed_status_gives_a_new_revision(told: Told) -> None:
    told.opened(item_ids=["x", "y"], policy={"late_results": "revise"})
    told.result("x")
    told.result("y", "failed")
    assert told.result("y", attempt=2) is Disposition.LATE
    assert (told.status, told.batch.revision, told.batch.finalized_by) == ("completed", 2, "all_items_in")
    assert (told.batch.late, told.batch.decided_offset) == (0, 3)


def test_under_revise_a_stranger_or_an_equal_status_counts_without_a_revision(told: Told) -> None:
    told.opened(item_ids=["x"], policy={"late_results": "revise"})
    told.result("x")
    assert told.result("x", message="again") is Disposition.LATE
    assert told.result("stranger", "failed") is Disposition.LATE
    assert (told.batch.revision, told.batch.unexpected, told.batch.failed) == (1, 1, 1)


def test_under_revise_an_expired_batch_stays_expired(told: Told) -> None:
    told.opened(item_ids=["x"], policy={"late_results": "revise"}, deadline_at=DEADLINE)
    told.expired(DEADLINE)
    told.result("x")
    assert (told.status, told.batch.revision, told.batch.missing) == ("expired", 2, 0)


@pytest.mark.parametrize("end", ["cancelled", "aborted"])
def test_an_end_on_purpose_is_never_revised(told: Told, end: str) -> None:
    told.opened(item_ids=["x"], policy={"late_results": "revise"})
    getattr(told, end)()
    assert told.result("x") is Disposition.LATE
    assert (told.batch.revision, told.batch.late, told.batch.succeeded) == (1, 1, 0)


def test_under_revise_a_surplus_beyond_a_total_gives_no_revision(told: Told) -> None:
    told.opened(total_items=1, policy={"late_results": "revise"})
    told.result("x")
    told.result("y")
    assert (told.batch.revision, told.batch.unexpected) == (1, 1)


# --- alerts and requests -----------------------------------------------------------------------------------------


def test_the_first_failure_is_told_once_a_batch(told: Told) -> None:
    told.opened(item_ids=["x", "y", "z"])
    told.result("x")
    told.result("y", "failed", error={"code": "E1", "message": "no space"})
    told.result("y", attempt=2)
    told.result("z", "failed")
    assert told.alerts == [("batch.first_failure", 2)]
    [alert] = told.registers.alerts
    assert alert.details == {"item_id": "y", "code": "E1", "message": "no space", "attempt": 1}


def test_passing_the_tolerated_number_is_told_at_once_and_once(told: Told) -> None:
    told.opened(total_items=10, policy={"tolerated_failure_count": 1})
    for number in range(3):
        told.result(f"x{number}", "failed")
    assert told.alerts == [("batch.first_failure", 1), ("batch.failure_threshold_exceeded", 2)]


def test_a_tolerated_percentage_is_judged_once_the_total_stands(told: Told) -> None:
    told.opened(policy={"tolerated_failure_percentage": 10})
    told.result("x", "failed")
    assert told.alerts == [("batch.first_failure", 1)]
    told.sealed(total_items=9)
    assert told.alerts[1:] == [("batch.failure_threshold_exceeded", 2)]


def test_exactly_what_is_tolerated_is_not_exceeded(told: Told) -> None:
    told.opened(total_items=10, policy={"tolerated_failure_percentage": 10, "tolerated_failure_count": 1})
    told.result("x", "failed")
    assert told.alerts == [("batch.first_failure", 1)]
    told.opened(total_items=10, policy={"tolerated_failure_count": 0})
    assert told.alerts[1:] == [("batch.failure_threshold_exceeded", 2)]


def test_the_failure_rate_is_that_of_the_answered(told: Told) -> None:
    told.opened(total_items=10)
    told.result("x", "failed")
    told.result("y")
    told.finalize_requested()
    assert completion.failure_rate(told.batch) == 0.5
    assert completion.failure_rate(Told().batch) == 0


def test_a_retry_batch_asks_upstream_for_the_items_it_names_each_once(told: Told) -> None:
    told.opened(item_ids=["x", "y"], sealed=False, retry_of="a", request_retry=True)
    told.opened(item_ids=["x", "y"], sealed=False, retry_of="a", request_retry=True)
    told.expected("y", "z")
    assert [(raised.offset, raised.item_ids) for raised in told.registers.retries] == [(0, ["x", "y"]), (2, ["z"])]


def test_a_batch_that_retries_another_without_asking_asks_for_nothing(told: Told) -> None:
    told.opened(item_ids=["x"], retry_of="a")
    assert told.registers.retries == []


def test_a_retry_batch_without_ids_asks_once_for_whatever_the_other_lacks(told: Told) -> None:
    told.opened(total_items=2, retry_of="a", request_retry=True)
    told.opened(total_items=2, retry_of="a", request_retry=True)
    assert [(raised.offset, raised.item_ids) for raised in told.registers.retries] == [(0, [])]
