"""The client and the service share the wire, not code: what the one sends the other takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall_client import InvalidMessageError, messages
from rollcall_client.events import FinalizedEvent
from rollcall_client.kafka import home_partition

from schemas import events, topics
from schemas.published import AsOf, BatchFinalized, ItemCounts, WriteCounts
from store.rows import ItemRow
from streams.decoding import decode

NOW = datetime(2026, 11, 24, tzinfo=UTC)

# What cannot be stored or is no id is rare among all characters: here it is not.
characters = st.one_of(st.characters(), st.sampled_from('\x00\ud800\udfff\x1f\x7f\x85/"\\\u2028\U0001f600'))
texts = st.text(characters, max_size=250)
long_texts = st.builds(lambda text, times: text * times, st.text(characters, max_size=20), st.integers(0, 2_000))
numbers = st.one_of(st.integers(), st.floats(), st.integers(10**300, 10**320), st.booleans())
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=10,
)
ids = st.one_of(st.text(min_size=1, max_size=20), st.text(characters, min_size=1, max_size=20), texts)
errors = st.one_of(
    long_texts,
    st.builds(ValueError, long_texts),
    st.fixed_dictionaries({"message": long_texts}, optional={"code": texts, "stack_trace": long_texts}),
)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


def taken(message: messages.Message) -> None:
    """Sent by the client, and understood by the service."""
    value = messages.encode(message)
    record = decode(value, 0, NOW)
    assert record.batch_id == message["batch_id"]


@settings(deadline=None, print_blob=True)
@given(
    batch_id=ids,
    item_id=ids,
    status=st.sampled_from(sorted(messages.STATUSES)),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "attempt": st.one_of(st.integers(-1, 5), st.just(2**31)),
            "effect": st.sampled_from(["created", "updated", "unchanged"]),
            "duration_ms": numbers,
            "message": long_texts,
            "error": errors,
            "output": values,
            "metrics": st.dictionaries(texts, numbers, max_size=3),
            "worker": texts,
            "occurred_at": st.datetimes(timezones=st.sampled_from([UTC])),
        },
    ),
)
def test_every_result_the_client_sends_is_one_the_service_takes(
    batch_id: str, item_id: str, status: messages.Status, fields: dict[str, Any]
) -> None:
    try:
        messages.check_batch_id(batch_id)
        message = messages.item_result(batch_id, item_id, status, **fields)
    except InvalidMessageError:
        return
    taken(message)
    row = decode(messages.encode(message), 0, NOW)
    assert isinstance(row, ItemRow)
    assert (row.item_id, row.status) == (item_id, status)


@settings(deadline=None, print_blob=True)
@given(
    batch_id=ids,
    fields=st.fixed_dictionaries(
        {},
        optional={
            "total_items": optional(st.integers(-1, 2**31)),
            "item_ids": optional(st.lists(ids.filter(bool), max_size=3, unique=True)),
            "name": optional(texts),
            "sealed": optional(st.booleans()),
            "deadline_at": st.just(messages.time_text(NOW)),
            "policy": st.fixed_dictionaries(
                {},
                optional={
                    "tolerated_failure_count": st.integers(-1, 2**31),
                    "tolerated_failure_percentage": numbers,
                    "late_results": st.sampled_from(["record", "revise", "other"]),
                    "slow_after_s": numbers,
                    "stalled_after_s": numbers,
                },
            ),
            "metadata": st.dictionaries(texts, values, max_size=3),
            "retry_of": ids,
        },
    ),
)
def test_every_opening_the_client_sends_is_one_the_service_takes(batch_id: str, fields: dict[str, Any]) -> None:
    try:
        for item_id in fields.get("item_ids") or ():
            messages.check_item_id(item_id)
        message = messages.opened(batch_id, **fields)
    except InvalidMessageError:
        return
    taken(message)


@settings(deadline=None, print_blob=True)
@given(batch_id=ids, text=long_texts, error=errors, total=st.integers(-1, 2**31))
def test_every_other_lifecycle_message_is_one_the_service_takes(
    batch_id: str, text: str, error: messages.Error, total: int
) -> None:
    try:
        messages.check_batch_id(batch_id)
        made = [
            messages.cancelled(batch_id, text),
            messages.aborted(batch_id, error),
            messages.sealed(batch_id),
            messages.sealed(batch_id, total),
        ]
    except InvalidMessageError:
        return
    for message in made:
        taken(message)


def test_no_type_of_message_is_left_out() -> None:
    ours = {
        messages.opened("b")["type"],
        messages.items_expected("b", [])["type"],
        messages.sealed("b")["type"],
        messages.cancelled("b")["type"],
        messages.aborted("b", "e")["type"],
        messages.item_result("b", "i", "succeeded")["type"],
    }
    operators = {"batch.reopened", "batch.finalize_requested", "batch.expired", "batch.corrected", "batch.pruned"}
    assert ours | operators == set(events.ADAPTERS)


@pytest.mark.parametrize(
    "made",
    [
        lambda: messages.opened("b", name="no\x00name"),
        lambda: messages.opened("b", name="half\ud83d"),
        lambda: messages.opened("b", metadata=["a", "list"]),  # type: ignore[arg-type]
        lambda: messages.opened("b", sealed=True),
        lambda: messages.item_result("b", "i", "succeeded", worker="no\x00name"),
        lambda: messages.item_result("b", "i", "succeeded", worker="w" * 201),
        lambda: messages.item_result("b", "i", "succeeded", occurred_at="yesterday"),  # type: ignore[arg-type]
        lambda: messages.item_result("b", "i", "failed", error=404),  # type: ignore[arg-type]
        lambda: messages.item_result("b", "i", "succeeded", metrics=[1]),  # type: ignore[arg-type]
        lambda: list(messages.manifest_pieces("abc")),
    ],
)
def test_what_the_service_would_refuse_is_refused_before_it_is_sent(made: Callable[[], object]) -> None:
    with pytest.raises(InvalidMessageError):
        made()


def test_limits_are_the_services() -> None:
    assert messages.MAX_ID_CHARS == events.MAX_ID_CHARS
    assert messages.MAX_INT == events.MAX_INT
    assert messages.MAX_METADATA_BYTES == events.MAX_METADATA_BYTES
    assert messages.MAX_OUTPUT_BYTES == events.MAX_OUTPUT_BYTES
    assert messages.MAX_TEXT_BYTES == events.MAX_TEXT_BYTES
    assert messages.MAX_STACK_TRACE_BYTES == events.MAX_STACK_TRACE_BYTES
    assert messages.MAX_MANIFEST_IDS == events.MAX_MANIFEST_CHUNK
    assert messages.Policy.__annotations__.keys() == events.Policy.__annotations__.keys()


@settings(deadline=None, print_blob=True)
@given(ids.filter(lambda text: text.isprintable() and "/" not in text), st.integers(1, 50))
def test_a_batch_has_the_same_home_on_both_sides(batch_id: str, partitions: int) -> None:
    assert home_partition(batch_id, partitions) == topics.home_partition(batch_id, partitions)


def test_a_manifest_is_cut_into_messages_that_fit() -> None:
    ids_ = [f"{number:06d}-" + "\U0001f600" * 190 for number in range(3_000)] + [f"{n}" for n in range(25_000)]
    pieces = list(messages.manifest_pieces(ids_))
    assert [item_id for piece in pieces for item_id in piece] == ids_
    assert max(map(len, pieces)) <= events.MAX_MANIFEST_CHUNK
    for piece in pieces:
        taken(messages.items_expected("b", piece))
    assert list(messages.manifest_pieces([])) == [[]]
    with pytest.raises(InvalidMessageError, match="twice"):
        list(messages.manifest_pieces(["a", "b", "a"]))


def test_texts_are_cut_at_what_the_service_keeps_and_marked() -> None:
    try:
        raise ValueError("no\x00such \udcff thing" + "é" * 10_000)
    except ValueError as error:
        made = messages.error_of(error)
    assert made["code"] == "ValueError"
    assert made["message"].startswith("no\ufffdsuch \ufffd thing")
    assert made["message"].endswith(messages.CUT_MARK)
    assert len(made["message"].encode()) <= events.MAX_TEXT_BYTES
    assert len(made["stack_trace"].encode()) <= events.MAX_STACK_TRACE_BYTES
    assert made["stack_trace"].startswith("… [cut]")


@pytest.mark.parametrize("deadline", [NOW + timedelta(hours=1), timedelta(hours=1), 3600])
def test_a_deadline_is_a_time_or_how_long_from_now(deadline: messages.Deadline) -> None:
    assert messages.deadline_text(deadline, NOW) == "2026-11-24T01:00:00Z"
    with pytest.raises(InvalidMessageError, match="zone"):
        messages.deadline_text(NOW.replace(tzinfo=None), NOW)


def test_a_finalized_event_is_read_whole_and_what_is_new_is_kept() -> None:
    published = BatchFinalized(
        batch_id="b",
        revision=2,
        supersedes=1,
        outcome="completed_with_errors",
        finalized_by="all_items_in",
        item_counts=ItemCounts(total=8, succeeded=1, partial=2, failed=3, skipped=1, missing=2, unexpected=1),
        write_counts=WriteCounts(created=1, updated=2, unchanged=3),
        error_summary="3 of 8 failed",
        failed_item_ids=["x"],
        missing_item_ids=["y"],
        name="n",
        metadata={"k": [1]},
        retry_of="a",
        opened_at="2026-11-24T00:00:00.000Z",
        first_result_at=None,
        finalized_at="2026-11-24T00:00:01.000Z",
        duration_ms=1000,
        as_of=AsOf(topic="rollcall.events", partition=3, offset=9),
    ).model_dump()
    event = FinalizedEvent.of(json.dumps({**published, "newer": True}).encode(), {"ce_id": b"id-1"})
    assert event.status == event.outcome == "completed_with_errors"
    assert event.ce_id == "id-1"
    assert event.raw["newer"]
    for name, value in published.items():
        held = getattr(event, name)
        if name in ("item_counts", "write_counts"):
            assert {field: getattr(held, field) for field in held.__slots__} == value
        elif name.endswith("_at"):
            assert held == (None if value is None else datetime.fromisoformat(value))
        else:
            assert held == value
    for broken in (b"[]", b"{}", b"x", b'"a"', b"null"):
        with pytest.raises(ValueError):  # noqa: PT011 - its one kind of complaint
            FinalizedEvent.of(broken, {})
