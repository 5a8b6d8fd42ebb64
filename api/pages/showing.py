"""How a batch is put into words, bars and charts. No I/O, no clock of its own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from api.models import Batch

ICONS = {
    "pending": "○",
    "processing": "◐",
    "completed": "✓",
    "completed_with_errors": "⚠",
    "failed": "✗",
    "cancelled": "⊘",
    "expired": "⌛",
    "succeeded": "✓",
    "partial": "◑",
    "skipped": "↷",
    "retrying": "↻",
    "missing": "?",
    "late": "⌛",
}
BAR_WIDTH = 1_000
LAGGING_AFTER_S = 5.0
"""A busy partition always has a few records unread; what keeps up is not said to lag."""
STALLED_AFTER_S = 60.0
"""Without a policy of the batch's own: so long without a result is a standstill."""


@dataclass(frozen=True)
class Segment:
    """A part of a bar: where it begins and how wide it is, of BAR_WIDTH."""

    status: str
    count: int
    x: float
    width: float


def segments(batch: Batch) -> list[Segment]:
    """The parts of a batch's bar in proportion: succeeded, partial, skipped, failed, missing."""
    counts = [(status, getattr(batch, status)) for status in ("succeeded", "partial", "skipped", "failed", "missing")]
    whole = sum(count for _, count in counts)
    found: list[Segment] = []
    x = 0.0
    for status, count in counts:
        if count:
            width = BAR_WIDTH * count / whole
            found.append(Segment(status, count, round(x, 2), round(width, 2)))
            x += width
    return found


def bar_text(batch: Batch) -> str:
    """What the bar shows, in words."""
    parts = [f"{segment.count:,} {segment.status}" for segment in segments(batch)]
    return ", ".join(parts) if parts else "no items yet"


def eta(batch: Batch, now: datetime) -> str:
    """When an open batch will be done, at the speed so far; in words where it cannot be said."""
    if batch.outcome is not None:
        return ""
    heard = [moment for moment in (batch.last_result_at, batch.opened_at, batch.reopened_at) if moment is not None]
    silent = (now - max(heard)).total_seconds() if heard else float("inf")
    if batch.lag.lagging and silent > LAGGING_AFTER_S:
        return f"lagging: {batch.lag.records:,} records of its partition are not read yet"
    if batch.first_result_at is None or batch.last_result_at is None:
        return "waiting for a first result"
    patience = float((batch.policy or {}).get("stalled_after_s") or STALLED_AFTER_S)
    if silent > patience:
        return f"stalled: no result for {duration(silent)}"
    if not batch.sealed or batch.total is None:
        return "not sealed: more items may come"
    if batch.generation:
        # Most answers may be from before, and how many came since is not known.
        return "reopened: how long it takes cannot be said"
    took = (batch.last_result_at - batch.first_result_at).total_seconds()
    if batch.answered < 2 or took <= 0:
        return "too early to say"
    return f"about {duration(batch.missing * took / batch.answered)}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if 0 < seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago that was."""
    return "–" if moment is None else duration((now - moment).total_seconds())


def columns(counts: Sequence[int], height: int) -> list[tuple[int, float, float]]:
    """A bar chart's columns: (number, y, height) each, the highest as high as the chart."""
    highest = max(counts, default=0)
    return [
        (number, round(height - height * count / highest, 2), round(height * count / highest, 2))
        for number, count in enumerate(counts)
        if count
    ]


def as_json(value: object) -> str:
    """JSON for people; to be escaped like any text."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def batch_url(batch_id: str) -> str:
    """The page of a batch. A path cannot hold `.` and `..`: browsers resolve them."""
    return f"/batches/{_segment(batch_id)}"


def item_url(batch_id: str, item_id: str) -> str:
    """The page of an item; its id may hold anything, so it goes into the query."""
    return f"{batch_url(batch_id)}/item?id={quote(item_id, safe='')}"


def _segment(text: str) -> str:
    return quote(text, safe="")
