"""Plays rounds: results flow, a fault hits, the dust settles, the checker judges.

python -m tests.faults [--short] [--faults NAME,...] [--rounds N] [--results N] [--seed N] [--budget SECONDS]
    [--resume FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from tests.faults.faults import AT_ONE_FAILPOINT, FAULTS
from tests.faults.playing import STOPPING, Player, Result
from tests.faults.postgres import unmount_all
from tests.faults.round import Fault
from tests.faults.stage import stage

PATIENCE_S = 120.0
"""After which what has not recovered, or settled, is stuck."""
SHORT_RESULTS = 40_000
SHORT_BUDGET_S = 270.0
FEWEST_SHORT = 8
PLAYED = "docs/fault-rounds.jsonl"
RESULTS = 200_000

Planned = tuple[Fault, int]


class Record:
    """The results of a run, kept as lines of JSON where a file is given; a run that was stopped goes on behind them.

    Each names the code it was played on: a run that takes days may well have met more than one. A round that went wrong
    on other code is played again, and then counts as it went there; on the same code it stays wrong, however often it
    is played: its seed does not decide all.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._code = _code()
        self._rounds: dict[tuple[str, int], list[tuple[str, Result]]] = {}
        self._stops: list[tuple[str, Result]] = []
        self.seed = 0
        if file is not None and file.exists():
            for line in map(json.loads, file.read_text().splitlines()):
                self.seed = line.pop("run")
                self._take(line.pop("code", "unknown"), Result(**line))

    def add(self, result: Result) -> None:
        self._take(self._code, result)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps({"run": self.seed, "code": self._code, **asdict(result)}) + "\n")

    def _take(self, code: str, result: Result) -> None:
        if result.fault == STOPPING:
            self._stops.append((code, result))
        else:
            self._rounds.setdefault((result.fault, result.seed), []).append((code, result))

    def lacks(self, planned: Planned) -> bool:
        """Whether this round has not been played, or went wrong on other code."""
        played = self._rounds.get((planned[0].name, planned[1]), [])
        return not played or (played[-1][0] != self._code and any(result.problems for _, result in _newest(played)))

    @property
    def _counted(self) -> list[tuple[str, Result]]:
        return [each for played in self._rounds.values() for each in _newest(played)]

    @property
    def results(self) -> list[Result]:
        """What counts: of a round played on several codes the last, and stops on those that count."""
        codes = self.codes
        return [result for _, result in self._counted] + [result for code, result in self._stops if code in codes]

    @property
    def codes(self) -> Counter[str]:
        """How many rounds that count were played on which."""
        return Counter(code for code, _ in self._counted)

    @property
    def replaced(self) -> int:
        """How many rounds went wrong, and do not count since they were played on other code."""
        played = [each for rounds in self._rounds.values() for each in rounds]
        return sum(bool(result.problems) for _, result in played) - sum(
            bool(result.problems) for _, result in self._counted
        )

    @property
    def wrong(self) -> int:
        return sum(bool(result.problems) for result in self.results)


def _newest(played: Sequence[tuple[str, Result]]) -> list[tuple[str, Result]]:
    """Those of a round that were played on the code that it was played on last."""
    return [each for each in played if each[0] == played[-1][0]]


def chosen(names: str, seed: int, *, short: bool) -> list[Fault]:
    """The faults of these names or groups; in short one of each group first, those that share processes together."""
    wanted = set(names.split(",")) - {""}
    found = FAULTS
    if wanted:
        found = [fault for fault in (*FAULTS, *AT_ONE_FAILPOINT) if fault.name in wanted or fault.group in wanted]
    if unknown := wanted - {fault.name for fault in found} - {fault.group for fault in found}:
        known = ", ".join(fault.name for fault in (*FAULTS, *AT_ONE_FAILPOINT))
        raise SystemExit(f"faults: no such fault: {', '.join(sorted(unknown))}; there are {known}")
    if not short or wanted:
        return sorted(found, key=_kind)
    found = [fault for fault in found if not fault.only_long]
    random = Random(seed)
    random.shuffle(found)
    # A budget that is spent early must not always leave out the same kinds.
    kinds = list(dict.fromkeys(map(_kind, found)))
    first = list({fault.group: fault for fault in found}.values())
    others = (fault for fault in found if fault not in first)
    return [fault for part in (first, others) for fault in sorted(part, key=lambda fault: kinds.index(_kind(fault)))]


