"""Rollcall's tables and events as a test reads them, and what the model says they must hold."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rollcall.settings import Settings
from schemas.topics import Topics, home_partition
from tests.harness.model import Batch, Model, Register, canonical, fold
from tests.harness.topics import Record, drain

Row = dict[str, Any]

# Every table of the stream, each with its key.
TABLES: Mapping[str, str] = {
    "batches": "batch_id",
    "item_results": "batch_id, item_id",
    "late_results": "batch_id, item_id",
    "expected_items": "batch_id, item_id",
    "outbox": "id",
    "dead_letters": "topic, partition, record_offset",
}
# The relay's wall clock and places, and the order of insertion, which two workers share.
INCOMPARABLE = {"published_at", "published_partition", "published_offset", "seq"}


# --- the log -----------------------------------------------------------------------------------------------------


def home_records(records: Iterable[Record], partitions: int) -> list[Record]:
    """What counts of a log of sound records keyed by batch: those at home, of each forwarded one the first copy."""
    homes: dict[bytes, int] = {}
    copies: set[tuple[bytes, bytes]] = set()
    counted = []
    for record in records:
        home = homes.get(record.key)
        if home is None:
            home = homes[record.key] = home_partition(record.key.decode(), partitions)
        if record.partition != home:
            continue
        if (origin := forwarded_from(record)) is not None:
            if origin in copies:
                continue
            copies.add(origin)
        counted.append(record)
    return counted


def forwarded_from(record: Record) -> tuple[bytes, bytes] | None:
    """Where a copy was first read, as its headers say; None of a record that nobody forwarded."""
    headers = dict(record.headers)
    if "rollcall_forwarded_partition" not in headers:
        return None
    return headers["rollcall_forwarded_partition"], headers["rollcall_forwarded_offset"]


def folded(records: Iterable[Record], partitions: int) -> Model:
    """What the model makes of a log as Kafka holds it."""
    counted = home_records(records, partitions)
    return fold((record.offset, record.timestamp, record.value) for record in counted)


async def folded_log(settings: Settings, partitions: int) -> Model:
    """What the model makes of the input log, read to its present end."""
    return folded(await drain(settings.bootstrap_servers, Topics(settings.topic_prefix).events), partitions)


# --- events ------------------------------------------------------------------------------------------------------


async def finalized_events(settings: Settings) -> dict[str, list[Record]]:
    """What a plain read_committed consumer finds on the finalized topic, by batch."""
    events: defaultdict[str, list[Record]] = defaultdict(list)
    for record in await drain(settings.bootstrap_servers, Topics(settings.topic_prefix).finalized):
        events[record.key.decode()].append(record)
    return dict(events)


def assert_events_are_the_models(
    model: Model, events: Mapping[str, list[Record]], settings: Settings, partitions: int
) -> None:
    """Each revision of a batch has one event, in order, which says what the model says; no other batch has any."""
    revisions = model.all_revisions()
    counted = {batch: len(found) for batch, found in events.items()}
    assert counted == {batch: len(wanted) for batch, wanted in revisions.items()}
    topics = Topics(settings.topic_prefix)
    wrong = []
    told = ((batch, *pair) for batch in events for pair in zip(events[batch], revisions[batch], strict=True))
    for batch_id, record, expected in told:
        event = json.loads(record.value)
        wrong += expected.contradictions(event)
        home = home_partition(batch_id, partitions)
        as_of = {"topic": topics.events, "partition": home, "offset": expected.as_of_offset}
        headers = {name: value.decode() for name, value in record.headers if name != "traceparent"}
        attributes = {
            "ce_specversion": "1.0",
            "ce_id": f"batch.finalized/{batch_id}/{expected.revision}",
            "ce_type": "rollcall.batch.finalized.v1",
            "ce_source": topics.source,
            "ce_time": event["finalized_at"],
            "ce_subject": batch_id,
            "content-type": "application/json",
        }
        wrong += _differences(f"{batch_id}: as_of", event["as_of"], as_of)
        wrong += _differences(f"{batch_id}: headers", headers, attributes)
    assert wrong == []


# --- tables ------------------------------------------------------------------------------------------------------


async def table_rows(settings: Settings, table: str, key: str | None = None) -> list[Row]:
    """All rows of a table or view, in the order of their key."""
    connection = await settings.database().connect("test")
    try:
        return [dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY {key or TABLES[table]}")]
    finally:
        await connection.close()


async def comparable_tables(settings: Settings) -> dict[str, list[Row]]:
    """All tables of the stream without what may differ between two readings of one log; the positions, too."""
    tables = {}
    for table in TABLES:
        rows = await table_rows(settings, table)
        tables[table] = [{name: row[name] for name in row if name not in INCOMPARABLE} for row in rows]
    events = Topics(settings.topic_prefix).events
    positions = await table_rows(settings, "positions", "topic, partition")
    tables["positions"] = [row | {"taken": json.loads(row["taken"])} for row in positions if row["topic"] == events]
    return tables


async def assert_tables_are_the_models(model: Model, settings: Settings, partitions: int) -> None:
    """Every table, column by column as far as the model knows them, and the view of the batches' status."""
    batches = {row["batch_id"]: row for row in await table_rows(settings, "batches")}
    status = {row["batch_id"]: row for row in await table_rows(settings, "batch_status", "batch_id")}
    assert batches.keys() == model.batches.keys() == status.keys()
    wrong: list[str] = []
    for batch_id, expected in model.batches.items():
        wrong += _differences(
            f"batches {batch_id}", _batch_said(batches[batch_id]), _batch_expected(expected, model, partitions)
        )
        wrong += _differences(
            f"batch_status {batch_id}",
            {name: status[batch_id][name] for name in _STATUS_COLUMNS},
            _status_expected(expected, model),
        )
    registers = {batch.batch_id: batch.registers for batch in model.batches.values()}
    late = {batch.batch_id: batch.late for batch in model.batches.values()}
    wrong += _register_differences("item_results", await table_rows(settings, "item_results"), registers)
    wrong += _register_differences("late_results", await table_rows(settings, "late_results"), late)
    assert wrong == [], f"{len(wrong)} differences: {wrong[:20]}"
    manifests = {(row["batch_id"], row["item_id"]) for row in await table_rows(settings, "expected_items")}
    assert manifests == {(batch.batch_id, item) for batch in model.batches.values() for item in batch.manifest or ()}
    refused = [row for row in await table_rows(settings, "dead_letters") if row["reason"] == "not_applicable"]
    assert sorted(row["batch_id"] for row in refused) == sorted(refusal.batch_id for refusal in model.refusals)
    events = [row for row in await table_rows(settings, "outbox") if row["channel"] == "finalized"]
    assert sorted((row["batch_id"], row["revision"]) for row in events) == sorted(
        (batch, final.revision) for batch, revisions in model.all_revisions().items() for final in revisions
    )
    assert [row["id"] for row in events if row["published_offset"] is None] == []


