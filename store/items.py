"""Statements on ``item_results``, ``late_results`` and ``expected_items``."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import asyncpg
import rollcall_native
from sqlalchemy import Table

from store import copying
from store.connection import Connection
from store.rows import ItemRow, TakenResult
from store.statements import Rows, column_list, types_of
from store.tables import item_results, late_results

ItemKey = tuple[str, str]
ItemIds = Mapping[str, Collection[str]]
"""Distinct item ids by batch id."""

WRITTEN_AT_ONCE = 10_000


class Lines(NamedTuple):
    """Distinct item ids, one a line, and how many: no id holds a control character."""

    text: str
    number: int

    @staticmethod
    def of(ids: Collection[str]) -> "Lines":
        """Of distinct ids."""
        return Lines("\n".join(ids), len(ids))

    @staticmethod
    def of_results(results: list[TakenResult]) -> "Lines":
        """Of the items of these results, no two of which are of the same. May raise UnicodeEncodeError."""
        if rollcall_native.compiled:
            return Lines(rollcall_native.results.item_lines(results), len(results))
        return Lines.of([result.item_id for result in results])


_COLUMNS = ItemRow._fields
_ROWS = Rows(types_of(item_results, _COLUMNS), large=("message", "error_code", "error_message", "stack_trace"))
# The ids of a batch's items in one text, by lines: of thousands of texts the driver would ask each what it is. Looked
# for as an array, of which PostgreSQL finds neighbours without going down the index again.
# (batch ids, the item ids of each by lines)
_BATCHES = "unnest($1::text[], $2::text[]) AS b(batch_id, item_ids)"
_ITEMS = r"string_to_array(b.item_ids, E'\n')"

# Registers of the given items. At most one row a key.
_REGISTERS = {
    table.name: f"SELECT {column_list(_COLUMNS, 'i.')} FROM {_BATCHES}"
    f" JOIN {table.name} i ON i.batch_id = b.batch_id AND i.item_id = ANY ({_ITEMS})"
    for table in (item_results, late_results)
}


def _upsert(table: Table) -> str:
    return f"""
INSERT INTO {table.name} ({_ROWS.columns})
SELECT {_ROWS.columns} FROM {_ROWS.source} ORDER BY batch_id, item_id
ON CONFLICT (batch_id, item_id)
DO UPDATE SET {", ".join(f"{column} = EXCLUDED.{column}" for column in _COLUMNS[2:])}
"""


# Registers that moved on; sorted, so that rows are locked in one order. The keys are distinct.
_UPSERT = {table.name: _upsert(table) for table in (item_results, late_results)}

# Which of the given items are not on their batch's manifest. Mostly all are, which a count tells at half the cost.
# (batch ids, the distinct item ids of each by lines, how many these are)
_UNEXPECTED = f"""
SELECT b.batch_id, u.item_id FROM unnest($1::text[], $2::text[], $3::int8[]) AS b(batch_id, item_ids, number)
CROSS JOIN LATERAL (
    SELECT unnest({_ITEMS}) AS item_id
    EXCEPT SELECT item_id FROM expected_items e WHERE e.batch_id = b.batch_id AND e.item_id = ANY ({_ITEMS})
) u
WHERE b.number <> (
    SELECT count(*) FROM expected_items e WHERE e.batch_id = b.batch_id AND e.item_id = ANY ({_ITEMS})
)
"""

# The first failed items of each given batch, by id; the partial index of failed items answers it.
# (batch ids, how many of each)
_FAILED = """
SELECT b.batch_id, i.item_id FROM unnest($1::text[], $2::int8[]) AS b(batch_id, most)
CROSS JOIN LATERAL (
    SELECT item_id FROM item_results WHERE batch_id = b.batch_id AND status = 'failed' ORDER BY item_id LIMIT b.most
) i
"""

# The first items on each given batch's manifest that have no terminal result, by id. (batch ids, how many of each)
_MISSING = """
SELECT b.batch_id, i.item_id FROM unnest($1::text[], $2::int8[]) AS b(batch_id, most)
CROSS JOIN LATERAL (
    SELECT e.item_id FROM expected_items e
    WHERE e.batch_id = b.batch_id AND NOT EXISTS (
        SELECT FROM item_results r
        WHERE r.batch_id = e.batch_id AND r.item_id = e.item_id AND r.status <> 'retrying'
    )
    ORDER BY e.item_id LIMIT b.most
) i
"""

# Items that a reopening may choose without naming them: the failed, the retrying (which no index finds: only where
# there are any), and those with a late result.
_REOPENABLE = """
SELECT item_id FROM item_results WHERE batch_id = $1 AND status = 'failed'
UNION SELECT item_id FROM item_results WHERE batch_id = $1 AND status = 'retrying' AND $2::bool
UNION SELECT item_id FROM late_results WHERE batch_id = $1
"""

# Late registers that count from now on.
_FORGET_LATE = (
    f"DELETE FROM late_results l USING {_BATCHES} WHERE l.batch_id = b.batch_id AND l.item_id = ANY ({_ITEMS})"
)


async def copy_new(connection: Connection, results: Sequence[TakenResult]) -> None:
    """Write registers of items that have none yet, in the order of their keys: it halves the index's work.

    A COPY has a fixed time, and a reopening may adopt millions of late results: one takes so many at most.

    Raises asyncpg.UniqueViolationError where one has, asyncpg.DataError where PostgreSQL can't hold a value.
    """
    rows = copying.in_order(results)
    for begin in range(0, len(rows), WRITTEN_AT_ONCE):
        some = rows[begin : begin + WRITTEN_AT_ONCE]
        await copying.copy(connection, "item_results", copying.ITEM_COLUMNS, copying.item_rows(some))


async def upsert(connection: Connection, rows: Sequence[ItemRow]) -> None:
    """Write registers, whether the items have one or not."""
    await _write(connection, item_results, rows)


async def upsert_late(connection: Connection, rows: Sequence[ItemRow]) -> None:
    """Write late registers, whether the items have one or not."""
    await _write(connection, late_results, rows)


async def forget_late(connection: Connection, ids: ItemIds) -> None:
    """Remove late registers."""
    await connection.execute(_FORGET_LATE, *_by_lines(ids))


async def reopenable_ids(connection: Connection, batch_id: str, *, some_retrying: bool) -> set[str]:
    """The items of a finalized batch that ``batch.reopened`` may choose without naming them."""
    return {row[0] for row in await connection.fetch(_REOPENABLE, batch_id, some_retrying)}


async def why_unstorable(connection: Connection, row: ItemRow) -> str | None:
    """What PostgreSQL (or its driver) has against a row; None where it takes it. Leaves nothing behind."""
    attempt = connection.transaction()
    await attempt.start()
    try:
        await upsert(connection, [row])
    except (asyncpg.DataError, UnicodeEncodeError, OverflowError) as error:
        return str(error)
    finally:
        await attempt.rollback()
    return None


async def load(connection: Connection, ids: ItemIds) -> dict[str, dict[str, ItemRow]]:
    """Registers of these items, by batch and item."""
    return await _load(connection, item_results, ids)


async def load_late(connection: Connection, ids: ItemIds) -> dict[str, dict[str, ItemRow]]:
    """Late registers of these items, by batch and item."""
    return await _load(connection, late_results, ids)


async def unexpected(connection: Connection, asked: Mapping[str, Lines]) -> dict[str, set[str]]:
    """Which of these items are not on their batch's manifest, by batch."""
    texts, numbers = [lines.text for lines in asked.values()], [lines.number for lines in asked.values()]
    found: dict[str, set[str]] = {batch_id: set() for batch_id in asked}
    for batch_id, item_id in await connection.fetch(_UNEXPECTED, list(asked), texts, numbers):
        found[batch_id].add(item_id)
    return found


