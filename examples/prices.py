"""Collect prices once a minute into a table of one's own, however often it is started.

    ROLLCALL_BOOTSTRAP_SERVERS=localhost:9092 ROLLCALL_API_URL=http://localhost:8080 \
    PRICES_DATABASE_URL=postgresql://localhost/prices rollcall-job run examples.prices:Prices

The minute is part of the batch id and of the table's key: the second run of a minute finds the batch finalized and
does nothing; one that was killed is gone on with, and what it had written before is met by ON CONFLICT.
"""

import os
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
from rollcall_client.jobs import Created, Job, Outcome, Retry, Unchanged, Updated, time_bucket

SYMBOLS = ("ACME", "GLOBEX", "INITECH", "UMBRELLA", "WAYNE", "STARK", "TYRELL", "SOYLENT")

TABLE = """
CREATE TABLE IF NOT EXISTS prices (
    symbol text, minute timestamptz, price numeric NOT NULL, PRIMARY KEY (symbol, minute)
)
"""
UPSERT = """
INSERT INTO prices AS held (symbol, minute, price) VALUES ($1, $2, $3)
ON CONFLICT (symbol, minute) DO UPDATE SET price = excluded.price WHERE held.price <> excluded.price
RETURNING xmax = 0
"""


class Prices(Job):
    name = "prices"
    bucket = "1m"
    concurrency = 4
    rate = "20/s"
    retries = Retry(attempts=5)
    item_timeout_s = 10

    _pool: "asyncpg.Pool[Any]"

    async def begin(self) -> None:
        self._pool = await asyncpg.create_pool(
            os.environ["PRICES_DATABASE_URL"], min_size=1, max_size=4, command_timeout=10
        )
        await self._pool.execute(TABLE)

    async def end(self) -> None:
        await self._pool.close()

    def items(self, **params: str) -> Sequence[tuple[str, datetime]]:
        now = datetime.fromisoformat(params["now"]) if "now" in params else datetime.now(UTC)
        return [(symbol, time_bucket(now, "1m")) for symbol in SYMBOLS]

    async def handle(self, item: tuple[str, datetime]) -> Outcome:
        symbol, minute = item
        price = quoted(symbol, minute)
        inserted = await self._pool.fetchval(UPSERT, symbol, minute, price)
        if inserted is None:
            return Unchanged(metrics={"price": price})
        return Created(metrics={"price": price}) if inserted else Updated(metrics={"price": price})


def quoted(symbol: str, minute: datetime) -> int:
    """The market: put the exchange you trust here."""
    return 100 + zlib.crc32(f"{symbol}{minute}".encode()) % 100
