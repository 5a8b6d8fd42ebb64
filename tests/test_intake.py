"""The reading side in this process, on the real servers: what must hold between a poll and its fold."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CorruptRecordException, KafkaError
from confluent_kafka import Producer

from handlers import microbatch
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.headers import FORWARDED_LOG, FORWARDED_OFFSET, FORWARDED_PARTITION
from schemas.topics import Topics, home_partition
from store import positions
from store.rows import Position
from streams import applying, intake
from streams.anchoring import Anchors, LogChangedError, check_gap
from streams.fetched import FetchedRecord, _batches, _KeptRecords, _PartitionRecords
from streams.flushing import Flusher
from streams.intake import POLLED_AT_ONCE, REBALANCE_TIMEOUT_MS, SESSION_TIMEOUT_MS, Intake, Parts, _cut
from streams.kafka import started
from streams.portion import Portion
from streams.reading import Homes, Reading, new_reading
from streams.topics import ensure_topics, log_identity
from tests.faults.proxy import Proxy
from tests.harness.histories import Message
from tests.harness.tables import make_rows_slow, table_rows
from tests.harness.topics import create_topic, end_offsets, produce, set_config
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Worker:
    """An intake that runs as a task of the test."""

    def __init__(self, settings: Settings, partitions: int) -> None:
        self.settings = settings
        self.topics = Topics(settings.topic_prefix)
        self.partitions = partitions
        self.stop = asyncio.Event()
        self.intake = Intake(
            settings.kafka_connection(),
            settings.database(),
            self.topics,
            Homes(partitions),
            slot="0",
            max_records=settings.max_records,
            batch_timeout_ms=20,
        )
        self.task = asyncio.create_task(self.intake.run(self.stop, lambda: None))

    @property
    def consumer(self) -> Any:
        return self.intake._subscriber.consumer

    def tp(self, partition: int = 0) -> TopicPartition:
        return TopicPartition(self.topics.events, partition)

    async def anchored(self) -> None:
        def is_anchored() -> bool:
            if self.task.done():
                self.task.result()
            return len(self.intake._anchors.by_partition) == self.partitions

        await eventually(is_anchored, message="all partitions anchored")

    async def paused(self) -> None:
        """Fetch nothing more; what was being fetched is in, and dropped."""
        self.consumer.pause(*(self.tp(partition) for partition in range(self.partitions)))
        fetcher = self.consumer._fetcher
        await eventually(lambda: not fetcher._in_flight and not fetcher._records, message="no fetch in flight")

    def resume(self) -> None:
        self.consumer.resume(*(self.tp(partition) for partition in range(self.partitions)))

    async def counted(self, expected: dict[str, int], timeout_s: float = 30) -> None:
        connection = await self.settings.database().connect("test")
        try:

            async def all_in() -> bool:
                rows = await connection.fetch("SELECT batch_id, count(*) FROM item_results GROUP BY 1")
                found = {row[0]: row[1] for row in rows}
                assert found == expected, f"results in: {found}"
                return True

            await eventually(all_in, timeout_s)
        finally:
            await connection.close()


@asynccontextmanager
async def working(settings: Settings, *, partitions: int = 1) -> AsyncIterator[Worker]:
    """A migrated schema, the topics, and an intake that is anchored on all partitions."""
    await migrate(settings.database_url, settings.database_schema)
    await create_topic(settings.bootstrap_servers, Topics(settings.topic_prefix).events, partitions=partitions)
    async with restarted(settings, partitions=partitions) as worker:
        yield worker


@asynccontextmanager
async def restarted(settings: Settings, *, partitions: int = 1) -> AsyncIterator[Worker]:
    await ensure_topics(settings.kafka_connection(), Topics(settings.topic_prefix))
    worker = Worker(settings, partitions)
    try:
        await worker.anchored()
        yield worker
    finally:
        worker.stop.set()
        await asyncio.gather(worker.task, return_exceptions=True)


def results(batch_id: str, count: int, *, since: int = 0) -> list[Message]:
    return [
        Message(
            batch_id.encode(),
            json.dumps({"batch_id": batch_id, "item_id": f"i{n:05d}", "status": "succeeded"}).encode(),
            batch_id,
        )
        for n in range(since, since + count)
    ]


async def test_whenever_others_run_a_moved_position_is_being_read_or_taken_already(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What following markers relies on: nothing suspends between a poll's return and the parser."""
    seen: list[str] = []
    getall = FetchResult.getall

    def watched(self: Any, max_records: int | None = None) -> Any:
        records = getall(self, max_records)
        if records:
            # The next thing the loop does once the task that polled suspends for the first time.
            asyncio.get_running_loop().call_soon(look)
        return records

    async with working(settings) as worker:

        def look() -> None:
            state = worker.consumer._subscription.subscription.assignment.state_value(worker.tp())
            anchor = worker.intake._anchors.by_partition.get(0)
            if worker.intake._reading:
                seen.append("reading")
            elif anchor is not None and state.position <= anchor.next_offset:
                seen.append("taken")
            else:
                seen.append("neither")

        monkeypatch.setattr(FetchResult, "getall", watched)
        total = 0
        for count in (1, 3, 255, 700, 1, 3_000):
            await produce(settings.bootstrap_servers, worker.topics.events, results("b", count, since=total))
            total += count
            await worker.counted({"b": total})
    print(seen)
    assert "reading" in seen
    assert "neither" not in seen


