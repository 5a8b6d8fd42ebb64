"""`rollcall publish`: lines of JSON onto a real stream, checked before anything of a file is sent."""

import asyncio
import json
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from rollcall.settings import Settings
from schemas.topics import MAX_EVENT_BYTES, Topics, home_partition
from streams.ndjson import Line, Lines
from streams.topics import ensure_topics
from tests.harness.commands import Done, argv, environment, rollcall
from tests.harness.topics import drain

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPENED = {"type": "batch.opened", "batch_id": "é-1", "item_ids": ["a", "b"]}
GOOD = {"batch_id": "é-1", "item_id": "a", "status": "succeeded"}
OTHER = {"batch_id": "other", "item_id": "a", "status": "succeeded"}
NO_STATUS = {"batch_id": "other", "item_id": "b"}
NOWHERE = Settings(bootstrap_servers="127.0.0.1:1", database_url="postgresql+asyncpg://nobody@127.0.0.1:1/db")


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)


@pytest.fixture
async def topics(settings: Settings) -> Topics:
    topics = Topics(settings.topic_prefix)
    await ensure_topics(settings.kafka_connection(), topics)
    return topics


async def piped(settings: Settings, text: bytes, *arguments: str) -> Done:
    process = await asyncio.create_subprocess_exec(
        *argv("publish", "-", *arguments), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(settings)
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(text), 60)
    assert process.returncode is not None
    return Done(process.returncode, stdout.decode(), stderr.decode())


async def test_a_files_events_go_to_their_batches_homes_byte_for_byte(
    settings: Settings, topics: Topics, tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"\xef\xbb\xbf" + lines(OPENED, GOOD).replace(b"\n", b"\r\n\n") + json.dumps(OTHER).encode())
    done = await rollcall(settings, "publish", str(file), "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"good": 3, "bad": 0, "published": 3, "problems": []})
    assert f"published 3 events to {topics.events}" in done.stderr
    found = await drain(settings.bootstrap_servers, topics.events)
    assert {(each.key.decode(), each.partition) for each in found} == {
        (batch_id, home_partition(batch_id, 12)) for batch_id in ("é-1", "other")
    }
    of_first = [each.value for each in found if each.key == "é-1".encode()]
    assert of_first == lines(OPENED, GOOD).splitlines()


async def test_of_a_file_with_a_bad_line_nothing_is_published_unless_asked(
    settings: Settings, topics: Topics, tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines(OPENED) + lines(NO_STATUS) + b"nonsense\n" + lines(GOOD))
    refused = await rollcall(settings, "publish", str(file))
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "line 2: invalid_event: status: Field required\n" in refused.stderr
    assert "line 3: invalid_json: not JSON" in refused.stderr
    assert "2 of 4 lines are bad: nothing was published" in refused.stderr
    assert await drain(settings.bootstrap_servers, topics.events) == []

    skipping = await rollcall(settings, "publish", str(file), "--skip-bad", "--json")
    outcome = json.loads(skipping.stdout)
    assert skipping.exit_code == 1
    assert (outcome["good"], outcome["bad"], outcome["published"]) == (2, 2, 2)
    assert [each["line"] for each in outcome["problems"]] == [2, 3]
    found = await drain(settings.bootstrap_servers, topics.events)
    assert [each.value for each in found] == lines(OPENED, GOOD).splitlines()


async def test_a_stream_is_published_as_it_comes_and_stops_at_a_bad_line(settings: Settings, topics: Topics) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv("publish", "-"), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(settings)
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(lines(OPENED, GOOD))
    async with asyncio.timeout(60):
        # Before the end of the stream what came is out already.
        while not (found := await drain(settings.bootstrap_servers, topics.events)):
            assert process.returncode is None
        process.stdin.write(lines(NO_STATUS, OTHER))
        said = (await process.stderr.read()).decode()
        assert await process.wait() == 1
    assert len(found) == 2
    assert "line 3: invalid_event: status: Field required" in said
    assert "published 2 events" in said
    assert len(await drain(settings.bootstrap_servers, topics.events)) == 2


async def test_check_needs_no_servers_and_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines(OPENED, GOOD))
    assert (await rollcall(NOWHERE, "publish", str(file), "--check")).exit_code == 0
    process = await asyncio.create_subprocess_exec(
        *argv("publish", "-", "--check", "--json"),
        stdin=PIPE,
        stdout=PIPE,
        env={name: value for name, value in environment(NOWHERE).items() if not name.startswith("ROLLCALL_")},
    )
    stdout, _ = await asyncio.wait_for(process.communicate(lines({**GOOD, "error": {"code": 3}})), 60)
    assert process.returncode == 1
    [problem] = json.loads(stdout)["problems"]
    assert problem == {
        "line": 1,
        "reason": "invalid_event",
        "message": "error.code: Input should be a valid string",
    }


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("publish", "/nowhere/at-all"), 2, "there is no file"),
        (("publish", "."), 2, "is a directory"),
        (("publish",), 2, "Missing argument"),
        (("publish", "{file}"), 1, "ROLLCALL_DATABASE_URL) cannot be reached"),
    ],
)
async def test_what_cannot_be_published_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], exit_code: int, said: str
) -> None:
    (tmp_path / "file").write_bytes(lines(GOOD))
    done = await rollcall(NOWHERE, *(each.format(file=tmp_path / "file") for each in arguments))
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_topic_that_is_not_there_is_said_and_not_made(settings: Settings) -> None:
    done = await piped(settings, lines(GOOD))
    assert done.exit_code == 1
    assert f"there is no topic {settings.topic_prefix}events" in done.stderr


async def test_lines_are_cut_in_bounded_memory_wherever_chunks_end() -> None:
    text = b"\xef\xbb\xbfa\r\n\n  \nbb\nccc"
    wanted = [Line(1, b"a"), Line(4, b"bb"), Line(5, b"ccc")]
    for size in range(1, len(text) + 1):
        cut = Lines()
        found = [line for at in range(0, len(text), size) for line in cut.feed(text[at : at + size])]
        assert [*found, *cut.end()] == wanted, f"chunks of {size}"


async def test_a_line_longer_than_a_record_is_refused_by_its_number_and_not_kept() -> None:
    cut = Lines()
    found = [*cut.feed(b"first\n")]
    for _ in range(4):
        found += cut.feed(b"x" * MAX_EVENT_BYTES)
        assert len(cut._rest) <= MAX_EVENT_BYTES
    found += [*cut.feed(b"x\nlast"), *cut.end()]
    assert found == [Line(1, b"first"), Line(2, None), Line(3, b"last")]
