"""The demo from end to end, and what it shows of what it reads back."""

import asyncio
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from rich.console import Console

from rollcall.demo_job import BatchProgress, Distribution, installed_distributions
from rollcall.demo_report import FinalizedEvents, Line, Seen, lines, print_table, total_line
from streams import kafka
from tests.harness.servers import Servers
from tests.harness.topics import create_topic
from tests.harness.waiting import eventually


async def test_the_demo_finalizes_every_distribution_and_names_what_was_tampered_with(tmp_path: Path) -> None:
    expected = installed_distributions("any")
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "rollcall", "demo", "--tamper"),
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("ROLLCALL_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        stdout, stderr = (each.decode() for each in await asyncio.wait_for(demo.communicate(), 150))
    finally:
        if demo.returncode is None:
            demo.terminate()
            await demo.wait()

    assert demo.returncode == 0, stderr
    (total,) = re.findall(r"^([\d,]+) files in ([\d,]+) batches: (.+?);", stdout, re.MULTILINE)
    assert int(total[0].replace(",", "")) == sum(len(each.files) for each in expected)
    assert int(total[1].replace(",", "")) == len(expected)
    outcomes = {outcome: int(count) for count, outcome in re.findall(r"(\d+) (\w+)", total[2])}
    assert outcomes["failed"] == 1, "the distribution broken throughout"
    assert outcomes["completed_with_errors"] >= 3
    for each in expected:
        assert f"{each.name} {each.version}" in stdout
    assert len(re.findall(r"^failed: ", stdout, re.MULTILINE)) >= 3 * 2 + 2


async def test_the_reader_sees_committed_events_only_and_notices_a_repeated_one(
    servers: Servers, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}finalized"
    await create_topic(servers.bootstrap_servers, topic, partitions=1)
    events = FinalizedEvents(["a", "b"])
    producer = AIOKafkaProducer(bootstrap_servers=servers.bootstrap_servers, transactional_id=f"{topic_prefix}test")
    await producer.start()
    reading = asyncio.create_task(events.read(servers.bootstrap_servers, topic))

    async def publish(*batch_ids: str) -> None:
        for batch_id in batch_ids:
            await producer.send(topic, json.dumps({"batch_id": batch_id}).encode(), key=batch_id.encode())

    try:
        await producer.begin_transaction()
        await publish("b")
        await producer.abort_transaction()
        async with producer.transaction():
            await publish("a", "a", "somebody-elses")
        await eventually(lambda: events.seen.keys() == {"a"} and events.repeated == ["a"])
        async with producer.transaction():
            await publish("b")
        await asyncio.wait_for(reading, 30)
    finally:
        reading.cancel()
        await producer.stop()

    assert events.complete
    assert events.repeated == ["a"]


async def test_a_broker_that_answers_nothing_ends_the_reading_with_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka, "START_TIMEOUT_S", 0.5)
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as silent:
        host, port = silent.sockets[0].getsockname()
        with pytest.raises(KafkaConnectionError, match=r"no answer in 0\.5 s"):
            await asyncio.wait_for(FinalizedEvents(["a"]).read(f"{host}:{port}", "finalized"), 10)


def _event(outcome: str, total: int, failed: list[str]) -> dict[str, Any]:
    return {"outcome": outcome, "item_counts": {"total": total, "failed": len(failed)}, "failed_item_ids": failed}


def test_a_line_takes_its_counts_from_the_event_and_its_time_from_the_last_acknowledgement() -> None:
    progress = {
        name: BatchProgress(Distribution(name, name, "1.0", ()), failures=failures, last_acknowledged_at=10.0)
        for name, failures in (("late", {"x.py": "x.py is not there", "y.py": "not in the event"}), ("early", {}))
    }
    seen = {
        "late": Seen(_event("completed_with_errors", 3, ["x.py"]), received_at=10.25),
        "early": Seen(_event("completed", 0, []), received_at=9.999),
    }

    late, early = lines(progress, seen)

    assert late == Line("late 1.0", 3, 1, ["x.py is not there"], "completed_with_errors", 0.25)
    assert early.wait_s == 0, "the event may be here before the acknowledgement was looked at"


def test_the_table_shows_each_batch_and_the_total_line_adds_them_up() -> None:
    batches = [
        Line("rich 1.0", 1200, 1, ["rich/[red].py is not there"], "completed_with_errors", 0.04),
        Line("typer 2.0", 2, 0, [], "completed", 0.02),
    ]
    shown = io.StringIO()

    print_table(Console(file=shown, width=100), batches)

    assert re.search(r"rich 1\.0\W+1,200\W+1\W+completed_with_errors\W+40 ms", shown.getvalue())
    assert "failed: rich 1.0: rich/[red].py is not there\n" in shown.getvalue()
    assert total_line(batches, 12.34) == (
        "1,202 files in 2 batches: 1 completed, 1 completed_with_errors; "
        "from last result to event 30 ms (median), 40 ms (longest); 12.3 s in all"
    )