@contextmanager
def damaged_from(offset: int, partition: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Fetched batches of a partition are damaged from this one on; gives the offsets of those that were."""
    met: list[int] = []
    begin = _PartitionRecords.__init__

    def damaged(self: Any, tp: TopicPartition, records: Any, *others: Any) -> None:
        [*_, (last, _)] = _batches(records.data)
        if tp.partition == partition and last.base_offset >= offset:
            met.append(last.base_offset)
            records = _KeptRecords(records.data[:-1] + bytes([records.data[-1] ^ 1]))
        begin(self, tp, records, *others)

    with monkeypatch.context() as patch:
        patch.setattr(_PartitionRecords, "__init__", damaged)
        yield met


async def test_what_was_polled_before_a_partition_that_cannot_be_read_is_taken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 8 * POLLED_AT_ONCE + 17
    good = next(f"b{n}" for n in range(2, 100) if home_partition(f"b{n}", 2) != home_partition("b1", 2))
    async with working(settings, partitions=2) as worker:
        await worker.paused()
        await produce(settings.bootstrap_servers, worker.topics.events, results(good, count) + results("b1", 3))
        await produce(settings.bootstrap_servers, worker.topics.events, results("b1", 7, since=3))
        with damaged_from(3, home_partition("b1", 2), monkeypatch) as met:
            worker.resume()
            await worker.counted({good: count, "b1": 3})
            await eventually(lambda: len(met) > 1)
        await worker.counted({good: count, "b1": 10})


async def test_a_worker_ends_whose_polls_only_meet_what_cannot_be_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "POLL_FAILURE_LIMIT_S", 1.0)
    async with working(settings, partitions=2) as worker:
        await worker.paused()
        await produce(settings.bootstrap_servers, worker.topics.events, results("b1", 3))
        with damaged_from(0, home_partition("b1", 2), monkeypatch):
            worker.resume()
            with pytest.raises(KafkaError, match="every poll failed for 1 s: CorruptRecordException"):
                await asyncio.wait_for(asyncio.shield(worker.task), 30)


async def test_markers_amid_records_fetched_together_are_not_asked_about(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def noted(consumer: Any, tp: TopicPartition, expected: int) -> None:
        asked.append(expected)
        await check_gap(consumer, tp, expected)

    monkeypatch.setattr(intake, "check_gap", noted)
    async with working(settings) as worker:
        await worker.paused()
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap_servers, transactional_id=settings.topic_prefix
        )
        await producer.start()
        try:
            for count in range(0, 1_024, 128):
                async with producer.transaction():
                    for message in results("b", 128, since=count):
                        await producer.send(worker.topics.events, message.value, key=message.key)
        finally:
            await producer.stop()
        worker.resume()
        await worker.counted({"b": 1_024})
        print(asked)
        assert len(asked) <= 1  # that of a fetch before the last transaction was over


@pytest.mark.parametrize("max_records", [POLLED_AT_ONCE + 50, 10_000])
async def test_a_micro_batch_holds_what_has_been_fetched_as_far_as_it_may(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, max_records: int
) -> None:
    counts: list[int] = []
    flush = Flusher._flush

    async def noted(self: Flusher, reading: Reading, epoch: int) -> None:
        counts.append(reading.count)
        await flush(self, reading, epoch)

    monkeypatch.setattr(Flusher, "_flush", noted)
    async with working(settings.model_copy(update={"max_records": max_records})) as worker:
        await worker.paused()
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 5_000))
        worker.resume()
        await worker.counted({"b": 5_000})
    print(counts)
    assert sum(counts) == 5_000
    assert POLLED_AT_ONCE < max(counts) <= max_records


@pytest.mark.parametrize("most", [1, 4, 9, 10])
@pytest.mark.parametrize("room", [1, 25, 60, 61, 1_000])
async def test_a_poll_is_cut_by_records_and_bytes_without_losing_a_record(room: int, most: int) -> None:
    polled: Parts = [
        (partition, [FetchedRecord("t", partition, offset, 0, b"k", bytes(size), ()) for offset in range(count)])
        for partition, count, size in ((0, 3, 9), (1, 1, 29), (2, 5, 0))
    ]
    expected = [(record.partition, record.offset) for _, part in polled for record in part]
    cuts, left = [], polled
    while left:
        before = left
        fitting, left, remaining = _cut(left, most, room)
        sizes = [1 + len(record.value or b"") for _, part in fitting for record in part]
        assert remaining == room - sum(sizes)
        assert remaining > sizes[-1] * -1  # without its last record it would not have been full
        assert remaining <= 0 or len(sizes) == most or not left
        assert len(sizes) <= most
        assert sum(len(part) for _, part in left) < sum(len(part) for _, part in before)
        assert all(part for _, part in [*fitting, *left])
        cuts += [(record.partition, record.offset) for _, part in fitting for record in part]
    assert cuts == expected


async def test_records_polled_while_a_worker_stops_are_not_passed_over(settings: Settings) -> None:
    async with working(settings) as worker:
        worker.intake._stopping = True  # as while the last flush drains, before the consumer is stopped
        epoch = worker.intake._anchors.epoch
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 10))
        await eventually(lambda: worker.intake._anchors.epoch > epoch, message="what was polled is forgotten")
        worker.intake._stopping = False
        await worker.counted({"b": 10})


async def test_records_deleted_unread_under_a_running_worker_stop_it(settings: Settings) -> None:
    async with working(settings) as worker:
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 5))
        await worker.counted({"b": 5})
        await worker.paused()
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 20, since=5))
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
        await admin.start()
        try:
            await admin.delete_records({worker.tp(): RecordsToDelete(before_offset=25)})
        finally:
            await admin.close()
        worker.resume()
        with pytest.raises(LogChangedError, match="begins at offset 25, but only what is before 5 was read"):
            await asyncio.wait_for(asyncio.shield(worker.task), 30)


async def test_a_poll_that_fails_on_one_partition_loses_nothing_of_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    getall = FetchResult.getall
    drained: set[int] = set()
    failures: list[int] = []

    def failing(self: Any, max_records: int | None = None) -> Any:
        partition = self._topic_partition.partition
        if drained and partition not in drained and not failures:
            failures.append(partition)
            raise CorruptRecordException(f"Invalid CRC - {self._topic_partition}")
        records = getall(self, max_records)
        if records:
            drained.add(partition)
            asyncio.get_running_loop().call_soon(drained.clear)
        return records

    batches = {f"b{n}": 50 for n in range(20)}
    messages = [message for batch_id, count in batches.items() for message in results(batch_id, count)]
    assert {home_partition(batch_id, 2) for batch_id in batches} == {0, 1}
    async with working(settings, partitions=2) as worker:
        await worker.paused()
        await produce(settings.bootstrap_servers, worker.topics.events, messages)
        monkeypatch.setattr(FetchResult, "getall", failing)
        worker.resume()
        await eventually(lambda: failures, message="a poll that failed behind another partition's records")
        await worker.counted(batches)


async def test_a_micro_batch_that_takes_too_long_is_read_again_in_smaller_ones(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "APPLY_TIMEOUT_S", 1.0)
    async with working(settings, partitions=2) as worker:
        await make_rows_slow(settings)
        await worker.paused()
        batches = {"a": 100, "b": 100}
        messages = [message for batch_id, count in batches.items() for message in results(batch_id, count)]
        await produce(settings.bootstrap_servers, worker.topics.events, messages)
        worker.resume()
        await worker.counted(batches)
        portion = worker.intake._portion
        assert 1 < portion.count < settings.max_records, "it has read less, and is on its way back"


async def test_where_every_message_takes_long_a_micro_batch_is_given_more_time_instead_of_fewer_records(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL that is slow to answer is as slow for one record as for thousands."""
    monkeypatch.setattr(applying, "APPLY_TIMEOUT_S", 1.0)
    where = urlsplit(settings.database_url)
    proxy = Proxy(lambda: where.port)
    await proxy.start()
    proxied = urlunsplit(where._replace(netloc=where.netloc.replace(f":{where.port}", f":{proxy.port}")))
    async with working(settings.model_copy(update={"database_url": proxied})) as worker:
        await worker.paused()
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 1_000))
        proxy.delay_s = 0.15
        proxy.cut()
        worker.resume()
        await worker.counted({"b": 1_000})
        portion = worker.intake._portion
        assert portion.count >= 60, "four failures at most"
        assert 1 < portion.patience <= 8
        proxy.heal()
        await produce(settings.bootstrap_servers, worker.topics.events, results("c", 10))
        await worker.counted({"b": 1_000, "c": 10})
        assert portion.patience == 1
    await proxy.stop()


