"""The finalized event is written without its model, for speed; it says the same in the same bytes."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.finalization import event_id, finalized_event
from schemas.published import BatchFinalized
from schemas.topics import Topics
from store.rows import Batch

TOPICS = Topics("t.")

counts = st.integers(0, 2**31 - 1)
# What can be stored and sent: no U+0000, no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
times = st.integers(0, 4 * 10**12).map(lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
objects = st.dictionaries(
    texts,
    st.recursive(st.none() | st.booleans() | numbers | texts, lambda inner: st.lists(inner, max_size=3)),
    max_size=4,
)

finalized = st.builds(
    Batch,
    batch_id=st.text('abcö-漢🙂"\\', min_size=1, max_size=20),
    partition=st.integers(0, 200),
    state=st.just("finalized"),
    outcome=st.sampled_from(["completed", "completed_with_errors", "failed", "cancelled", "expired"]),
    finalized_by=st.sampled_from(["all_items_in", "deadline", "cancelled", "aborted", "forced"]),
    revision=st.integers(1, 9),
    total_items=st.none() | counts,
    succeeded=counts,
    partial=counts,
    failed=counts,
    skipped=counts,
    created=counts,
    updated=counts,
    unchanged=counts,
    name=st.none() | texts,
    metadata=st.none() | objects.map(lambda found: json.dumps(found, ensure_ascii=False, separators=(",", ":"))),
    retry_of=st.none() | texts,
    opened_at=st.none() | times,
    first_result_at=st.none() | times,
    finalized_at=times,
    decided_offset=st.integers(0, 2**62),
)


@settings(max_examples=500, deadline=None, print_blob=True)
@given(batch=finalized, failed=st.lists(texts, max_size=3), missing=st.lists(texts, max_size=3))
def test_the_event_has_the_bytes_that_its_model_writes(batch: Batch, failed: list[str], missing: list[str]) -> None:
    row = finalized_event(batch, TOPICS, failed_item_ids=failed, missing_item_ids=missing, traceparent=None)
    said = BatchFinalized.model_validate_json(row.value)
    assert said.model_dump_json() == row.value
    assert (said.batch_id, said.revision, said.name, said.metadata) == (
        *(batch.batch_id, batch.revision, batch.name),
        None if batch.metadata is None else json.loads(batch.metadata),
    )
    assert (said.failed_item_ids, said.missing_item_ids) == (failed, missing)


def test_the_headers_are_cloud_events_in_text() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    batch = Batch("ö", 0, outcome="completed", finalized_by="forced", revision=2, finalized_at=moment, decided_offset=7)
    row = finalized_event(batch, TOPICS, failed_item_ids=(), missing_item_ids=(), traceparent="00-x")
    headers: dict[str, Any] = json.loads(row.headers)
    assert headers == {
        "ce_specversion": "1.0",
        "ce_id": event_id("ö", 2),
        "ce_type": "rollcall.batch.finalized.v1",
        "ce_source": "/t",
        "ce_time": "2026-01-02T03:04:05.678Z",
        "ce_subject": "ö",
        "content-type": "application/json",
        "traceparent": "00-x",
    }
