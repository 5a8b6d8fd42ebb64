"""One connection of the PostgreSQL floor: takes its share of the pipeline's own rows by COPY and nothing else.

`rows` sends them through asyncpg's `copy_records_to_table`, as a Python program would; `encoded` sends bytes that were
prepared before: what PostgreSQL alone can take. One transaction a chunk, rows sorted by key, as in the pipeline.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator

from store.connection import Connection, Database
from store.rows import ItemRow

COLUMNS = ", ".join(ItemRow._fields)
CHUNK = 5_000


async def keep_rows(connection: Connection) -> None:
    """Put the pipeline's rows aside in the chunks in which they came."""
    await connection.execute("DROP TABLE IF EXISTS chunked")
    await connection.execute(
        f"""
        CREATE UNLOGGED TABLE chunked AS
        SELECT {COLUMNS}, partition,
               (row_number() OVER (PARTITION BY partition ORDER BY version) - 1) / {CHUNK} AS chunk
        FROM item_results JOIN (SELECT batch_id, partition FROM batches) homes USING (batch_id)
        """
    )
    await connection.execute("CREATE INDEX ON chunked (partition, chunk, batch_id, item_id)")


async def main(url: str, schema: str, kind: str, share: int, shares: int) -> None:
    connection = await Database(url, schema).connect("bench", synchronous_commit="off")
    chunks = await connection.fetch(
        "SELECT DISTINCT partition, chunk FROM chunked WHERE partition % $1 = $2 ORDER BY 2, 1", shares, share
    )
    of_chunk = f"SELECT {COLUMNS} FROM chunked WHERE partition = $1 AND chunk = $2 ORDER BY batch_id, item_id"
    rows: list[list[tuple[object, ...]]] = []
    encoded: list[bytes] = []
    for partition, chunk in chunks:
        if kind == "rows":
            rows.append([tuple(row) for row in await connection.fetch(of_chunk, partition, chunk)])
        else:
            encoded.append(await _copied_out(connection, of_chunk, partition, chunk))
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    for part in rows:
        await connection.copy_records_to_table("item_results", records=part, columns=ItemRow._fields)
    for data in encoded:
        await connection.copy_to_table("item_results", source=_once(data), columns=ItemRow._fields, format="binary")
    print(time.monotonic() - started, flush=True)
    await connection.close()


async def _copied_out(connection: Connection, query: str, *arguments: int) -> bytes:
    buffer = bytearray()

    async def collect(data: bytes) -> None:
        buffer.extend(data)

    await connection.copy_from_query(query, *arguments, output=collect, format="binary")
    return bytes(buffer)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
