"""Shows that the fault runs bite: plants one bug after the other in a copy of the tree and plays a round against it.

    python -m tests.faults.planted_bugs [--only NAME,...] [--seed N]

Each bug must be reported by its round, if not by the first then by one of the next few seeds. The exit code is 1 where
one got away. A bug is a replacement of lines; where these are no longer to be found exactly once, that is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.faults.checker import KINDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "handlers", "migrations", "rollcall", "schemas", "store", "streams", "tests")
RESULTS = 20_000
ATTEMPTS = 3


@dataclass(frozen=True)
class Bug:
    """Replacements by file, and the faults under which it must show."""

    name: str
    faults: str
    changes: tuple[tuple[str, str, str], ...]


BUGS = [
    Bug(
        "no compare-and-set",
        "stop-worker-with-records",
        (("store/positions.py", " AND p.next_offset = v.expected\n", "\n"),),
    ),
    Bug(
        "positions advanced before the transaction",
        "kill-worker",
        (
            (
                "streams/applying.py",
                "            async with transaction(connection):\n                applied = await apply(",
                "            from store.positions import compare_and_set as _ahead\n"
                "            batch = reading.micro_batch\n"
                "            await _ahead(connection, batch.topics.events, list(batch.advances.values()))\n"
                "            async with transaction(connection):\n"
                "                applied = await apply(",
            ),
            (
                "handlers/microbatch.py",
                "    await positions.compare_and_set("
                "connection, micro_batch.topics.events, list(micro_batch.advances.values()))\n",
                "",
            ),
        ),
    ),
    Bug(
        "no read-back",
        "failpoint-relay.commit.after",
        (("streams/relay.py", "                    await self._read_back(connection)\n", ""),),
    ),
    Bug(
        "read back what was never committed",
        "failpoint-relay.commit.before",
        (
            (
                "streams/relay.py",
                'enable_auto_commit=False, isolation_level="read_committed", auto_offset_reset="earliest"',
                'enable_auto_commit=False, isolation_level="read_uncommitted", auto_offset_reset="earliest"',
            ),
        ),
    ),
    Bug(
        "marking before Kafka's commit",
        "failpoint-relay.commit.before",
        (
            (
                "streams/relay.py",
                "            sent, refused = await self._send(producer, rows)\n",
                "            early = [Acknowledged(row, 0, 0, datetime.now(UTC)) for row in rows]\n"
                "            await self._channel.mark_published(connection, early)\n"
                "            sent, refused = await self._send(producer, rows)\n",
            ),
        ),
    ),
    Bug(
        "relay without transactional id",
        "kafka-late",
        (
            (
                "streams/relay.py",
                "            transactional_id=self._channel.topics.relay_transactional_id("
                "self._channel.name, database_name),\n"
                "            transaction_timeout_ms=int(self._transaction_timeout_s * 1000),\n",
                # Nor idempotent: by its sequence the broker would know what arrives late for what was sent again.
                "            enable_idempotence=False,\n",
            ),
            ("streams/relay.py", "            await producer.begin_transaction()\n", ""),
            ("streams/relay.py", "            await producer.commit_transaction()\n", ""),
        ),
    ),
    Bug(
        "counting duplicates",
        "none",
        (
            (
                "handlers/fold.py",
                "        batch.duplicates += 1\n        return unchanged\n    if batch.outcome is None:\n",
                "        batch.duplicates += 1\n        if batch.outcome is None:\n"
                "            count(batch, row, False, +1)\n"
                "        return unchanged\n    if batch.outcome is None:\n",
            ),
        ),
    ),
    Bug(
        "finalizing by count where there is a manifest",
        "none",
        (
            (
                "handlers/completion.py",
                "complete = batch.matched >= batch.expected",
                "complete = batch.answered >= batch.expected",
            ),
        ),
    ),
    Bug(
        "forwards not deduplicated",
        "failpoint-commit.before",
        (("streams/reading.py", "if source[1] <= taken.get(source[0], -1):", "if source[1] < 0:"),),
    ),
    Bug(
        "misplaced records forwarded behind the commit",
        "failpoint-commit.after",
        (
            (
                "streams/flushing.py",
                "                    await self._forward(reading)\n"
                "                    applied = await self._apply(reading)\n",
                "                    applied = await self._apply(reading)\n"
                "                    await self._forward(reading)\n",
            ),
        ),
    ),
    Bug(
        "late results counted",
        "none",
        (
            (
                "handlers/fold.py",
                "        batch.late += 1\n",
                "        batch.late += 1\n        count(batch, row, False, +1)\n",
            ),
        ),
    ),
    Bug(
        "some retry requests never sent",
        "none",
        (
            (
                "handlers/microbatch.py",
                "        for each in registers.retries\n",
                "        for each in registers.retries[:-1]\n",
            ),
        ),
    ),
    Bug(
        "reading on while a flush is held up",
        "postgres-away-a-minute",
        (
            (
                "streams/intake.py",
                "        return await self._flusher.submit(reading, epoch)\n",
                "        async def later(before=getattr(self, '_later', None), reading=reading):\n"
                "            if before is not None:\n"
                "                await before\n"
                "            await self._flusher.submit(reading, epoch)\n"
                "        self._later = asyncio.create_task(later())\n"
                "        return True\n",
            ),
        ),
    ),
    Bug(
        "dead letters outside the transaction",
        "failpoint-commit.after",
        (
            ("handlers/microbatch.py", "    await outbox.insert_dead_letters(connection, applied.dead_letters)\n", ""),
            (
                "streams/flushing.py",
                "        self._note_flushed(reading.micro_batch.advances.values())\n",
                "        self._note_flushed(reading.micro_batch.advances.values())\n"
                "        from store import outbox\n"
                "        await outbox.insert_dead_letters(await self._connected(), applied.dead_letters)\n",
            ),
        ),
    ),
]


class PlantingError(Exception):
    """A bug's lines are not in the tree exactly once: the tree has changed, the bug has to follow."""


