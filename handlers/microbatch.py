"""Applies one micro-batch in a transaction passed in: compare-and-set, read, fold, write, outbox (ARCHITECTURE.md).

Micro-batching is invisible: a slice is folded up to the record that finalizes its batch, written, and what is behind
that record is folded in a further round, on rows as they were at that record. Results that revise a batch are folded in
one round: there may be as many revisions as results, and what their events list of other items is known before.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple, cast

from handlers import alerts, fold
from handlers.finalization import finalized_event
from handlers.records import UNMOVED, AllBut, Disposition, Record
from handlers.slices import Listing, Slice, Work
from schemas.dead_letters import Refused
from schemas.published import LISTED_IDS
from schemas.topics import Topics
from store import batches, items, outbox, positions, summaries
from store.connection import Connection
from store.failpoints import reach
from store.rows import Batch, DeadLetterRow, ItemRow, OutboxRow, Position, SummaryRequest, TakenResult

MANY_REGISTERS = 50_000
"""Of one batch; only a reopening that names no items loads more than its micro-batch has records."""


@dataclass(slots=True)
class MicroBatch:
    """What was decoded from one read of the log.

    ``advances`` are each partition's expected offset and new position; ``traceparents`` and ``dead_letter`` (which
    makes the dead letter of a refused record) go by partition and offset. A batch that ends with more than
    ``failure_rate_limit`` of its answers failed (0 to 1) is worth an alert.
    """

    topics: Topics
    advances: dict[int, tuple[int, Position]]
    slices: dict[str, Slice]
    dead_letters: list[DeadLetterRow]
    traceparents: dict[tuple[int, int], str]
    dead_letter: Callable[[int, int, Refused], DeadLetterRow]
    failure_rate_limit: float = 0.5


class Caused(NamedTuple):
    """An event and the place of the record that caused it."""

    partition: int
    offset: int
    event: OutboxRow


@dataclass(slots=True)
class Consequences:
    """What follows from records beside their batches: events, and summaries to be computed, by batch the last one."""

    caused: list[Caused] = field(default_factory=list)
    summaries: dict[str, SummaryRequest] = field(default_factory=dict)


@dataclass(slots=True)
class Applied:
    """What a micro-batch did."""

    dispositions: Counter[Disposition] = field(default_factory=Counter)
    events: list[OutboxRow] = field(default_factory=list)
    dead_letters: list[DeadLetterRow] = field(default_factory=list)
    met_registers: bool = False


async def apply(connection: Connection, micro_batch: MicroBatch, *, optimistic: bool) -> Applied:
    """Apply a micro-batch; the caller commits.

    ``optimistic``: items whose first result here is a first attempt are taken to have no register, without looking
    (not in batches that have ended).
    Raises LostRaceError; asyncpg.UniqueViolationError where the optimism was wrong (roll back, apply again
    without); asyncpg.DataError where PostgreSQL can't hold a value.
    """
    reach("cas.before")
    await positions.compare_and_set(connection, micro_batch.topics.events, list(micro_batch.advances.values()))
    reach("cas.after")
    applied = Applied(dead_letters=list(micro_batch.dead_letters))
    # By batch, and so everything is written.
    slices = sorted(micro_batch.slices.items(), key=itemgetter(0))
    known = await batches.load(connection, [batch_id for batch_id, _ in slices])
    works = [
        Work.begin(known.get(batch_id) or Batch(batch_id, part.partition), part.records, is_new=batch_id not in known)
        for batch_id, part in slices
    ]
    then = Consequences()
    while works:
        await _fold_round(connection, micro_batch, works, applied, then, optimistic)
        works = [work.behind_finalization() for work in works if work.rest]
    # In log order; what one record caused, in the order of its causing.
    then.caused.sort(key=lambda each: each[:2])
    applied.events = [each.event for each in then.caused]
    await summaries.request(connection, then.summaries)
    reach("outbox.before")
    # An event that its topic has already (the database was begun anew) is found published.
    await batches.mark_published(connection, await outbox.insert(connection, applied.events))
    await outbox.insert_dead_letters(connection, applied.dead_letters)
    reach("outbox.after")
    # Without anything that leaves, losing this commit in a crash loses its positions too: it is read again.
    if not applied.events and not applied.dead_letters:
        await positions.let_commit_skip_disk(connection)
    return applied


async def _fold_round(
    connection: Connection,
    micro_batch: MicroBatch,
    works: list[Work],
    applied: Applied,
    then: Consequences,
    optimistic: bool,
) -> None:
    """Fold every slice up to the record that finalizes its batch, and write what that changed."""
    needing = [work for work in works if work.needs_registers(optimistic)]
    await _load_manifests(connection, [work for work in works if not work.is_loaded])
    await _load_registers(connection, needing)
    await _load_listings(connection, [work for work in works if work.may_revise()])
    fast: list[TakenResult] = []
    unsure: list[Work] = []
    for work in works:
        if work.lead:
            await _step(work, work.lead, micro_batch, applied, then)
        if work.finalized:
            work.rest += work.tail
        elif (sums := work.fast_sums()) is not None:
            fast += _fold_fast(work, sums, applied)
        elif work.is_loaded:
            await _step(work, fold.rows(work.tail), micro_batch, applied, then)
        elif work.tail:
            unsure.append(work)
    await _load_registers(connection, unsure)
    for work in unsure:
        if (sums := work.fast_sums()) is not None:
            fast += _fold_fast(work, sums, applied)
        else:
            await _step(work, fold.rows(work.tail), micro_batch, applied, then)
    applied.met_registers = applied.met_registers or any(work.stored for work in works)
    await _write(connection, works, fast)
    # Of what one record causes, these come first: the threshold is passed, and so the batch has failed.
    then.caused[:0] = [event for work in works for event in _raised(work, micro_batch)]
    await _tell_finalized(connection, micro_batch, [work.batch for work in works if work.finalized], then)


def _fold_fast(work: Work, sums: fold.Sums, applied: Applied) -> list[TakenResult]:
    """Fold a slice's results in sums; returns the new registers."""
    for disposition, number in fold.fold_fast(work.batch, work.registers, work.results, sums).items():
        applied.dispositions[disposition] += number
    work.dirty = True
    work.finalized = work.batch.outcome is not None
    return sums.new


