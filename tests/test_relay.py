"""From the outbox to Kafka, once: whoever is killed, whatever was forgotten, and around what the broker refuses."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from store import positions
from store.connection import Connection
from streams import relay
from streams.kafka import started
from streams.topics import configs_of, ensure_topics
from tests.harness.histories import Message, make_history
from tests.harness.librdkafka import MURMUR2, produce_with_librdkafka
from tests.harness.product import Product, running
from tests.harness.tables import (
    assert_events_are_the_models,
    assert_tables_are_the_models,
    finalized_events,
    folded,
    table_rows,
)
from tests.harness.topics import create_topic, delete_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4


async def publish(settings: Settings, messages: list[Message]) -> None:
    topics = Topics(settings.topic_prefix)
    await produce_with_librdkafka(settings.bootstrap_servers, topics.events, messages, partitioner=MURMUR2)


def empty_batches(first: int, count: int, **fields: object) -> list[Message]:
    """Batches that are complete when they are opened."""
    return [_opened(f"batch-{number:05}", 0, **fields) for number in range(first, first + count)]


def _opened(batch_id: str, total_items: int, **fields: object) -> Message:
    value = {"type": "batch.opened", "batch_id": batch_id, "total_items": total_items, **fields}
    return Message(batch_id.encode(), json.dumps(value).encode(), batch_id)


def _result(batch_id: str, status: str, *, attempt: int) -> Message:
    error = {"error": {"message": "no"}} if status == "failed" else {}
    value = {"batch_id": batch_id, "item_id": "a", "status": status, "attempt": attempt, **error}
    return Message(batch_id.encode(), json.dumps(value).encode(), batch_id)


async def assert_each_published_once(settings: Settings, batches: int) -> None:
    log = await drain(settings.bootstrap_servers, Topics(settings.topic_prefix).events)
    model = folded([record for record in log if record.value.startswith(b"{")], PARTITIONS)
    assert len(model.all_finalized()) == batches
    assert_events_are_the_models(model, await finalized_events(settings), settings, PARTITIONS)
    await assert_tables_are_the_models(model, settings, PARTITIONS)


async def test_an_event_that_the_broker_refuses_is_put_aside_with_an_alert_and_the_rest_goes_on(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    await create_topic(
        settings.bootstrap_servers, topics.finalized, configs={"max.message.bytes": "4096", "cleanup.policy": "compact"}
    )
    too_large = empty_batches(50, 1, metadata={"x": random.Random(7).randbytes(8_000).hex()})
    async with running(settings) as product:
        await publish(settings, [*empty_batches(0, 50), *too_large, *empty_batches(51, 50)])
        await product.settled()
        await publish(settings, empty_batches(101, 50))
        await product.settled()
    events = await finalized_events(settings)
    assert {batch: len(found) for batch, found in events.items()} == {
        f"batch-{number:05}": 1 for number in range(151) if number != 50
    }
    refused = [row["id"] for row in await table_rows(settings, "outbox") if row["refused"] is not None]
    assert refused == ["batch.finalized/batch-00050/1"]
    [alert] = await drain(settings.bootstrap_servers, topics.alerts)
    said = json.loads(alert.value)
    assert (said["alert"], said["batch_id"]) == ("relay.record_refused", "batch-00050")
    unpublished = [row["batch_id"] for row in await table_rows(settings, "batches") if row["published_at"] is None]
    assert unpublished == ["batch-00050"]


async def test_an_event_that_is_too_large_for_its_topic_goes_out_compressed(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    await create_topic(settings.bootstrap_servers, topics.requests, configs={"max.message.bytes": "4096"})
    ids = [f"item-{number:08}" for number in range(1_000)]
    asked = {"type": "batch.opened", "batch_id": "b", "item_ids": ids, "retry_of": "a", "request_retry": True}
    async with running(settings) as product:
        await publish(settings, [*empty_batches(0, 20), Message(b"b", json.dumps(asked).encode(), "b")])
        await product.settled()
        await publish(settings, empty_batches(20, 20))
        await product.settled()
    [request] = await drain(settings.bootstrap_servers, topics.requests)
    assert json.loads(request.value)["item_ids"] == ids
    assert len(await finalized_events(settings)) == 40
    assert [row["id"] for row in await table_rows(settings, "outbox") if row["refused"] is not None] == []


async def test_dead_letters_that_their_topic_refuses_are_put_aside_with_an_alert_and_the_rest_goes_on(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    await create_topic(settings.bootstrap_servers, topics.dead_letters, configs={"max.message.bytes": "4096"})
    broken = [Message(b"k%d" % number, b"no JSON %d" % number, "") for number in range(100)]
    for number in (0, 50, 51):
        much = random.Random(number).randbytes(9_000)
        broken[number] = Message(b"k%d" % number, b"no JSON, but much of it: " + much, "")
    async with running(settings) as product:
        await publish(settings, broken + empty_batches(0, 20))
        await product.settled()
        await publish(settings, [Message(b"k", b"more that is no JSON", "")])
        await product.settled()
    letters = await drain(settings.bootstrap_servers, topics.dead_letters)
    small = [each.value for each in broken if len(each.value or b"") < 1_000] + [b"more that is no JSON"]
    assert sorted(letter.value for letter in letters) == sorted(small)
    refused = [row for row in await table_rows(settings, "dead_letters") if row["refused"] is not None]
    assert [len(row["value"]) > 9_000 for row in refused] == [True] * 3
    alerts = [json.loads(alert.value) for alert in await drain(settings.bootstrap_servers, topics.alerts)]
    assert [alert["alert"] for alert in alerts] == ["relay.record_refused"] * 3
    assert len(await finalized_events(settings)) == 20


async def test_a_dead_letter_larger_than_any_broker_takes_holds_up_nothing_behind_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_SENT_BYTES", 10_000)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    large = Message(b"k" * 9_000, b"no JSON " * 500, "")
    others = [Message(b"k%d" % number, b"no JSON %d" % number, "") for number in range(50)]
    async with running(settings, relay=False) as product:
        await publish(settings, [*others[:25], large, *others[25:]])
        await product.await_applied(51)
        stop = asyncio.Event()
        running_relay = asyncio.create_task(
            relay.run(settings.kafka_connection(), settings.database(), topics, stop, ready=lambda: None)
        )
        await product.settled()
        stop.set()
        await running_relay
    letters = await drain(settings.bootstrap_servers, topics.dead_letters)
    assert sorted(letter.value or b"" for letter in letters) == sorted(each.value or b"" for each in others)
    [refused] = [row for row in await table_rows(settings, "dead_letters") if row["refused"] is not None]
    assert refused["key"] == large.key


async def test_of_two_relays_one_publishes_and_the_other_takes_over(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings) as product:
        await product.start_relay("second relay")
        await publish(settings, empty_batches(0, 3_000))

        await _await_published(product, 100)
        await product.children["relay"].kill()
        await publish(settings, empty_batches(3_000, 3_000))
        await _await_published(product, 4_000)
        await product.children["second relay"].kill()
        await product.start_relay("third relay")
        await product.settled()
    await assert_each_published_once(settings, 6_000)


async def _await_published(product: Product, events: int) -> None:
    async def enough() -> bool:
        async with product.connection() as connection:
            count = await connection.fetchval("SELECT count(*) FROM outbox WHERE published_at IS NOT NULL")
        assert count >= events, f"{count} of {events} published"
        return True

    await eventually(enough, interval_s=0.01)


async def test_of_a_new_revision_nobody_was_told_until_it_is_published(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings) as product:
        await publish(settings, [_opened("reopened", 1), _result("reopened", "failed", attempt=1)])
        await _await_published(product, 1)
        await product.settled()
        assert [(row["revision"], row["published_at"] is None) for row in await table_rows(settings, "batches")] == [
            (1, False)
        ]
        await product.children["relay"].kill()
        again = {"type": "batch.reopened", "batch_id": "reopened"}
        await publish(
            settings,
            [
                Message(b"reopened", json.dumps(again).encode(), "reopened"),
                _result("reopened", "succeeded", attempt=2),
            ],
        )

        async def is_finalized_anew() -> dict[str, Any]:
            [row] = await table_rows(settings, "batches")
            assert row["revision"] == 2
            return dict(row)

        row = await eventually(is_finalized_anew)
        assert row["published_at"] is None
        await product.start_relay()
        await product.settled()
        [row] = await table_rows(settings, "batches")
        assert row["published_at"] is not None


async def test_a_relay_whose_marks_were_lost_publishes_nothing_twice(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    history = make_history(20261201, sizes=(0, 1, 2, 100) * 8)
    print(history)
    broken = [Message(b"k%d" % number, b"no JSON %d" % number, "") for number in range(20)]
    async with running(settings) as product:
        await publish(settings, [*history.messages, *broken])
        await product.settled()
        await product.children["relay"].kill()
        async with product.connection() as connection:
            for table in ("outbox", "dead_letters"):
                await connection.execute(
                    f"UPDATE {table} SET published_at = NULL, published_partition = NULL, published_offset = NULL"
                )
            await connection.execute("UPDATE batches SET published_at = NULL")
        await product.start_relay()
        await product.settled()
    await assert_each_published_once(settings, len(history.batches))
    assert len(await drain(settings.bootstrap_servers, topics.dead_letters)) == len(broken)


async def test_a_database_begun_anew_arrives_at_the_same_state_and_publishes_nothing_twice(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    history = make_history(20261202, sizes=(0, 1, 2, 100) * 8)
    print(history)
    broken = [Message(b"k%d" % number, b"no JSON %d" % number, "") for number in range(20)]
    async with running(settings) as product:
        await publish(settings, [*history.messages, *broken])
        await product.settled()
    anew = settings.model_copy(update={"database_schema": f"{settings.database_schema}_anew"})
    async with running(anew, workers=2) as product:
        await product.settled()
    await assert_each_published_once(anew, len(history.batches))
    assert len(await drain(settings.bootstrap_servers, topics.dead_letters)) == len(broken)
    assert len(await table_rows(anew, "dead_letters")) == len(broken)


async def test_foreign_records_on_the_output_topics_stop_no_relay(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    for topic in (topics.finalized, topics.summaries, topics.dead_letters):
        await create_topic(settings.bootstrap_servers, topic, configs={"cleanup.policy": "delete"})
    subjects = [("ce_subject", random.Random(7).randbytes(20_000).hex().encode())]
    ids = (b"batch.finalized/x/3", b"x/4294967296", b"x/" + b"9" * 5_000, b"y" * 30_000, b"\x00/1", "x/٣".encode(), b"")
    await produce(
        settings.bootstrap_servers,
        topics.finalized,
        [Message(b"x", b"{}", "x", (("ce_id", each), *subjects)) for each in ids],
    )
    of_ours = [("ce_subject", b"batch-00000")]
    summaries = [
        b"batch.summarized/batch-00000/" + each for each in (b"foo", b"9999999999", b"1/2/3", b"0/" + b"9" * 30)
    ]
    await produce(
        settings.bootstrap_servers,
        topics.summaries,
        [Message(b"x", b"{}", "x", (("ce_id", each), *of_ours)) for each in summaries],
    )
    places = [(b"t" * 30_000, b"0", b"0"), (b"t", b"9" * 18, b"0"), (b"t", b"0", b"9" * 18), (b"", b"-1", b"x")]
    places.append((b"t\0", b"0", b"0"))
    names = ("rollcall_dlt_original_topic", "rollcall_dlt_original_partition", "rollcall_dlt_original_offset")
    letters = [(*zip(names, each, strict=True), ("rollcall_dlt_original_timestamp", b"9" * 18)) for each in places]
    await produce(
        settings.bootstrap_servers, topics.dead_letters, [Message(b"x", b"{}", "x", each) for each in letters]
    )
    # An end number 0 of a batch that has not ended, so that its row is at revision 0.
    await publish(settings, [_opened("open", 1)])
    async with running(settings, relay=False) as product:
        await product.await_applied(1)
    never = Message(b"x", b"{}", "x", (("ce_id", b"batch.finalized/open/0"), ("ce_subject", b"open")))
    await produce(settings.bootstrap_servers, topics.finalized, [never])
    broken = Message(b"b", b"no JSON", "b")
    async with running(settings) as product:
        await product.start_clock()
        await publish(settings, [*empty_batches(0, 20), broken])

        async def summarized() -> int:
            found = await drain(settings.bootstrap_servers, topics.summaries)
            return len([record for record in found if record.key != b"x"]) == 20

        await eventually(summarized, 60)
        await product.settled()
    events = [record.key for record in await drain(settings.bootstrap_servers, topics.finalized) if record.key != b"x"]
    assert sorted(events) == [f"batch-{number:05}".encode() for number in range(20)]
    found = [record.value for record in await drain(settings.bootstrap_servers, topics.dead_letters)]
    assert found == [b"{}"] * len(letters) + [broken.value]


@asynccontextmanager
async def relaying(settings: Settings, *, events: int) -> AsyncIterator[Connection]:
    """A relay that publishes so many events once the body is done, until it has."""
    topics, stop = Topics(settings.topic_prefix), asyncio.Event()
    await migrate(settings.database_url, settings.database_schema)
    await ensure_topics(settings.kafka_connection(), topics)
    connection = await settings.database().connect("test")
    await connection.execute(
        "INSERT INTO outbox (id, channel, batch_id, revision, value, headers)"
        " SELECT id, 'finalized', n, 1, '{}', json_build_object('ce_id', id, 'ce_time', '2026-01-01T00:00:00Z')"
        " FROM (SELECT n, 'batch.finalized/' || n || '/1' AS id FROM generate_series(1, $1::int4) n) ids",
        events,
    )
    yield connection
    running = asyncio.create_task(
        relay.run(settings.kafka_connection(), settings.database(), topics, stop, ready=lambda: None)
    )

    async def published() -> bool:
        return bool(await connection.fetchval("SELECT count(*) = 0 FROM outbox WHERE published_at IS NULL"))

    await eventually(published, 60)
    stop.set()
    await running
    await connection.close()


async def test_of_two_relays_that_both_lead_none_repeats_what_the_other_has_published(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while processes of a version are upgraded that names the lock of the lead otherwise."""

    async def lead_at_once(*_: object) -> bool:
        return True

    monkeypatch.setattr("store.leadership.try_lead", lead_at_once)
    monkeypatch.setattr("streams.channels.Events.round_rows", 50)
    topics, stop = Topics(settings.topic_prefix), asyncio.Event()
    async with relaying(settings, events=2_000):
        other = asyncio.create_task(
            relay.run(settings.kafka_connection(), settings.database(), topics, stop, ready=lambda: None)
        )
    stop.set()
    await other
    ids = [dict(record.headers)["ce_id"] for record in await drain(settings.bootstrap_servers, topics.finalized)]
    assert len(ids) == len(set(ids)) == 2_000


