"""Facts about a batch as sentences: why it isn't done, or that it is. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from store.diagnosis import DeadLetter, OutboxEvent
from store.outbox import WITHHELD
from store.reads import BatchStatus
from streams.log_search import LastResult, Log, Search


@dataclass(frozen=True, slots=True)
class Items:
    """Ids of items, the first ones, and how many there are of them."""

    count: int
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a batch; ``batch`` is None where nothing of it was applied, ``log`` where Kafka is away."""

    batch_id: str
    batch: BatchStatus | None
    partition: int | None
    applied_to: int | None
    missing: Items
    retrying: Items
    unexpected: Items
    dead_letter_count: int
    dead_letters: tuple[DeadLetter, ...]
    last_result: LastResult | None
    event: OutboxEvent | None
    log: Log | None
    log_problem: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason or fact: a code for programs, and a sentence."""

    code: str
    text: str


def findings(facts: Facts, now: datetime) -> Iterator[Finding]:
    """The facts as sentences, what matters most first."""
    yield from _state(facts)
    yield from _waiting_for(facts)
    yield from _not_taken(facts)
    yield from _not_read(facts)
    yield from _times(facts, now)


def _state(facts: Facts) -> Iterator[Finding]:
    batch = facts.batch
    if batch is None:
        known = facts.dead_letter_count or (facts.log and (facts.log.search.unread or facts.log.search.stranded))
        if known:
            yield Finding("not_applied", "nothing of this batch has been applied yet")
        else:
            yield Finding(
                "unknown",
                "nothing is known of this batch: no record of it was applied, refused, or found unread;"
                " is it the right id, and the right installation (ROLLCALL_TOPIC_PREFIX)?",
            )
    elif batch.outcome is not None:
        yield Finding("finalized", f"it is done: {batch.status} ({batch.finalized_by}), revision {batch.revision}")
        if facts.event is not None and facts.event.refused == WITHHELD:
            yield Finding("event_withheld", f"its finalized event was {WITHHELD}: nobody is told of it")
        elif facts.event is not None and facts.event.refused is not None:
            yield Finding("event_refused", f"Kafka refuses its finalized event: {facts.event.refused}")
        elif batch.published_at is None:
            yield Finding("not_published", "its finalized event is not published yet: is a relay running?")
        if batch.pruned_at is not None:
            yield Finding("pruned", f"its items were pruned at {_time(batch.pruned_at)}: they are not kept any more")
    elif batch.opened_at is None:
        yield Finding(
            "never_opened",
            "no batch.opened was read, so nobody has said how many items it has or which:"
            f" {batch.answered:,} answered so far, and it stays open until that comes",
        )
    elif not batch.sealed:
        yield Finding("not_sealed", "it was opened as open-ended and is not sealed: it waits for batch.sealed")


def _waiting_for(facts: Facts) -> Iterator[Finding]:
    batch = facts.batch
    if batch is None:
        return
    missing, retrying, unexpected = facts.missing, facts.retrying, facts.unexpected
    unnamed = "; which, is not known" + (" any more" if batch.pruned_at is not None else ": it has no manifest")
    named = f": {_listed(missing)}" if missing.item_ids else unnamed
    of_total = f" of {batch.total:,}" if batch.total is not None else ""
    items = "item" if (batch.total or missing.count) == 1 else "items"
    if batch.outcome is not None:
        if missing.count:
            missed = f"{missing.count:,}{of_total} {items} had not answered when it ended{named}"
            yield Finding("never_answered", missed)
        return
    if missing.count:
        have = "has" if missing.count == 1 else "have"
        yield Finding("missing_items", f"{missing.count:,}{of_total} {items} {have} not answered{named}")
    if retrying.count:
        yield Finding(
            "retrying",
            f"{retrying.count:,} {_are('item', retrying.count)} being retried, which is no answer: {_listed(retrying)}",
        )
    if unexpected.count and missing.count:
        are = _are("item", unexpected.count)
        yield Finding(
            "unexpected_items",
            f"{unexpected.count:,} answered {are} not on its manifest: {_listed(unexpected)};"
            " are the ids written alike on both sides?",
        )


def _not_taken(facts: Facts) -> Iterator[Finding]:
    count = facts.dead_letter_count
    if count:
        shown = "; ".join(
            f"partition {letter.partition} offset {letter.offset}: {letter.reason}: {letter.message}"
            for letter in facts.dead_letters[:3]
        )
        more = f"; and {count - 3:,} more" if count > 3 else ""
        yield Finding("dead_letters", f"{count:,} {_are('record', count)} refused: {shown}{more}")


def _not_read(facts: Facts) -> Iterator[Finding]:
    log = facts.log
    if facts.log_problem is not None:
        yield Finding("log_not_seen", f"the log could not be looked at: {facts.log_problem}")
    if log is None:
        if facts.partition is None:
            yield Finding("not_started", "nothing was ever read: no worker has run here with this topic prefix yet")
        return
    search, where = log.search, f"its partition {facts.partition}"
    if log.worker is None:
        yield Finding("no_worker", f"no worker reads {where} (the group is {log.group_state}): is one running?")
    if log.held_back_at is not None:
        yield Finding(
            "held_back",
            f"{where} cannot be read beyond offset {log.held_back_at}: a producer has left a transaction open there",
        )
    if log.lag:
        of_batch = f"; {_at_least(search)}{search.unread:,} of those records are of this batch"
        yield Finding("lag", f"{where} is {log.lag:,} offsets behind the log's end{of_batch}")
    if search.stranded:
        count = sum(search.stranded.values())
        records = "record of it lies" if count == 1 else "records of it lie"
        yield Finding(
            "misplaced_unread",
            f"{_at_least(search)}{count:,} {records} unread on other partitions"
            f" ({_by_partition(search.stranded)}): workers will send them on to {where}",
        )
    if search.forwarded:
        count = sum(search.forwarded.values())
        records = "record of it" if count == 1 else "records of it"
        yield Finding(
            "misplaced",
            f"{_at_least(search)}{count:,} {records} came to wrong partitions ({_by_partition(search.forwarded)}) and"
            " had to be sent on: let producers key by batch_id and choose the partition as Java's do"
            " (librdkafka: partitioner=murmur2_random)",
        )
    if not search.complete:
        yield Finding("searched", f"only {search.records:,} records of the log were looked at")


def _times(facts: Facts, now: datetime) -> Iterator[Finding]:
    batch, last = facts.batch, facts.last_result
    if batch is None or batch.outcome is not None:
        return
    if batch.deadline_at is not None:
        if batch.deadline_at > now:
            yield Finding("deadline", f"whatever is missing then, it ends at its deadline, {_time(batch.deadline_at)}")
        else:
            yield Finding("deadline_passed", f"its deadline passed at {_time(batch.deadline_at)}: is a clock running?")
    if last is not None:
        what = f", {last.item_id} {last.status}" if last.item_id else ""
        by = f" by {last.worker}" if last.worker else ""
        place = f"partition {last.partition} offset {last.offset}"
        yield Finding("last_result", f"the last result came {_ago(now - last.at)} ago{what}{by} ({place})")


def _listed(items: Items) -> str:
    more = items.count - len(items.item_ids)
    return ", ".join(items.item_ids) + (f" and {more:,} more" if more and items.item_ids else "")


def _are(noun: str, count: int) -> str:
    return f"{noun} is" if count == 1 else f"{noun}s are"


def _at_least(search: Search) -> str:
    return "" if search.complete else "at least "


def _by_partition(counts: Mapping[int, int]) -> str:
    return ", ".join(f"partition {partition}: {count:,}" for partition, count in sorted(counts.items()))


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _ago(passed: timedelta) -> str:
    seconds = max(0, int(passed.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
