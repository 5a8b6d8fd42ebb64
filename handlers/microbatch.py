"""Applies one micro-batch in a transaction passed in: compare-and-set, read, fold, write, outbox (design, section 4).

Micro-batching is invisible: a slice is folded up to the record that finalizes its batch, written, and what is behind
that record is folded in a further round, on rows as they were at that record.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from handlers import fold
from handlers.finalization import finalized_event
from handlers.fold import Disposition, LifecycleRecord, Record, Registers
from schemas.dead_letters import Refused
from schemas.published import LISTED_IDS
from schemas.topics import Topics
from store import batches, items, outbox, positions
from store.connection import Connection
from store.failpoints import reach
from store.rows import Batch, DeadLetterRow, ItemRow, OutboxRow, Position


@dataclass(slots=True)
class Slice:
    """A batch's records of one micro-batch, in log order."""

    partition: int
    records: list[Record]


@dataclass(slots=True)
class MicroBatch:
    """What was decoded from one read of the log.

    ``advances`` are expected offsets and new positions; ``traceparents`` and ``dead_letter`` (which makes the dead
    letter of a refused record) go by partition and offset.
    """

    topics: Topics
    advances: list[tuple[int, Position]]
    slices: dict[str, Slice]
    dead_letters: list[DeadLetterRow]
    traceparents: dict[tuple[int, int], str]
    dead_letter: Callable[[int, int, Refused], DeadLetterRow]


@dataclass(slots=True)
class Applied:
    """What a micro-batch did."""

    dispositions: Counter[Disposition] = field(default_factory=Counter)
    events: list[OutboxRow] = field(default_factory=list)
    dead_letters: list[DeadLetterRow] = field(default_factory=list)
    met_registers: bool = False


async def apply(connection: Connection, micro_batch: MicroBatch, *, optimistic: bool) -> Applied:
    """Apply a micro-batch; the caller commits.

    ``optimistic``: first-attempt results are taken to be of items without a register, without looking.
    Raises LostRaceError; asyncpg.UniqueViolationError where the optimism was wrong (roll back, apply again
    without); asyncpg.DataError where PostgreSQL can't hold a value.
    """
    reach("cas.before")
    await positions.compare_and_set(connection, micro_batch.topics.events, micro_batch.advances)
    reach("cas.after")
    applied = Applied(dead_letters=list(micro_batch.dead_letters))
    known = await batches.load(connection, list(micro_batch.slices))
    works = [
        _Work(known.get(batch_id) or Batch(batch_id, part.partition), batch_id not in known, part.records)
        for batch_id, part in micro_batch.slices.items()
    ]
    while works:
        await _fold_round(connection, micro_batch, works, applied, optimistic)
        works = [work.behind_finalization() for work in works if work.rest]
    reach("outbox.before")
    # An event that its topic has already (the database was begun anew) is found published.
    await batches.mark_published(connection, await outbox.insert(connection, applied.events))
    await outbox.insert_dead_letters(connection, applied.dead_letters)
    reach("outbox.after")
    # Without anything that leaves, losing this commit in a crash loses its positions too: it is read again.
    if not applied.events and not applied.dead_letters:
        await positions.commit_lightly(connection)
    return applied


class _Work:
    """One slice on its way through a round."""

    __slots__ = (
        "batch",
        "dirty",
        "finalized",
        "is_new",
        "is_plain",
        "lead",
        "loaded",
        "registers",
        "rest",
        "stored",
        "tail",
    )

    def __init__(self, batch: Batch, is_new: bool, records: list[Record]) -> None:
        self.batch = batch
        self.is_new = is_new
        leading = next((index for index, record in enumerate(records) if isinstance(record, ItemRow)), len(records))
        self.lead = records[:leading]
        self.tail = records[leading:]
        results = [record for record in self.tail if isinstance(record, ItemRow)]
        self.is_plain = len(results) == len(self.tail) and fold.is_plain(results)
        self.registers = Registers()
        self.stored: Mapping[str, ItemRow] = {}
        self.loaded = is_new
        self.rest: list[Record] = []
        self.dirty = False
        self.finalized = False

    def behind_finalization(self) -> "_Work":
        return _Work(self.batch, False, self.rest)

    def needs_registers(self, optimistic: bool) -> bool:
        """Whether the registers must be read before the fold; a new batch has none."""
        if self.is_new:
            return False
        manifest_meets_rows = self.batch.has_rows and any("item_ids" in record.body for record in _lifecycle(self.lead))
        settled = self.batch.outcome is not None or self.batch.generation > 0
        return not self.is_plain or not optimistic or settled or manifest_meets_rows

    def item_ids(self) -> set[str]:
        """The items that this slice's records speak of."""
        ids = {record.item_id for record in self.tail if isinstance(record, ItemRow)}
        for record in _lifecycle(self.lead + self.tail):
            ids.update(record.body.get("item_ids", ()))
        return ids


