"""Writes docs/performance.md: what was measured, between two marks; what people wrote around them stays as it is."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import charts, cost, latency
from bench.results import (
    BARE,
    ENCODED,
    QUIX,
    ROLLCALL,
    ROWS,
    STREAMS,
    STREAMS_COMPACT,
    STREAMS_DEFAULTS,
    STREAMS_SECOND,
    Result,
    Results,
    spread,
)
from bench.workload import SHAPES

BEGIN = "<!-- measured: begin (written by `make bench-full`; what stands here is overwritten) -->"
END = "<!-- measured: end -->"
HEADLINE = SHAPES["100x10000"]
CHARTS = "performance"
PROCESSES = ("worker", "relay", "PostgreSQL", "Kafka")
BESIDE = (STREAMS, STREAMS_SECOND, STREAMS_COMPACT, STREAMS_DEFAULTS, QUIX, BARE, ROWS, ENCODED)


def write(docs: Path, results: Results) -> None:
    """Put the figures, and their charts, into the page. Raises ValueError where its marks are gone."""
    page = docs / "performance.md"
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must hold each of these lines once, for figures to go between: {BEGIN} and {END}")
    (docs / CHARTS).mkdir(exist_ok=True)
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    parts = [*_shapes(docs, results), *_latency(docs, results), *_cost(docs, results)]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")


def headlines(results: Results) -> list[str]:
    """``Kafka Streams exactly_once_v2, 100 x 10,000, 2 workers: 3.1x``"""
    return [
        f"{other}, {HEADLINE.title}, {workers} worker{'s' if workers > 1 else ''}: {ratio:.2g}x"
        for workers in (2, 1)
        for other in BESIDE
        if (ratio := results.ratio(HEADLINE.name, other, workers)) is not None
    ]


def _shapes(docs: Path, results: Results) -> Iterable[str]:
    measured = [each for each in results if each.part == "shapes"]
    if not measured:
        return
    yield "## Throughput"
    yield _taken(measured)
    yield "How many times as fast Rollcall is, medians of the same run:"
    yield "\n".join(["```text", *headlines(results), "```"])
    yield "Items/s: the median, and least and most where there was more than one round."
    rows = []
    for shape in SHAPES.values():
        for workers in (1, 2):
            ours = results.rates(shape.name, ROLLCALL, workers)
            if not ours:
                continue
            others = [results.rates(shape.name, other, workers) for other in (STREAMS, BARE, ENCODED)]
            ratios = [results.ratio(shape.name, other, workers) for other in (STREAMS, ENCODED)]
            cells = [spread(ours), *(spread(found) if found else "" for found in others)]
            rows.append([shape.title, str(workers), *cells, *(_times(ratio) for ratio in ratios)])
    heads = ["shape", "workers", "Rollcall", "Kafka Streams", "bare loop", "PostgreSQL alone"]
    yield _table([*heads, "Rollcall / Kafka Streams", "Rollcall / PostgreSQL"], rows)
    if unmeasured := [shape.title for shape in SHAPES.values() if results.ratio(shape.name, STREAMS, 2) is None]:
        yield f"Not measured beside Kafka Streams so far: {'; '.join(unmeasured)}."
    yield _bars(docs, results)
    rows = []
    for contender in (ROLLCALL, *BESIDE):
        for workers in (1, 2):
            if found := results.rates(HEADLINE.name, contender, workers):
                of = results.of("shapes", HEADLINE.name, contender, workers)
                rows.append([contender, str(workers), spread(found), _median(of, "peak_mib", "{:,.0f} MiB"), *_cpu(of)])
    yield f"All contenders on {HEADLINE.title}; CPU in microseconds an item:"
    yield _table(["contender", "workers", "items/s", "largest worker", *(f"CPU {name}" for name in PROCESSES)], rows)


def _bars(docs: Path, results: Results) -> str:
    groups, shown = [], (ROLLCALL, STREAMS, BARE, ENCODED)
    values: dict[str, list[float | None]] = {name: [] for name in shown}
    for shape in SHAPES.values():
        if not results.rates(shape.name, ROLLCALL, 2):
            continue
        groups.append(shape.title.replace(", every record on a wrong partition", ", misplaced"))
        for name in shown:
            found = results.rates(shape.name, name, 2)
            values[name].append(statistics.median(found) if found else None)
    if not groups:
        return ""
    return _chart(docs, "shapes", charts.bars("2 workers", "items/s", groups, values))


def _latency(docs: Path, results: Results) -> Iterable[str]:
    measured = [each for each in results if each.part == "latency"]
    if not measured:
        return
    yield "## From a batch's last result to its finalized event"
    yield _taken(measured)
    yield (
        "Milliseconds from handing the last result to the producer until a read_committed consumer has the event, "
        f"{latency.PROBES} batches one after the other a round, on an idle system and with {latency.LOAD:,} other "
        "results a second. Medians over rounds."
    )
    rows, groups = [], []
    values: dict[str, list[float | None]] = {name: [] for name in latency.CONTENDERS}
    for subject, rate in latency.SUBJECTS.items():
        for name in ("p50", "p95", "p99"):
            groups.append(f"{subject}, {name}")
            for contender in latency.CONTENDERS:
                found = [each for each in measured if (each.subject, each.contender) == (subject, contender)]
                values[contender].append(_middle(found, name) if found else None)
        for contender in latency.CONTENDERS:
            found = [each for each in measured if (each.subject, each.contender) == (subject, contender)]
            if found:
                what = f"{subject}, {rate:,} results/s" if rate else subject
                rows.append([what, contender, *(_median(found, name, "{:,.0f}") for name in ("p50", "p95", "p99"))])
    yield _table(["", "", "p50 ms", "p95 ms", "p99 ms"], rows)
    there = {name: found for name, found in values.items() if any(value is not None for value in found)}
    yield _chart(docs, "latency", charts.bars("Last result to finalized event", "ms", groups, there))


def _cost(docs: Path, results: Results) -> Iterable[str]:
    measured = [each for each in results if each.part == "cost"]
    if not measured:
        return
    yield "## What an item costs, and how that grows"
    yield _taken(measured)
    yield (
        "Rollcall with 2 workers; CPU in microseconds an item by process (all workers together, PostgreSQL with all "
        "its processes), the largest worker's peak memory, WAL and tables with their indexes in bytes an item. Below "
        f"{cost.SMALL:,} items everything from the first record on counts, what a process pays once included; above, "
        "the first tenth does not."
    )
    for by, title, axis in (
        ("items", "Items, in 100 batches", "items"),
        ("batches", f"Batches, {cost.BATCHES_ITEMS:,} items in all", "batches"),
    ):
        of = sorted((each for each in measured if each.subject == by), key=lambda each: each.at)
        if not of:
            continue
        rows = [[f"{each.at:,.0f}", f"{each.values['rate']:,.0f}", *_cpu([each]), *_sizes(each)] for each in of]
        heads = [axis, "items/s", *(f"CPU {name}" for name in PROCESSES), "largest worker", "WAL", "disk"]
        unmeasured = {float(shape.name) for shape in cost.shapes(by)} - {each.at for each in of}
        missing = ", ".join(f"{at:,.0f}" for at in sorted(unmeasured))
        yield f"{title}{f' (not measured so far: {missing})' if missing else ''}:"
        yield _table(heads, rows)
        cpu = {
            name: [(each.at, each.values[f"cpu_us {name}"]) for each in of if each.at >= cost.SMALL or by != "items"]
            for name in PROCESSES
        }
        memory = {"largest worker": [(each.at, each.values["peak_mib"]) for each in of]}
        bytes_ = {
            "WAL": [(each.at, each.values["wal_bytes"]) for each in of],
            "disk": [(each.at, each.values["disk_bytes"]) for each in of],
        }
        yield (
            _chart(docs, f"cpu-{by}", charts.lines("CPU time", "microseconds an item", axis, cpu))
            if cpu["worker"]
            else ""
        )
        yield _chart(docs, f"memory-{by}", charts.lines("Peak memory of a worker", "MiB", axis, memory))
        yield _chart(docs, f"bytes-{by}", charts.lines("WAL and disk", "bytes an item", axis, bytes_))
    rows_ = sorted((each.at, each.values["rate"]) for each in measured if each.subject == cost.TENTHS)
    if rows_:
        yield "Items/s while the table grows from empty:"
        chart = charts.lines("While the table grows", "items/s", "rows", {"items/s": rows_}, logarithmic=False)
        yield _chart(docs, "rows", chart)


def _sizes(each: Result) -> list[str]:
    return [
        f"{each.values['peak_mib']:,.0f} MiB",
        *(f"{each.values[name]:,.0f}" for name in ("wal_bytes", "disk_bytes")),
    ]


def _taken(measured: Sequence[Result]) -> str:
    """When, where and how."""
    days = sorted({each.taken.split()[0] for each in measured})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machines = "; ".join(sorted({each.machine for each in measured}))
    commands = ", ".join(f"`{command}`" for command in sorted({each.command for each in measured}))
    return f"{when}, {machines}, servers and contenders all on it; {commands}."


def _cpu(of: Sequence[Result]) -> list[str]:
    return [_median(of, f"cpu_us {name}", "{:.1f}") for name in PROCESSES]


def _median(of: Sequence[Result], name: str, form: str) -> str:
    return form.format(_middle(of, name)) if any(name in each.values for each in of) else ""


def _middle(of: Sequence[Result], name: str) -> float:
    return statistics.median(each.values[name] for each in of if name in each.values)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _chart(docs: Path, name: str, svg: str) -> str:
    (docs / CHARTS / f"{name}.svg").write_text(svg)
    title = svg.split("<title>")[1].split("</title>")[0]
    return f"![{title}]({CHARTS}/{name}.svg)"
