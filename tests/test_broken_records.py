"""A few hundred kinds of broken record among good ones: each becomes a dead letter, every good one counts."""

import base64
import json
import struct
from collections import Counter
from random import Random
from typing import Any, TypeVar

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c_py

from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness.broken_records import BROKEN, EITHER, TRICKY_GOOD, Broken, Good, Headers
from tests.harness.histories import Message, make_history
from tests.harness.librdkafka import MURMUR2, produce_with_librdkafka
from tests.harness.model import Model
from tests.harness.product import running
from tests.harness.tables import Row, assert_events_are_the_models, finalized_events, folded, table_rows
from tests.harness.topics import Record, create_topic, drain

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTITIONS = 4

T = TypeVar("T")
Position = tuple[int, int]


def interleaved(random: Random, ordered: list[T], strewn: list[T]) -> list[T]:
    """All of both at random, `ordered` in its order."""
    picks = [True] * len(ordered) + [False] * len(strewn)
    random.shuffle(picks)
    sources = {True: iter(ordered), False: iter(random.sample(strewn, len(strewn)))}
    return [next(sources[pick]) for pick in picks]


async def test_each_broken_record_is_a_dead_letter_and_every_good_one_counts(settings: Settings) -> None:
    seed = 20261125
    history = make_history(seed, sizes=(0, 1, 2, 100) * 8)
    print(history)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    records: list[Broken | Good | Message] = interleaved(
        Random(seed), list(history.messages), [*BROKEN, *TRICKY_GOOD, *EITHER]
    )
    async with running(settings) as product:
        places = await produce_with_librdkafka(settings.bootstrap_servers, topics.events, records, partitioner=MURMUR2)
        await product.settled()

    broken = {place: each for place, each in zip(places, records, strict=True) if isinstance(each, Broken)}
    letters = {(row["partition"], row["record_offset"]): row for row in await table_rows(settings, "dead_letters")}
    _assert_only_the_broken(letters, broken)
    for place, each in broken.items():
        _assert_kept(letters[place], each)
    published = await drain(settings.bootstrap_servers, topics.dead_letters)
    assert len(published) == len(letters)
    by_place = {_original(record): record for record in published}
    log = await drain(settings.bootstrap_servers, topics.events)
    times = {(record.partition, record.offset): record.timestamp for record in log}
    for place, each in broken.items():
        _assert_published(by_place[place], each, letters[place], times[place])

    await _assert_all_good_counted(settings)
    of_history = {message.batch_id for message in history}
    model = folded([record for record in log if record.key is not None and _text(record.key) in of_history], PARTITIONS)
    assert len(model.all_finalized()) == len(history.batches)
    events = await finalized_events(settings)
    assert_events_are_the_models(
        model, {batch: found for batch, found in events.items() if batch in of_history}, settings, PARTITIONS
    )


async def test_a_header_name_that_is_not_utf8_stops_nothing(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=f"{settings.topic_prefix}upstream"
    )
    await producer.start()
    try:
        for number, item_ids in enumerate((["a"], ["b", "c", "d"], ["e"], ["f", "g"], ["h"])):
            await producer.begin_transaction()
            await producer.send_batch(_batch_with_bad_names(producer, item_ids), topics.events, partition=0)
            await (producer.abort_transaction() if number % 2 else producer.commit_transaction())
    finally:
        await producer.stop()
    async with running(settings) as product:
        await product.settled()
        [letter] = await table_rows(settings, "dead_letters")
        assert letter["value"] == b"e: no JSON"
        assert [name for name, _ in json.loads(letter["headers"])] == ["\\xff\\xfeme"]
        assert [row["item_id"] for row in await table_rows(settings, "item_results")] == ["a", "h"]
    [published] = await drain(settings.bootstrap_servers, topics.dead_letters)
    assert published.value == b"e: no JSON"


def _batch_with_bad_names(producer: AIOKafkaProducer, item_ids: list[str]) -> Any:
    """A produce batch whose header names no client written in Python would write."""
    batch = producer.create_batch()
    for item_id in item_ids:
        result = json.dumps({"batch_id": "x", "item_id": item_id, "status": "succeeded"}).encode()
        value = b"e: no JSON" if item_id == "e" else result
        batch.append(timestamp=None, key=b"x", value=value, headers=[("Name", b"value")])
    batch.close()
    build = batch._build

    def with_bad_names() -> bytes:
        written = bytes(build()).replace(b"Name", b"\xff\xfeme")
        return written[:17] + struct.pack(">I", calc_crc32c_py(written[21:])) + written[21:]

    batch._build = with_bad_names
    return batch


def _assert_only_the_broken(letters: dict[Position, Row], broken: dict[Position, Broken]) -> None:
    """Besides what the contract leaves open, exactly the broken ones."""
    missing = [broken[place].name for place in broken.keys() - letters.keys()]
    assert missing == [], "these were taken"
    open_values = {each.value for each in EITHER}
    surplus = [row for place, row in letters.items() if place not in broken and row["value"] not in open_values]
    assert surplus == []
    print(Counter(row["reason"] for row in letters.values()))


def _assert_kept(row: Row, each: Broken) -> None:
    kept = [(name, base64.b64decode(value)) for name, value in json.loads(row["headers"])]
    assert (row["key"], row["value"], tuple(kept)) == (each.key, each.value, each.headers), each.name
    assert row["reason"] == each.reason, f"{each.name}: {row['message']}"
    assert row["message"], each.name
    if each.batch_id is not None:
        assert row["batch_id"] == each.batch_id, each.name


def _assert_published(record: Record, each: Broken, row: Row, timestamp: int) -> None:
    about = _about(record.headers)
    assert record.key == each.key, each.name
    assert record.value == each.value, each.name
    original: Headers = tuple((name, value) for name, value in record.headers if name not in about)
    assert original == each.headers, each.name
    assert about["rollcall_dlt_original_topic"] == row["topic"]
    assert about["rollcall_dlt_original_timestamp"] == str(timestamp)
    assert about["rollcall_dlt_reason"] == each.reason
    assert about["rollcall_dlt_message"] == row["message"][:1000]
    assert (row["published_partition"], row["published_offset"]) == (record.partition, record.offset)


async def _assert_all_good_counted(settings: Settings) -> None:
    model = Model()
    for each in TRICKY_GOOD:
        model.apply(0, 0, json.loads(each.value))
    batches = {row["batch_id"] for row in await table_rows(settings, "batches")}
    items = {(row["batch_id"], row["item_id"]) for row in await table_rows(settings, "item_results")}
    for batch in model.batches.values():
        assert batch.batch_id in batches
        assert {(batch.batch_id, item) for item in batch.registers} <= items


def _about(headers: Headers) -> dict[str, str]:
    return {name: value.decode() for name, value in headers if name.startswith("rollcall_dlt_")}


def _original(record: Record) -> Position:
    about = _about(record.headers)
    return int(about["rollcall_dlt_original_partition"]), int(about["rollcall_dlt_original_offset"])


def _text(key: bytes) -> str:
    return key.decode(errors="replace")
