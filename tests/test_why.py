"""`rollcall batch why`: each reason for which a batch isn't done is found on real servers, and said."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from rollcall.settings import Settings
from schemas.topics import Topics, home_partition
from store import reads
from streams.observing import log_ranges
from streams.why import Why, why
from tests.harness.commands import rollcall
from tests.harness.events import Event, event, opened, result
from tests.harness.product import running
from tests.harness.topics import produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVERS_AWAY = "127.0.0.1:1"


async def asked(settings: Settings, batch_id: str, *, bootstrap: str | None = None) -> Why:
    seen = settings if bootstrap is None else settings.model_copy(update={"bootstrap_servers": bootstrap})
    engine = settings.database().engine("test")
    try:
        async with reads.snapshot(engine) as connection:
            kafka, topics = seen.kafka_connection(), Topics(settings.topic_prefix)
            return await why(connection, kafka, topics, batch_id, now=datetime.now(UTC), limit=2)
    finally:
        await engine.dispose()


async def sentences(settings: Settings, batch_id: str, **how: Any) -> dict[str, str]:
    return {finding.code: finding.text for finding in (await asked(settings, batch_id, **how)).findings}


async def test_every_reason_is_found_and_said(settings: Settings) -> None:
    topic, bootstrap = Topics(settings.topic_prefix).events, settings.bootstrap_servers
    wrong_partition = (home_partition("many", 12) + 5) % 12
    async with running(settings, workers=1) as product:
        await produce(
            bootstrap,
            topic,
            [
                opened("many", item_ids=["A-1", "A-2", "A-3", "A-4", "A-5"], deadline_at="2099-01-01T00:00:00Z"),
                result("many", "A-1", worker="w7"),
                result("many", "a-2"),
                Event(b"many", b"{broken"),
                event("many", item_id="A-3", status="odd"),
                result("many", "A-4", "retrying"),
                opened("by number", total_items=3, deadline_at="2001-01-01T00:00:00Z"),
                result("nobody opened this", "a"),
                opened("open-ended"),
                opened("done", total_items=1),
                opened("cut short", item_ids=["a", "b"]),
                result("cut short", "a"),
                event("cut short", type="batch.finalize_requested"),
                result("done", "a"),
                Event(b"only refused", b"{broken"),
            ],
        )
        await produce(bootstrap, topic, [result("many", "A-1", "failed", attempt=2)], partition=wrong_partition)
        await product.settled()

        many = await asked(settings, "many")
        said = {finding.code: finding.text for finding in many.findings}
        assert said["missing_items"] == "4 of 5 items have not answered: A-2, A-3 and 2 more"
        assert said["retrying"] == "1 item is being retried, which is no answer: A-4"
        assert "1 answered item is not on its manifest: a-2" in said["unexpected_items"]
        assert said["dead_letters"].startswith("2 records are refused: ")
        assert "invalid_event: status: Input should be" in said["dead_letters"]
        assert "invalid_json" in said["dead_letters"]
        assert f"1 record of it came to wrong partitions (partition {wrong_partition}: 1)" in said["misplaced"]
        assert "2099-01-01T00:00:00Z" in said["deadline"]
        assert "A-1 failed" in said["last_result"]
        assert not {"no_worker", "lag", "log_not_seen", "held_back", "misplaced_unread", "searched"} & said.keys()
        assert many.facts.log is not None
        assert many.facts.log.worker is not None
        assert many.facts.log.worker.startswith("rollcall-worker-0 at ")

        said = await sentences(settings, "by number")
        assert said["missing_items"] == "3 of 3 items have not answered; which, is not known: it has no manifest"
        assert "passed at 2001-01-01T00:00:00Z" in said["deadline_passed"]
        assert (await sentences(settings, "nobody opened this")).keys() == {"never_opened", "last_result"}
        assert (await sentences(settings, "open-ended")).keys() == {"not_sealed"}
        assert await sentences(settings, "done") == {"finalized": "it is done: completed (all_items_in), revision 1"}
        said = await sentences(settings, "cut short")
        assert said["never_answered"] == "1 of 2 items had not answered when it ended: b"
        assert (await sentences(settings, "only refused")).keys() == {"not_applied", "dead_letters"}

        shown = await rollcall(settings, "batch", "why", "many", "--limit", "1")
        assert shown.exit_code == 0
        assert "- 4 of 5 items have not answered: A-2 and 3 more\n" in shown.stdout
        unknown = await rollcall(settings, "batch", "why", "nobody", "--json")
        assert unknown.exit_code == 1
        answer = json.loads(unknown.stdout)
        assert answer["batch"] is None
        assert [finding["code"] for finding in answer["findings"]] == ["unknown"]


async def test_what_is_not_read_yet_is_counted_and_who_should_read_it(settings: Settings) -> None:
    topics, bootstrap = Topics(settings.topic_prefix), settings.bootstrap_servers
    home = home_partition("b", 12)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{settings.topic_prefix}held")
    async with running(settings, workers=1, relay=False) as product:
        await produce(bootstrap, topics.events, [opened("b", total_items=9), result("b", "i0"), result("c", "x")])
        await eventually(product._is_caught_up)
        await product.children["worker-0"].stop(15)
        await produce(bootstrap, topics.events, [result("b", "i1"), result("b", "i2"), result("new", "i")])
        await produce(bootstrap, topics.events, [result("b", "i3")], partition=(home + 1) % 12)

        async def nobody_reads() -> bool:
            return "no_worker" in await sentences(settings, "b")

        # As a static member it is given up only after its session.
        await eventually(nobody_reads, 60)
        said = await sentences(settings, "b")
        assert f"partition {home} is 2 offsets behind" in said["lag"]
        assert "2 of those records are of this batch" in said["lag"]
        assert (
            f"1 record of it lies unread on other partitions (partition {(home + 1) % 12}: 1)"
            in said["misplaced_unread"]
        )
        assert (await sentences(settings, "new")).keys() == {"not_applied", "no_worker", "lag"}
        away = await sentences(settings, "b", bootstrap=SERVERS_AWAY)
        assert away.keys() == {"missing_items", "log_not_seen", "last_result"}

        await producer.start()
        await producer.begin_transaction()
        await producer.send_and_wait(topics.events, b"{}", key=b"b", partition=home)
        await product.start_worker()
        stable = (await log_ranges(settings.kafka_connection(), topics.events, [home]))[home].stable

        async def held_back() -> bool:
            text = (await sentences(settings, "b")).get("held_back", "")
            return f"cannot be read beyond offset {stable}" in text

        await eventually(held_back, 60)
        await producer.abort_transaction()
        await producer.stop()
        await eventually(product._is_caught_up, 60)
        assert (await sentences(settings, "b")).keys() == {"missing_items", "misplaced", "last_result"}
