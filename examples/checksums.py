"""The demo's job on the client: check every file of installed Python distributions against its RECORD.

    ROLLCALL_BOOTSTRAP_SERVERS=localhost:9092 python examples/checksums.py pip rich

A distribution is a batch, a file is an item. Blocking work, so it runs in threads, some files at a time.
"""

import asyncio
import csv
import hashlib
import importlib.metadata
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rollcall_client.jobs import Job, JobResult, Unchanged, run


class ListedFile(NamedTuple):
    item_id: str
    path: Path
    algorithm: str
    digest: str


class WrongChecksumError(Exception):
    """The file is not the one that was installed."""


class Checksums(Job):
    name = "checksums"
    concurrency = 4
    chunk_size = 16

    def handle(self, file: ListedFile) -> Unchanged:
        with file.path.open("rb") as opened:
            raw = hashlib.file_digest(opened, file.algorithm).digest()
            size = opened.tell()
        found = urlsafe_b64encode(raw).rstrip(b"=").decode()
        if found != file.digest:
            raise WrongChecksumError(f"{file.item_id} has {found}, its RECORD says {file.digest}")
        return Unchanged(metrics={"bytes": size})

    def items(self, **params: str) -> list[ListedFile]:
        return list(listed_files(params["distribution"]))


def listed_files(distribution: str) -> Iterator[ListedFile]:
    installed = importlib.metadata.distribution(distribution)
    for name, digest, *_ in csv.reader((installed.read_text("RECORD") or "").splitlines()):
        algorithm, equals, expected = digest.partition("=")
        if equals:
            yield ListedFile(name, Path(str(installed.locate_file(name))), algorithm, expected)


async def main(distributions: list[str]) -> list[JobResult]:
    return [await run(Checksums, params={"distribution": each}) for each in distributions]


if __name__ == "__main__":
    for result in asyncio.run(main(sys.argv[1:])):
        print(result.batch_id, result.status, result.processed, "files", result.failed_item_ids)