async def _step(
    work: Work, records: Sequence[Record], micro_batch: MicroBatch, applied: Applied, then: Consequences
) -> None:
    """Step beside the event loop where it takes long: who does not give way for seconds is taken for dead by Kafka."""
    if len(work.registers.items) < MANY_REGISTERS:
        _step_each(work, records, micro_batch, applied, then)
    else:
        await asyncio.to_thread(_step_each, work, records, micro_batch, applied, then)


def _step_each(
    work: Work, records: Sequence[Record], micro_batch: MicroBatch, applied: Applied, then: Consequences
) -> None:
    """Step through records up to one that finalizes the batch (again); those behind it are left as the rest.

    With a listing what such a result gives is told at once, and the next is stepped through.
    """
    batch = work.batch
    revision = batch.revision
    for index, record in enumerate(records):
        try:
            disposition = fold.step(batch, work.registers, record)
        except Refused as refusal:
            refusal.batch_id = batch.batch_id
            applied.dead_letters.append(micro_batch.dead_letter(batch.partition, record.offset, refusal))
            continue
        applied.dispositions[disposition] += 1
        if disposition not in UNMOVED:
            work.dirty = True
        elif disposition is Disposition.SUMMARY_REQUESTED:
            then.summaries[batch.batch_id] = SummaryRequest(batch.revision, record.received_at, record.offset)
        if work.listing is not None:
            if isinstance(record, ItemRow):
                work.listing.note(record.item_id, work.registers)
            else:
                work.listing = None  # it may change more items than it names
        if batch.revision != revision and batch.outcome is not None:
            if work.listing is not None:
                revision = batch.revision
                _tell(micro_batch, batch, *work.listing.first, then)
                continue
            work.finalized = True
            work.rest = [*records[index + 1 :]]
            return
        if batch.outcome is not None and disposition is Disposition.LATE and batch.last_result_offset == record.version:
            # It counts without a new revision: what the items took and measured is not what was summarized.
            then.summaries[batch.batch_id] = SummaryRequest(batch.revision, record.received_at, record.offset)


async def _load_manifests(connection: Connection, works: Iterable[Work]) -> None:
    """Which of the items spoken of are on manifests that were begun before."""
    begun = [work for work in works if work.batch.expected]
    if not begun:
        return
    not_on_it = await items.unexpected(connection, {work.batch.batch_id: work.item_lines() for work in begun})
    for work in begun:
        work.registers.manifest = AllBut(not_on_it[work.batch.batch_id])


async def _load_registers(connection: Connection, works: list[Work]) -> None:
    if not works:
        return
    ids = {work.batch.batch_id: work.item_ids() for work in works}
    reopening = [work.batch for work in works if work.reopens()]
    for batch in reopening:
        ids[batch.batch_id] |= await items.reopenable_ids(connection, batch.batch_id, some_retrying=batch.retrying > 0)
    found = await items.load(connection, ids)
    settled = {work.batch.batch_id: ids[work.batch.batch_id] for work in works if work.batch.late}
    late = await items.load_late(connection, settled) if settled else {}
    listed = {batch.batch_id: items.Lines.of(ids[batch.batch_id]) for batch in reopening if batch.expected}
    not_on_it = await items.unexpected(connection, listed) if listed else {}
    for work in works:
        batch_id = work.batch.batch_id
        work.loaded(found.get(batch_id, {}), late.get(batch_id, {}))
        if batch_id in not_on_it:
            work.registers.manifest = AllBut(not_on_it[batch_id])


