"""When a batch is done, and how it ended. Pure; the rules are in docs/lifecycle.md."""

import json
from functools import lru_cache
from typing import Any, NamedTuple

from schemas.published import FinalizedBy, Outcome
from store.rows import Batch


def decide(batch: Batch) -> FinalizedBy | None:
    """Whether the batch is complete as it stands: sealed, and all items answered.

    With a manifest the set decides (``matched``), else the number of answered items.
    """
    if not batch.sealed:
        return None
    if batch.expected is not None:
        complete = batch.matched >= batch.expected
    else:
        complete = batch.total_items is not None and batch.answered >= batch.total_items
    return "all_items_in" if complete else None


def outcome(batch: Batch, finalized_by: FinalizedBy) -> Outcome:
    """The outcome of a batch that ends now: the first of docs/lifecycle.md, *Outcome*, that fits."""
    if finalized_by == "cancelled":
        return "cancelled"
    if finalized_by == "deadline":
        return "expired"
    if finalized_by == "aborted":
        return "failed"
    flawed = batch.failed > 0 or batch.missing > 0
    if flawed and batch.succeeded + batch.partial == 0:
        return "failed"
    if exceeds_tolerance(batch, ends=True):
        return "failed"
    return "completed_with_errors" if flawed else "completed"


class Tolerance(NamedTuple):
    """What a batch's policy says of failures and of late results."""

    failure_count: int | None = None
    failure_percentage: float | None = None
    revises: bool = False


@lru_cache(maxsize=1_000)
def tolerance(policy: str | None) -> Tolerance:
    """The policy, from the JSON text it is kept in."""
    if policy is None:
        return Tolerance()
    given: dict[str, Any] = json.loads(policy)
    return Tolerance(
        given.get("tolerated_failure_count"),
        given.get("tolerated_failure_percentage"),
        given.get("late_results") == "revise",
    )


def takes_late_results(batch: Batch) -> bool:
    """Whether late results of this batch count: it has ended, not on purpose, and its policy says so."""
    return (
        batch.outcome is not None
        and batch.finalized_by not in ("cancelled", "aborted")
        and tolerance(batch.policy).revises
    )


def exceeds_tolerance(batch: Batch, *, ends: bool = False) -> bool:
    """Whether more items failed than the policy tolerates, by count or by percentage of the total.

    A percentage needs a total that stands: the batch is sealed, or it ``ends`` now.
    """
    if batch.policy is None or batch.failed == 0:
        return False
    tolerated = tolerance(batch.policy)
    if tolerated.failure_count is not None and batch.failed > tolerated.failure_count:
        return True
    if tolerated.failure_percentage is None or not (batch.sealed or batch.outcome is not None or ends):
        return False
    total = batch.total if batch.total is not None else batch.answered
    return batch.failed * 100 > tolerated.failure_percentage * total


def failure_rate(batch: Batch) -> float:
    """Failed items as a share of the answered ones, 0 to 1."""
    return batch.failed / batch.answered if batch.answered else 0.0


def error_summary(batch: Batch) -> str | None:
    """ "3 of 10 failed", "All 10 failed"; None where none did."""
    if batch.failed == 0:
        return None
    if batch.failed == batch.total:
        return f"All {batch.failed} failed"
    return f"{batch.failed} of {batch.total} failed"