_NOT_MODELLED = {"batch_id", "published_at"}
_STATUS_COLUMNS = ("status", "total", "answered", "missing", "unexpected", "error_summary", "progress_percent")


def _batch_said(row: Row) -> Row:
    said = {name: row[name] for name in row if name not in _NOT_MODELLED}
    said["metadata"] = canonical(json.loads(row["metadata"] or "null"))
    said["policy"] = json.loads(row["policy"] or "null")
    said["error"] = json.loads(row["error"] or "null")
    return said | {"is_published": row["published_at"] is not None}


def _batch_expected(batch: Batch, model: Model, partitions: int) -> Row:
    counts, final = batch.item_counts(), batch.finalized
    statuses = [register.status for register in batch.registers.values()]
    return {
        "partition": home_partition(batch.batch_id, partitions),
        "state": "finalized" if final else model.status(batch.batch_id),
        "outcome": final.outcome if final else None,
        "finalized_by": final.finalized_by if final else None,
        "revision": batch.revision,
        "generation": batch.generation,
        "sealed": batch.sealed,
        "total_items": batch.total,
        "expected": None if batch.manifest is None else len(batch.manifest),
        "matched": len((batch.manifest or set()) & batch.answered),
        **{name: counts[name] for name in ("succeeded", "partial", "failed", "skipped")},
        "retrying": statuses.count("retrying"),
        **batch.write_counts(),
        "duplicates": model.duplicates(batch.batch_id),
        "late": len(batch.late),
        "name": batch.name,
        "metadata": canonical(batch.metadata),
        "policy": batch.policy or None,
        "deadline_at": None if batch.deadline_at is None else datetime.fromisoformat(batch.deadline_at),
        "retry_of": batch.retry_of,
        "opened_at": _moment(batch.opened_at_ms),
        "first_result_at": _moment(batch.first_result_at_ms),
        "request_retry": batch.request_retry,
        "reopened_at": _moment(batch.reopened_at_ms),
        "pruned_at": _moment(batch.pruned_at_ms),
        "reason": batch.reason,
        "error": batch.error,
        "failure_seen": any(alert == "batch.first_failure" for alert, _ in batch.alerts),
        "threshold_exceeded": any(alert == "batch.failure_threshold_exceeded" for alert, _ in batch.alerts),
        "last_result_offset": batch.last_counted_offset,
        "last_result_at": _moment(batch.last_counted_at_ms),
        "last_answer_at": _moment(batch.last_answer_at_ms),
        "completed_at": _moment(final.completed_at_ms) if final else None,
        "finalized_at": _moment(final.finalized_at_ms) if final else None,
        "decided_offset": final.as_of_offset if final else None,
        "is_published": bool(batch.revisions),
    }


