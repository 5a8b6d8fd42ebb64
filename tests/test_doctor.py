"""`rollcall doctor` says of a sound installation that it is, of a broken one what is wrong, and changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from confluent_kafka.admin import AclOperation, ResourceType  # type: ignore[attr-defined]  # there, but not marked

from migrations.run import migrate
from rollcall.checkup.everything import everything
from rollcall.settings import Settings
from schemas.topics import Topics
from store.leadership import is_led
from streams.topics import ensure_topics
from tests.harness.commands import rollcall
from tests.harness.events import Event, result
from tests.harness.product import running
from tests.harness.servers import running_broker
from tests.harness.strict_kafka import StrictKafka
from tests.harness.topics import create_topic, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def found(settings: Settings, level: str) -> dict[str, str]:
    """Findings of a level, by what they are about."""
    lines: dict[str, str] = {}
    for check in await everything(settings):
        if check.level == level:
            lines[check.what] = f"{lines.get(check.what, '')} {check.finding}".strip()
    return lines


async def test_of_a_sound_installation_nothing_is_wrong(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    async with running(settings, workers=1) as product:
        await product.start_clock()
        await produce(settings.bootstrap_servers, topics.events, [result("b", "i"), Event(b"b", b"{broken")])
        await product.settled()

        async def the_clock_leads() -> bool:
            async with product.connection() as connection:
                return await is_led(connection, "clock", topics.prefix, settings.database_schema)

        await eventually(the_clock_leads, 60)
        done = await rollcall(settings, "doctor", "--json")
        answer = json.loads(done.stdout)
        assert (done.exit_code, answer["ok"]) == (0, True), answer
        levels = {check["what"]: check["level"] for check in answer["checks"]}
        assert levels.pop("dead letters") == "note"
        # Test servers run without it, to be quick.
        assert levels.pop("PostgreSQL fsync", "note") == "note"
        assert set(levels.values()) == {"ok"}, answer
        assert {"Kafka", f"topic {topics.events}", "permissions", "positions", "workers", "relay", "clock"} <= set(
            levels
        )


async def test_before_the_first_start_it_says_what_to_do_and_makes_nothing(settings: Settings) -> None:
    done = await rollcall(settings, "doctor")
    assert done.exit_code == 1
    assert "run `rollcall migrate`" in done.stdout
    assert f"topic {settings.topic_prefix}events" in done.stdout
    assert "is not there, or may not be seen: workers and relay make it when they start" in done.stdout
    wrong = await found(settings, "wrong")
    assert [what for what in wrong if what.startswith("topic ")] == [
        f"topic {settings.topic_prefix}{name}"
        for name in ("events", "finalized", "summaries", "alerts", "requests", "dead-letters")
    ]
    connection = await settings.database().connect("test")
    try:
        assert await connection.fetchval("SELECT to_regnamespace($1) IS NULL", settings.database_schema)
    finally:
        await connection.close()


async def test_servers_that_are_away_are_named_each(settings: Settings) -> None:
    away = settings.model_copy(
        update={"bootstrap_servers": "127.0.0.1:1", "database_url": "postgresql+asyncpg://me:secret@127.0.0.1:1/db"}
    )
    wrong = await found(away, "wrong")
    assert wrong.keys() == {"Kafka", "PostgreSQL"}
    assert "127.0.0.1:1 (ROLLCALL_BOOTSTRAP_SERVERS) cannot be reached" in wrong["Kafka"]
    assert "127.0.0.1:1 (ROLLCALL_DATABASE_URL) cannot be reached" in wrong["PostgreSQL"]
    assert "secret" not in str(wrong)


class Installation:
    """Topics and tables without any process, to be damaged."""

    def __init__(self, settings: Settings, connection: Any) -> None:
        self.settings = settings
        self.connection = connection
        self.events = Topics(settings.topic_prefix).events

    async def fill(self, partition: int, records: int) -> None:
        values = [result("b", f"i{number}") for number in range(records)]
        await produce(self.settings.bootstrap_servers, self.events, values, partition=partition)

    async def read_to(self, partition: int, next_offset: int, **last: int) -> None:
        columns = ", ".join(["topic", "partition", "next_offset", *last])
        places = ", ".join(f"${number}" for number in range(1, 4 + len(last)))
        await self.connection.execute(
            f"INSERT INTO positions ({columns}) VALUES ({places})", self.events, partition, next_offset, *last.values()
        )


async def test_what_is_wrong_with_positions_and_processes_is_said(settings: Settings) -> None:
    kafka, topics = settings.kafka_connection(), Topics(settings.topic_prefix)
    await migrate(settings.database_url, settings.database_schema)
    assert await ensure_topics(kafka, topics) == 12
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=f"{settings.topic_prefix}open"
    )
    connection = await settings.database().connect("test")
    await admin.start()
    await producer.start()
    try:
        there = Installation(settings, connection)
        await connection.execute("INSERT INTO logs (topic, partition_count) VALUES ($1, 12)", topics.events)
        for partition in range(4):
            await there.fill(partition, 5)
        await admin.delete_records({TopicPartition(topics.events, 0): RecordsToDelete(3)})
        await there.read_to(0, 1)
        await there.read_to(1, 99)
        await there.read_to(2, 3, last_offset=2, last_timestamp=1, last_checksum=1)
        await there.read_to(3, 5)
        await producer.begin_transaction()
        await producer.send_and_wait(topics.events, b"{}", partition=3)
        await connection.execute("""
            INSERT INTO outbox (id, channel, value, headers, refused)
            VALUES ('e', 'finalized', '{}', '{}', 'too large'), ('f', 'finalized', '{}', '{}', NULL);
            INSERT INTO summaries (batch_id, revision, state, requested_at, requested_offset)
            VALUES ('b', 1, 'failed', now(), 0);
            INSERT INTO dead_letters (topic, partition, record_offset, appended_at, reason, message, headers,
                                      published_at, redriven_at, discarded_at, discard_reason)
            VALUES ('t', 0, 1, '2026-01-01Z', 'invalid_json', '', '[]', now(), NULL, NULL, NULL),
                   ('t', 0, 2, '2026-01-02Z', 'invalid_json', '', '[]', now(), now(), NULL, NULL),
                   ('t', 0, 3, '2026-01-03Z', 'too_large', '', '[]', now(), NULL, now(), 'of no use');
        """)

        wrong = await found(settings, "wrong")
        assert wrong.keys() == {"positions", "workers", "lag", "relay", "clock", "quarantine"}
        for partition, said in enumerate(
            ("2 offsets were deleted unread", "it was truncated, or the topic was deleted", "is not the one read there")
        ):
            assert said in wrong["positions"].split(f"{topics.events}-{partition}: ")[1].split(f"{topics.events}-")[0]
        assert wrong["workers"] == "nobody reads any partition: start `rollcall worker` or `rollcall run`"
        assert "partition 3 cannot be read beyond offset 5" in wrong["lag"]
        assert "`rollcall relay`" in wrong["relay"]
        assert "refuses 1 events and 0 dead letters" in wrong["quarantine"]
        noted = await found(settings, "note")
        assert noted["log"] == "8 of 12 partitions have not been read yet"
        assert noted["outbox"] == "1 events and 0 dead letters wait for the relay"
        assert "`rollcall batch finalize b`" in noted["summaries"]
        assert noted["dead letters"].startswith("1 invalid_json; the newest of 2026-01-01 00:00:00Z; ")
    finally:
        await producer.abort_transaction()
        await producer.stop()
        await admin.close()
        await connection.close()


async def test_topics_that_are_set_otherwise_and_a_user_without_rights_are_said(
    settings: Settings, unique: str
) -> None:
    topics, bootstrap = Topics(settings.topic_prefix), settings.bootstrap_servers
    await migrate(settings.database_url, settings.database_schema)
    await create_topic(bootstrap, topics.events, partitions=3, configs={"cleanup.policy": "compact"})
    await create_topic(bootstrap, topics.finalized, configs={"cleanup.policy": "delete"})
    connection = await settings.database().connect("test")
    try:
        await connection.execute("INSERT INTO logs (topic, partition_count) VALUES ($1, 12)", topics.events)
        await connection.execute(f"CREATE ROLE {unique} LOGIN")
        await connection.execute(f"GRANT USAGE ON SCHEMA {unique} TO {unique}")
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {unique} TO {unique}")
        _, at, rest = settings.database_url.partition("@")
        restricted = settings.model_copy(update={"database_url": f"postgresql+asyncpg://{unique}{at}{rest}"})
        wrong = await found(restricted, "wrong")
        assert "set cleanup.policy=delete" in wrong[f"topic {topics.events}"]
        assert wrong["log"].startswith(f"{topics.events} has 3 partitions, at the first start it had 12")
        assert wrong["privileges"].startswith(
            "this user lacks DELETE on api_keys, INSERT on api_keys, UPDATE on api_keys"
        )
        noted = await found(settings, "note")
        assert "cleanup.policy is delete, wanted is compact: events older" in noted[f"topic {topics.finalized}"]
        assert "privileges" not in await found(settings, "wrong")
    finally:
        await connection.execute(f"DROP OWNED BY {unique}; DROP ROLE {unique}")
        await connection.close()


async def test_what_kafka_does_not_allow_is_said_by_name(settings: Settings, tmp_path: Path) -> None:
    topics = Topics(settings.topic_prefix)
    await migrate(settings.database_url, settings.database_schema)
    async with running_broker(StrictKafka(tmp_path / "kafka")) as kafka:
        there = settings.model_copy(update={"bootstrap_servers": kafka.bootstrap_servers})
        await ensure_topics(there.kafka_connection(), topics)
        assert "permissions" in await found(there, "ok")
        may_read = (AclOperation.READ, AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS)
        kafka.grant(ResourceType.TOPIC, topics.finalized, *may_read)
        kafka.grant(ResourceType.TOPIC, topics.summaries, *may_read[:2], AclOperation.WRITE)
        kafka.grant(ResourceType.TOPIC, topics.alerts, *may_read, to="User:somebody-else")
        kafka.grant(ResourceType.GROUP, topics.consumer_group, AclOperation.DESCRIBE)
        wrong = await found(there, "wrong")
        assert wrong["permissions"] == (
            f"Kafka does not allow Write on topic {topics.finalized}; DescribeConfigs on topic {topics.summaries};"
            f" Read on group {topics.consumer_group}: grant it (README, what to grant)"
        )
        assert "is not there, or may not be seen" in wrong[f"topic {topics.alerts}"]
        assert "(grant DescribeConfigs)" in (await found(there, "note"))[f"topic {topics.summaries}"]
