"""How the answers of `rollcall batch` look to people."""

from __future__ import annotations

import json
import sys
from shlex import quote
from typing import Any

from rollcall.rendering import (
    ColumnStyle,
    at,
    lasted,
    note,
    print_fields,
    print_line,
    print_table,
    progress_bar,
    showable,
)
from store.diagnosis import Summary
from store.reads import BatchStatus, ItemResult, Page
from streams.why import Why


def show_batch(batch: BatchStatus) -> None:
    """One batch, a field a line."""
    answered = f"{batch.answered:,} answered"
    of_total = f", {batch.total:,} expected" if batch.total is not None else ", total not known yet"
    items = {"succeeded": batch.succeeded, "partial": batch.partial, "failed": batch.failed, "skipped": batch.skipped}
    others = {"missing": batch.missing, "retrying": batch.retrying, "unexpected": batch.unexpected}
    writes = {"created": batch.created, "updated": batch.updated, "unchanged": batch.unchanged}
    records = {"duplicates": batch.duplicates, "late": batch.late}
    state = f"{batch.state}, {batch.finalized_by}" if batch.finalized_by else batch.state
    as_of = batch.as_of
    print_fields(
        [
            ("batch", batch.batch_id),
            ("name", batch.name),
            ("status", batch.status),
            ("state", state if batch.outcome else f"{state}, {'sealed' if batch.sealed else 'not sealed: open-ended'}"),
            ("outcome", batch.outcome),
            ("progress", progress_bar(batch.progress_percent)),
            ("items", answered + of_total),
            ("", _counted(items)),
            ("", _counted(others)),
            ("errors", batch.error_summary),
            ("writes", _counted(writes) if any(writes.values()) else None),
            ("records", _counted(records) if any(records.values()) else None),
            ("reason", batch.reason),
            ("error", _critical(batch.error)),
            ("summary", batch.summary_state),
            ("retry of", batch.retry_of),
            ("metadata", json.dumps(batch.metadata, ensure_ascii=False) if batch.metadata else None),
            ("deadline", at(batch.deadline_at)),
            ("opened", at(batch.opened_at)),
            ("reopened", at(batch.reopened_at)),
            ("first result", at(batch.first_result_at)),
            ("last result", at(batch.last_result_at)),
            ("completed", at(batch.completed_at)),
            ("finalized", at(batch.finalized_at)),
            ("pruned", f"{at(batch.pruned_at)}: its items are not kept" if batch.pruned_at else None),
            ("published", at(batch.published_at) or ("not yet" if batch.revision else None)),
            ("revision", str(batch.revision) if batch.revision else None),
            ("as of", f"{as_of.topic}, partition {as_of.partition}, offset {as_of.offset}" if as_of else None),
        ]
    )


def _critical(error: dict[str, Any] | None) -> str | None:
    if error is None:
        return None
    return f"{error['code']}: {error['message']}" if error.get("code") else str(error["message"])


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def show_batches(page: Page[BatchStatus]) -> None:
    """A table of batches."""
    if not page.rows:
        note("no batch found")
        return
    print_table(
        [
            ColumnStyle("batch", "folded"),
            ColumnStyle("status"),
            ColumnStyle("done", right=True),
            ColumnStyle("items", right=True),
            ColumnStyle("failed", right=True),
            ColumnStyle("missing", right=True),
            ColumnStyle("since", needed=False),
            ColumnStyle("name", "cut", needed=False),
        ],
        [
            (
                each.batch_id,
                each.status,
                None if each.progress_percent is None else f"{each.progress_percent:.1f}%",
                f"{each.answered}/{'?' if each.total is None else each.total}",
                str(each.failed),
                str(each.missing),
                at(each.opened_at or each.first_result_at, milliseconds=False),
                each.name,
            )
            for each in page.rows
        ],
    )
    _say_how_to_go_on(page)


def show_items(page: Page[ItemResult], *, stack_traces: bool = False) -> None:
    """A table of a batch's items."""
    if not page.rows:
        note("no item found")
        return
    print_table(
        [
            ColumnStyle("item", "folded"),
            ColumnStyle("status"),
            ColumnStyle("try", right=True),
            ColumnStyle("took", right=True),
            ColumnStyle("at", right=True),
            ColumnStyle("worker", "cut", needed=False),
            ColumnStyle("error", "cut"),
        ],
        [
            (
                each.item_id,
                each.status,
                str(each.attempt),
                lasted(each.duration_ms),
                f"{each.partition}/{each.offset}",
                each.worker,
                _error(each),
            )
            for each in page.rows
        ],
    )
    if stack_traces:
        _show_stack_traces(page)
    _say_how_to_go_on(page)


