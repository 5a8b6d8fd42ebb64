"""The demo's job: what it checks, what it publishes, and that it leaves the environment as it is."""

import asyncio
import hashlib
import json
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError

from rollcall import demo_job
from rollcall.demo_job import (
    IDS_PER_MANIFEST,
    CheckJob,
    Distribution,
    ListedFile,
    check_file,
    installed_distributions,
    item_id_of,
    listed_files,
    opening_messages,
    with_tampered_copies,
)
from tests.harness.servers import Servers
from tests.harness.topics import create_topic, drain


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _file(path: Path, content: bytes) -> ListedFile:
    return ListedFile(path.name, path, "sha256", _digest(content))


def _distribution(directory: Path, name: str, count: int) -> Distribution:
    files = []
    for number in range(count):
        path = directory / f"{name}-{number}.py"
        path.write_bytes(f"{name} {number}".encode())
        files.append(_file(path, path.read_bytes()))
    return Distribution(f"demo-test-{name}-1.0", name, "1.0", tuple(files))


def test_a_file_as_its_record_says_succeeds_with_its_digest_and_size(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(b"x = 1\n")

    result = check_file(_file(path, b"x = 1\n"))

    assert result["type"] == "item.result"
    assert (result["item_id"], result["status"]) == ("module.py", "succeeded")
    assert result["output"] == {"sha256": _digest(b"x = 1\n"), "bytes": 6}
    assert result["duration_ms"] >= 0


def test_an_altered_file_fails_and_shows_both_digests(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(b"x = 2\n")

    result = check_file(_file(path, b"x = 1\n"))

    assert (result["status"], result["error"]["code"]) == ("failed", "altered")
    assert _digest(b"x = 1\n") in result["error"]["message"]
    assert _digest(b"x = 2\n") in result["error"]["message"]


def test_a_file_that_is_not_there_fails_as_missing(tmp_path: Path) -> None:
    result = check_file(_file(tmp_path / "gone.py", b""))

    assert (result["status"], result["error"]["code"]) == ("failed", "missing")


def test_a_path_that_cannot_be_read_fails_as_unreadable(tmp_path: Path) -> None:
    result = check_file(_file(tmp_path, b""))

    assert (result["status"], result["error"]["code"]) == ("failed", "unreadable")


def test_only_lines_with_a_known_checksum_are_items_and_each_path_once(tmp_path: Path) -> None:
    record = (
        "a.py,sha256=abc,1\n"
        '"b, with comma.py",sha256=def,2\n'
        "a.py,sha256=abc,1\n"
        "c.pyc,,\n"
        "d.py,nonsense=abc,1\n"
        "pkg-1.0.dist-info/RECORD,,\n"
    )

    files = list(listed_files(record, lambda path: tmp_path / path))

    assert [file.item_id for file in files] == ["a.py", "b, with comma.py"]
    assert files[1] == ListedFile("b, with comma.py", tmp_path / "b, with comma.py", "sha256", "def")


def test_a_path_longer_than_an_id_keeps_its_end_and_stays_distinct() -> None:
    ids = {item_id_of(f"{start}/{'d/' * 150}file.py") for start in ("one", "two")}

    assert len(ids) == 2
    assert all(len(each) == 200 and each.endswith("file.py") for each in ids)


def test_every_installed_distribution_is_a_batch_of_its_own() -> None:
    distributions = installed_distributions("run1")

    assert "demo-run1-pydantic-" in " ".join(each.batch_id for each in distributions)
    assert len({each.batch_id for each in distributions}) == len(distributions)
    for each in distributions:
        assert len({file.item_id for file in each.files}) == len(each.files)


def test_a_batch_opens_with_its_manifest(tmp_path: Path) -> None:
    distribution = _distribution(tmp_path, "small", 3)

    (opened,) = opening_messages(distribution, {"job": "verify"})

    assert opened["type"] == "batch.opened"
    assert opened["item_ids"] == ["small-0.py", "small-1.py", "small-2.py"]
    assert opened["metadata"] == {"job": "verify"}


def test_a_long_manifest_goes_out_in_chunks_and_is_sealed_after_the_last(tmp_path: Path) -> None:
    ids = [f"file-{number}" for number in range(2 * IDS_PER_MANIFEST + 1)]
    files = tuple(ListedFile(each, tmp_path / each, "sha256", "") for each in ids)

    messages = list(opening_messages(Distribution("demo-x", "x", "1", files), {}))

    assert [message["type"] for message in messages] == [
        "batch.opened",
        *["batch.items_expected"] * 3,
        "batch.sealed",
    ]
    assert messages[0]["sealed"] is False
    assert [each for chunk in messages[1:-1] for each in chunk["item_ids"]] == ids


def test_tampering_breaks_copies_only(tmp_path: Path) -> None:
    originals, copies = tmp_path / "installed", tmp_path / "copies"
    originals.mkdir()
    distributions = [_distribution(originals, f"dist{size}", size) for size in (0, 1, 2, 5, 7, 9, 11)]
    before = {path: path.read_bytes() for path in originals.iterdir()}

    tampered = with_tampered_copies(distributions, copies)

    assert {path: path.read_bytes() for path in originals.iterdir()} == before
    assert [each.batch_id for each in tampered] == [each.batch_id for each in distributions]
    codes = {
        each.name: sorted(
            result["error"]["code"] for result in map(check_file, each.files) if result["status"] == "failed"
        )
        for each in tampered
    }
    assert codes["dist2"] == ["altered", "missing"], "one small distribution is broken throughout"
    assert [name for name, failed in codes.items() if failed] == ["dist2", "dist7", "dist9", "dist11"]
    assert all(failed in ([], ["altered", "missing"]) for failed in codes.values())


async def test_the_job_publishes_every_file_once_behind_its_batch_on_one_partition(
    servers: Servers, topic_prefix: str, tmp_path: Path
) -> None:
    topic = f"{topic_prefix}events"
    await create_topic(servers.bootstrap_servers, topic, partitions=4)
    distributions = [_distribution(tmp_path, f"dist{size}", size) for size in (0, 1, 3, 200)]
    tampered = with_tampered_copies(distributions, tmp_path / "copies")
    job = CheckJob(tampered, run="test", threads=2)

    await job.publish(servers.bootstrap_servers, topic)

    records = await drain(servers.bootstrap_servers, topic)
    for distribution in distributions:
        key = distribution.batch_id.encode()
        ours = [record for record in records if record.key == key]
        messages = [json.loads(record.value or b"") for record in ours]
        assert len({record.partition for record in ours}) == 1
        assert messages[0]["type"] == "batch.opened"
        assert [each["item_id"] for each in messages[1:]] == [file.item_id for file in distribution.files]
        failed = sum(each["status"] == "failed" for each in messages[1:])
        progress = job.progress[distribution.batch_id]
        assert (progress.published, len(progress.failures)) == (len(distribution.files), failed)
        assert progress.last_acknowledged_at is not None
    assert len(records) == sum(1 + len(each.files) for each in distributions)
    assert sum(len(each.failures) for each in job.progress.values()) == 3 + 2


class SilentProducer:
    """A producer of aiokafka's whose broker does not answer one thing."""

    unanswered = ""

    def __init__(self, **_: Any) -> None:
        pass

    async def start(self) -> None:
        await self._answer("start")

    async def send(self, *_: Any, **__: Any) -> "asyncio.Future[None]":
        await self._answer("send")
        acknowledged = asyncio.get_running_loop().create_future()
        if self.unanswered != "acknowledgement":
            acknowledged.set_result(None)
        return acknowledged

    async def stop(self) -> None:
        await self._answer("stop")

    async def _answer(self, to: str) -> None:
        if self.unanswered == to:
            await asyncio.Event().wait()


@pytest.mark.parametrize("unanswered", ["start", "send", "acknowledgement", "stop"])
async def test_a_broker_that_answers_nothing_ends_the_job_with_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unanswered: str
) -> None:
    monkeypatch.setattr(demo_job, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(demo_job, "STOP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(SilentProducer, "unanswered", unanswered)
    monkeypatch.setattr(demo_job, "AIOKafkaProducer", SilentProducer)
    job = CheckJob([_distribution(tmp_path, "dist", 1)], run="test", threads=1)
    publishing = asyncio.create_task(job.publish("-", "events"))

    await asyncio.wait_for(asyncio.wait({publishing}), 10)

    error = publishing.exception()
    if unanswered == "stop":
        assert error is None, "everything was acknowledged"
    else:
        [cause] = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        assert isinstance(cause, KafkaTimeoutError)
        assert "within 0.2 s" in str(cause)
