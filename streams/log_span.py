"""Where the input log begins and ends, and which offsets a time means."""

from dataclasses import dataclass
from datetime import datetime

from aiokafka import TopicPartition

from streams.kafka import KafkaConnection, started, topic_partitions
from streams.polling import Polls
from streams.reading import append_time

LOOKED_BACK = 100
"""Offsets that are searched for the last record before one: transaction markers take some, too."""


@dataclass(frozen=True)
class Span:
    """By partition: the first offset that the log still holds, and the end of what is committed."""

    starts: dict[int, int]
    ends: dict[int, int]


async def log_span(kafka: KafkaConnection, topic: str) -> Span:
    """Where a topic's partitions begin and end. Raises KafkaError."""
    consumer = kafka.consumer(isolation_level="read_committed", enable_auto_commit=False)
    async with started(consumer):
        tps = await topic_partitions(consumer, topic)
        starts, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        return Span(
            {tp.partition: offset for tp, offset in starts.items()},
            {tp.partition: offset for tp, offset in ends.items()},
        )


async def offsets_at(kafka: KafkaConnection, topic: str, span: Span, time: datetime) -> dict[int, int]:
    """Of each partition the offset of its first record appended at that time or later, its end where there is none."""
    consumer = kafka.consumer(enable_auto_commit=False)
    async with started(consumer):
        milliseconds = round(time.timestamp() * 1000)
        wanted = {TopicPartition(topic, partition): milliseconds for partition in span.ends}
        found = await consumer.offsets_for_times(wanted)
        return {tp.partition: span.ends[tp.partition] if at is None else at.offset for tp, at in found.items()}


async def times_before(kafka: KafkaConnection, topic: str, offsets: dict[int, int]) -> dict[int, datetime | None]:
    """Of each partition a time up to which records before this offset may have been appended: that of the last of them.

    Where retention has taken that, the time of the first record left; None where nothing is left.
    """
    consumer = kafka.consumer(
        isolation_level="read_uncommitted", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    async with started(consumer):
        found: dict[int, datetime | None] = {}
        for partition, offset in offsets.items():
            tp = TopicPartition(topic, partition)
            begin = max((await consumer.beginning_offsets([tp]))[tp], offset - LOOKED_BACK)
            end = min(offset, (await consumer.end_offsets([tp]))[tp])
            consumer.assign([tp])
            async for records in Polls(consumer).between(tp, begin, end):
                found[partition] = append_time(records[-1].timestamp)
    unknown = {partition: offset for partition, offset in offsets.items() if partition not in found}
    return {**found, **(await times_at(kafka, topic, unknown) if unknown else {})}


async def times_at(kafka: KafkaConnection, topic: str, offsets: dict[int, int]) -> dict[int, datetime | None]:
    """Of each partition the append time of its first record at this offset or behind it; None where there is none."""
    consumer = kafka.consumer(isolation_level="read_committed", enable_auto_commit=False, auto_offset_reset="earliest")
    async with started(consumer):
        tps = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}
        ends = await consumer.end_offsets(list(tps))
        found: dict[int, datetime | None] = dict.fromkeys(offsets)
        consumer.assign(list(tps))
        for tp, offset in tps.items():
            consumer.seek(tp, offset)
        polls = Polls(consumer)
        pending = {tp for tp, offset in tps.items() if offset < ends[tp]}
        while pending:
            polled = await polls.next(pending, max_records=1)
            for tp, records in polled.records.items():
                found[tp.partition] = append_time(records[0].timestamp)
            pending = {tp for tp in pending if found[tp.partition] is None and polled.positions[tp] < ends[tp]}
        return found
