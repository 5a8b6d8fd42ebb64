"""Anchoring on a real Kafka: where reading begins, and logs that are no longer the one that was read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from migrations.run import migrate
from rollcall.reaching import ServerError, naming
from rollcall.settings import Settings
from schemas.topics import Topics
from store import positions
from store.connection import Connection
from store.rows import Position
from streams import anchoring
from streams.anchoring import LogChangedError, checksum, stored_positions
from tests.harness.histories import Message
from tests.harness.topics import create_topic, drain, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Log:
    """The input log of one installation, and what is stored of it."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection
        self.topics = Topics(settings.topic_prefix)

    async def create(self, partitions: int = 1) -> None:
        await create_topic(self.settings.bootstrap_servers, self.topics.events, partitions=partitions)

    async def append(self, *texts: str, partition: int = 0) -> None:
        messages = [Message(b"k", text.encode(), "k") for text in texts]
        await produce(self.settings.bootstrap_servers, self.topics.events, messages, partition=partition)

    async def read_up_to(self, next_offset: int) -> None:
        """Store the position of a worker that has applied everything before an offset."""
        records = await drain(self.settings.bootstrap_servers, self.topics.events)
        last = next(record for record in records if record.offset == next_offset - 1)
        position = Position(0, next_offset, last.offset, last.timestamp, checksum(last), {})
        await positions.compare_and_set(self.connection, self.topics.events, [(0, position)])

    async def anchor(self, *partitions: int) -> dict[int, int]:
        kafka = self.settings.kafka_connection()
        stored = await stored_positions(self.connection, kafka, self.topics, partitions or (0,))
        return {partition: position.next_offset for partition, position in stored.items()}

    async def delete_before(self, offset: int) -> None:
        admin = await self._admin()
        try:
            tp = TopicPartition(self.topics.events, 0)
            assert (await admin.delete_records({tp: RecordsToDelete(before_offset=offset)}))[tp] == offset
        finally:
            await admin.close()

    async def recreate(self) -> None:
        admin = await self._admin()
        try:
            await admin.delete_topics([self.topics.events])

            async def is_gone() -> bool:
                return self.topics.events not in await admin.list_topics()

            await eventually(is_gone)
        finally:
            await admin.close()
        await self.create()

    async def _admin(self) -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.bootstrap_servers)
        await admin.start()
        return admin


@pytest.fixture
async def log(settings: Settings) -> AsyncIterator[Log]:
    await migrate(settings.database_url, settings.database_schema)
    connection = await settings.database().connect("test")
    yield Log(settings, connection)
    await connection.close()


async def test_partitions_never_read_begin_at_the_logs_start(log: Log) -> None:
    await log.create(partitions=3)
    await log.append("a", "b", "c")
    await log.delete_before(2)
    assert await log.anchor(0, 1) == {0: 2, 1: 0}
    assert await log.anchor(0, 1, 2) == {0: 2, 1: 0, 2: 0}


async def test_reading_goes_on_at_the_stored_position_of_an_unchanged_log(log: Log) -> None:
    await log.create()
    await log.append("a", "b", "c", "d")
    await log.anchor()
    await log.read_up_to(3)
    assert await log.anchor() == {0: 3}


async def test_a_log_whose_unread_records_were_deleted_is_refused(log: Log) -> None:
    await log.create()
    await log.append("a", "b", "c", "d", "e")
    await log.anchor()
    await log.read_up_to(2)
    await log.delete_before(4)
    with pytest.raises(LogChangedError, match="begins at offset 4, but only what is before 2 was read: 2 offsets"):
        await log.anchor()


async def test_a_log_shorter_than_what_was_read_is_refused(log: Log) -> None:
    await log.create()
    await log.append("a", "b", "c")
    await log.anchor()
    await log.read_up_to(3)
    await log.recreate()
    await log.append("a")
    with pytest.raises(LogChangedError, match="ends at offset 1, but 3 offsets of it were read"):
        await log.anchor()


async def test_a_recreated_log_with_other_records_is_refused(log: Log) -> None:
    await log.create()
    await log.append("a", "b", "c")
    await log.anchor()
    await log.read_up_to(3)
    await log.recreate()
    await log.append("x", "y", "z", "and more")
    with pytest.raises(LogChangedError, match="offset 2 is not the one read there before"):
        await log.anchor()


async def test_a_recreated_log_with_equal_records_is_refused_by_their_times(log: Log) -> None:
    await log.create()
    await log.append("a", "b", "c")
    await log.anchor()
    await log.read_up_to(3)
    await log.recreate()
    await log.append("a", "b", "c")
    with pytest.raises(LogChangedError, match="not the one read there before"):
        await log.anchor()


async def test_where_retention_took_only_what_was_read_reading_goes_on(log: Log) -> None:
    await log.create()
    await log.append("a", "b", "c", "d")
    await log.anchor()
    await log.read_up_to(3)
    await log.delete_before(3)
    assert await log.anchor() == {0: 3}
    await log.delete_before(4)
    with pytest.raises(LogChangedError):
        await log.anchor()


async def test_a_kafka_that_does_not_show_the_last_record_in_time_is_named_not_postgresql(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.create()
    await log.append("a")
    await log.anchor()
    await log.read_up_to(1)
    for limit in ("VERIFY_TIMEOUT_S", "ANCHOR_TIMEOUT_S"):
        with monkeypatch.context() as patched:
            patched.setattr(anchoring, limit, 0.0)
            with pytest.raises(ServerError, match=r"^Kafka at .* does not answer:"), naming(log.settings, "PostgreSQL"):
                await log.anchor()


async def test_what_another_worker_reads_meanwhile_is_no_other_log(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose partitions were given to another anchors once more before it is told."""
    await log.create()
    await log.append("a", "b")
    await log.anchor()
    create = positions.create

    async def create_late(connection: Connection, topic: str, starts: dict[int, int]) -> None:
        await create(connection, topic, starts)
        await log.append("c", "d", "e")
        await log.read_up_to(5)

    monkeypatch.setattr(positions, "create", create_late)
    assert await log.anchor() == {0: 5}


async def test_retention_that_deletes_the_last_record_meanwhile_makes_it_no_other_log(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.create()
    await log.append("a", "b", "c")
    await log.anchor()
    await log.read_up_to(2)
    load = positions.load

    async def load_and_delete(*arguments: Any) -> dict[int, Position]:
        await log.delete_before(2)
        return await load(*arguments)

    monkeypatch.setattr(positions, "load", load_and_delete)
    assert await log.anchor() == {0: 2}
