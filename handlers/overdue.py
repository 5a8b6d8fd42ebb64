"""The alerts that only time can raise. Pure; outside the fold, so that no replay emits them."""

from datetime import timedelta

from handlers.alerts import alert_event
from handlers.finalization import rfc3339
from schemas.topics import Topics
from store.overdue import Overdue
from store.rows import OutboxRow

_SAID = {
    "batch.slow_detected": "open for more than {limit_s:g} s, {progress}",
    "batch.stall_detected": "no result for more than {limit_s:g} s, although all that was sent is read; {progress}",
    "batch.never_opened": "results for more than {limit_s:g} s, but nobody has opened it; {progress}",
}


def overdue_event(topics: Topics, overdue: Overdue) -> OutboxRow:
    """The alert, once a batch and generation; its time is the moment from which it was due."""
    progress = f"{overdue.answered} items answered"
    if overdue.total is not None:
        progress = f"{overdue.answered} of {overdue.total} items answered"
    message = _SAID[overdue.alert].format(limit_s=overdue.limit_s, progress=progress)
    details = {
        "generation": overdue.generation,
        "since": rfc3339(overdue.since),
        "limit_s": overdue.limit_s,
        "answered": overdue.answered,
        "total": overdue.total,
        "last_result_at": None if overdue.last_result_at is None else rfc3339(overdue.last_result_at),
    }
    return alert_event(
        topics,
        overdue.alert,
        overdue.batch_id,
        f"{overdue.batch_id}: {message}",
        details,
        event_id=f"{overdue.alert}/{overdue.batch_id}/{overdue.generation}",
        time=overdue.since + timedelta(seconds=overdue.limit_s),
    )
