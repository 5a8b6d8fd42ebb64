"""The stream end to end: results in over Kafka, one finalized event out, on real servers and processes."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness.histories import History, make_history, mixed_sizes
from tests.harness.model import Model, fold
from tests.harness.product import running
from tests.harness.topics import Record, create_topic, drain, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


def folded(records: Iterable[Record]) -> Model:
    """What the model makes of the log as Kafka holds it, forwarded copies left out."""
    return fold((record.offset, record.timestamp, record.value) for record in records)


async def finalized_events(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    events: dict[str, list[dict[str, Any]]] = {}
    for record in await drain(settings.bootstrap_servers, Topics(settings.topic_prefix).finalized):
        assert record.key is not None
        events.setdefault(record.key.decode(), []).append(json.loads(record.value))
    return events


async def await_finalized(settings: Settings, batches: int, timeout_s: float = 120) -> dict[str, list[dict[str, Any]]]:
    async def all_out() -> dict[str, list[dict[str, Any]]] | None:
        events = await finalized_events(settings)
        assert len(events) >= batches, f"{len(events)} of {batches} batches finalized"
        return events

    return await eventually(all_out, timeout_s, interval_s=0.5)


def assert_as_the_model_says(model: Model, events: dict[str, list[dict[str, Any]]]) -> None:
    expected = model.all_finalized()
    assert events.keys() == expected.keys()
    assert {batch: len(found) for batch, found in events.items() if len(found) != 1} == {}
    contradictions = {batch: found for batch in expected if (found := expected[batch].contradictions(events[batch][0]))}
    assert contradictions == {}


async def test_each_batch_is_finalized_once_with_the_right_counts(settings: Settings) -> None:
    seed = 20261122
    history: History = make_history(seed, sizes=mixed_sizes(seed, batches=200, large=2))
    print(history)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=4)
    async with running(settings, workers=2):
        await produce(settings.bootstrap_servers, topics.events, history.messages)
        model = folded(await drain(settings.bootstrap_servers, topics.events))
        events = await await_finalized(settings, len(model.all_finalized()))
    assert_as_the_model_says(model, events)
    print(Counter(event[0]["outcome"] for event in events.values()))
