"""All contenders of the benchmark do the same job: what each counts is held against what was sent."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka.admin import NewTopic

from bench import quix_peer, streams_peer
from bench.contest import Contest, Entry
from bench.finalized import Finalized
from bench.results import BARE, ENCODED, QUIX, ROLLCALL, STREAMS
from bench.running import bed
from bench.workload import SHAPES
from rollcall.settings import Settings
from streams.kafka import started


@pytest.mark.long
@pytest.mark.skipif(shutil.which("mvn") is None or shutil.which("java") is None, reason="needs Java and Maven")
@pytest.mark.parametrize("name", ["duplicates", "manifests", "misplaced"])
async def test_peers_count_what_was_sent(name: str) -> None:
    shape = replace(SHAPES[name], batches=50, items=800)
    classpath, python = await streams_peer.build(), await quix_peer.install()
    async with bed() as here:
        contest = Contest(here, shape, classpath, python)
        await contest.fill()
        contenders = [ROLLCALL, STREAMS, ENCODED]
        if name != "misplaced":
            contenders.append(QUIX)
        if name != "duplicates":
            contenders.append(BARE)
        for contender in contenders:
            assert (await contest.run(Entry(contender, 2)))["rate"] > 0
        await contest.close()


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        ([(1, 100, 98, 2)], None),
        ([(1, 100, 97, 3)], "b1 was counted as .*97"),
        ([(1, 100, 98, 2), (1, 100, 98, 2)], "2 finalized events for 1 batches"),
    ],
)
async def test_a_contender_that_counts_otherwise_fails_the_run(
    settings: Settings, events: list[tuple[int, int, int, int]], wrong: str | None
) -> None:
    kafka, topic = settings.kafka_connection(), f"{settings.topic_prefix}finalized"
    async with started(kafka.admin()) as admin:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    async with started(kafka.producer()) as producer:
        for batch, total, succeeded, failed in events:
            counts = {"total": total, "succeeded": succeeded, "failed": failed}
            await producer.send_and_wait(topic, json.dumps({"item_counts": counts}).encode(), f"b{batch}".encode())
    async with Finalized(kafka, topic) as finalized:
        if wrong is None:
            await finalized.expect(1, 100)
        else:
            with pytest.raises(RuntimeError, match=wrong):
                await finalized.expect(1, 100)


async def test_without_java_the_peer_says_why_it_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(streams_peer.PeerMissingError, match="left out: java is not installed"):
        await streams_peer.build()
