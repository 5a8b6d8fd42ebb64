"""What becomes of records on their way into a micro-batch: times, and places they had before."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from handlers import fold
from schemas.dead_letters import Reason, Refused
from schemas.headers import REDRIVEN_LOG, REDRIVEN_OFFSET, REDRIVEN_PARTITION, REDRIVEN_TIMESTAMP
from schemas.topics import Topics
from store.rows import ItemRow, Position
from streams.fetched import FetchedRecord
from streams.reading import Homes, Reading, new_reading, take

pytestmark = pytest.mark.asyncio

HOMES = Homes(partitions=1, log_id="this-log")


def record(offset: int, timestamp: int, value: bytes, *headers: tuple[str, bytes]) -> FetchedRecord:
    return FetchedRecord("rollcall.events", 0, offset, timestamp, b"b", value, headers)


def result(offset: int, timestamp: int) -> FetchedRecord:
    value = {"batch_id": "b", "item_id": str(offset), "status": "succeeded"}
    return record(offset, timestamp, json.dumps(value).encode())


async def read(*records: FetchedRecord) -> Reading:
    reading = new_reading(Topics("rollcall."), HOMES)
    await take(reading, list(records), Position(0, 0, -1, -1, 0, {}), len(records), HOMES)
    return reading


@pytest.mark.parametrize("before", [[], [5_000]], ids=["first", "behind another"])
async def test_a_record_without_a_time_is_taken_as_of_1970_wherever_it_lies(before: list[int]) -> None:
    reading = await read(*(result(offset, timestamp) for offset, timestamp in enumerate([*before, -1])))
    last = fold.rows(reading.micro_batch.slices["b"].records)[-1]
    assert isinstance(last, ItemRow)
    assert last.received_at == datetime(1970, 1, 1, tzinfo=UTC)


async def test_a_redriven_record_that_is_refused_again_keeps_place_and_time_of_the_first() -> None:
    origin = (
        (REDRIVEN_PARTITION, b"0"),
        (REDRIVEN_OFFSET, b"3"),
        (REDRIVEN_TIMESTAMP, b"1767225600000"),
        (REDRIVEN_LOG, b"this-log"),
    )
    reading = await read(record(7, 1_768_000_000_000, b"no JSON", ("own", b"1"), *origin))
    [letter] = reading.micro_batch.dead_letters
    assert (letter.record_offset, letter.appended_at) == (3, datetime(2026, 1, 1, tzinfo=UTC))
    assert json.loads(letter.headers) == [["own", "MQ=="]]


async def test_records_taken_in_pieces_are_as_those_taken_at_once() -> None:
    records = [result(offset, 1_000 + offset) for offset in range(10)]
    whole, pieces = await read(*records), new_reading(Topics("rollcall."), HOMES)
    position = Position(0, 0, -1, -1, 0, {})
    for begin, end in ((0, 3), (3, 4), (4, 10)):
        position = await take(pieces, records[begin:end], position, end, HOMES)
    in_pieces, at_once = (fold.rows(reading.micro_batch.slices["b"].records) for reading in (pieces, whole))
    assert in_pieces == at_once
    assert len(at_once) == 10
    assert pieces.micro_batch.advances == whole.micro_batch.advances == {0: (0, position)}
    assert pieces.count == 10
    for offset in range(10):
        letter = pieces.micro_batch.dead_letter(0, offset, Refused(Reason.UNSTORABLE, "told later"))
        assert letter.value == records[offset].value