def _code() -> str:
    """The commit that is checked out, with a plus where the tree differs from it, but in what was played."""
    asked = ("git", "describe", "--always", "--abbrev=7", "--exclude=*")
    changed = ("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", f":!/{PLAYED}")
    try:
        said, differs = [
            subprocess.run(each, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
            for each in (asked, changed)
        ]
    except FileNotFoundError:
        return "unknown"
    return said + ("+" if differs else "") if said else "unknown"


def _kind(fault: Fault) -> tuple[bool, bool, bool, bool]:
    return fault.proxied, fault.separate, fault.clustered, fault.own


def _plan(faults: Sequence[Fault], rounds: int, seed: int, replay: int) -> Iterator[Planned]:
    if replay:
        yield from ((fault, replay) for fault in faults)
        return
    for number in range(rounds):
        for fault in faults:
            yield fault, Random(f"{seed} {fault.name} {number}").randrange(1, 10**9)


async def run(plan: Sequence[Planned], record: Record, player: Player, *, budget_s: float, fewest: int) -> None:
    """Play these rounds, as far as the budget (seconds) goes but at least so many, and print each."""
    deadline = time.monotonic() + budget_s
    longest = 0.0
    for number, (fault, seed) in enumerate(plan):
        if number >= fewest and time.monotonic() + longest > deadline:
            print(f"the budget of {budget_s:g} s is spent; not played from here on: {fault.name}")
            break
        if not player.goes_on_with(fault):
            await _stop(player, record)
        try:
            result = await player.play(fault, seed)
        except asyncio.CancelledError:
            if player.short:  # whoever ends it has waited too long
                _show_logs(player.stage.directory, Result(fault.name, seed, None, ["stopped"], ""))
            raise
        longest = max(longest, result.took_s)
        _note(player, record, result)
    await _stop(player, record)


async def _stop(player: Player, record: Record) -> None:
    stopped = await player.stop()
    if stopped is not None:
        _note(player, record, stopped)


def _note(player: Player, record: Record, result: Result) -> None:
    record.add(result)
    print(f"{result.line()}, took {result.took_s:.0f} s", *result.problems[:15], sep="\n    ", flush=True)
    if result.problems:
        _show_logs(player.stage.directory, result)


def _show_logs(directory: Path, result: Result) -> None:
    """The last lines of the processes of the round that went wrong; all are kept, the directory may be thrown away."""
    logs = sorted(directory.glob("*.log"), key=lambda path: path.stat().st_mtime)
    for line in logs[-1].read_text(errors="replace").splitlines()[-25:] if logs else ():
        print(f"    | {line}", flush=True)
    kept = Path(tempfile.mkdtemp(prefix=f"wrong-{result.fault.strip('()')}-{result.seed}-"))
    for file in (*logs, *directory.glob("*.sent")):
        shutil.copy(file, kept)
    print(f"    logs and what was sent: {kept}", flush=True)


def _summary(record: Record) -> None:
    played = record.results
    print(f"\n{'fault':<26} rounds  wrong  recovery, s: median  longest")
    for name in sorted({result.fault for result in played}):
        of_it = [result for result in played if result.fault == name]
        times = sorted(result.recovery_s for result in of_it if result.recovery_s is not None)
        wrong = sum(bool(result.problems) for result in of_it)
        shown = f"{statistics.median(times):19.1f} {times[-1]:8.1f}" if times else f"{'-':>19} {'-':>8}"
        print(f"{name:<26} {len(of_it):6} {wrong:6}  {shown}")
    for result in played:
        if result.problems:
            print(f"WRONG {result.fault}, seed {result.seed}:", *result.problems[:15], sep="\n    ")
    codes = ", ".join(f"{count} on {code}" for code, count in record.codes.items())
    again = f", {record.replaced} more that went wrong on other code and were played again" if record.replaced else ""
    print(f"{record.codes.total()} rounds ({codes}), {record.wrong} wrong{again}")


async def _run(given: argparse.Namespace, plan: Sequence[Planned], record: Record) -> None:
    with tempfile.TemporaryDirectory(prefix="rollcall-faults-", ignore_cleanup_errors=True) as throw_away:
        directory = given.keep or Path(throw_away)
        try:
            async with stage(directory) as servers:
                player = Player(
                    servers,
                    short=given.short,
                    keep=given.keep is not None,
                    patience_s=given.patience,
                    results=given.results or (SHORT_RESULTS if given.short else RESULTS),
                )
                budget_s = given.budget or (SHORT_BUDGET_S if given.short else 1e9)
                # On a machine that is busy they take twice as long.
                fewest = FEWEST_SHORT if given.short and not given.budget else 0
                await run(plan, record, player, budget_s=budget_s, fewest=fewest)
        finally:
            unmount_all(directory)


def main() -> int:
    arguments = argparse.ArgumentParser(prog="faults", description="Faults against Rollcall, judged by a checker.")
    arguments.add_argument("--faults", default="", help="names or groups, with commas between (default: all)")
    arguments.add_argument("--rounds", type=int, default=0, help="of each fault (default: 5, in short 1)")
    arguments.add_argument("--results", type=int, default=0, help="item results a round (default: 200000)")
    arguments.add_argument("--seed", type=int, default=0, help="default: by the clock")
    arguments.add_argument("--replay", type=int, default=0, help="the seed of the one round to play again")
    arguments.add_argument(
        "--resume", type=Path, help="keep results in this file; go on where it ends, if there is one"
    )
    arguments.add_argument("--short", action="store_true", help="few results, one round of as many as the budget lets")
    arguments.add_argument("--budget", type=float, default=0, help="seconds after which no round begins")
    arguments.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds until a round is stuck")
    arguments.add_argument("--keep", type=Path, help="keep servers' data and logs in this directory")
    given = arguments.parse_args()
    # It calls an error each broker that is away; who asks meanwhile asks again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    record = Record(given.resume)
    record.seed = record.seed or given.seed or int(time.time())
    faults = chosen(given.faults, record.seed, short=given.short)
    plan = list(_plan(faults, given.rounds or (1 if given.short else 5), record.seed, given.replay))
    left = [planned for planned in plan if record.lacks(planned)]
    print(f"seed {record.seed}, {len(left)} of {len(plan)} rounds: {', '.join(f.name for f in faults)}", flush=True)
    try:
        asyncio.run(_run(given, left, record))
    except KeyboardInterrupt:
        print("stopped")
    _summary(record)
    if given.short and not given.faults and record.codes.total() < FEWEST_SHORT:
        print(f"fewer than {FEWEST_SHORT} rounds say nothing")
        return 1
    return 1 if record.wrong else 0