def _show_stack_traces(page: Page[ItemResult]) -> None:
    for item in page.rows:
        if item.stack_trace is not None:
            print_line(f"\n{showable(item.item_id)}")
            for line in item.stack_trace.splitlines():
                print_line(f"    {showable(line)}")


def _error(item: ItemResult) -> str | None:
    if item.error_code and item.error_message:
        return f"{item.error_code}: {item.error_message}"
    return item.error_code or item.error_message


def show_missing(batch: BatchStatus, page: Page[str] | None) -> None:
    """The ids of the missing, one a line; without a page, how many they are."""
    if page is None and batch.missing:
        why = "the items were pruned" if batch.pruned_at else "the batch has a total, but no manifest to name them"
        print_line(f"{batch.missing:,} of {batch.total:,} items are missing; which ones is not known: {why}")
        return
    if not batch.missing:
        total_unknown = batch.total is None
        print_line("no item is missing" + (" as far as known: neither total nor manifest was given" * total_unknown))
        return
    assert page is not None
    for item_id in page.rows:
        # To be read by a program they stay as they are.
        print_line(showable(item_id) if sys.stdout.isatty() else item_id)
    note(f"{batch.missing:,} of {batch.total:,} items are missing")
    _say_how_to_go_on(page)


def _say_how_to_go_on(page: Page[Any]) -> None:
    if page.next is not None:
        note(f"there are more: --after {quote(showable(page.next))}")


def show_why(found: Why) -> None:
    """The findings, one a line, the batch's id before them."""
    print_line(f"{showable(found.facts.batch_id)}")
    for finding in found.findings:
        print_line(f"- {showable(finding.text)}")


def show_summary(batch: BatchStatus, found: Summary | None) -> None:
    """A batch's summary; where there is none, why."""
    if found is None or found.summary is None:
        print_line(_no_summary(batch, found))
        return
    summary = found.summary
    if found.state != "ready":
        note(f"this is the one before: the summary is {found.state}" + (f", {found.problem}" if found.problem else ""))
    durations = summary["item_duration_ms"]
    print_fields(
        [
            ("batch", batch.batch_id),
            ("outcome", f"{summary['outcome']}, revision {summary['revision']}"),
            ("took", lasted(summary["duration_ms"])),
            ("success rate", _percent(summary["success_rate"])),
            ("failure rate", _percent(summary["failure_rate"])),
            ("items/s", _rate(summary["items_per_second"])),
            ("items", _counted(summary["item_counts"])),
            ("writes", _counted(summary["write_counts"])),
            ("item took", durations and ", ".join(f"{name} {lasted(value)}" for name, value in durations.items())),
            *((f"sum of {name}", f"{value:,}") for name, value in summary["metrics"].items()),
        ]
    )
    if summary["workers"]:
        print_line()
        print_table(
            [
                ColumnStyle("worker", "folded"),
                ColumnStyle("items", right=True),
                ColumnStyle("failed", right=True),
                ColumnStyle("mean", right=True),
            ],
            [
                (each["worker"], f"{each['items']:,}", f"{each['failed']:,}", lasted(each.get("mean_duration_ms")))
                for each in summary["workers"]
            ],
        )
    if summary["error_groups"]:
        print_line()
        print_table(
            [ColumnStyle("failed", right=True), ColumnStyle("error", "folded"), ColumnStyle("items", "cut")],
            [(f"{each['count']:,}", each["error"], ", ".join(each["item_ids"])) for each in summary["error_groups"]],
        )


def _no_summary(batch: BatchStatus, found: Summary | None) -> str:
    if batch.outcome is None:
        return f"it is {batch.status}: a summary is made of what is finalized"
    if found is None:
        return "it has no summary; `rollcall batch finalize` asks for one"
    if found.state == "failed":
        return f"its summary could not be computed: {found.problem}; `rollcall batch finalize` tries again"
    tried = f" ({found.attempts} attempts failed: {found.problem})" if found.attempts else ""
    return f"its summary is not computed yet{tried}: is a clock running?"


def _rate(per_second: float | None) -> str | None:
    return None if per_second is None else f"{per_second:,.1f}" if per_second >= 1 else f"{per_second:.3f}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}%"
