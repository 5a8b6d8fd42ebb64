"""Tells a batch's story: its home partition read from the beginning, and what the fold makes of each of its records."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from aiokafka import TopicPartition

from handlers import fold
from handlers.records import Record, Registers
from schemas.dead_letters import Refused
from schemas.headers import forwarded_from
from schemas.topics import Topics
from store.rows import Batch, DeadLetterRow, ItemRow, Position
from streams.kafka import KafkaConnection, started
from streams.polling import Polls
from streams.reading import Homes, new_reading, take

MAX_RECORDS = 5_000


@dataclass(frozen=True, slots=True)
class Told:
    """A record that touched the batch, and what it did.

    ``did``: a disposition of the fold, or the reason of the dead letter it became, with ``why`` then. ``revision`` and
    ``outcome``: how it finalized the batch, if it did. ``place``: where a forwarded record was first read (partition,
    offset).
    """

    offset: int
    received_at: datetime
    type: str
    item_id: str | None
    said: str | None
    did: str
    why: str | None = None
    revision: int | None = None
    outcome: str | None = None
    place: tuple[int, int] | None = None


class Story:
    """One batch and what is known of it so far; all its items are held in memory."""

    def __init__(self, topics: Topics, homes: Homes, batch_id: str) -> None:
        self._topics = topics
        self._homes = homes
        self.batch = Batch(batch_id, homes.of(batch_id))
        self._registers = Registers()

    async def tell(self, kafka: KafkaConnection, start: int, end: int) -> AsyncGenerator[Told, None]:
        """All records between these offsets of its home partition that are its, in order. Raises KafkaError."""
        tp = TopicPartition(self._topics.events, self.batch.partition)
        consumer = kafka.consumer(
            enable_auto_commit=False, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        async with started(consumer):
            consumer.assign([tp])
            position = Position(tp.partition, start, None, None, None, {})
            async for records in Polls(consumer).between(tp, start, end, max_records=MAX_RECORDS):
                reading = new_reading(self._topics, self._homes)
                position = await take(reading, records, position, records[-1].offset + 1, self._homes)
                places = {
                    record.offset: place
                    for record in records
                    if record.headers and (place := forwarded_from(record.headers, self._homes.log_id)) is not None
                }
                part = reading.micro_batch.slices.get(self.batch.batch_id)
                told = [self._step(each, places) for each in (fold.rows(part.records) if part else ())]
                refused = [
                    _refused(each)
                    for each in reading.micro_batch.dead_letters
                    if each.batch_id == self.batch.batch_id and each.partition == tp.partition
                ]
                for each in sorted(told + refused, key=lambda each: each.offset):
                    yield each

    def _step(self, record: Record, places: dict[int, tuple[int, int]]) -> Told:
        revision = self.batch.revision
        why: str | None = None
        try:
            did = str(fold.step(self.batch, self._registers, record))
        except Refused as refusal:
            did, why = refusal.reason.value, refusal.message
        # An open batch that is corrected gets another number, and no end.
        finalized = self.batch.revision != revision and self.batch.outcome is not None
        kind, item_id, said = _about(record)
        return Told(
            record.offset,
            record.received_at,
            kind,
            item_id,
            said,
            did,
            why,
            self.batch.revision if finalized else None,
            self.batch.outcome if finalized else None,
            places.get(record.offset),
        )


def _about(record: Record) -> tuple[str, str | None, str | None]:
    if isinstance(record, ItemRow):
        return "item.result", record.item_id, f"{record.status}, attempt {record.attempt}"
    return record.type, None, None


def _refused(letter: DeadLetterRow) -> Told:
    return Told(letter.record_offset, letter.appended_at, "-", None, None, letter.reason, letter.message)
