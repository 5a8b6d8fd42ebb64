"""A real job for the demo: check every file of the installed Python distributions against their RECORDs.

Each distribution is a batch and each file that its RECORD lists with a checksum is an item. The job is an
ordinary upstream service: of Rollcall it knows the topic and the messages it publishes there, nothing else.
"""

import asyncio
import csv
import hashlib
import importlib.metadata
import json
import re
import shutil
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError

FILES_PER_TURN = 64  # hashed by a thread at a time: a few milliseconds of work against the cost of a hand-over
IDS_PER_MANIFEST = 2_000  # 200 characters each at most, so one message stays below Kafka's usual 1 MiB
DISTRIBUTIONS_AT_A_TIME = 4
LONGEST_ITEM_ID = 200
ANSWER_TIMEOUT_S = 30.0  # an idempotent producer by itself waits, and sends again, for ever
STOP_TIMEOUT_S = 4.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file with the checksum its RECORD gives for it; ``path`` is where to look for it."""

    item_id: str
    path: Path
    algorithm: str
    digest: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """One installed distribution: a batch of files to check."""

    batch_id: str
    name: str
    version: str
    files: tuple[ListedFile, ...]


@dataclass(slots=True)
class BatchProgress:
    """How far the job is with one batch. Instants are ``time.perf_counter()`` seconds."""

    distribution: Distribution
    published: int = 0
    failures: dict[str, str] = field(default_factory=dict)  # item id -> why
    last_acknowledged_at: float | None = None


# What is installed


def installed_distributions(run: str) -> list[Distribution]:
    """Every installed distribution that has a RECORD, by name; ``run`` makes their batch ids unique.

    RECORD is parsed here because ``Distribution.files`` leaves out missing files from Python 3.12 on, and
    those are what this job is there to find.
    """
    found: dict[str, Distribution] = {}
    for installed in importlib.metadata.distributions():
        record = installed.read_text("RECORD")
        name = installed.metadata["Name"]
        if record is None or name is None:
            continue
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:  # shadowed by an earlier entry of sys.path: not the one that is imported
            continue
        version = installed.version
        found[key] = Distribution(
            batch_id=f"demo-{run}-{key}-{version}",
            name=name,
            version=version,
            files=tuple(listed_files(record, installed.locate_file)),
        )
    return [found[key] for key in sorted(found)]


def listed_files(record: str, locate: Callable[[str], Any]) -> Iterator[ListedFile]:
    """The lines of a RECORD that carry a checksum, each path once."""
    seen: set[str] = set()
    for row in csv.reader(record.splitlines()):
        if len(row) < 2 or "=" not in row[1] or row[0] in seen:
            continue
        algorithm, _, digest = row[1].partition("=")
        if algorithm not in hashlib.algorithms_available:
            continue
        seen.add(row[0])
        yield ListedFile(item_id_of(row[0]), Path(str(locate(row[0]))), algorithm, digest)


def item_id_of(path: str) -> str:
    """The path itself, or its end behind a checksum where it is longer than an id may be."""
    if len(path) <= LONGEST_ITEM_ID:
        return path
    prefix = hashlib.sha256(path.encode()).hexdigest()[:16]
    return f"{prefix}…{path[-(LONGEST_ITEM_ID - 17) :]}"


# Checking one file


def check_file(file: ListedFile) -> dict[str, Any]:
    """Hash one file on disk; its ``item.result`` without the batch id: succeeded, or failed and why."""
    started = time.perf_counter()
    outcome = _verdict(file)
    return {
        "type": "item.result",
        "item_id": file.item_id,
        **outcome,
        "duration_ms": round((time.perf_counter() - started) * 1000, 3),
        "worker": threading.current_thread().name,
        "occurred_at": datetime.now(UTC).isoformat(),
    }


def _verdict(file: ListedFile) -> dict[str, Any]:
    try:
        with file.path.open("rb") as opened:
            raw = hashlib.file_digest(opened, file.algorithm).digest()
            size = opened.tell()
    except FileNotFoundError:
        return _failure("missing", f"{file.item_id} is listed in RECORD and is not on disk")
    except OSError as error:
        return _failure("unreadable", f"{file.item_id} cannot be read: {error.strerror or error}")
    digest = urlsafe_b64encode(raw).rstrip(b"=").decode()
    output = {file.algorithm: digest, "bytes": size}
    if digest != file.digest:
        message = f"{file.item_id} is not what was installed: {file.algorithm} {digest}, RECORD has {file.digest}"
        return {**_failure("altered", message), "output": output}
    return {"status": "succeeded", "output": output}


def _failure(code: str, message: str) -> dict[str, Any]:
    return {"status": "failed", "error": {"code": code, "message": message}}


# Publishing


def opening_messages(distribution: Distribution, attributes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What opens a batch: its manifest, so that unanswered files are known by name; a long one in chunks."""
    ids = [file.item_id for file in distribution.files]
    opened = {
        "type": "batch.opened",
        "name": f"{distribution.name} {distribution.version}",
        "metadata": dict(attributes),
    }
    if len(ids) <= IDS_PER_MANIFEST:
        yield {**opened, "item_ids": ids}
        return
    yield {**opened, "sealed": False}
    for chunk in _chunks(ids, IDS_PER_MANIFEST):
        yield {"type": "batch.items_expected", "item_ids": chunk}
    yield {"type": "batch.sealed"}


