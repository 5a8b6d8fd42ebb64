"""When a batch is complete, and which outcome it then has: docs/lifecycle.md, *Outcome*, line by line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers import completion
from schemas.published import FinalizedBy, Outcome
from store.rows import Batch


def batch(policy: dict[str, Any] | None = None, **fields: Any) -> Batch:
    return Batch("b", 0, policy=None if policy is None else json.dumps(policy), **fields)


def test_an_unsealed_batch_is_never_complete() -> None:
    assert completion.decide(batch(total_items=1, succeeded=1)) is None


def test_a_batch_is_complete_when_as_many_items_answered_as_were_said() -> None:
    assert completion.decide(batch(sealed=True, total_items=4, succeeded=1, failed=1, skipped=1)) is None
    assert completion.decide(batch(sealed=True, total_items=4, succeeded=1, failed=1, skipped=1, partial=1))


def test_retrying_items_have_not_answered() -> None:
    assert completion.decide(batch(sealed=True, total_items=1, retrying=1)) is None


def test_more_items_than_a_total_leave_the_total_and_are_unexpected() -> None:
    surplus = batch(sealed=True, total_items=2, succeeded=3)
    assert completion.decide(surplus) == "all_items_in"
    assert (surplus.total, surplus.unexpected, surplus.missing) == (2, 1, 0)


def test_strangers_complete_no_manifest() -> None:
    strange = batch(sealed=True, expected=2, matched=1, succeeded=5)
    assert completion.decide(strange) is None
    assert (strange.total, strange.unexpected, strange.missing) == (2, 4, 1)
    strange.matched = 2
    assert completion.decide(strange) == "all_items_in"


def test_an_empty_batch_is_complete_at_once() -> None:
    assert completion.decide(batch(sealed=True, total_items=0)) == "all_items_in"
    assert completion.decide(batch(sealed=True, expected=0)) == "all_items_in"


@pytest.mark.parametrize(
    ("finalized_by", "fields", "policy", "wanted"),
    [
        ("cancelled", {"succeeded": 3}, None, "cancelled"),
        ("deadline", {"succeeded": 3}, None, "expired"),
        ("aborted", {"succeeded": 3}, None, "failed"),
        ("all_items_in", {}, None, "completed"),
        ("all_items_in", {"succeeded": 1, "partial": 1, "skipped": 1}, None, "completed"),
        ("all_items_in", {"skipped": 3}, None, "completed"),
        ("all_items_in", {"failed": 3}, None, "failed"),
        ("all_items_in", {"failed": 1, "skipped": 2}, None, "failed"),
        ("all_items_in", {"failed": 1, "partial": 1}, None, "completed_with_errors"),
        ("all_items_in", {"failed": 2, "succeeded": 1}, None, "completed_with_errors"),
        ("all_items_in", {"failed": 2, "succeeded": 8}, {"tolerated_failure_count": 2}, "completed_with_errors"),
        ("all_items_in", {"failed": 3, "succeeded": 7}, {"tolerated_failure_count": 2}, "failed"),
        ("all_items_in", {"failed": 1, "succeeded": 7}, {"tolerated_failure_count": 0}, "failed"),
        (
            "all_items_in",
            {"failed": 1, "succeeded": 7},
            {"tolerated_failure_percentage": 12.5},
            "completed_with_errors",
        ),
        ("all_items_in", {"failed": 1, "succeeded": 7}, {"tolerated_failure_percentage": 12.4}, "failed"),
        ("all_items_in", {"succeeded": 7}, {"tolerated_failure_percentage": 0}, "completed"),
        ("all_items_in", {"failed": 1, "succeeded": 7}, {"late_results": "record"}, "completed_with_errors"),
        ("forced", {"succeeded": 3, "total_items": 4}, None, "completed_with_errors"),
        ("forced", {"total_items": 4}, None, "failed"),
    ],
)
def test_the_outcome_is_the_first_line_that_fits(
    finalized_by: FinalizedBy, fields: dict[str, int], policy: dict[str, Any] | None, wanted: Outcome
) -> None:
    answered = sum(fields.values()) - fields.get("total_items", 0)
    ended = batch(policy, sealed=True, **{"total_items": answered} | fields)
    assert completion.outcome(ended, finalized_by) == wanted


def test_missing_items_alone_make_no_failure_percentage() -> None:
    assert not completion.exceeds_tolerance(batch({"tolerated_failure_percentage": 1}, total_items=10, succeeded=1))


def test_the_summary_of_errors_is_of_the_failed_only() -> None:
    assert completion.error_summary(batch(total_items=10, succeeded=9, skipped=1)) is None
    assert completion.error_summary(batch(total_items=10, failed=3, succeeded=7)) == "3 of 10 failed"
    assert completion.error_summary(batch(total_items=10, failed=10)) == "All 10 failed"


def test_where_no_total_was_known_at_the_end_it_is_what_was_answered() -> None:
    assert batch(succeeded=2, failed=1).total is None
    assert batch(succeeded=2, failed=1, outcome="cancelled").total == 3
