"""Puts rows where the stream would, for tests of what is read from them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from rollcall.settings import Settings
from schemas.topics import Topics
from store.connection import Connection

START = datetime(2026, 11, 22, 10, 0, 0, 123_000, tzinfo=UTC)


class StoredRows:
    """Rows of a schema, by hand; ``start`` is when all begins."""

    start = START

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self.settings = settings
        self.connection = connection

    async def batch(self, batch_id: str, *, minute: int = 0, **columns: Any) -> None:
        opened_at = START + timedelta(minutes=minute)
        values = {"partition": 3, "state": "pending", "sealed": True, "opened_at": opened_at, **columns}
        await self._insert("batches", {"batch_id": batch_id, **values})

    async def finalized(self, batch_id: str, **columns: Any) -> None:
        finalized_at = START + timedelta(seconds=5)
        values: dict[str, Any] = {
            "state": "finalized",
            "finalized_by": "all_items_in",
            "revision": 1,
            "decided_offset": 41,
        }
        times: dict[str, Any] = {"first_result_at": START, "completed_at": finalized_at, "finalized_at": finalized_at}
        await self.batch(batch_id, **{**values, **times, **columns})

    async def item(self, batch_id: str, item_id: str, status: str, version: int = 0, **columns: Any) -> None:
        values = {"version": version, "received_at": START, "attempt": 1, "generation": 0, **columns}
        await self._insert("item_results", {"batch_id": batch_id, "item_id": item_id, "status": status, **values})

    async def manifest(self, batch_id: str, *item_ids: str) -> None:
        for item_id in item_ids:
            await self._insert("expected_items", {"batch_id": batch_id, "item_id": item_id})

    async def applied(self, partition: int, next_offset: int) -> None:
        topic = Topics(self.settings.topic_prefix).events
        await self._insert("positions", {"topic": topic, "partition": partition, "next_offset": next_offset})

    async def _insert(self, table: str, row: dict[str, Any]) -> None:
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await self.connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values())


@asynccontextmanager
async def stored_rows(settings: Settings) -> AsyncIterator[StoredRows]:
    connection = await settings.database().connect("test")
    try:
        yield StoredRows(settings, connection)
    finally:
        await connection.close()
