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
            ("retry of", batch.retry_of),
            ("metadata", json.dumps(batch.metadata, ensure_ascii=False) if batch.metadata else None),
            ("deadline", at(batch.deadline_at)),
            ("opened", at(batch.opened_at)),
            ("first result", at(batch.first_result_at)),
            ("last result", at(batch.last_result_at)),
            ("completed", at(batch.completed_at)),
            ("finalized", at(batch.finalized_at)),
            ("published", at(batch.published_at) or ("not yet" if batch.revision else None)),
            ("revision", str(batch.revision) if batch.revision else None),
            ("as of", f"{as_of.topic}, partition {as_of.partition}, offset {as_of.offset}" if as_of else None),
        ]
    )


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


def show_items(page: Page[ItemResult]) -> None:
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
    _say_how_to_go_on(page)


def _error(item: ItemResult) -> str | None:
    if item.error_code and item.error_message:
        return f"{item.error_code}: {item.error_message}"
    return item.error_code or item.error_message


def show_missing(batch: BatchStatus, page: Page[str] | None) -> None:
    """The ids of the missing, one a line; without a page, how many they are."""
    if page is None and batch.missing:
        print_line(
            f"{batch.missing:,} of {batch.total:,} items are missing; which ones is not known:"
            " the batch has a total, but no manifest to name them"
        )
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
