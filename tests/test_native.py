"""What is compiled does the same as its twin in Python."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import rollcall_native
from aiokafka import partitioner
from aiokafka.consumer import fetcher
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers import fold
from handlers.records import Disposition, LifecycleRecord, TakenRecord
from store import copying, items
from store.rows import ItemRow, TakenResult, UsualResult
from streams import decoding, reading
from streams.fetched import FetchedRecord, _KeptRecords, _PartitionRecords, fitting, fitting_in_python
from tests.harness.micro_batches import taken_of
from tests.harness.record_batches import NONE, TP, Contents, batch, records_in, sealed

ROOT = Path(__file__).parent.parent
GZIP, SNAPPY, LZ4, ZSTD = range(1, 5)
TRANSACTIONAL, CONTROL = 0x10, 0x20
COMMITTED = fetcher.READ_COMMITTED
BATCH_TIME = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)

pytestmark = pytest.mark.skipif(
    not rollcall_native.compiled
    and (bool(os.environ.get(rollcall_native.SWITCH)) or os.environ.get("ROLLCALL_REQUIRE_COMPILED") != "1"),
    reason="nothing is compiled here: there is no C compiler, or it is switched off",
)


def test_it_is_compiled_here() -> None:
    assert rollcall_native.compiled, "no C compiler (Debian: gcc, python3-dev)? Then remove .venv, make setup"


def test_a_variable_has_everything_done_in_python() -> None:
    code = "import rollcall_native, streams.fetched, streams.decoding, store.copying; print(rollcall_native.compiled)"
    environment = {**os.environ, rollcall_native.SWITCH: "1"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (shown.stdout.strip(), shown.stderr) == ("False", "")


# Rows.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda moment: moment.replace(tzinfo=UTC))
rows = st.builds(
    ItemRow,
    batch_id=st.sampled_from(["a", "b", "ü"]),
    item_id=st.sampled_from(["1", "2"]) | texts,
    status=st.sampled_from(["succeeded", "partial", "failed", "skipped", "retrying"]),
    attempt=st.sampled_from([1, 1, 1, 2, 2**31 - 1]),
    generation=st.integers(0, 2**31 - 1),
    version=st.integers(0, 2**63 - 1),
    received_at=moments,
    effect=st.sampled_from([None, "created", "updated", "unchanged"]),
    duration_ms=st.none() | st.floats(0, allow_infinity=False),
    message=st.none() | texts,
    error_code=st.none() | texts,
    error_message=st.none() | texts,
    stack_trace=st.none() | st.text("x\n", max_size=3_000),
    output=st.none() | texts,
    metrics=st.none() | texts,
    worker=st.none() | texts,
    occurred_at=st.none() | moments,
)


ROW = ItemRow("b", "i", "failed", 1, 0, 0, datetime(2026, 1, 1, tzinfo=UTC), *(None,) * 10)


@settings(max_examples=300, deadline=None)
@given(st.lists(rows, max_size=8))
def test_rows_are_the_same_bytes(rows: list[ItemRow]) -> None:
    assert copying.encode_items(rows) == copying.encode_in_python(rows)


def test_times_at_the_edges_of_days_and_leap_years_are_the_same_bytes() -> None:
    first = datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    days = [first + timedelta(days=day, microseconds=day - 1) for day in range(0, 3_652_000, 89)]
    many = [ROW._replace(received_at=day, occurred_at=other) for day, other in zip(days, reversed(days), strict=True)]
    assert copying.encode_items(many) == copying.encode_in_python(many)


@pytest.mark.parametrize(
    "spoilt", [ROW._replace(item_id="\ud83d"), ROW._replace(message="\ud83d"), ROW._replace(output="\ud83d")]
)
def test_half_a_surrogate_pair_is_refused_alike(spoilt: ItemRow) -> None:
    for encode in (copying.encode_items, copying.encode_in_python):
        with pytest.raises(UnicodeEncodeError):
            encode([ROW, spoilt])


@settings(max_examples=300, deadline=None)
@given(st.lists(rows, max_size=8) | st.lists(rows, max_size=8, unique_by=lambda row: row.item_id))
def test_sums_are_the_same_compiled_and_in_python(rows: list[ItemRow]) -> None:
    rows = [row._replace(output=None, metrics=None) for row in rows]  # these would have to be JSON
    held = {row.item_id: row for row in rows[:2]}
    for results in (rows, [row._replace(attempt=1, status="failed") for row in rows], rows[2:]):
        for known in (None, {}, held):
            assert fold.sum_up(results, known) == fold.sum_up_in_python(results, known)


# Usual results, which are no rows until somebody needs them.


def message(row: ItemRow) -> bytes:
    """A result that says so."""
    names = ("batch_id", "item_id", "status", "attempt", "effect", "worker", "message", "duration_ms")
    said = {name: getattr(row, name) for name in names}
    if row.error_message is not None:
        said["error"] = {"message": row.error_message, "code": row.error_code, "stack_trace": row.stack_trace}
    said["occurred_at"] = row.occurred_at and row.occurred_at.isoformat()
    return json.dumps({name: each for name, each in said.items() if each is not None}, ensure_ascii=False).encode()


plain = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)
lines = st.text(st.characters(categories=["L", "N", "P", "Zs", "Cc"], exclude_characters="\0"), max_size=30)
results_to_send = st.builds(
    ItemRow,
    batch_id=st.sampled_from(["a", "b", "ü", "a" * 40]),
    item_id=st.sampled_from(["1", "2", "item-00000001", "item-00000002", "item-0000000"]) | plain,
    status=st.sampled_from(["succeeded", "partial", "failed", "skipped", "retrying"]),
    attempt=st.sampled_from([1, 1, 1, 1, 2]),
    generation=st.just(0),
    version=st.integers(0, 2**62),
    received_at=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    effect=st.sampled_from([None, "created", "updated", "unchanged"]),
    duration_ms=st.none() | st.integers(0, 10**6).map(lambda number: number / 8),
    message=st.none() | lines,
    error_code=st.none() | plain,
    error_message=st.none() | lines,
    stack_trace=st.none() | plain,
    output=st.none(),
    metrics=st.none(),
    worker=st.none() | plain,
    occurred_at=st.none() | st.just(datetime(2026, 1, 1, 2, 3, 4, 5_000, tzinfo=UTC)),
)
in_log_order = st.lists(results_to_send, min_size=1, max_size=12, unique_by=lambda row: row.version).map(
    lambda rows: sorted(rows, key=lambda row: row.version)
)


def taken_from_batches(rows: list[ItemRow]) -> list[TakenResult]:
    """As a worker takes them from what it fetched, of which nothing but these is kept."""
    data = b"".join(batch(row.version, [(b"k", message(row), [])]) for row in rows)
    return [each for each in taken_of(records_in(data)) if not isinstance(each, LifecycleRecord)]


def decoded_in_python(rows: list[ItemRow]) -> list[ItemRow]:
    decoded = [decoding.decode_in_python(message(row), row.version, BATCH_TIME) for row in rows]
    return [row for row in decoded if isinstance(row, ItemRow)]


def as_rows(sums: fold.Sums | None) -> fold.Sums | None:
    if sums is None:
        return None
    kept, new, displaced = (cast(list[TakenResult], fold.rows(some)) for some in (sums.kept, sums.new, sums.displaced))
    return sums._replace(kept=kept, new=new, displaced=tuple(displaced))


@settings(max_examples=400, deadline=None)
@given(in_log_order)
def test_results_give_the_same_rows_bytes_and_sums_whether_they_became_rows_or_not(rows: list[ItemRow]) -> None:
    taken, decoded = taken_from_batches(rows), decoded_in_python(rows)
    assert fold.rows(taken) == decoded
    mixed = [each if index % 2 else decoded[index] for index, each in enumerate(taken)]
    distinct = {row[:2]: index for index, row in enumerate(decoded)}.values()
    for results in (taken, mixed):
        assert copying.encode_items(results) == copying.encode_in_python(decoded)
        for some in ([], decoded[:1], decoded[:3]):
            behind = results[len(some) :]
            for known in (None, {row.item_id: row for row in some}):
                assert as_rows(fold.sum_up(behind, known)) == fold.sum_up_in_python(decoded[len(some) :], known)
        assert [(each.batch_id, each.item_id, each.status) for each in results] == [row[:3] for row in decoded]
        ordered = copying.in_order([results[index] for index in distinct])
        assert fold.rows(ordered) == sorted(decoded[index] for index in distinct)
        assert items.Lines.of_results(ordered) == items.Lines.of([row.item_id for row in ordered])


@pytest.mark.parametrize("seed", range(6))
def test_results_are_brought_in_order_whatever_order_they_come_in(seed: int) -> None:
    random = Random(seed)
    print(f"seed {seed}")
    batches = [[ROW._replace(batch_id=f"b{n}", item_id=f"{i:03d}") for i in range(40)] for n in range(7)]
    shuffled = random.sample(batches, len(batches))
    in_order = [row for of_batch in batches for row in of_batch]
    strewn = random.sample(in_order, len(in_order))
    within = [row for of_batch in batches for row in random.sample(of_batch, len(of_batch))]
    in_halves = [row for half in (0, 1) for of_batch in batches for row in of_batch[half::2]]
    by_batch = [row for of_batch in shuffled for row in of_batch]
    for rows in (by_batch, strewn, within, in_halves, in_order, in_order[:1], []):
        copies = [row._replace(batch_id=str(row.batch_id.encode(), "utf-8")) for row in rows]  # as other objects
        for some in (rows, copies, taken_from_batches([row._replace(version=n) for n, row in enumerate(rows)])):
            ordered = cast(list[ItemRow], copying.in_order(some))
            assert [(row.batch_id, row.item_id) for row in ordered] == sorted(row[:2] for row in rows)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("held", [None, {}, {"017": ROW._replace(item_id="017", status="retrying")}])
@pytest.mark.parametrize("attempt", [1, 2])
def test_items_in_order_come_to_the_same_sums_as_others(
    order: int, held: dict[str, ItemRow] | None, attempt: int
) -> None:
    rows = [ROW._replace(item_id=f"{number:03d}", version=number) for number in range(50)][::order]
    rows[17] = rows[17]._replace(attempt=attempt, status="succeeded")
    assert fold.sum_up(rows, held) == fold.sum_up_in_python(rows, held)


@pytest.mark.parametrize(
    ("character", "is_taken"), [("ü", True), ("😀", True), ("\x7f", False), ("\x1f", False), ("\\", False)]
)
def test_a_text_is_read_alike_wherever_in_it_an_odd_character_is(character: str, is_taken: bool) -> None:
    decoder = rollcall_native.results.Decoder(ItemRow)
    for before in range(20):
        for behind in range(20):
            text = "a" * before + character + "b" * behind
            result = {"batch_id": "b", "item_id": text, "status": "failed", "worker": text, "message": text}
            value = json.dumps(result, ensure_ascii=False).encode()
            row = decoder.decode(value, 7, BATCH_TIME)
            assert (row is not None) == is_taken
            assert row is None or row == decoding.decode_in_python(value, 7, BATCH_TIME)


def test_a_record_that_is_decoded_twice_says_the_same_both_times() -> None:
    whole = ROW._replace(effect="updated", duration_ms=1.5, message="m", error_code="c", error_message="e", worker="w")
    [record] = records_in(batch(0, [(b"k", message(whole), [])]))
    lists: dict[str, list[TakenRecord] | None] = {"b": None}
    assert decoding.take_usual([record], 0, 1, lists, reading.append_time) == 0
    for way in (copying.encode_items, copying.in_order):  # it is not at home here
        with pytest.raises((TypeError, ValueError)):
            way(cast(list[TakenResult], [record]))
    lists["b"] = []
    assert decoding.take_usual([record], 0, 1, lists, reading.append_time) == 1
    assert fold.rows(lists["b"] or []) == decoded_in_python([whole])


def test_a_record_that_is_no_usual_result_is_not_taken_for_one() -> None:
    record: Any = FetchedRecord("t", 0, 0, 0, b"k", message(ROW), ())
    assert record.status is None
    assert fold.rows([record]) == [record]
    for way in (copying.encode_items, copying.in_order, items.Lines.of_results, lambda rows: fold.sum_up(rows, None)):
        with pytest.raises((TypeError, ValueError)):
            way([record])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(-1, 12), st.integers(0, 99))
def test_of_records_as_many_are_found_to_fit_as_in_python(sizes: list[int], most: int, room: int) -> None:
    records = [FetchedRecord("t", 0, offset, 0, b"k", bytes(size), ()) for offset, size in enumerate(sizes)]
    assert fitting(records, most, room) == fitting_in_python(records, most, room)


def test_most_usual_results_become_no_rows() -> None:
    taken = taken_from_batches([ROW._replace(version=number, message="no escape, ü") for number in range(10)])
    assert {type(each) for each in taken} == {UsualResult}


def test_results_outlive_what_they_were_fetched_with() -> None:
    rows = [ROW._replace(version=number, item_id=f"i{number}") for number in range(2_000)]
    taken = taken_from_batches(rows)
    gc.collect()
    others = [bytes([number % 256]) * 300 for number in range(20_000)]
    assert [each.item_id for each in taken] == [row.item_id for row in rows]
    assert copying.encode_items(taken) == copying.encode_in_python(decoded_in_python(rows))
    assert len(others) == 20_000


@pytest.mark.parametrize("count", [b"\x00", b"\x80\x00"])
def test_a_value_ends_where_it_ends_however_the_number_of_headers_is_written(count: bytes) -> None:
    value = b'{"batch_id":"b","item_id":"i","status":"failed"}'
    record = b"\x00\x00\x00\x02k" + bytes([len(value) * 2]) + value + count  # all lengths take one byte
    length = len(record) * 2
    data = bytearray(batch(0, [])) + bytes([length & 0x7F | 0x80, length >> 7]) + record
    struct.pack_into(">i", data, 8, len(data) - 12)
    struct.pack_into(">i", data, 57, 1)
    [(found, _)], _, failed = read(OnlyCompiled, sealed(data))
    assert (found.key, found.value, found.size, failed) == (b"k", value, 1 + len(value), "")
    lists: dict[str, list[TakenRecord] | None] = {"b": []}
    assert decoding.take_usual([found], 0, 1, lists, reading.append_time) == 1
    assert fold.rows(lists["b"] or [])[0] == decoding.decode_in_python(value, 0, reading.append_time(found.timestamp))


def not_in_python(*_: object) -> None:
    raise AssertionError("left to Python")


@pytest.mark.parametrize("count", [20, 100, 1_000, 5_000])
def test_ids_that_are_numbered_are_told_apart_by_their_hashes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "sum_up_in_python", not_in_python)
    patterns = ["{}", "{0:x}", "item{}", "item-{}", "order-{}", "user:{}", "x" * 100 + "{:09d}"]
    patterns += [f"{{:0{length}d}}" for length in range(4, 41)]
    for pattern in patterns:
        rows = [ROW._replace(item_id=pattern.format(number)) for number in range(count)]
        sums = fold.sum_up([*rows, rows[17]], None)
        assert sums is not None
        assert (sums.tally, sums.unchanged) == ({("failed", None): count}, {Disposition.DUPLICATE: 1})


def test_ids_chosen_for_their_hashes_to_collide_are_summed_up_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def in_python(rows: list[ItemRow], held: dict[str, ItemRow] | None) -> fold.Sums | None:
        asked.append(len(rows))
        return sum_up_in_python(rows, held)

    sum_up_in_python = fold.sum_up_in_python
    monkeypatch.setattr(fold, "sum_up_in_python", in_python)
    colliding = [each for each in map("{:08x}".format, range(4_000)) if hash_of(each.encode()) % 64 == 0][:30]
    rows = [ROW._replace(item_id=each) for each in colliding]
    assert fold.sum_up([*rows, rows[17]], None) == sum_up_in_python([*rows, rows[17]], None)
    assert asked == [31]


def hash_of(word: bytes) -> int:
    """Of an id of eight bytes, as what is compiled makes it."""
    whole = 2**64 - 1
    value = 8 * 0x9E3779B97F4A7C15 & whole
    value = (value ^ int.from_bytes(word, "little")) * 0xFF51AFD7ED558CCD & whole
    value = (value ^ value >> 32) * 0xC4CEB9FE1A85EC53 & whole
    return value ^ value >> 32


# Records.

payloads = st.none() | st.binary(max_size=300)
contents = st.lists(
    st.tuples(payloads, payloads, st.lists(st.tuples(st.text(max_size=8), payloads), max_size=2)),
    min_size=1,
    max_size=6,
)


def marker(base: int, producer: int, *, aborts: bool) -> bytes:
    key = struct.pack(">hh", 0, 0 if aborts else 1)
    return batch(base, [(key, b"\0" * 6, [])], producer=producer, attributes=TRANSACTIONAL | CONTROL)


class OnlyByAiokafka(_PartitionRecords):
    def _unpack_natively(self, data: bytes) -> Any:
        raise ValueError


class OnlyCompiled(_PartitionRecords):
    def _unpack_again(self, records: Any) -> Any:
        raise RuntimeError("aiokafka's parser was asked")


def read(
    kind: type[_PartitionRecords],
    data: bytes,
    *,
    aborted: Any = (),
    begin: int = 0,
    isolation: int = COMMITTED,
) -> tuple[list[Any], int, str]:
    """The records, where it then stands, and what it failed with."""
    found: list[Any] = []
    fetched = kind(TP, _KeptRecords(data), list(aborted), begin, None, None, True, isolation)
    try:
        found.extend((record, fetched.next_fetch_offset) for record in fetched)
    except Exception as error:
        return found, fetched.next_fetch_offset, type(error).__name__
    return found, fetched.next_fetch_offset, ""


def assert_read_alike(data: bytes, **how: Any) -> list[FetchedRecord]:
    ours, theirs = read(_PartitionRecords, data, **how), read(OnlyByAiokafka, data, **how)
    assert ours == theirs
    found, position, failed = ours
    for most in (1, 3, None):
        if not failed:
            assert by_lists(data, most, **how) == (found, position)
    return [record for record, _ in found]


def by_lists(
    data: bytes, most: int | None, *, aborted: Any = (), begin: int = 0, isolation: int = COMMITTED
) -> tuple[list[Any], int]:
    """As ``read``, by lists of so many."""
    fetched = _PartitionRecords(TP, _KeptRecords(data), list(aborted), begin, None, None, True, isolation)
    found: list[Any] = []
    while taken := fetched.take(most):
        assert most is None or len(taken) <= most
        found += [(record, record.offset + 1) for record in taken]
        assert fetched.next_fetch_offset >= taken[-1].offset + 1
    return found, fetched.next_fetch_offset


@pytest.mark.parametrize("compression", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
def test_batches_of_any_compression_are_read(compression: int) -> None:
    sent: Contents = [(b"k", b"v" * index, [("h", b"x"), ("n", None)]) for index in range(200)] + [(None, None, [])]
    data = batch(5, sent, compression=compression) + batch(1_000, sent, compression=compression)
    alike = assert_read_alike(data)
    assert [record.value for record in alike] == [value for _, value, _ in sent] * 2
    assert [record.offset for record in alike] == [*range(5, 206), *range(1_000, 1_201)]
    assert [record for record, _ in read(OnlyCompiled, data)[0]] == alike


@settings(max_examples=200, deadline=None)
@given(st.lists(contents, min_size=1, max_size=3), st.integers(0, 6), st.integers(0, 3_000))
def test_any_records_are_read_alike_from_anywhere_and_cut_off_anywhere(
    batches: list[Contents], begin: int, cut: int
) -> None:
    data = b"".join(batch(10 * number, records) for number, records in enumerate(batches))
    begin = min(begin, len(batches[0]) - 1)  # a broker begins with the batch that holds what is asked for
    assert_read_alike(data, begin=begin)
    assert_read_alike(data[:cut], begin=begin)


@settings(max_examples=600, deadline=None)
@given(contents, st.data())
def test_of_spoilt_batches_with_a_right_checksum_what_can_be_read_is_read_alike(
    records: Contents, data: st.DataObject
) -> None:
    spoilt = bytearray(batch(1, records))
    for _ in range(data.draw(st.integers(1, 3))):
        # The number of records, or anything behind it.
        spoilt[data.draw(st.integers(57, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    found, position, failed = read(OnlyCompiled, sealed(spoilt))
    in_lists = OnlyCompiled(TP, _KeptRecords(sealed(spoilt)), [], 0, None, None, True, fetcher.READ_COMMITTED)
    if failed:
        # What is before it is given out, and what cannot be read is met again by whoever asks for more.
        given = [record for part in iter(lambda: in_lists.take(2), []) for record in part]
        assert given == [record for record, _ in found]
        assert isinstance(in_lists.problem, RuntimeError)
        return
    # Not where it failed: there aiokafka decides, which may well crash (it reads integers beyond what is there).
    assert (found, position, failed) == read(OnlyByAiokafka, sealed(spoilt))


def test_a_wrong_checksum_is_refused_alike() -> None:
    data = bytearray(batch(0, [(b"k", b"one", [])]) + batch(1, [(b"k", b"two", [])]))
    data[-3] ^= 1
    assert read(_PartitionRecords, bytes(data)) == read(OnlyByAiokafka, bytes(data))
    assert read(_PartitionRecords, bytes(data))[2] == "CorruptRecordException"


@pytest.mark.parametrize("isolation", [fetcher.READ_COMMITTED, fetcher.READ_UNCOMMITTED])
def test_aborted_transactions_and_markers_are_passed_over_alike(isolation: int) -> None:
    def of(base: int, producer: int, value: bytes) -> bytes:
        return batch(base, [(b"k", value, []), (b"k", value, [])], producer=producer, attributes=TRANSACTIONAL)

    data = b"".join(
        (
            of(0, 7, b"aborted"),
            of(2, 8, b"committed"),
            batch(4, [(b"k", b"plain", [])]),
            marker(5, 7, aborts=True),
            marker(6, 8, aborts=False),
            of(7, 7, b"committed"),
            of(9, 8, b"aborted"),
            marker(11, 7, aborts=False),
            marker(12, 8, aborts=True),
        )
    )
    alike = assert_read_alike(data, aborted=[(8, 9), (7, 0)], isolation=isolation)
    if isolation == fetcher.READ_COMMITTED:
        assert {record.value for record in alike} == {b"committed", b"plain"}


@pytest.mark.parametrize("magic", [0, 1])
def test_records_of_old_formats_are_left_to_aiokafka(magic: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, NONE, 1 << 20)
    for index in range(3):
        builder.append(index, 1_700_000_000_000, b"k", b"old")
    assert [record.value for record in assert_read_alike(bytes(builder.build()))] == [b"old"] * 3


@given(st.binary(max_size=40))
def test_keys_have_the_same_hash(key: bytes) -> None:
    assert rollcall_native.hashing.murmur2(key) == partitioner.murmur2(key)


def test_a_row_is_the_same_in_sets_and_dicts() -> None:
    value = b'{"batch_id":"b","item_id":"i","status":"failed"}'
    compiled, otherwise = (way(value, 7, ROW.received_at) for way in (decoding.decode, decoding.decode_in_python))
    assert hash(compiled) == hash(otherwise) == hash(tuple(otherwise))
    assert type(compiled) is type(otherwise)


@pytest.mark.parametrize("value", ["0.10000000000000000000", "1.0", "-0.0", "0.1", "1.50", "123456789012345678901.5"])
def test_numbers_are_written_as_python_writes_them(value: str) -> None:
    text = f'{{"batch_id":"b","item_id":"i","status":"failed","output":{value},"metrics":{{"m":{value}}}}}'.encode()
    assert decoding.decode(text, 7, ROW.received_at) == decoding.decode_exactly(text, 7, ROW.received_at)


def test_a_marker_that_is_damaged_is_refused_and_crashes_nothing() -> None:
    damaged = bytearray(marker(0, 7, aborts=True))
    damaged[61:] = bytes.fromhex("20000000808080801000")
    struct.pack_into(">i", damaged, 8, len(damaged) - 12)
    assert read(_PartitionRecords, sealed(damaged))[2] == "CorruptRecordException"


def test_a_record_whose_time_is_beyond_64_bits_is_read_and_a_bad_header_name_beside_it() -> None:
    data = bytearray(batch(0, [(b"k", b"v", []), (b"k", b"v", [("a", b"x")])]))
    data[data.index(b"\x02a\x02x") + 1] = 0xFF
    struct.pack_into(">q", data, 27, 2**63 - 1)  # that of the first; the second is a millisecond later
    found, _, failed = read(_PartitionRecords, sealed(data))
    assert not failed
    assert [list(record.headers) for record, _ in found] == [[], [("\\xff", b"x")]]


def test_what_cannot_be_read_is_begun_again_where_it_stood() -> None:
    good: Contents = [(b"k", b"v", [])]
    data = bytearray(batch(0, good) + batch(1, [(b"k", b"v", [("a", b"x")])]) + batch(2, good))
    begin = len(batch(0, good))
    end = len(data) - len(batch(2, good))
    at = data.index(b"\x02a\x02x") + 1
    data[at] = 0xFF
    data[begin:end] = sealed(data[begin:end])
    found, position, failed = read(_PartitionRecords, bytes(data))
    assert [record.offset for record, _ in found] == [0, 1, 2]
    assert (position, failed) == (3, "")


def test_records_are_made_once_and_never_copied_since_results_point_into_them() -> None:
    [(record, _)], _, _ = read(OnlyCompiled, batch(0, [(b"k", b"v", [])]))
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            way(record)
    with pytest.raises(TypeError):
        record.__init__("t", 0, 0, 0, None, None, ())
    assert (record.key, record.value) == (b"k", b"v")


def test_misuse_is_an_error() -> None:
    decoder = rollcall_native.results.Decoder(ItemRow)
    with pytest.raises(IndexError):
        decoder.take([], -1, 0, {}, lambda _: ROW.received_at)
    assert decoder.take([], 0, 5, {}, lambda _: ROW.received_at) == 0
    for other in (tuple, type("Fields", (), {"_fields": ItemRow._fields})):
        with pytest.raises((TypeError, AttributeError)):
            rollcall_native.results.Decoder(other)
    wrong: list[Any] = [[1], [()]]
    for rows in wrong:
        with pytest.raises((TypeError, ValueError)):
            fold.sum_up(rows, None)
        with pytest.raises((TypeError, ValueError)):
            copying.encode_items(rows)
    with pytest.raises((TypeError, ValueError)):
        copying.encode_items([ItemRow._make(None if each == ROW.received_at else each for each in ROW)])