def _status_expected(batch: Batch, model: Model) -> Row:
    counts, final, total = batch.item_counts(), batch.finalized, batch.known_total()
    failed, missing = counts["failed"] or 0, counts["missing"]
    summary: str | None = None
    if failed:
        summary = f"{failed} failed" if total is None else f"{failed} of {total} failed"
        summary = f"All {failed} failed" if failed == total else summary
    progress: float | None = None
    if total == 0 or (final is not None and not missing):
        progress = 100.0
    elif total is not None and missing is not None:
        progress = round(100 * (total - missing) / total, 1)
    return {
        "status": model.status(batch.batch_id),
        "total": total,
        "answered": len(batch.answered),
        "missing": missing or 0,
        "unexpected": counts["unexpected"],
        "error_summary": summary,
        "progress_percent": progress,
    }


def _register_differences(table: str, rows: Iterable[Row], expected: Mapping[str, Mapping[str, Register]]) -> list[str]:
    held = {(row["batch_id"], row["item_id"]): row for row in rows}
    wanted = {(batch, item): register for batch, items in expected.items() for item, register in items.items()}
    wrong = [f"{table} {key}: there is none" for key in wanted.keys() - held.keys()]
    wrong += [f"{table} {key}: should not be" for key in held.keys() - wanted.keys()]
    for key in wanted.keys() & held.keys():
        content = dict(wanted[key].content)
        for name in ("output", "metrics"):
            content[name] = canonical(content[name])
        row = held[key]
        parts = {"message": row["error_message"], "code": row["error_code"], "stack_trace": row["stack_trace"]}
        said = {name: row[name] for name in content if name not in ("error", "output", "metrics")} | {
            "error": {name: part for name, part in parts.items() if part is not None} or None,
            "output": canonical(json.loads(row["output"] or "null")),
            "metrics": canonical(json.loads(row["metrics"] or "null")),
        }
        wrong += _differences(
            f"{table} {key}",
            said | {"version": row["version"], "generation": row["generation"]},
            content | {"version": wanted[key].offset, "generation": wanted[key].generation},
        )
    return wrong


def _differences(where: str, said: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [
        f"{where}: {name} is {said.get(name)!r}, expected {expected.get(name)!r}"
        for name in sorted(said.keys() | expected.keys())
        if said.get(name) != expected.get(name)
    ]


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


# Less than 50 rows a second.
_SLOW_ROWS = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON item_results FOR EACH ROW EXECUTE FUNCTION slow();
"""


async def make_rows_slow(settings: Settings) -> None:
    """From now on each new item's register takes PostgreSQL 20 ms."""
    connection = await settings.database().connect("test")
    try:
        await connection.execute(_SLOW_ROWS)
    finally:
        await connection.close()
