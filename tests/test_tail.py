"""`rollcall tail ...` as its users meet it: events of real workers and a real relay, line by line."""

import asyncio
import json
import shlex
import signal
from asyncio.subprocess import PIPE, Process
from typing import NamedTuple

import pytest

from rollcall.settings import Settings
from rollcall.tail import print_all
from schemas.topics import Topics
from streams.kafka import started
from tests.harness.commands import argv, environment, rollcall, start
from tests.harness.product import running
from tests.harness.topics import add_partitions, create_topic, drain, end_offsets, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def opened(batch_id: str, total: int = 0) -> Record:
    event = {"type": "batch.opened", "batch_id": batch_id, "total_items": total}
    return Record(batch_id.encode(), json.dumps(event).encode())


async def following(settings: Settings, *arguments: str) -> Process:
    process = await start(settings, "tail", *arguments)
    assert process.stderr is not None
    said = await asyncio.wait_for(process.stderr.readline(), 60)
    assert said.startswith(b"following "), said + await process.stderr.read()
    return process


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode()


async def interrupt(process: Process, signum: signal.Signals = signal.SIGINT) -> None:
    """It ends at once: exit code 0, nothing more said."""
    process.send_signal(signum)
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, stdout, stderr) == (0, b"", b"")


async def test_each_event_is_a_line_as_it_comes_until_interrupted(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    async with running(settings):
        await produce(settings.bootstrap_servers, topics.events, [opened("before")])
        await eventually(lambda: drain(settings.bootstrap_servers, topics.finalized), message="the first event is out")
        for_people = await following(settings, "finalized")
        for_programs = await following(settings, "finalized", "--json")
        broken = await following(settings, "dead-letters")
        broken_for_programs = await following(settings, "dead-letters", "--json")
        result = {"type": "item.result", "batch_id": "bätch", "item_id": "a", "status": "failed"}
        records = [opened("bätch", 1), Record("bätch".encode(), json.dumps(result).encode()), Record(b"k\x1b", b"\xff")]
        await produce(settings.bootstrap_servers, topics.events, records)

        assert (await line_of(for_people)).endswith("Z  bätch  failed  1 item: 0 succeeded, 1 failed\n")
        assert f"{topics.events}/" in (letter := await line_of(broken))
        assert r"  invalid_json  key k\x1b  " in letter
        letter_object = json.loads(await line_of(broken_for_programs))
        assert (letter_object["key"], letter_object["value"], letter_object["value_base64"]) == ("k\x1b", None, "/w==")
        published = [record.value.decode() for record in await drain(settings.bootstrap_servers, topics.finalized)]
        assert (line := (await line_of(for_programs)).rstrip("\n")) in published
        assert json.loads(line)["batch_id"] == "bätch"
        await interrupt(for_people)
        await interrupt(for_programs, signal.SIGTERM)
        await interrupt(broken)
        await interrupt(broken_for_programs)

        all_of_them = await following(settings, "finalized", "--from-beginning")
        assert {(await line_of(all_of_them)).split()[2] for _ in range(2)} == {"before", "bätch"}
        await interrupt(all_of_them)


async def test_a_reader_that_leaves_ends_it_without_another_event(settings: Settings) -> None:
    topic = Topics(settings.topic_prefix).finalized
    counts = dict.fromkeys(("total", "succeeded", "partial", "failed", "skipped", "missing", "unexpected"), 0)
    event = {"batch_id": "b", "revision": 1, "outcome": "completed", "finalized_at": "-", "item_counts": counts}
    await create_topic(settings.bootstrap_servers, topic)
    await produce(settings.bootstrap_servers, topic, [Record(b"b", json.dumps(event).encode())])
    command = shlex.join(argv("tail", "finalized", "--from-beginning"))
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"set -o pipefail; {command} | head -1"), stdout=PIPE, stderr=PIPE, env=environment(settings)
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert stdout == b"-  b  completed  0 items: 0 succeeded\n"
    assert stderr.decode() == f"following {topic} from its beginning; Ctrl+C ends\n"


@pytest.mark.parametrize(("options", "taken"), [([], b""), (["--json"], b'{"item_counts": {}}')])
async def test_what_is_no_event_is_passed_over_with_a_remark(
    settings: Settings, options: list[str], taken: bytes
) -> None:
    topic = Topics(settings.topic_prefix).finalized
    await create_topic(settings.bootstrap_servers, topic)
    process = await following(settings, "finalized", *options)
    strangers = [Record(b"b", None), Record(b"b", b"\xff"), Record(b"b", b'{"item_counts": {}}'), Record(b"b", b"[")]
    await produce(settings.bootstrap_servers, topic, strangers)
    if taken:
        assert await line_of(process) == taken.decode() + "\n"
    assert process.stderr is not None
    for offset in (1, 3) if taken else (1, 2, 3):
        said = await asyncio.wait_for(process.stderr.readline(), 60)
        assert said.decode() == f"not an event of Rollcall's: {topic}, partition 0, offset {offset}\n"
    await interrupt(process)


async def test_a_topic_that_is_not_there_is_one_line_and_stays_away(settings: Settings) -> None:
    topic = Topics(settings.topic_prefix).finalized
    done = await rollcall(settings, "tail", "finalized")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"rollcall: there is no topic {topic} ")
    assert done.stderr.count("\n") == 1
    with pytest.raises(AssertionError, match="there is no topic"):
        await end_offsets(settings.bootstrap_servers, topic)


async def test_kafka_out_of_reach_is_one_line_that_names_it() -> None:
    unreachable = Settings(bootstrap_servers="127.0.0.1:1", database_url="postgresql+asyncpg://-")
    done = await rollcall(unreachable, "tail", "finalized")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("rollcall: Kafka at 127.0.0.1:1 (ROLLCALL_BOOTSTRAP_SERVERS) cannot be reached")
    assert done.stderr.endswith(": connection refused\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("policy", "begun"), [("latest", []), ("earliest", [b"long before"])])
async def test_partitions_that_are_added_are_followed_too_and_nothing_comes_twice(
    settings: Settings, policy: str, begun: list[bytes]
) -> None:
    topic, kafka = Topics(settings.topic_prefix).finalized, settings.bootstrap_servers
    await create_topic(kafka, topic)
    await produce(kafka, topic, [Record(b"k", b"long before")], partition=0)
    lines: list[bytes] = []
    consumer = settings.kafka_connection().consumer(
        topic, isolation_level="read_committed", auto_offset_reset=policy, enable_auto_commit=False
    )
    async with started(consumer):
        positions = {each: await consumer.position(each) for each in consumer.assignment()}
        following = asyncio.create_task(print_all(consumer, positions, lambda each: each.value.decode(), lines.append))
        await produce(kafka, topic, [Record(b"k", b"before")], partition=0)
        await eventually(lambda: lines == [*begun, b"before"])
        await add_partitions(kafka, topic, 2)
        await produce(kafka, topic, [Record(b"k", b"new")], partition=1)
        assert len(consumer.assignment()) == 1, "by itself it learns of it every five minutes only"
        await consumer._client.force_metadata_update()
        await eventually(lambda: lines == [*begun, b"before", b"new"])
        await produce(kafka, topic, [Record(b"k", b"more")], partition=0)
        await eventually(lambda: lines == [*begun, b"before", b"new", b"more"])
        following.cancel()
        await asyncio.wait([following], timeout=30)
