"""When a batch is done, and how it ended. Pure; the rules are the design's section 3."""

import json
from typing import Any

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
    """The outcome of a batch that ends now: the first line of the design's table that fits."""
    if finalized_by == "cancelled":
        return "cancelled"
    if finalized_by == "deadline":
        return "expired"
    if finalized_by == "aborted":
        return "failed"
    flawed = batch.failed > 0 or batch.missing > 0
    if flawed and batch.succeeded + batch.partial == 0:
        return "failed"
    if exceeds_tolerance(batch):
        return "failed"
    return "completed_with_errors" if flawed else "completed"


def exceeds_tolerance(batch: Batch) -> bool:
    """Whether more items failed than the policy tolerates, by count or by percentage of the total."""
    if batch.policy is None or batch.failed == 0:
        return False
    policy: dict[str, Any] = json.loads(batch.policy)
    count, percentage = policy.get("tolerated_failure_count"), policy.get("tolerated_failure_percentage")
    if count is not None and batch.failed > count:
        return True
    total = batch.total if batch.total is not None else batch.answered
    return percentage is not None and batch.failed * 100 > percentage * total


def error_summary(batch: Batch) -> str | None:
    """ "3 of 10 failed", "All 10 failed"; None where none did."""
    if batch.failed == 0:
        return None
    if batch.failed == batch.total:
        return f"All {batch.failed} failed"
    return f"{batch.failed} of {batch.total} failed"
