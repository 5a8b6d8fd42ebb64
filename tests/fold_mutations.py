"""Shows that the fold's tests bite: plants one bug after the other in a copy of the tree and runs them on it.

    python -m tests.fold_mutations [--only WORDS]

Each bug must be caught. The exit code is 1 where one got away. A bug is a replacement of lines; where these are no
longer to be found exactly once, that is an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import rollcall_native

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "docs", "handlers", "migrations", "rollcall", "schemas", "store", "streams", "tests")
# The quick ones first: the others run only where these catch nothing.
TESTS = (
    ("tests/test_fold.py", "tests/test_reopening.py", "tests/test_lifecycle.py", "tests/test_completion.py"),
    ("tests/test_fold_properties.py", "-k", "slices"),
    ("tests/test_state_machine.py",),
)


class Mutation(NamedTuple):
    """A bug one could make."""

    name: str
    file: str
    before: str
    after: str


MUTATIONS = (
    Mutation(
        "count duplicates",
        "handlers/fold.py",
        "        batch.duplicates += 1\n        return unchanged\n    if batch.outcome is None:",
        "        batch.duplicates += 1\n        count(batch, row, False, +1)\n        return unchanged\n"
        "    if batch.outcome is None:",
    ),
    Mutation(
        "forget the manifest",
        "handlers/completion.py",
        "complete = batch.matched >= batch.expected",
        "complete = batch.answered >= batch.expected",
    ),
    Mutation(
        "take whoever answers for expected",
        "handlers/fold.py",
        "    if isinstance(manifest, AllBut) and manifest.is_all:",
        "    if isinstance(manifest, AllBut):",
    ),
    Mutation(
        "let an attempt count that is overruled",
        "handlers/records.py",
        "return row.generation, row.attempt, row.status != RETRYING, row.version",
        "return row.generation, 1, row.status != RETRYING, row.version",
    ),
    Mutation(
        "let retrying overrule an answer",
        "handlers/records.py",
        "return row.generation, row.attempt, row.status != RETRYING, row.version",
        "return row.generation, row.attempt, True, row.version",
    ),
    Mutation(
        "compare attempts across generations",
        "handlers/lifecycle.py",
        "        RETRYING,\n        0,\n",
        "        RETRYING,\n        held.attempt,\n",
    ),
    Mutation(
        "take results of a new generation for old ones",
        "handlers/fold.py",
        "        row = row._replace(generation=held.generation)\n",
        "        pass\n",
    ),
    Mutation(
        "count what is late",
        "handlers/fold.py",
        "    return _late(batch, registers, row)\n",
        "    _take(batch, registers, held, row)\n    return Disposition.LATE\n",
    ),
    Mutation(
        "revise what was ended on purpose",
        "handlers/completion.py",
        '        and batch.finalized_by not in ("cancelled", "aborted")\n',
        "",
    ),
    Mutation(
        "expire by a deadline of an older generation",
        "handlers/lifecycle.py",
        '    if (record.body["deadline_at"], record.body["generation"]) != (batch.deadline_at, batch.generation):\n',
        '    if record.body["deadline_at"] != batch.deadline_at:\n',
    ),
    Mutation(
        "reopen whatever revision was meant",
        "handlers/lifecycle.py",
        '    if record.body.get("revision", batch.revision) != batch.revision:\n',
        "    if False:\n",
    ),
    Mutation(
        "keep counting an adopted result as late",
        "handlers/lifecycle.py",
        "        batch.late -= 1\n",
        "",
    ),
    Mutation(
        "unseal by a repeated opening",
        "handlers/lifecycle.py",
        "    batch.sealed = batch.sealed or sealed\n",
        "    batch.sealed = sealed\n",
    ),
    Mutation(
        "take a slice for fast that decides in its middle",
        "handlers/fold.py",
        "        left = batch.expected - batch.matched\n",
        "        left = batch.expected - batch.matched + 1\n",
    ),
    Mutation(
        "take a slice for fast that goes beyond the total",
        "handlers/fold.py",
        "        left = cast(int, batch.total_items) - batch.answered\n",
        "        left = 1_000 * (cast(int, batch.total_items) - batch.answered)\n",
    ),
    Mutation(
        "take a slice for fast that has records behind the one that decides",
        "handlers/fold.py",
        "    return sums.answers < left or (sums.answers == left and sums.last_answer is results[-1])\n",
        "    return sums.answers <= left\n",
    ),
    Mutation(
        "sum up results that displace an answer",
        "handlers/fold.py",
        "            if met.status != RETRYING:\n                return None\n",
        "",
    ),
    Mutation(
        "count an item as retrying that moved on",
        "handlers/fold.py",
        "    batch.retrying -= len(sums.moved)\n",
        "",
    ),
    Mutation(
        "forget the last answer where a retry comes behind it",
        "handlers/fold.py",
        "        marking.append(last_answer)\n",
        "        pass\n",
    ),
    Mutation(
        "exceed a tolerance by just reaching it",
        "handlers/completion.py",
        "batch.failed > tolerated.failure_count",
        "batch.failed >= tolerated.failure_count",
    ),
    Mutation(
        "raise the first failure of each slice",
        "handlers/counting.py",
        "        batch.failure_seen = True\n",
        "",
    ),
    Mutation(
        "finalize an unsealed batch",
        "handlers/completion.py",
        "    if not batch.sealed:\n        return None\n",
        "",
    ),
)


def caught_by(mutation: Mutation, tree: Path) -> str | None:
    """The tests that fail on the copy with this bug in it; None where none does."""
    path = tree / mutation.file
    text = path.read_text()
    if text.count(mutation.before) != 1:
        raise SystemExit(
            f"{mutation.name}: its lines are in {mutation.file} {text.count(mutation.before)} times, not once"
        )
    path.write_text(text.replace(mutation.before, mutation.after))
    try:
        for tests in TESTS:
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
            environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", rollcall_native.SWITCH: "1"}
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
            if done.returncode == 1:
                failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
                return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else tests[0]
            if done.returncode != 0:
                raise SystemExit(f"{mutation.name}: the tests did not run\n{done.stdout}{done.stderr}")
        return None
    finally:
        path.write_text(text)


def main() -> int:
    """Plant each bug; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only bugs whose name holds these words")
    only = parser.parse_args().only
    escaped = 0
    with tempfile.TemporaryDirectory(prefix="rollcall-mutations-") as directory:
        tree = Path(directory)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        for mutation in MUTATIONS:
            if only in mutation.name:
                test = caught_by(mutation, tree)
                escaped += test is None
                print(f"{'GOT AWAY' if test is None else 'caught':<9} {mutation.name}: {test or ''}", flush=True)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
