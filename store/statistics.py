"""What the item results of finalized batches amount to: durations, metrics, workers, error groups.

All of it is computed in PostgreSQL, batch by batch along the primary key, so that a batch of a million items takes no
more memory than one of five. It is the same whenever it is computed: sums are of ``numeric``, which does not depend on
the order, and what is listed is listed by number and then by name.
"""

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import asyncpg

from store.connection import Connection

LISTED = 100
"""Workers and metrics that are listed, at most, each."""
ERROR_GROUPS = 20
GROUP_ITEMS = 10
"""Items that an error group names, at most."""
MAX_LABEL_CHARS = 200
METRICS_PAGE = 100_000
NO_ERROR = "no error given"


class Durations(NamedTuple):
    """Milliseconds, of the items that said; ``total`` is exact."""

    timed: int
    total: Decimal
    min: float
    p50: float
    p95: float
    p99: float
    max: float


class WorkerShare(NamedTuple):
    """``timed`` of its items said how long they took, ``duration_ms`` in sum."""

    worker: str
    items: int
    failed: int
    timed: int
    duration_ms: Decimal


class ErrorCount(NamedTuple):
    """Failed items with one error, and the first of them."""

    error: str
    items: int
    item_ids: list[str]


class Statistics(NamedTuple):
    """A batch's; ``durations`` is None where no item said how long it took."""

    durations: Durations | None
    metrics: list[tuple[str, Decimal]]
    workers: list[WorkerShare]
    errors: list[ErrorCount]


# What varies from one message to the next though the error is the same, and what stands for it. In this order.
_VARIABLE_PARTS = (
    # URLs and mail addresses
    (r"[[:alpha:]][[:alnum:]+.-]*://[^\s\"'<>()]+", "<address>"),
    (r"[[:alnum:]._%+-]+@[[:alnum:]][[:alnum:].-]*", "<address>"),
    # dates, with a time or without; times
    (r"\m\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?", "<time>"),
    (r"\m\d{1,2}:\d{2}:\d{2}([.,]\d+)?\M", "<time>"),
    # UUIDs
    (r"\m[[:xdigit:]]{8}(-[[:xdigit:]]{4}){3}-[[:xdigit:]]{12}\M", "<id>"),
    # IPv4, IPv6 and memory addresses
    (r"\m\d{1,3}(\.\d{1,3}){3}(:\d+)?\M", "<address>"),
    (
        r"(?<![\w:])([[:xdigit:]]{1,4}(:[[:xdigit:]]{1,4}){3,7}|[[:xdigit:]:]*::[[:xdigit:]:]*)(?![\w:])",
        "<address>",
    ),
    (r"\m0[xX][[:xdigit:]]+\M", "<address>"),
    # hashes: hexadecimal digits, letters among them; other long codes with many digits, such as ULIDs
    (r"\m(?=\d*[a-fA-F])(?=[a-fA-F]*\d)[[:xdigit:]]{6,}\M", "<id>"),
    (r"\m(?=\d*[[:alpha:]])(?=([[:alpha:]]*\d){4})[[:alnum:]]{16,}\M", "<id>"),
    # numbers, also those within names
    (r"\d+([.,]\d+)*", "<n>"),
    (r"\s+", " "),
)


def _without_variable_parts(message: str) -> str:
    """SQL for a text with its variable parts replaced; most of them have digits, and most of the time goes there."""
    without_digits = [part for part in _VARIABLE_PARTS if "\\d" not in part[0]]
    replaced, replaced_without = _replaced(message, _VARIABLE_PARTS), _replaced(message, without_digits)
    return f"btrim(CASE WHEN {message} ~ '[0-9]' THEN {replaced} ELSE {replaced_without} END)"


def _replaced(message: str, parts: Sequence[tuple[str, str]]) -> str:
    for pattern, stands_for in parts:
        quoted = pattern.replace("'", "''")
        message = f"regexp_replace({message}, '{quoted}', '{stands_for}', 'g')"
    return message


# An item's own id may be any text; a short one is more likely to occur in a word.
_MESSAGE = """left(
    CASE WHEN length(item_id) < 4 THEN error_message ELSE replace(error_message, item_id, '<id>') END, 500)"""

# An error's code, or its message without what varies. Neither may be as long as it likes.
_ERROR = f"""coalesce(
    nullif(left(btrim(error_code), {MAX_LABEL_CHARS}), ''),
    nullif(left({_without_variable_parts(_MESSAGE)}, {MAX_LABEL_CHARS}), ''),
    '{NO_ERROR}')"""

_EACH = "FROM unnest($1::text[]) AS b(batch_id) CROSS JOIN LATERAL"
_ITEMS = "FROM item_results WHERE batch_id = b.batch_id AND status <> 'retrying'"

# How long items took, and what else is worth asking for. One row a batch.
_DURATIONS = f"""
SELECT b.batch_id, s.* {_EACH} (
    SELECT count(duration_ms) AS timed, sum(duration_ms::numeric) AS total, min(duration_ms) AS shortest,
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms) AS percentiles,
           max(duration_ms) AS longest, bool_or(metrics IS NOT NULL) AS has_metrics,
           bool_or(worker IS NOT NULL) AS has_workers, bool_or(status = 'failed') AS has_failed
    {_ITEMS}
) s
"""

# Sums of what the items behind $3 and up to $4 (null: all of them) measured, the first names. At most $2 rows a batch.
_METRICS = f"""
SELECT b.batch_id, s.* {_EACH} (
    SELECT left(m.key, {MAX_LABEL_CHARS}) AS name, sum(m.value::numeric) AS total
    FROM item_results i, json_each_text(i.metrics) m
    WHERE i.batch_id = b.batch_id AND i.item_id > $3 AND ($4::text IS NULL OR i.item_id <= $4)
      AND i.status <> 'retrying' AND i.metrics IS NOT NULL
    GROUP BY 1 ORDER BY left(m.key, {MAX_LABEL_CHARS}) COLLATE "C" LIMIT $2
) s
"""

