"""The bugs that show that tests bite: they can still be planted, and are bugs of what the code does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.faults import AT_ONE_FAILPOINT, FAULTS
from tests.faults.planted_bugs import BUGS, Bug, copy_tree, plant
from tests.fold_mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_finds_its_place_and_names_nothing_that_is_not_there(bug: Bug, tmp_path: Path) -> None:
    assert bug.faults in {fault.name for fault in (*FAULTS, *AT_ONE_FAILPOINT)}
    copy_tree(tmp_path)
    plant(bug, tmp_path)
    for file, _, _ in bug.changes:
        # Undefined names and broken syntax: a process that crashes at once would be reported for the wrong reason.
        check = (sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821,F823,E9")
        found = subprocess.run([*check, str(tmp_path / file)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_bug_of_the_fold_finds_its_place(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.before) == 1