async def _load_listings(connection: Connection, works: list[Work]) -> None:
    if not works:
        return
    failed, missing = await _listed(connection, [(work.batch, LISTED_IDS + len(work.results)) for work in works])
    for work in works:
        batch_id = work.batch.batch_id
        work.listing = Listing(failed.get(batch_id, []), missing.get(batch_id, []))


async def _listed(
    connection: Connection, wanted: Sequence[tuple[Batch, int]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The first failed and the first missing items of each batch, at most so many."""
    with_failed = {batch.batch_id: most for batch, most in wanted if batch.failed}
    with_missing = {batch.batch_id: most for batch, most in wanted if batch.missing and batch.expected is not None}
    failed = await items.failed_ids(connection, with_failed) if with_failed else {}
    missing = await items.missing_ids(connection, with_missing) if with_missing else {}
    return failed, missing


async def _write(connection: Connection, works: list[Work], fast: list[TakenResult]) -> None:
    """Items first (the optimism may prove wrong), then manifests, then batches."""
    new = fast
    moved: list[ItemRow] = []
    late: list[ItemRow] = []
    adopted: dict[str, set[str]] = {}
    expected: list[tuple[str, str]] = []
    for work in works:
        registers = work.registers
        for item_id in registers.changed:
            (moved if item_id in work.stored else new).append(registers.items[item_id])
        late += [registers.late[item_id] for item_id in registers.changed_late]
        if registers.adopted:
            adopted[work.batch.batch_id] = registers.adopted
        expected += [(work.batch.batch_id, item_id) for item_id in registers.added]
    if new:
        reach("copy.before")
        await items.copy_new(connection, new)
        reach("copy.after")
    if moved:
        await items.upsert(connection, moved)
    if late:
        await items.upsert_late(connection, late)
    if adopted:
        await items.forget_late(connection, adopted)
    if expected:
        await items.expect(connection, sorted(expected))
    reach("batches.before")
    dirty = [work for work in works if work.dirty]
    await batches.copy_new(connection, [work.batch for work in dirty if work.is_new])
    await batches.write(connection, [work.batch for work in dirty if not work.is_new])
    reach("batches.after")


def _raised(work: Work, micro_batch: MicroBatch) -> list[Caused]:
    """The alerts and requests that this round's records called for."""
    batch, registers, topics = work.batch, work.registers, micro_batch.topics
    events = [
        (each.offset, alerts.raised_event(topics, batch, each, _traceparent(micro_batch, batch, each.offset)))
        for each in registers.alerts
    ]
    events += [
        (each.offset, alerts.retry_event(topics, batch, each, _traceparent(micro_batch, batch, each.offset)))
        for each in registers.retries
    ]
    return [Caused(batch.partition, offset, event) for offset, event in events]


async def _tell_finalized(
    connection: Connection, micro_batch: MicroBatch, finalized: list[Batch], then: Consequences
) -> None:
    """Of batches finalized by the last of this round's records of them; the items are written."""
    failed, missing = await _listed(connection, [(batch, LISTED_IDS) for batch in finalized])
    for batch in finalized:
        batch_id = batch.batch_id
        _tell(micro_batch, batch, failed.get(batch_id, ()), missing.get(batch_id, ()), then)


def _tell(
    micro_batch: MicroBatch, batch: Batch, failed: Sequence[str], missing: Sequence[str], then: Consequences
) -> None:
    """What follows from a batch that has just been finalized, with the first ids of each kind."""
    decided_at, offset = cast(datetime, batch.finalized_at), cast(int, batch.decided_offset)
    then.summaries[batch.batch_id] = SummaryRequest(batch.revision, decided_at, offset)
    traceparent = _traceparent(micro_batch, batch, offset)
    event = finalized_event(
        batch, micro_batch.topics, failed_item_ids=failed, missing_item_ids=missing, traceparent=traceparent
    )
    then.caused.append(Caused(batch.partition, offset, event))
    alert = alerts.failure_rate_event(micro_batch.topics, batch, micro_batch.failure_rate_limit, traceparent)
    if alert is not None:
        then.caused.append(Caused(batch.partition, offset, alert))


def _traceparent(micro_batch: MicroBatch, batch: Batch, offset: int) -> str | None:
    return micro_batch.traceparents.get((batch.partition, offset))