# The last of the next $3 items of a batch. At most one row.
_PAGE_END = (
    "SELECT item_id FROM item_results WHERE batch_id = $1 AND item_id > $2 ORDER BY item_id OFFSET $3 - 1 LIMIT 1"
)

# Who did how much, the busiest first. At most $2 rows a batch.
_WORKERS = f"""
SELECT b.batch_id, s.* {_EACH} (
    SELECT worker, count(*) AS items, count(*) FILTER (WHERE status = 'failed') AS failed,
           count(duration_ms) AS timed, coalesce(sum(duration_ms::numeric), 0) AS total
    {_ITEMS} AND worker IS NOT NULL
    GROUP BY worker ORDER BY count(*) DESC, worker COLLATE "C" LIMIT $2
) s
"""


# What the failed items have in common, the most frequent first, each with its first items. At most $2 rows a batch.
# Numbered, not collected: a group of a million must not be held in memory.
def _errors(among: str = "") -> str:
    return f"""
SELECT b.batch_id, s.* {_EACH} (
    SELECT error, max(place) AS items, array_agg(item_id ORDER BY item_id) FILTER (WHERE place <= $3) AS first_items
    FROM (
        SELECT error, item_id, row_number() OVER (PARTITION BY error ORDER BY item_id) AS place
        FROM (
            SELECT item_id, {_ERROR} COLLATE "C" AS error
            FROM item_results WHERE batch_id = b.batch_id AND status = 'failed' {among}
        ) failed
    ) numbered
    GROUP BY error ORDER BY max(place) DESC, error LIMIT $2
) s
"""


_ERRORS = _errors()
# The same of the first $4 failed items: while a batch is open, nobody can wait for all of a million.
_SAMPLED_ERRORS = _errors("ORDER BY item_id LIMIT $4")


# The next $4 failed items of a batch, each with whether this is its error. A page reads so many, however few match.
_WITH_ERROR = f"""
SELECT item_id, ({_ERROR} COLLATE "C") = $3 AS matches
FROM item_results WHERE batch_id = $1 AND status = 'failed' AND item_id > $2 ORDER BY item_id LIMIT $4
"""


async def load(connection: Connection, batch_ids: Sequence[str]) -> dict[str, Statistics]:
    """The statistics of these batches, by id; call it within one snapshot."""
    metrics: dict[str, list[tuple[str, Decimal]]] = {}
    workers: defaultdict[str, list[WorkerShare]] = defaultdict(list)
    errors: defaultdict[str, list[ErrorCount]] = defaultdict(list)
    rows = await connection.fetch(_DURATIONS, batch_ids)
    if asked := _ids(rows, "has_metrics"):
        metrics |= await _metrics(connection, asked)
    if asked := _ids(rows, "has_workers"):
        for batch_id, *share in await connection.fetch(_WORKERS, asked, LISTED):
            workers[batch_id].append(WorkerShare(*share))
    if asked := _ids(rows, "has_failed"):
        for batch_id, *group in await connection.fetch(_ERRORS, asked, ERROR_GROUPS, GROUP_ITEMS):
            errors[batch_id].append(ErrorCount(*group))
    return {
        row["batch_id"]: Statistics(
            _durations(row), metrics.get(row["batch_id"], []), workers[row["batch_id"]], errors[row["batch_id"]]
        )
        for row in rows
    }


async def _metrics(connection: Connection, batch_ids: Sequence[str]) -> dict[str, list[tuple[str, Decimal]]]:
    """Sums by name, page by page where a batch is large.

    PostgreSQL keeps some 300 bytes of each JSON object it takes apart until the statement ends (tried). Of each page
    the first names will do: a name among the first of all is among the first of every page that has it.
    """
    sums: defaultdict[str, defaultdict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    begin, end = "", None
    while True:
        # Only a batch that comes alone can be large.
        if len(batch_ids) == 1:
            end = await connection.fetchval(_PAGE_END, batch_ids[0], begin, METRICS_PAGE)
        for batch_id, name, total in await connection.fetch(_METRICS, batch_ids, LISTED, begin, end):
            sums[batch_id][name] += total
        if end is None:
            return {batch_id: sorted(found.items())[:LISTED] for batch_id, found in sums.items()}
        begin = end


def _ids(rows: Sequence[asyncpg.Record], flag: str) -> list[str]:
    return [row["batch_id"] for row in rows if row[flag]]


def _durations(row: asyncpg.Record) -> Durations | None:
    if not row["timed"]:
        return None
    p50, p95, p99 = row["percentiles"]
    return Durations(row["timed"], row["total"], row["shortest"], p50, p95, p99, row["longest"])


async def error_groups(
    connection: Connection, batch_id: str, *, groups: int, named: int, among: int
) -> list[ErrorCount]:
    """What the first ``among`` failed items of a batch have in common, the most frequent first."""
    rows = await connection.fetch(_SAMPLED_ERRORS, [batch_id], groups, named, among)
    return [ErrorCount(row["error"], row["items"], list(row["first_items"])) for row in rows]


async def failed_with(
    connection: Connection, batch_id: str, error: str, *, after: str, limit: int
) -> tuple[list[str], str | None]:
    """Of a batch's next ``limit`` failed items those in an error's group, and where to go on (None: nowhere)."""
    rows = await connection.fetch(_WITH_ERROR, batch_id, after, error, limit)
    return [row["item_id"] for row in rows if row["matches"]], rows[-1]["item_id"] if len(rows) == limit else None