async def test_a_record_that_takes_too_long_alone_is_given_more_time_until_it_fits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As reopening a batch does with a million failed items, in one record: they are folded for many seconds."""
    monkeypatch.setattr(applying, "SERVING", {"idle_in_transaction_session_timeout": "250"})
    monkeypatch.setattr(applying, "TOO_LONG_S", 0.2)
    monkeypatch.setattr(microbatch, "MANY_REGISTERS", 50)
    fold_one, tried = microbatch._step_each, list[int]()

    def fold_slowly(work: Any, records: Any, *arguments: Any) -> None:
        if any(getattr(record, "type", "") == "batch.reopened" for record in records):
            tried.append(len(work.registers.items))
            time.sleep(0.7)
        fold_one(work, records, *arguments)

    monkeypatch.setattr(microbatch, "_step_each", fold_slowly)
    failed = [replace(each, value=(each.value or b"").replace(b"succeeded", b"failed")) for each in results("b", 100)]
    async with working(settings) as worker:
        opened, reopened = ({"type": f"batch.{what}", "batch_id": "b"} for what in ("opened", "reopened"))
        opening = Message(b"b", json.dumps({**opened, "total_items": 100}).encode(), "b")
        await produce(settings.bootstrap_servers, worker.topics.events, [opening, *failed])
        await worker.counted({"b": 100})
        await produce(
            settings.bootstrap_servers, worker.topics.events, [Message(b"b", json.dumps(reopened).encode(), "b")]
        )

        async def is_reopened() -> bool:
            [batch] = await table_rows(settings, "batches", "batch_id")
            return bool(batch["generation"] == 1)

        await eventually(is_reopened)
        assert tried == [100, 100, 100], "with 250, 500 and 1000 ms"
        assert worker.intake._portion.patience == 1


async def test_a_commit_whose_answer_got_lost_is_settled_by_the_position(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = list[str]()

    def lose(point: str) -> None:
        if point == "commit.after" and not lost:
            lost.append(point)
            raise ConnectionResetError("the answer to COMMIT")

    async with working(settings) as worker:
        epoch = worker.intake._anchors.epoch
        monkeypatch.setattr(applying, "reach", lose)
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 10))
        # Tried again it finds the position moved on: by itself.
        await eventually(lambda: worker.intake._anchors.epoch > epoch)
        await worker.anchored()
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 10, since=10))
        await worker.counted({"b": 20})
        [batch] = await table_rows(settings, "batches", "batch_id")
        assert (batch["succeeded"], batch["duplicates"]) == (20, 0)
    assert lost


async def test_what_postgresql_has_forgotten_is_read_again_though_no_record_follows(settings: Settings) -> None:
    """As after a crash, which takes the last asynchronous commits back, or a failover to a replica that lagged."""
    async with working(settings) as worker:
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 10))
        await worker.counted({"b": 10})
        connection = await settings.database().connect("test")
        try:
            async with connection.transaction():
                await connection.execute(
                    "UPDATE positions"
                    " SET next_offset = 0, last_offset = NULL, last_timestamp = NULL, last_checksum = NULL"
                )
                await connection.execute("DELETE FROM batches")
                await connection.execute("DELETE FROM item_results")
        finally:
            await connection.close()
        await worker.counted({"b": 10})


async def test_a_forward_that_the_broker_refuses_for_good_becomes_a_dead_letter(settings: Settings) -> None:
    noise = random.Random(7).randbytes(5_000).hex()
    result = {"batch_id": "b", "item_id": "i", "status": "succeeded", "output": noise}
    misplaced = Message(b"b", json.dumps(result).encode(), "b")
    home = home_partition("b", 2)
    async with working(settings, partitions=2) as worker:
        await worker.paused()
        await produce(settings.bootstrap_servers, worker.topics.events, [misplaced], partition=1 - home)
        await set_config(settings.bootstrap_servers, worker.topics.events, {"max.message.bytes": "1000"})
        worker.resume()
        [letter] = await eventually(lambda: table_rows(settings, "dead_letters"))
        assert (letter["partition"], letter["record_offset"], letter["reason"]) == (1 - home, 0, "too_large")
        assert letter["value"] == misplaced.value


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_results_compressed_by_librdkafka_are_read(settings: Settings, codec: str) -> None:
    async with working(settings) as worker:
        producer = Producer(
            {"bootstrap.servers": settings.bootstrap_servers, "compression.type": codec, "linger.ms": 5}
        )
        for message in results("b", 100):
            producer.produce(worker.topics.events, key=message.key, value=message.value)
        assert await asyncio.to_thread(producer.flush, 30) == 0
        await worker.counted({"b": 100})


async def test_headers_that_only_look_like_a_forwards_stop_nothing(settings: Settings) -> None:
    odd: list[tuple[bytes, bytes]] = [
        (b"9" * 5_000, b"9" * 5_000),
        (b"0", b"9" * 5_000),
        (b"-1", b"1"),
        (b"", b""),
        ("٣".encode(), b"1"),
        (b"\xff", b"\x00"),
    ]
    messages = [
        Message(message.key, message.value, "b", ((FORWARDED_PARTITION, partition), (FORWARDED_OFFSET, offset)))
        for message, (partition, offset) in zip(results("b", len(odd)), odd, strict=True)
    ]
    async with working(settings) as worker:
        await produce(settings.bootstrap_servers, worker.topics.events, messages)
        await worker.counted({"b": len(odd)})


async def test_a_broken_record_that_claims_to_have_lain_nowhere_stops_nothing(settings: Settings) -> None:
    async with working(settings) as worker:
        log_id = (await log_identity(settings.kafka_connection(), worker.topics)).encode()
        for partition, offset, log in (
            ("rollcall_redriven_partition", "rollcall_redriven_offset", "rollcall_redriven_log"),
            (FORWARDED_PARTITION, FORWARDED_OFFSET, FORWARDED_LOG),
        ):
            headers = ((partition, b"99999999999"), (offset, b"1"), (log, log_id))
            await produce(settings.bootstrap_servers, worker.topics.events, [Message(b"b", b"no JSON", "b", headers)])
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 3))
        await worker.counted({"b": 3})
    letters = await table_rows(settings, "dead_letters")
    assert [row["reason"] for row in letters] == ["invalid_json"] * 2


async def test_a_trailing_transaction_marker_leaves_no_lag_to_be_seen(settings: Settings) -> None:
    async with working(settings) as worker:
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap_servers, transactional_id=f"{settings.topic_prefix}upstream"
        )
        await producer.start()
        try:
            async with producer.transaction():
                for message in results("b", 3):
                    await producer.send(worker.topics.events, message.value, key=message.key)
            await producer.begin_transaction()
            for message in results("aborted", 3):
                await producer.send_and_wait(worker.topics.events, message.value, key=message.key)
            await producer.abort_transaction()
        finally:
            await producer.stop()
        [end] = (await end_offsets(settings.bootstrap_servers, worker.topics.events)).values()
        assert end == 8, "six records and two markers"
        connection = await settings.database().connect("test")
        try:

            async def no_lag() -> bool:
                stored = await positions.load(connection, worker.topics.events, [0])
                committed = await worker.consumer.committed(worker.tp())
                assert (stored[0].next_offset, committed) == (end, end), (stored, committed)
                return True

            await eventually(no_lag)
        finally:
            await connection.close()
        await worker.counted({"b": 3})


async def test_results_that_come_while_the_group_waits_for_dead_members_do_not_make_it_begin_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(settings, partitions=4) as worker, feeding(worker):
        coordinator = worker.consumer._coordinator
        resets: list[int] = []
        reset = coordinator.reset_generation

        def noted() -> None:
            resets.append(coordinator.generation)
            reset()

        monkeypatch.setattr(coordinator, "reset_generation", noted)
        for name in ("one", "another"):
            await joined_and_died(worker, name)
        # The second came upon the first dead, so there is a rebalance that waits as long as one may.
        await eventually(lambda: len(worker.consumer.assignment()) == 4, 60, message="their partitions given to it")
        assert resets == [], "generations that it thought it had to give up"
        await eventually(lambda: len(worker.intake._anchors.by_partition) == 4)


async def joined_and_died(worker: Worker, name: str) -> None:
    """A member with a place of its own, which does not leave the group when it ends."""
    member = worker.settings.kafka_connection().consumer(
        worker.topics.events,
        group_id=worker.topics.consumer_group,
        group_instance_id=name,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
        enable_auto_commit=False,
    )
    async with started(member):
        await eventually(member.assignment, message="partitions given to it")


@asynccontextmanager
async def feeding(worker: Worker) -> AsyncIterator[None]:
    """Results come without a pause, a few at a time."""

    async def feed() -> None:
        for number in itertools.count():
            some = results(f"open-{number}", 5)
            await produce(worker.settings.bootstrap_servers, worker.topics.events, some)

    feeder = asyncio.create_task(feed())
    try:
        yield
    finally:
        feeder.cancel()
        await asyncio.wait({feeder})


class Assigned:
    """A consumer, as far as the flusher needs one."""

    def __init__(self, topic: str, *partitions: int) -> None:
        self.topic = topic
        self.partitions = partitions

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(self.topic, partition) for partition in self.partitions}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        assert tp.partition in self.partitions

    async def position(self, tp: TopicPartition) -> int:
        return 0


@asynccontextmanager
async def flushing(settings: Settings, consumer: Any, anchors: Anchors) -> AsyncIterator[Flusher]:
    await migrate(settings.database_url, settings.database_schema)
    flusher = Flusher(
        settings.kafka_connection(),
        settings.database(),
        Topics(settings.topic_prefix),
        anchors,
        Portion(100),
        log_id="",
        consumer=lambda: consumer,
        is_reading=lambda: False,
        is_joined=lambda: False,
    )
    task = asyncio.create_task(flusher.run())
    try:
        yield flusher
        assert not task.done(), "it goes on"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_partition_that_cannot_be_anchored_holds_up_no_other_once_it_is_somebody_elses(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, anchors, asked = Assigned(Topics(settings.topic_prefix).events, 0, 1), Anchors(), list[set[int]]()

    async def stored(_connection: Any, _kafka: Any, _topics: Any, partitions: set[int]) -> dict[int, Position]:
        asked.append(partitions)
        if 0 in partitions:
            if len(asked) == 2:  # a rebalance meanwhile
                consumer.partitions = (1,)
                anchors.forget()
            raise KafkaError("it has no leader")
        return {partition: Position(partition, 0, None, None, None, {}) for partition in partitions}

    monkeypatch.setattr("streams.flushing.stored_positions", stored)
    async with flushing(settings, consumer, anchors):
        await eventually(lambda: anchors.by_partition.keys() == {1})
    assert asked == [{0, 1}, {0, 1}, {1}]


async def test_a_flush_that_cannot_be_done_is_given_up_when_partitions_are_assigned_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, anchors, tried = Topics(settings.topic_prefix), Anchors(), 0

    async def never(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise KafkaError("the home has no leader")

    monkeypatch.setattr(Flusher, "_forward", never)
    async with flushing(settings, Assigned(topics.events), anchors) as flusher:
        assert await flusher.submit(new_reading(topics, Homes(2)), anchors.epoch)
        await eventually(lambda: tried >= 3)
        anchors.forget()
        await asyncio.wait_for(flusher.drain(), 30)


async def test_a_worker_goes_on_where_the_last_one_stopped(settings: Settings) -> None:
    async with working(settings) as worker:
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 1_000))
        await worker.counted({"b": 1_000})
    async with restarted(settings) as worker:
        await produce(settings.bootstrap_servers, worker.topics.events, results("b", 500, since=1_000))
        await worker.counted({"b": 1_500})
        connection = await settings.database().connect("test")
        try:
            assert await connection.fetchval("SELECT duplicates FROM batches") == 0
        finally:
            await connection.close()