def plant(bug: Bug, tree: Path) -> None:
    for file, old, new in bug.changes:
        path = tree / file
        text = path.read_text()
        if text.count(old) != 1:
            raise PlantingError(f"{bug.name}: found {text.count(old)} times in {file}: {old.strip()!r}")
        path.write_text(text.replace(old, new))


def copy_tree(tree: Path) -> None:
    for package in PACKAGES:
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))


def reported(bug: Bug, seed: int) -> str:
    """Play the round on a copy that has the bug; what was found, "" where nothing was."""
    with tempfile.TemporaryDirectory(prefix="rollcall-planted-") as directory:
        tree = Path(directory)
        copy_tree(tree)
        plant(bug, tree)
        command = (*("-m", "tests.faults", "--short", "--faults", bug.faults), *("--seed", str(seed)))
        ended = subprocess.run(
            [sys.executable, *command, "--results", str(RESULTS), "--patience", "30"],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
        )
    if ended.returncode == 0:
        return ""
    found = _found(ended.stdout)
    if not found:
        raise SystemExit(
            f"{bug.name}: the round broke, or was only stuck\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
        )
    return found


def _found(output: str) -> str:
    """What the checker has found, or how large a worker got.

    Being stuck is no report, nor is what is missing then: anything that crashes is so.
    """
    is_stuck = "stuck:" in output or "not recovered within" in output
    kinds = [kind for kind in KINDS if not (is_stuck and kind in ("lost", "never-finalized"))]
    found = [f"{n} {kind}" for kind in kinds for n in re.findall(rf"(\d+) {kind}\b", output)[:1] if n != "0"]
    return ", ".join([*found, *re.findall(r"a worker took \d+ MB", output)[:1]])


def main() -> int:
    arguments = argparse.ArgumentParser(prog="planted_bugs", description="Fault runs against planted bugs.")
    arguments.add_argument("--only", default="", help="names, with commas between")
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    only = set(given.only.split(",")) - {""}
    escaped = 0
    print(f"{'bug':<48} {'round':<30} seed  reported")
    for bug in BUGS:
        if only and bug.name not in only:
            continue
        for seed in range(given.seed, given.seed + ATTEMPTS):
            found = reported(bug, seed)
            print(f"{bug.name:<48} {bug.faults:<30} {seed:<5} {found or 'nothing'}", flush=True)
            if found:
                break
        else:
            escaped += 1
    print(f"{escaped} got away")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
