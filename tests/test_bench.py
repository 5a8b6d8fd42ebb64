"""The benchmark's own promises: what it sends, what it keeps, when it fails, and that it leaves people's text alone."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import __main__ as short
from bench import charts, report
from bench.results import BARE, ENCODED, ROLLCALL, STREAMS, Result, Results
from bench.workload import SHAPES, Shape, records


def small(name: str) -> Shape:
    return replace(SHAPES[name], batches=4, items=50, window=2 if SHAPES[name].window else None)


@pytest.mark.parametrize("name", SHAPES)
def test_every_item_of_a_shape_gets_its_answer_and_the_last_record_of_a_batch_is_one(name: str) -> None:
    answered: dict[str, set[str]] = {}
    last: dict[str, str] = {}
    for batch, value in records(small(name)):
        event = json.loads(value)
        last[batch] = event["type"]
        if event["type"] == "item.result" and event["status"] != "retrying":
            answered.setdefault(batch, set()).add(event["item_id"])
    assert {batch: len(items) for batch, items in answered.items()} == {f"bench-batch-{n:05d}": 50 for n in range(4)}
    assert set(last.values()) == {"item.result"}


def test_a_shape_is_the_same_in_every_run() -> None:
    assert list(records(small("duplicates"))) == list(records(small("duplicates")))


def test_a_third_of_the_results_are_doubled_and_a_tenth_are_tried_twice() -> None:
    sent = Counter(value for _, value in records(replace(SHAPES["duplicates"], batches=10, items=1_000)))
    results = [json.loads(value) for value in sent if json.loads(value)["type"] == "item.result"]
    terminal = [event for event in results if event["status"] != "retrying"]
    assert len(terminal) == 10_000
    assert sum(count == 2 for count in sent.values()) == pytest.approx(3_000, rel=0.1)
    assert sum(event.get("attempt") == 2 for event in terminal) == pytest.approx(1_000, rel=0.15)


def test_results_are_kept_and_a_second_run_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results = Results(file)
    results.add(taken(ROLLCALL, 300_000.0))
    results.add(taken(STREAMS, 100_000.0))
    again = Results(file)
    assert taken(ROLLCALL, 0.0).key in again
    assert again.ratio("100x10000", STREAMS, 2) == pytest.approx(3.0)
    again.forget("shapes", ["100x10000"], [1])
    assert again.ratio("100x10000", STREAMS, 2) == pytest.approx(3.0)
    again.forget("shapes", ["100x10000"], [1, 2])
    assert again.ratio("100x10000", STREAMS, 2) is None


def test_a_ratio_that_slips_to_less_than_half_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps({f"{STREAMS}, 2": 2.0, f"{BARE}, 2": 0.8}))
    monkeypatch.setattr(short, "RECORDED", recorded)
    assert short.check({f"{STREAMS}, 2": 1.01, f"{BARE}, 2": 0.41}) == 0
    assert short.check({f"{STREAMS}, 2": 0.99, f"{BARE}, 2": 0.41}) == 1
    assert f"Rollcall / {STREAMS}, 2 slipped from 2.00 to 0.99" in capsys.readouterr().out
    assert short.check({f"{BARE}, 2": 0.41}) == 0
    assert f"not checked: {STREAMS}, 2 (not measured)" in capsys.readouterr().out


def test_what_is_checked_is_what_is_measured() -> None:
    assert {name.rsplit(", ", 1)[0] for name in json.loads(short.RECORDED.read_text())} == {STREAMS, BARE, ENCODED}


def test_the_report_keeps_what_people_wrote_and_draws_charts(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(
        f"# Performance\n\nBy hand, above.\n\n{report.BEGIN}\nold figures\n{report.END}\n\nBy hand, below.\n"
    )
    results = Results()
    for contender, rate in ((ROLLCALL, 310_000.0), (STREAMS, 100_000.0)):
        for number in (1, 2, 3):
            results.add(taken(contender, rate + number, number))
    latency = {"p50": 20.0, "p95": 30.0, "p99": 40.0}
    results.add(Result("latency", "idle", ROLLCALL, 2, 1, latency))
    cost = {"rate": 9e4, "peak_mib": 99.0, "wal_bytes": 300.0, "disk_bytes": 280.0, "cpu_us worker": 7.0}
    cost |= {"cpu_us relay": 0.1, "cpu_us PostgreSQL": 4.0, "cpu_us Kafka": 1.0}
    for items in (1e6, 1e7):
        results.add(Result("cost", "items", ROLLCALL, 2, 1, cost, at=items))
    report.write(tmp_path, results)
    first = page.read_text()
    report.write(tmp_path, results)
    text = page.read_text()
    assert text == first
    assert text.startswith("# Performance\n\nBy hand, above.\n")
    assert text.endswith("\n\nBy hand, below.\n")
    assert "old figures" not in text
    assert "\nKafka Streams exactly_once_v2, 100 x 10,000, 2 workers: 3.1x\n" in text
    assert "310,002 (310,001 to 310,003)" in text
    shown = {part.split(")")[0] for part in text.split("](")[1:]}
    assert shown == {f"performance/{path.name}" for path in (tmp_path / "performance").glob("*.svg")}
    for chart in shown:
        ElementTree.fromstring((tmp_path / chart).read_text())


def test_a_page_without_its_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("# Performance\n")
    with pytest.raises(ValueError, match="must hold each of these lines once"):
        report.write(tmp_path, Results())


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (12.34, "12.3"), (128_400, "128.4k"), (2e6, "2M")])
def test_figures_in_charts_are_short(value: float, text: str) -> None:
    assert charts.short(value) == text


def taken(contender: str, rate: float, number: int = 1) -> Result:
    return Result("shapes", "100x10000", contender, 2, number, {"rate": rate})