class CheckJob:
    """Checks distributions and publishes what it finds; ``progress`` tells at any time how far it is."""

    def __init__(self, distributions: Sequence[Distribution], *, run: str, threads: int) -> None:
        self.progress = {each.batch_id: BatchProgress(each) for each in distributions}
        self._attributes = {"job": "verify-installed-files", "run": run}
        self._threads = threads

    async def publish(self, bootstrap_servers: str, topic: str) -> None:
        """Run the job once. Raises ``aiokafka.errors.KafkaError`` when a message was not acknowledged (in time)."""
        producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            client_id="demo-job",
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
        )
        try:
            async with _answered("the producer's start"):
                await producer.start()
            with ThreadPoolExecutor(self._threads, thread_name_prefix="checker") as pool:
                waiting = iter(self.progress.values())
                async with asyncio.TaskGroup() as lanes:
                    for _ in range(DISTRIBUTIONS_AT_A_TIME):
                        lanes.create_task(self._lane(waiting, producer, topic, pool))
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await producer.stop()

    async def _lane(
        self,
        waiting: Iterator[BatchProgress],
        producer: AIOKafkaProducer,
        topic: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        for batch in waiting:
            await self._run_batch(batch, producer, topic, pool)

    async def _run_batch(
        self, batch: BatchProgress, producer: AIOKafkaProducer, topic: str, pool: ThreadPoolExecutor
    ) -> None:
        loop = asyncio.get_running_loop()
        distribution = batch.distribution
        acknowledgements: list[asyncio.Future[Any]] = []

        async def send(message: dict[str, Any]) -> None:
            value = json.dumps({"batch_id": distribution.batch_id, **message}).encode()
            async with _answered("a message"):
                acknowledgements.append(await producer.send(topic, value, key=distribution.batch_id.encode()))

        for message in opening_messages(distribution, self._attributes):
            await send(message)
        for files in _chunks(distribution.files, FILES_PER_TURN):
            for result in await loop.run_in_executor(pool, _check_files, files):
                await send(result)
                batch.published += 1
                if result["status"] == "failed":
                    batch.failures[result["item_id"]] = result["error"]["message"]
        async with _answered(f"the messages of {distribution.name}"):
            await asyncio.gather(*acknowledgements)
        batch.last_acknowledged_at = time.perf_counter()


@asynccontextmanager
async def _answered(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            yield
    except TimeoutError:
        raise KafkaTimeoutError(f"no answer to {what} within {ANSWER_TIMEOUT_S:g} s") from None


def _check_files(files: Sequence[ListedFile]) -> list[dict[str, Any]]:
    return [check_file(file) for file in files]


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# Failures to look at


def with_tampered_copies(distributions: Sequence[Distribution], directory: Path) -> list[Distribution]:
    """Break a copy of a few files under ``directory`` and make the job look there for them.

    Three distributions lose one file and have another altered, one small distribution is broken throughout.
    What is installed is only read.
    """
    by_count = sorted((each for each in distributions if len(each.files) >= 2), key=lambda each: len(each.files))
    wrecked, dented = by_count[:1], by_count[len(by_count) // 2 :][:3]
    replaced: dict[str, Distribution] = {}
    for each in dented:
        by_size = sorted(each.files, key=lambda file: (_size(file.path), file.item_id))
        replaced[each.batch_id] = _tampered(each, by_size[len(by_size) // 2 - 1 :][:2], directory)
    for each in wrecked:
        replaced[each.batch_id] = _tampered(each, each.files, directory)
    return [replaced.get(each.batch_id, each) for each in distributions]


def _tampered(distribution: Distribution, chosen: Sequence[ListedFile], directory: Path) -> Distribution:
    copies: dict[str, Path] = {}
    for number, file in enumerate(chosen):
        copy = directory / distribution.batch_id / f"{number}-{file.path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copies[file.item_id] = copy
        if number % 2 == 0 and file.path.is_file():  # altered; every other one is simply not there
            shutil.copyfile(file.path, copy)
            with copy.open("ab") as opened:
                opened.write(b"# tampered with\n")
    files = (replace(file, path=copies.get(file.item_id, file.path)) for file in distribution.files)
    return replace(distribution, files=tuple(files))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