async def expect(connection: Connection, keys: Sequence[ItemKey]) -> None:
    """Add items to manifests that do not have them yet."""
    await copying.within_time(
        connection, connection.copy_records_to_table("expected_items", records=keys, columns=("batch_id", "item_id"))
    )


async def failed_ids(connection: Connection, most: Mapping[str, int]) -> dict[str, list[str]]:
    """The first failed items of each batch, at most so many."""
    return _listed(await connection.fetch(_FAILED, list(most), list(most.values())))


async def missing_ids(connection: Connection, most: Mapping[str, int]) -> dict[str, list[str]]:
    """The first unanswered items of each batch with a manifest, at most so many."""
    return _listed(await connection.fetch(_MISSING, list(most), list(most.values())))


def _by_lines(ids: ItemIds) -> tuple[list[str], list[str]]:
    return list(ids), [Lines.of(of_batch).text for of_batch in ids.values()]


async def _load(connection: Connection, table: Table, ids: ItemIds) -> dict[str, dict[str, ItemRow]]:
    rows = await connection.fetch(_REGISTERS[table.name], *_by_lines(ids))
    registers: defaultdict[str, dict[str, ItemRow]] = defaultdict(dict)
    for row in rows:
        registers[row[0]][row[1]] = ItemRow(*row)
    return registers


async def _write(connection: Connection, table: Table, rows: Sequence[ItemRow]) -> None:
    """At once no more than are encoded in a moment: nothing else runs meanwhile."""
    if len(rows) > WRITTEN_AT_ONCE:
        rows = sorted(rows, key=itemgetter(0, 1))  # in one order, also from one statement to the next
    for begin in range(0, len(rows), WRITTEN_AT_ONCE):
        part = rows[begin : begin + WRITTEN_AT_ONCE]
        await connection.execute(_UPSERT[table.name], *_ROWS.parameters(part))


def _listed(rows: Iterable[Iterable[str]]) -> dict[str, list[str]]:
    lists: defaultdict[str, list[str]] = defaultdict(list)
    for batch_id, item_id in rows:
        lists[batch_id].append(item_id)
    return lists
