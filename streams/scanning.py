"""Reads the output topics, as any read_committed consumer would, for what Rollcall has said on them."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from schemas.headers import DLT_OFFSET, DLT_PARTITION, DLT_TOPIC, event_id_of, number_of, revision_of, text_of, utf8
from schemas.topics import Topics
from streams.fetched import FetchedRecord
from streams.kafka import KafkaConnection, started, topic_partitions
from streams.polling import Polls
from streams.reading import append_time


class Said(NamedTuple):
    """A record of an output topic: what it says (of a dead letter: of which record), and where."""

    channel: str
    id: str
    batch_id: str | None
    revision: int | None
    partition: int
    record_offset: int
    digest: str


@dataclass
class Scan:
    """Records of the output topics; by channel, whether retention has taken some, and when the first left came."""

    cut: set[str] = field(default_factory=set)
    first_times: dict[str, datetime] = field(default_factory=dict)

    async def read(self, kafka: KafkaConnection, topics: Topics) -> AsyncIterator[list[Said]]:
        """All of them up to the present end, a poll's worth at a time. Raises KafkaError."""
        names = [topics.finalized, topics.summaries, topics.alerts, topics.requests, topics.dead_letters]
        consumer = kafka.consumer(
            enable_auto_commit=False, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        async with started(consumer):
            tps = [tp for name in names for tp in await topic_partitions(consumer, name)]
            starts, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
            self.cut = {tp.topic.removeprefix(topics.prefix) for tp, start in starts.items() if start > 0}
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            polls = Polls(consumer)
            pending = {tp for tp in tps if starts[tp] < ends[tp]}
            while pending:
                polled = await polls.next(pending)
                yield [said for records in polled.records.values() for said in self._said(topics, records)]
                pending = {tp for tp in pending if polled.positions[tp] < ends[tp]}

    def _said(self, topics: Topics, records: Sequence[FetchedRecord]) -> list[Said]:
        found = []
        for record in records:
            channel = record.topic.removeprefix(topics.prefix)
            time = append_time(record.timestamp)
            self.first_times[channel] = min(time, self.first_times.get(channel, time))
            if (identity := _identity(record, channel)) is None:
                continue
            found.append(
                Said(
                    channel,
                    identity,
                    None if record.key is None else utf8(record.key),
                    revision_of(identity) if channel == "finalized" else None,
                    record.partition,
                    record.offset,
                    hashlib.md5(record.value or b"", usedforsecurity=False).hexdigest(),
                )
            )
        return found


def _identity(record: FetchedRecord, channel: str) -> str | None:
    if channel == "dead-letters":
        topic, partition = text_of(record.headers, DLT_TOPIC), number_of(record.headers, DLT_PARTITION)
        offset = number_of(record.headers, DLT_OFFSET)
        return None if topic is None or partition is None or offset is None else f"{topic}-{partition}@{offset}"
    return event_id_of(record.headers)
