"""Decoding: the whole corpus of broken and tricky records, what is cut, homes, and headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random

import pytest
from aiokafka.partitioner import DefaultPartitioner

from handlers import fold
from handlers.records import Record
from schemas.dead_letters import Reason, Refused
from schemas.events import MAX_REVISION, MAX_STACK_TRACE_BYTES, MAX_TEXT_BYTES
from schemas.headers import FORWARDED_LOG, FORWARDED_OFFSET, FORWARDED_PARTITION, forwarded_from, text_of
from schemas.topics import Topics, home_partition, murmur2
from store.copying import batch_rows
from store.rows import ItemRow, Position
from streams.decoding import CUT_MARK, cut, decode, decode_exactly, parse_time
from streams.fetched import FetchedRecord
from streams.reading import Homes, append_time, decoded_headers, encoded_headers, new_reading, take
from tests.harness.broken_records import BROKEN, EITHER, TRICKY_GOOD, Broken, Good
from tests.harness.told import Told

NOW = datetime(2026, 1, 1, tzinfo=UTC)


# --- the corpus --------------------------------------------------------------------------------------------------


def complaint(broken: Broken) -> str | None:
    try:
        record = decode(broken.value, 7, NOW)
    except Refused as refusal:
        if refusal.reason.value != broken.reason:
            return f"{broken.name}: {refusal.reason.value} ({refusal.message}), expected {broken.reason}"
        if broken.batch_id is not None and refusal.batch_id != broken.batch_id:
            return f"{broken.name}: batch id {refusal.batch_id!r}, expected {broken.batch_id!r}"
        if not refusal.message or len(refusal.message) > 2_000:
            return f"{broken.name}: {refusal.message!r} does not help"
        return None
    return f"{broken.name}: taken as {record!r}"[:300]


def test_every_broken_record_is_refused_for_its_reason_and_its_batch_named() -> None:
    assert [wrong for broken in BROKEN if (wrong := complaint(broken)) is not None] == []


def test_every_tricky_good_record_is_taken_for_its_batch() -> None:
    wrong = []
    for good in TRICKY_GOOD:
        try:
            record = decode(good.value, 7, NOW)
        except Refused as refusal:
            wrong.append(f"{good.name}: {refusal.reason.value}: {refusal.message}")
            continue
        if (record.batch_id, record.version, record.received_at) != (good.batch_id, 7, NOW):
            wrong.append(f"{good.name}: {record!r}"[:300])
    assert wrong == []


@pytest.mark.parametrize("either", EITHER, ids=lambda either: either.name)
def test_what_the_contract_leaves_open_is_taken_or_refused_and_nothing_else(either: Good) -> None:
    try:
        found = decode(either.value, 7, NOW).batch_id
    except Refused as refusal:
        found = refusal.batch_id or "unreadable"
    assert found == either.batch_id


def test_all_fields_of_a_result_arrive() -> None:
    value = {
        "batch_id": "b",
        "item_id": "i",
        "status": "failed",
        "attempt": 3,
        "effect": "updated",
        "duration_ms": 1.5,
        "message": "m",
        "error": {"code": "E", "message": "why", "stack_trace": "at"},
        "output": {"ü": [1, None]},
        "metrics": {"a": 1, "b": 0.5},
        "worker": "w",
        "occurred_at": "2026-01-01T02:00:00.25+02:00",
    }
    assert decode(json.dumps(value).encode(), 9, NOW) == ItemRow(
        batch_id="b",
        item_id="i",
        status="failed",
        attempt=3,
        generation=0,
        version=9,
        received_at=NOW,
        effect="updated",
        duration_ms=1.5,
        message="m",
        error_code="E",
        error_message="why",
        stack_trace="at",
        output='{"ü":[1,null]}',
        metrics='{"a":1,"b":0.5}',
        worker="w",
        occurred_at=datetime(2026, 1, 1, 0, 0, 0, 250_000, UTC),
    )


def test_what_is_too_deep_for_any_parser_is_unstorable_and_exhausts_nothing() -> None:
    for depth in (101, 250, 5_000, 500_000):
        value = b'{"batch_id":"b","item_id":"i","status":"succeeded","output":' + b"[" * depth + b"]" * depth + b"}"
        with pytest.raises(Refused) as refused:
            decode(value, 0, NOW)
        assert refused.value.reason is Reason.UNSTORABLE, depth


# --- cutting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["m", "ü", "€", "😀"])
def test_long_texts_are_cut_between_characters_within_the_bound_and_marked(character: str) -> None:
    mark = len(CUT_MARK.encode())
    for shift in range(4):
        text = "x" * shift + character * 5_000
        short = cut(text, MAX_TEXT_BYTES)
        assert short.endswith(CUT_MARK)
        kept = short.removesuffix(CUT_MARK)
        assert text.startswith(kept)
        size = len(kept.encode())
        assert MAX_TEXT_BYTES - mark - len(character.encode()) < size <= MAX_TEXT_BYTES - mark


@pytest.mark.parametrize("character", ["m", "ü", "€", "😀"])
def test_texts_of_exactly_the_bound_stay_whole(character: str) -> None:
    text = character * (MAX_TEXT_BYTES // len(character.encode()))
    text += "x" * (MAX_TEXT_BYTES - len(text.encode()))
    assert cut(text, MAX_TEXT_BYTES) == text
    assert cut(text + "x", MAX_TEXT_BYTES) != text + "x"


@pytest.mark.parametrize("way", [decode, decode_exactly])
def test_message_error_stack_trace_and_reason_are_cut(way: Callable[[bytes, int, datetime], Record]) -> None:
    long = "€" * 20_000
    row = way(
        json.dumps(
            {
                "batch_id": "b",
                "item_id": "i",
                "status": "failed",
                "message": long,
                "error": {"code": long, "message": long, "stack_trace": long},
            },
            ensure_ascii=False,
        ).encode(),
        0,
        NOW,
    )
    assert isinstance(row, ItemRow)
    assert row.message == row.error_code == row.error_message == cut(long, MAX_TEXT_BYTES)
    assert row.stack_trace == cut(long, MAX_STACK_TRACE_BYTES)
    cancelled = decode(json.dumps({"type": "batch.cancelled", "batch_id": "b", "reason": long}).encode(), 0, NOW)
    assert not isinstance(cancelled, ItemRow)
    assert cancelled.body["reason"] == cut(long, MAX_TEXT_BYTES)


# --- times -------------------------------------------------------------------------------------------------------


def test_append_times_are_exact_to_the_millisecond_and_stay_within_the_calendar() -> None:
    random = Random(5)
    for _ in range(2_000):
        ms = random.randrange(253_402_300_799_000)
        assert append_time(ms).isoformat(timespec="milliseconds")[-9:-6] == f"{ms % 1_000:03d}"
    assert append_time(-1) == datetime(1970, 1, 1, tzinfo=UTC)
    assert append_time(2**63 - 1).year == 9999


def test_a_correction_leaves_room_for_the_revisions_that_follow() -> None:
    told = Told()
    told.opened(total_items=1)
    told.corrected(MAX_REVISION)
    told.result("a")
    assert told.batch.revision == MAX_REVISION + 1
    assert b"".join(batch_rows([told.batch])), "it can be stored"
    with pytest.raises(Refused, match="revision"):
        told.corrected(MAX_REVISION + 1)


def test_two_spellings_of_one_moment_are_one() -> None:
    moments = (
        "2026-01-01T00:00:00Z",
        "2026-01-01t00:00:00.000z",
        "2025-12-31 14:30:00-09:30",
        "2026-01-01T02:00:00+02:00",
    )
    assert {parse_time(text) for text in moments} == {NOW}


def test_the_calendars_ends_are_not_what_asyncpg_has_for_infinities() -> None:
    """Go writes 0001-01-01T00:00:00Z where it has no time; stored as an infinity it comes back as another value."""
    earliest, latest = parse_time("0001-01-01T00:00:00Z"), parse_time("9999-12-31T23:59:59.999999Z")
    assert earliest.replace(tzinfo=None) != datetime.min
    assert latest.replace(tzinfo=None) != datetime.max
    assert (earliest.year, latest.year) == (1, 9999)


# --- homes -------------------------------------------------------------------------------------------------------

# Source: org.apache.kafka.common.utils.UtilsTest, testMurmur2.
JAVA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "hashed"), JAVA_MURMUR2.items())
def test_murmur2_is_javas(key: bytes, hashed: int) -> None:
    signed = murmur2(key)
    assert (signed - 2**32 if signed >= 2**31 else signed) == hashed
    for partitions in (1, 4, 12, 1_000):
        assert home_partition(key.decode(), partitions) == (hashed & 0x7FFFFFFF) % partitions


def test_a_batchs_home_is_where_aiokafkas_default_partitioner_puts_its_key() -> None:
    random = Random(20261122)
    partitioner = DefaultPartitioner()
    for partitions in (1, 3, 12, 50):
        homes = Homes(partitions)
        for _ in range(300):
            batch_id = "".join(random.choice("abc-é項😀") for _ in range(random.randrange(1, 40)))
            numbers = list(range(partitions))
            chosen = partitioner(batch_id.encode(), numbers, numbers)
            assert homes.of(batch_id) == homes.of(batch_id) == home_partition(batch_id, partitions) == chosen


# --- headers and readings ----------------------------------------------------------------------------------------


def test_headers_come_back_as_they_were() -> None:
    headers = [("a", b"\xff\x00"), ("a", b""), ("ключ", "значение".encode()), ("none", None), ("", b"1")]
    assert decoded_headers(encoded_headers(headers)) == headers


def test_the_last_of_a_repeated_header_counts_and_what_is_no_ascii_is_none() -> None:
    assert text_of([("a", b"1"), ("b", b"x"), ("a", b"2")], "a") == "2"
    assert text_of([("a", b"1"), ("a", b"\xff")], "a") is None
    assert text_of([], "a") is None


@pytest.mark.parametrize("bad", [b"", b"-1", b"1.0", b"x", b"\xff", "٣".encode(), b"9" * 19, b"9" * 5_000, b" 1"])
def test_what_is_no_position_marks_no_forward(bad: bytes) -> None:
    good = b"5"
    assert forwarded_from([(FORWARDED_PARTITION, good), (FORWARDED_OFFSET, good)], "") == (5, 5)
    assert forwarded_from([(FORWARDED_PARTITION, good), (FORWARDED_OFFSET, good)], "this log") is None
    copied = [(FORWARDED_PARTITION, good), (FORWARDED_OFFSET, good), (FORWARDED_LOG, b"another cluster's log")]
    assert forwarded_from(copied, "this log") is None
    assert forwarded_from(copied, "another cluster's log") == (5, 5)
    assert forwarded_from([(FORWARDED_PARTITION, bad), (FORWARDED_OFFSET, good)], "") is None
    assert forwarded_from([(FORWARDED_PARTITION, good), (FORWARDED_OFFSET, bad)], "") is None


def record(offset: int, value: bytes, *headers: tuple[str, bytes], partition: int = 0) -> FetchedRecord:
    return FetchedRecord("t", partition, offset, 1_000 + offset, b"k", value, headers)


async def test_a_reading_takes_whats_at_home_sends_on_whats_not_and_drops_forwards_it_has_had() -> None:
    homes = Homes(4)
    [at_home, elsewhere] = ["", ""]
    for number in range(100):
        batch_id = f"b{number}"
        if home_partition(batch_id, 4) == 0:
            at_home = batch_id
        else:
            elsewhere = batch_id
    mine = b'{"batch_id":"%s","item_id":"i","status":"succeeded"}' % at_home.encode()
    others = b'{"batch_id":"%s","item_id":"i","status":"succeeded"}' % elsewhere.encode()

    def forward(offset: int) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
        return (FORWARDED_PARTITION, b"3"), (FORWARDED_OFFSET, b"%d" % offset)

    records = [
        record(10, mine),
        record(11, others),
        record(12, mine, *forward(7)),
        record(13, mine, *forward(8)),
        record(14, mine, *forward(8)),
        record(16, b"{", *forward(9)),
        record(17, mine, ("traceparent", b"00-1-2-3")),
    ]
    reading = new_reading(Topics(), homes)
    position = await take(reading, records, Position(0, 10, None, None, None, {3: 7}), 19, homes)
    assert [kept.version for kept in fold.rows(reading.micro_batch.slices[at_home].records)] == [10, 13, 17]
    assert [(sent.home, sent.record.offset) for sent in reading.forwards] == [(home_partition(elsewhere, 4), 11)]
    [letter] = reading.micro_batch.dead_letters
    assert (letter.partition, letter.record_offset, letter.value) == (3, 9, b"{")
    assert reading.micro_batch.traceparents == {(0, 17): "00-1-2-3"}
    assert reading.micro_batch.advances == {0: (10, position)}
    assert position[:4] == (0, 19, 17, 1_017)
    assert position.taken == {3: 9}
