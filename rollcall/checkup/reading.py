"""How far reading is: the stored positions against the log, who reads, and how much is left."""

from collections.abc import AsyncIterator, Iterator, Mapping

from aiokafka.admin import AIOKafkaAdminClient

from rollcall.checkup.check import Check, noted, ok, wrong
from schemas.topics import Topics
from store import positions
from store.connection import Connection
from store.positions import ForeignLogError
from store.rows import Position
from streams.anchoring import LogChangedError, check_last_records, check_within
from streams.kafka import KafkaConnection
from streams.observing import Group, LogRange, group, log_ranges, looking, partitions_of


async def reading_checks(
    connection: Connection, kafka: KafkaConnection, admin: AIOKafkaAdminClient, topics: Topics
) -> AsyncIterator[Check]:
    """Everything between the log and the tables."""
    topic = topics.events
    partitions = await partitions_of(admin, topic)
    try:
        homes = await positions.partition_count(connection, topic)
    except ForeignLogError as error:
        yield wrong("log", str(error))
        return
    stored = await positions.load(connection, topic, partitions)
    ranges = await log_ranges(kafka, topic, partitions)
    for each in _log(topic, len(partitions), homes, stored):
        yield each
    async for each in _positions(kafka, topic, stored, ranges):
        yield each
    readers = await group(admin, topics.consumer_group, topic)
    yield _group(readers, partitions)
    for each in _lag(stored, ranges):
        yield each


def _log(topic: str, present: int, homes: int | None, stored: Mapping[int, Position]) -> Iterator[Check]:
    if homes is None:
        yield noted("log", "nothing has been read yet: no worker has started on this database")
    elif present > homes:
        yield noted(
            "log",
            f"{topic} has {present} partitions, batches live on the first {homes} as at the first start:"
            " records on others are sent on, which costs; let producers be told, or make no more partitions",
        )
    elif present < homes:
        yield wrong(
            "log",
            f"{topic} has {present} partitions, at the first start it had {homes}: it was deleted and created again;"
            f" make it with {homes}",
        )
    elif len(stored) < present:
        yield noted("log", f"{present - len(stored)} of {present} partitions have not been read yet")


async def _positions(
    kafka: KafkaConnection, topic: str, stored: Mapping[int, Position], ranges: Mapping[int, LogRange]
) -> AsyncIterator[Check]:
    """Whether the log still is the one that was read, by each position and the record before it."""
    starts = {partition: found.start for partition, found in ranges.items()}
    sound = True
    async with looking(kafka, isolation_level="read_uncommitted") as consumer:
        for partition, position in sorted(stored.items()):
            try:
                check_within(topic, position, starts[partition], ranges[partition].end)
                await check_last_records(consumer, topic, [position], starts)
            except LogChangedError as error:
                sound = False
                yield wrong(
                    "positions",
                    f"{error} Workers stop there: bring that log back, or begin anew with an empty schema"
                    " (ROLLCALL_DATABASE_SCHEMA)",
                )
    if sound and stored:
        yield ok("positions", f"all {len(stored)} lie within the log, and behind the records they stood behind")


def _group(readers: Group, partitions: list[int]) -> Check:
    unread = [partition for partition in partitions if readers.holder(partition) is None]
    count = len(readers.members)
    workers = "1 worker reads" if count == 1 else f"{count} workers read"
    if not unread:
        return ok("workers", f"{workers} all {len(partitions)} partitions")
    if readers.members and readers.state != "Stable":
        return noted("workers", f"they are just sharing out the partitions ({readers.state}): look again")
    named = "any partition" if len(unread) == len(partitions) else f"partitions {', '.join(map(str, unread))}"
    return wrong("workers", f"nobody reads {named}: start `rollcall worker` or `rollcall run`")


def _lag(stored: Mapping[int, Position], ranges: Mapping[int, LogRange]) -> Iterator[Check]:
    behind, held_back = {}, {}
    for partition, found in ranges.items():
        next_offset = stored[partition].next_offset if partition in stored else found.start
        if found.end > next_offset:
            behind[partition] = found.end - next_offset
        if found.stable < found.end and next_offset >= found.stable:
            held_back[partition] = found.stable
    if behind:
        worst = max(behind, key=lambda partition: behind[partition])
        yield noted(
            "lag",
            f"{sum(behind.values()):,} offsets on {len(behind)} partitions are not applied yet, most of them on"
            f" partition {worst}: {behind[worst]:,}; look again to see it shrink",
        )
    else:
        yield ok("lag", "everything in the log is applied")
    for partition, offset in held_back.items():
        yield wrong(
            "lag",
            f"partition {partition} cannot be read beyond offset {offset}: a producer has left a transaction open"
            " there; end that producer, or wait for its transaction's time-out",
        )
