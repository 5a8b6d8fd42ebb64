"""What a run of fault rounds keeps, so that one of many hours can be played in parts."""

import json
from pathlib import Path

from tests.faults.faults import FAULTS
from tests.faults.playing import STOPPING, Result
from tests.faults.runner import Record


def test_a_run_taken_up_again_lacks_only_what_was_not_played_and_says_on_which_code(tmp_path: Path) -> None:
    file = tmp_path / "rounds.jsonl"
    begun = Record(file)
    begun.seed = 7
    begun.add(Result(FAULTS[0].name, 1, 2.5, [], "said"))
    begun.add(Result(STOPPING, 0, None, ["verify: a difference"], "said"))
    assert [json.loads(line)["run"] for line in file.read_text().splitlines()] == [7, 7]

    taken_up = Record(file)

    assert (taken_up.seed, taken_up.results, taken_up.wrong) == (7, begun.results, 1)
    assert not taken_up.lacks((FAULTS[0], 1))
    assert taken_up.lacks((FAULTS[0], 2))
    assert taken_up.lacks((FAULTS[1], 1))
    assert list(taken_up.codes.values()) == [1], "stopping is no round"


def test_a_round_that_went_wrong_is_played_again_on_other_code_and_counts_as_it_went_there(tmp_path: Path) -> None:
    file = tmp_path / "rounds.jsonl"
    begun = Record(file)
    wrong, right = Result(FAULTS[0].name, 1, None, ["stuck"], "said"), Result(FAULTS[0].name, 1, 2.5, [], "said")
    begun.add(wrong)
    begun.add(right)
    assert (begun.wrong, begun.lacks((FAULTS[0], 1))) == (1, False), "on the same code it was luck"
    file.write_text(file.read_text().replace(f'"code": "{begun._code}"', '"code": "before"'))
    taken_up = Record(file)
    assert (taken_up.wrong, taken_up.lacks((FAULTS[0], 1))) == (1, True)
    taken_up.add(right)
    assert (taken_up.wrong, taken_up.lacks((FAULTS[0], 1)), taken_up.replaced) == (0, False, 1)