async def _fold_round(
    connection: Connection, micro_batch: MicroBatch, works: list[_Work], applied: Applied, optimistic: bool
) -> None:
    """Fold every slice up to the record that finalizes its batch, and write what that changed."""
    await _load_manifests(connection, works)
    await _load_registers(connection, [work for work in works if work.needs_registers(optimistic)])
    fast: list[ItemRow] = []
    unsure: list[_Work] = []
    for work in works:
        _step_each(work, work.lead, micro_batch, applied)
        if work.finalized:
            work.rest += work.tail
        elif work.is_plain and not work.stored and work.tail and fold.is_fast(work.batch, _results(work.tail)):
            fast += _fold_fast(work, applied)
        elif work.loaded:
            _step_each(work, work.tail, micro_batch, applied)
        else:
            unsure.append(work)
    await _load_registers(connection, unsure)
    for work in unsure:
        _step_each(work, work.tail, micro_batch, applied)
    applied.met_registers = applied.met_registers or any(work.stored for work in works)
    await _write(connection, works, fast)
    applied.events += await _finalized_events(connection, micro_batch, [work for work in works if work.finalized])


def _step_each(work: _Work, records: list[Record], micro_batch: MicroBatch, applied: Applied) -> None:
    """Step through records up to the one that finalizes the batch; the others are left as the rest."""
    batch = work.batch
    was_open = batch.outcome is None
    for index, record in enumerate(records):
        try:
            disposition = fold.step(batch, work.registers, record)
        except Refused as refusal:
            refusal.batch_id = batch.batch_id
            applied.dead_letters.append(micro_batch.dead_letter(batch.partition, record.version, refusal))
            continue
        applied.dispositions[disposition] += 1
        work.dirty = work.dirty or disposition is not Disposition.NO_EFFECT
        if was_open and batch.outcome is not None:
            work.finalized = True
            work.rest = records[index + 1 :]
            return


def _fold_fast(work: _Work, applied: Applied) -> list[ItemRow]:
    rows = _results(work.tail)
    applied.dispositions += fold.fold_fast(work.batch, work.registers.manifest, rows)
    work.dirty = True
    work.finalized = work.batch.outcome is not None
    return rows


async def _load_manifests(connection: Connection, works: Iterable[_Work]) -> None:
    """Which of the items spoken of are on manifests that were begun before."""
    begun = [work for work in works if work.batch.expected]
    if not begun:
        return
    keys = ((work.batch.batch_id, item_id) for work in begun for item_id in work.item_ids())
    found = await items.on_manifest(connection, keys)
    for work in begun:
        work.registers.manifest = found.get(work.batch.batch_id, set())


async def _load_registers(connection: Connection, works: list[_Work]) -> None:
    if not works:
        return
    ids = {work.batch.batch_id: work.item_ids() for work in works}
    found = await items.load(
        connection, ((work.batch.batch_id, item) for work in works for item in ids[work.batch.batch_id])
    )
    settled = [work for work in works if work.batch.late]
    late: Mapping[str, dict[str, ItemRow]] = {}
    if settled:
        late = await items.load_late(
            connection, ((work.batch.batch_id, item) for work in settled for item in ids[work.batch.batch_id])
        )
    for work in works:
        work.stored = found.get(work.batch.batch_id, {})
        work.registers.items = dict(work.stored)
        work.registers.late = late.get(work.batch.batch_id, {})
        work.loaded = True


async def _write(connection: Connection, works: list[_Work], fast: list[ItemRow]) -> None:
    """Items first (the optimism may prove wrong), then manifests, then batches."""
    new = fast
    moved: list[ItemRow] = []
    late: list[ItemRow] = []
    expected: list[tuple[str, str]] = []
    for work in works:
        registers = work.registers
        for item_id in registers.changed:
            (moved if item_id in work.stored else new).append(registers.items[item_id])
        late += [registers.late[item_id] for item_id in registers.changed_late]
        expected += [(work.batch.batch_id, item_id) for item_id in registers.added]
    if new:
        new.sort()
        reach("copy.before")
        await items.copy_new(connection, new)
        reach("copy.after")
    if moved:
        await items.upsert(connection, moved)
    if late:
        await items.upsert_late(connection, late)
    if expected:
        await items.expect(connection, sorted(expected))
    reach("batches.before")
    await batches.write(
        connection, sorted((work.batch for work in works if work.dirty), key=lambda batch: batch.batch_id)
    )
    reach("batches.after")


async def _finalized_events(connection: Connection, micro_batch: MicroBatch, works: list[_Work]) -> list[OutboxRow]:
    """The events of batches finalized in this round, in log order."""
    finalized = sorted((work.batch for work in works), key=lambda batch: (batch.partition, batch.decided_offset))
    with_failed = [batch.batch_id for batch in finalized if batch.failed]
    with_missing = [batch.batch_id for batch in finalized if batch.missing and batch.expected is not None]
    failed = await items.failed_ids(connection, with_failed, LISTED_IDS) if with_failed else {}
    missing = await items.missing_ids(connection, with_missing, LISTED_IDS) if with_missing else {}
    return [
        finalized_event(
            batch,
            micro_batch.topics,
            failed_item_ids=failed.get(batch.batch_id, ()),
            missing_item_ids=missing.get(batch.batch_id, ()),
            traceparent=micro_batch.traceparents.get((batch.partition, batch.decided_offset or 0)),
        )
        for batch in finalized
    ]


def _lifecycle(records: Iterable[Record]) -> Iterable[LifecycleRecord]:
    return (record for record in records if isinstance(record, LifecycleRecord))


def _results(records: Iterable[Record]) -> list[ItemRow]:
    return [record for record in records if isinstance(record, ItemRow)]
