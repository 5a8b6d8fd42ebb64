"""What the demo reads back and shows: finalized events from Kafka, progress while they come, a table at the end."""

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rollcall.demo_job import BatchProgress
from streams.kafka import KafkaConnection, started

PLAIN_LINE_EVERY_S = 2.0

_COLOURS = {"completed": "green", "completed_with_errors": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A finalized event and when it arrived here (``time.perf_counter()`` seconds)."""

    event: Mapping[str, Any]
    received_at: float


class FinalizedEvents:
    """The finalized events of some batches, as any consumer would see them; ``seen`` grows while it reads."""

    def __init__(self, batch_ids: Sequence[str]) -> None:
        self.seen: dict[str, Seen] = {}
        self.repeated: list[str] = []
        self._wanted = set(batch_ids)

    @property
    def complete(self) -> bool:
        """Whether every batch has its event."""
        return len(self.seen) == len(self._wanted)

    async def read(self, bootstrap_servers: str, topic: str) -> None:
        """Read the topic from its beginning until every batch has its event.

        Raises ``aiokafka.errors.KafkaError`` where Kafka cannot be reached.
        """
        consumer = KafkaConnection(bootstrap_servers).consumer(
            topic,
            client_id="demo-reader",
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        async with started(consumer):
            while not self.complete:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    arrived = time.perf_counter()
                    for record in records:
                        self._take(json.loads(record.value), arrived)

    def _take(self, event: Mapping[str, Any], arrived: float) -> None:
        batch_id = event["batch_id"]
        if batch_id in self.seen:
            self.repeated.append(batch_id)
        elif batch_id in self._wanted:
            self.seen[batch_id] = Seen(event, arrived)


@dataclass(frozen=True, slots=True)
class Line:
    """One batch in the table.

    ``reasons`` are the job's own words on the items that the event names as failed, ``wait_s`` is the time from the
    last acknowledged result to the finalized event.
    """

    name: str
    items: int
    failed: int
    reasons: Sequence[str]
    outcome: str
    wait_s: float


def lines(progress: Mapping[str, BatchProgress], seen: Mapping[str, Seen]) -> list[Line]:
    """What came back for each batch, in the job's order."""
    return [
        Line(
            name=f"{batch.distribution.name} {batch.distribution.version}",
            items=seen[batch_id].event["item_counts"]["total"],
            failed=seen[batch_id].event["item_counts"]["failed"],
            reasons=[batch.failures.get(item_id, item_id) for item_id in seen[batch_id].event["failed_item_ids"]],
            outcome=seen[batch_id].event["outcome"],
            # The event can be on its way back before this process hears that its last result is in.
            wait_s=max(0.0, seen[batch_id].received_at - (batch.last_acknowledged_at or 0.0)),
        )
        for batch_id, batch in progress.items()
    ]


def print_table(console: Console, batches: Sequence[Line]) -> None:
    """The table, and under it why files failed."""
    table = Table(title="Read from rollcall.finalized", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("batch", overflow="fold")
    for heading in ("items", "failed"):
        table.add_column(heading, justify="right")
    table.add_column("outcome", no_wrap=True)
    table.add_column("last result to event", justify="right")
    for each in batches:
        colour = _COLOURS.get(each.outcome, "default")
        table.add_row(
            each.name,
            f"{each.items:,}",
            f"{each.failed:,}",
            f"[{colour}]{each.outcome}[/{colour}]",
            f"{each.wait_s * 1000:,.0f} ms",
        )
    console.print(table)
    for each in batches:
        for reason in each.reasons:
            console.print(f"failed: {each.name}: {reason}", markup=False, highlight=False, soft_wrap=True)


def total_line(batches: Sequence[Line], elapsed_s: float) -> str:
    """The whole run in one line."""
    outcomes = Counter(each.outcome for each in batches)
    named = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    waits = [each.wait_s * 1000 for each in batches] or [0.0]
    return (
        f"{sum(each.items for each in batches):,} files in {len(batches):,} batches: {named}; from last result to "
        f"event {statistics.median(waits):,.0f} ms (median), {max(waits):,.0f} ms (longest); {elapsed_s:.1f} s in all"
    )


async def show_progress(console: Console, progress: Mapping[str, BatchProgress], events: FinalizedEvents) -> None:
    """Show how far job and events are until cancelled: bars on a terminal, a line now and then without one."""
    files = sum(len(batch.distribution.files) for batch in progress.values())
    with _bars(console, files, len(progress)) as update:
        try:
            while True:
                update(sum(batch.published for batch in progress.values()), len(events.seen))
                await asyncio.sleep(0.1 if console.is_terminal else PLAIN_LINE_EVERY_S)
        finally:
            update(sum(batch.published for batch in progress.values()), len(events.seen))


@contextlib.contextmanager
def _bars(console: Console, files: int, batches: int) -> Iterator[Any]:
    if not console.is_terminal:
        yield lambda published, finalized: console.print(
            f"{published:,} of {files:,} files checked, {finalized:,} of {batches:,} batches finalized",
            highlight=False,
            soft_wrap=True,
        )
        return
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        checked = bars.add_task("files checked", total=files)
        finalized_bar = bars.add_task("batches finalized", total=batches)

        def update(published: int, finalized: int) -> None:
            bars.update(checked, completed=published)
            bars.update(finalized_bar, completed=finalized)

        yield update