async def test_a_round_that_is_not_taken_in_time_is_tried_with_less_of_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that takes 300 events in the time of a transaction, as one under a quota does."""
    tried: list[int] = []
    send = relay.Publisher._send

    async def send_some(self: Any, producer: Any, rows: Any) -> Any:
        tried.append(len(rows))
        if len(rows) > 300:
            raise TimeoutError
        return await send(self, producer, rows)

    monkeypatch.setattr(relay.Publisher, "_send", send_some)
    topics = Topics(settings.topic_prefix)
    async with relaying(settings, events=900):
        pass
    assert tried[:4] == [900, 450, 225, 450], "and more again, since that took little of its time"
    assert len(await drain(settings.bootstrap_servers, topics.finalized)) == 900


async def test_marks_that_are_not_taken_in_time_are_made_with_less_of_them_and_more_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "COMMAND_TIMEOUT_S", 1.0)
    topics = Topics(settings.topic_prefix)
    async with relaying(settings, events=300) as connection:
        await connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;"
            "CREATE TRIGGER slow BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    assert len(await drain(settings.bootstrap_servers, topics.finalized)) == 300


@asynccontextmanager
async def running_without_its_output_topic(settings: Settings) -> AsyncIterator[Product]:
    """Workers and a relay under which a topic was deleted after 300 events went out to it."""
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings) as product:
        await publish(settings, empty_batches(0, 300))
        await product.settled()
        await delete_topic(settings.bootstrap_servers, topics.finalized)
        yield product


async def test_an_output_topic_that_is_deleted_is_made_again_and_everything_goes_on(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    async with running_without_its_output_topic(settings) as product:
        await publish(settings, empty_batches(300, 20))
        await product.settled(120)
        async with product.connection() as connection:
            known = await positions.load_all(connection, settings.database_schema, topics.finalized)
    assert set(await finalized_events(settings)) == {f"batch-{number:05}" for number in range(300, 320)}
    ends = await end_offsets(settings.bootstrap_servers, topics.finalized)
    for partition, position in known.items():
        assert position.next_offset <= ends[TopicPartition(topics.finalized, partition)], "is of the old log"
    admin = settings.kafka_connection().admin()
    async with started(admin):
        found = (await configs_of(admin, [topics.finalized]))[topics.finalized]
    assert isinstance(found, dict)
    assert found["cleanup.policy"] == "compact"


async def test_an_output_topic_that_was_made_again_while_it_runs_is_known_no_further_than_it_goes(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    async with running_without_its_output_topic(settings) as product:
        await create_topic(settings.bootstrap_servers, topics.finalized, partitions=PARTITIONS)
        await publish(settings, empty_batches(300, 20))
        await product.settled(120)

        async def is_known_no_further() -> bool:
            ends = await end_offsets(settings.bootstrap_servers, topics.finalized)
            async with product.connection() as connection:
                known = await positions.load_all(connection, settings.database_schema, topics.finalized)
            return all(
                position.next_offset <= ends[TopicPartition(topics.finalized, partition)]
                for partition, position in known.items()
            )

        await eventually(is_known_no_further, 60, message="positions of the topic that there is")
    assert set(await finalized_events(settings)) == {f"batch-{number:05}" for number in range(300, 320)}


async def test_a_topic_that_is_made_again_while_it_is_read_back_is_not_waited_for_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, stop, waits, found = Topics(settings.topic_prefix), asyncio.Event(), asyncio.Event(), list[str]()
    check_ends = relay.Publisher._check_ends

    async def noted(self: Any, *given: Any) -> None:
        waits.set()
        try:
            await check_ends(self, *given)
        except KafkaError as error:
            found.append(str(error))
            raise

    monkeypatch.setattr(relay.Publisher, "_check_ends", noted)
    monkeypatch.setattr(relay, "REPORT_EVERY_S", 0.5)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(settings) as product:
        await publish(settings, empty_batches(0, 300))
        await product.settled()
        await product.children["relay"].kill()
        await publish(settings, empty_batches(300, 20))
        await eventually(product._is_caught_up)
        foreign = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, transactional_id=topics.finalized)
        async with foreign:
            await foreign.begin_transaction()
            for tp in await end_offsets(settings.bootstrap_servers, topics.finalized):
                await foreign.send_and_wait(topics.finalized, b"{}", key=b"foreign", partition=tp.partition)
            relaying = asyncio.create_task(
                relay.run(settings.kafka_connection(), settings.database(), topics, stop, ready=lambda: None)
            )
            await asyncio.wait_for(waits.wait(), 60)
            await delete_topic(settings.bootstrap_servers, topics.finalized)
            await create_topic(settings.bootstrap_servers, topics.finalized, partitions=PARTITIONS)
            try:
                await product.settled(120)
            finally:
                stop.set()
                await asyncio.wait_for(relaying, 30)
    assert any("was deleted or truncated while it was read back" in each for each in found), found
    assert set(await finalized_events(settings)) == {f"batch-{number:05}" for number in range(300, 320)}
