"""`make bench`: one shape, Rollcall beside Kafka Streams and what bounds it, all in one run of about two minutes.

Figures are items/s; medians with least and most. `--check` compares the ratios with those recorded and fails where one
has slipped to less than half.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from bench import product, streams_peer
from bench.contest import Contest, entries, play, warm_up
from bench.results import BARE, ENCODED, ROLLCALL, STREAMS, Result, Results, machine, spread
from bench.running import bed
from bench.running import say as say
from bench.running import servers as servers
from bench.running import spawn as spawn
from bench.workload import MESSAGE_BYTES, Shape
from rollcall.settings import Settings

RECORDED = Path(__file__).parent / "recorded_ratios.json"
SLIPPED = 0.5
COMPARED = (STREAMS, ENCODED, BARE)


async def main() -> int:
    arguments = argparse.ArgumentParser(prog="make bench", description=__doc__)
    arguments.add_argument("--batches", type=int, default=100)
    arguments.add_argument("--items", type=int, default=10_000, help="items per batch")
    arguments.add_argument("--workers", type=int, nargs="+", default=[2])
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--check", action="store_true", help="fail where a ratio is less than half the recorded one")
    arguments.add_argument("--record", action="store_true", help="record the ratios that --check compares with")
    options = arguments.parse_args()
    shape = Shape(
        f"{options.batches}x{options.items}", f"{options.batches} x {options.items:,}", options.batches, options.items
    )
    results, contenders = Results(), [ROLLCALL, STREAMS, BARE, ENCODED]
    say(f"{shape.title} results of {MESSAGE_BYTES} bytes on {machine()}")
    try:
        classpath: str | None = await streams_peer.build()
    except streams_peer.PeerMissingError as missing:
        say(str(missing))
        classpath = None
        contenders.remove(STREAMS)
    async with bed() as here:
        await warm_up(here, classpath)
        contest = Contest(here, shape, classpath)
        await contest.fill()
        who = list(entries(shape, options.workers, contenders))
        await play(contest, shape, who, options.rounds, results, lambda result: say(line(result)))
    ratios = {}
    for workers in options.workers:
        print(f"\n{f'{shape.title}, {workers} worker(s)':<50} items/s: median (least to most)")
        for contender in contenders:
            print(f"  {contender:<48} {spread(results.rates(shape.name, contender, workers))}")
        for other in COMPARED:
            if (ratio := results.ratio(shape.name, other, workers)) is not None:
                print(f"{other}, {shape.title}, {workers} worker{'s' if workers > 1 else ''}: {ratio:.2f}x")
                ratios[f"{other}, {workers}"] = round(ratio, 2)
    if options.record:
        RECORDED.write_text(json.dumps(ratios, indent=2) + "\n")
    return check(ratios) if options.check else 0


def check(ratios: dict[str, float]) -> int:
    """1 where a ratio is less than half of the recorded one, else 0."""
    slipped = False
    for name, recorded in json.loads(RECORDED.read_text()).items():
        found = ratios.get(name)
        if found is None:
            print(f"not checked: {name} (not measured)")
        elif found < recorded * SLIPPED:
            print(f"Rollcall / {name} slipped from {recorded:.2f} to {found:.2f}: find out which commit did that")
            slipped = True
    return int(slipped)


def line(result: Result) -> str:
    values = result.values
    text = f"{f'{result.contender}, {result.workers}':<40}{values['rate']:>10,.0f} items/s"
    cpu = {name.removeprefix("cpu_us "): value for name, value in values.items() if name.startswith("cpu_us ")}
    if cpu:
        text += "   CPU us/item: " + ", ".join(f"{name} {value:.1f}" for name, value in cpu.items())
        text += f"; {values['peak_mib']:.0f} MiB"
    return text


async def run_pipeline(settings: Settings, records: int, batches: int, workers: int) -> tuple[float, int]:
    """Items/s of Rollcall on a full topic, and a worker's peak memory in KiB: for the other benchmarks."""
    measured = await product.run(settings, items=records - batches, progress=records, batches=batches, workers=workers)
    return measured.rate, round(measured.peak_mib * 1024)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
