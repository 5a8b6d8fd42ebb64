"""What bounds it: PostgreSQL taking the pipeline's own rows by COPY, and a bare loop in Python."""

import asyncio
import json
import sys

from bench import bare_loop, copy_floor
from rollcall.settings import Settings


async def keep_rows(settings: Settings) -> None:
    """Put the rows that the pipeline has written aside for `copy`, and make a table for the bare loop."""
    connection = await settings.database().connect("bench", command_timeout=600)
    await copy_floor.keep_rows(connection)
    await connection.execute(f"CREATE TABLE {bare_loop.TABLE} (LIKE item_results INCLUDING ALL)")
    await connection.close()


async def copy(settings: Settings, kind: str, rows: int, connections: int) -> float:
    """Items/s of PostgreSQL taking those rows (`rows`, or `encoded` before) on as many connections as processes."""
    await _emptied(settings, "item_results")
    outputs = await _together(
        [
            ["bench.copy_floor", settings.database_url, settings.database_schema, kind, str(share), str(connections)]
            for share in range(connections)
        ]
    )
    return rows / max(map(float, outputs))


async def bare(settings: Settings, topic: str, items: int, processes: int) -> float:
    """Items/s of the bare loop, in as many processes."""
    await _emptied(settings, bare_loop.TABLE)
    outputs = await _together(
        [
            [
                *("bench.bare_loop", settings.bootstrap_servers, topic),
                *(settings.database_url, settings.database_schema, str(share), str(processes)),
            ]
            for share in range(processes)
        ]
    )
    # One whose partitions are all empty has nothing to say about time.
    found = [each for output in outputs if (each := json.loads(output))["records"]]
    connection = await settings.database().connect("bench", command_timeout=600)
    copied = await connection.fetchval(f"SELECT count(*) FROM {bare_loop.TABLE}")
    await connection.close()
    if copied != items:
        raise RuntimeError(f"the bare loop copied {copied} of {items} items")
    seconds: float = max(each["ended"] for each in found) - min(each["begun"] for each in found)
    timed: float = sum(each["timed"] for each in found) / sum(each["records"] for each in found)
    return items * timed / seconds


async def _emptied(settings: Settings, table: str) -> None:
    connection = await settings.database().connect("bench", command_timeout=600)
    await connection.execute(f"TRUNCATE {table}")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def _together(modules: list[list[str]]) -> list[bytes]:
    """Run programs that say they are ready, let them go at once, and give back what they print then."""
    programs = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        for module in modules
    ]
    for program in programs:
        assert program.stdout is not None
        await program.stdout.readline()
    for program in programs:
        assert program.stdin is not None
        program.stdin.write(b"go\n")
    return [output for output, _ in await asyncio.gather(*(program.communicate() for program in programs))]
