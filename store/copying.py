"""PostgreSQL's binary COPY format, written for the two rows that are written by the hundred thousand.

A third of what the driver's general encoder costs. Source: PostgreSQL manual, COPY, "Binary Format": each field is its
length (int32, -1 for null) and its bytes as the type's receive function takes them; times are microseconds since 2000.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from struct import Struct
from typing import Any, TypeVar, cast

import rollcall_native

from store.connection import Connection
from store.rows import Batch, ItemRow, TakenResult

_Row = TypeVar("_Row")

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_FIELDS = len(ItemRow._fields).to_bytes(2, "big")
_FIRST_ROWS = 50  # how large they are is only known by then
_MOST_ROWS = 500
_PIECE_BYTES = 1024 * 1024

COPY_BYTES = 4 * 1024 * 1024
COPY_TIMEOUT_S = 30.0
"""Of one COPY, which ends once it has taken ``COPY_BYTES``."""

# Grouped by how they are encoded: ids, what few values repeat, what most rows do not have, numbers, and the message,
# whose length is packed with them.
ITEM_COLUMNS = (
    *("batch_id", "item_id", "status", "effect", "worker"),
    *("error_code", "error_message", "stack_trace", "output", "metrics", "occurred_at"),
    *("attempt", "generation", "version", "received_at", "duration_ms", "message"),
)
assert set(ITEM_COLUMNS) == set(ItemRow._fields)

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_length = Struct(">i").pack
# attempt, generation, version, received_at, duration_ms, each behind its length, and the message's length.
_numbers = Struct(">iiiiiqiqidi").pack
_numbers_without_duration = Struct(">iiiiiqiqii").pack
_int8 = Struct(">iq").pack


def text(value: str | None) -> bytes:
    """A text or json field. Raises UnicodeEncodeError for lone surrogates."""
    if value is None:
        return _NULL
    encoded = value.encode()
    return _length(len(encoded)) + encoded


_LENGTHS = [_length(length) for length in range(1_000)]
"""Of ids: at most 200 characters of at most four bytes."""
_FIVE_NULLS, _SIX_NULLS = _NULL * 5, _NULL * 6


def in_order(results: Sequence[TakenResult]) -> list[TakenResult]:
    """Results by batch and item; no two are of the same. May raise UnicodeEncodeError for lone surrogates."""
    if rollcall_native.compiled:
        return rollcall_native.results.in_order(results)
    return [*sorted(cast(Sequence[ItemRow], results))]


def item_rows(rows: Sequence[TakenResult]) -> Iterator[bytes]:
    """Rows with their columns in the order of ``ITEM_COLUMNS``, in pieces: one is sent while the next is made."""
    return _pieces(rows, encode_items)


def encode_in_python(rows: Sequence[TakenResult]) -> bytes:
    """The bytes of rows of items (no ``UsualResult``), as ``encode_items`` gives them."""
    parts: list[bytes] = []
    add = parts.extend
    labels: dict[tuple[str, str | None, str | None], bytes] = {}
    last_batch_id, head = None, b""
    last_received_at, received = _EPOCH, 0
    for row in cast(Sequence[ItemRow], rows):
        # All at once: on a path this hot, naming fields one by one shows.
        (
            batch_id, item_id, status, attempt, generation, version, received_at, effect, duration, message,
            code, error, trace, output, metrics, worker, occurred_at,
        ) = row  # fmt: skip
        if batch_id != last_batch_id:
            last_batch_id, head = batch_id, _FIELDS + text(batch_id)
        if received_at is not last_received_at:
            last_received_at, received = received_at, (received_at - _EPOCH) // _MICROSECOND
        item = item_id.encode()
        # Few statuses, effects and workers: encoded once a piece.
        key = (status, effect, worker)
        label = labels.get(key) or labels.setdefault(key, b"".join(map(text, key)))
        rest = _SIX_NULLS
        if error is not None or code is not None or trace is not None or output is not None or metrics is not None:
            rest = b"".join(map(text, row[10:15])) + _time(occurred_at)
        elif occurred_at is not None:
            rest = _FIVE_NULLS + _time(occurred_at)
        line, length = b"", -1
        if message is not None:
            line = message.encode()
            length = len(line)
        if duration is None:
            numbers = _numbers_without_duration(4, attempt, 4, generation, 8, version, 8, received, -1, length)
        else:
            numbers = _numbers(4, attempt, 4, generation, 8, version, 8, received, 8, duration, length)
        add((head, _LENGTHS[len(item)], item, label, rest, numbers, line))
    return b"".join(parts)


encode_items: Callable[[Sequence[TakenResult]], bytes] = (
    rollcall_native.copying.item_rows if rollcall_native.compiled else encode_in_python
)


_LABELS = ("state", "outcome", "finalized_by", "name")
_RARE_TEXTS = ("metadata", "policy", "retry_of", "reason", "error")
_RARE_TIMES = ("deadline_at", "reopened_at", "pruned_at")
_TIMES = ("opened_at", "first_result_at", "last_result_at", "last_answer_at", "completed_at", "finalized_at")
_COUNTS = (
    *("partition", "revision", "generation", "matched", "succeeded", "partial", "failed", "skipped", "retrying"),
    *("created", "updated", "unchanged", "late"),
)
_FLAGS = ("sealed", "request_retry", "failure_seen", "threshold_exceeded")
_OTHERS = ("batch_id", "duplicates", "total_items", "expected", "last_result_offset", "decided_offset")
BATCH_COLUMNS = _OTHERS + _LABELS + _RARE_TEXTS + _RARE_TIMES + _TIMES + _COUNTS + _FLAGS
assert set(BATCH_COLUMNS) == set(Batch.__struct_fields__)

_BATCH_FIELDS = len(BATCH_COLUMNS).to_bytes(2, "big")
_labels, _times = attrgetter(*_LABELS), attrgetter(*_TIMES)
_rare = attrgetter(*_RARE_TEXTS, *_RARE_TIMES)
_NO_RARE = (None,) * len(_RARE_TEXTS + _RARE_TIMES)
_NULLS = _NULL * len(_NO_RARE)
_counts_and_flags = attrgetter(*_COUNTS, *_FLAGS)
_counts_and_flags_fields = Struct(">" + "ii" * len(_COUNTS) + "i?" * len(_FLAGS)).pack
_int4 = Struct(">ii").pack


def batch_rows(rows: Sequence[Batch]) -> Iterator[bytes]:
    """Batches with their columns in the order of ``BATCH_COLUMNS``, in pieces."""
    return _pieces(rows, _batch_piece)


def _batch_piece(rows: Sequence[Batch]) -> bytes:
    parts: list[bytes] = []
    # Many batches share a state, an outcome and a name, and times with what was appended in the same millisecond.
    labels: dict[object, bytes] = {}
    times: dict[datetime | None, bytes] = {None: _NULL}
    counts_and_flags = [4, 0] * len(_COUNTS) + [1, False] * len(_FLAGS)  # each behind its length
    for row in rows:
        key, rare = _labels(row), _rare(row)
        parts += (
            _BATCH_FIELDS,
            text(row.batch_id),
            _int8(8, row.duplicates),
            _NULL if row.total_items is None else _int4(4, row.total_items),
            _NULL if row.expected is None else _int4(4, row.expected),
            _NULL if row.last_result_offset is None else _int8(8, row.last_result_offset),
            _NULL if row.decided_offset is None else _int8(8, row.decided_offset),
            labels.get(key) or labels.setdefault(key, b"".join(map(text, key))),
        )
        if rare == _NO_RARE:
            parts.append(_NULLS)
        else:
            parts += map(text, rare[: len(_RARE_TEXTS)])
            parts += map(_time, rare[len(_RARE_TEXTS) :])
        parts += [times.get(moment) or times.setdefault(moment, _time(moment)) for moment in _times(row)]
        counts_and_flags[1::2] = _counts_and_flags(row)
        parts.append(_counts_and_flags_fields(*counts_and_flags))
    return b"".join(parts)


def _pieces(rows: Sequence[_Row], encoded: Callable[[Sequence[_Row]], bytes]) -> Iterator[bytes]:
    begin, count = 0, _FIRST_ROWS
    while begin < len(rows):
        piece = encoded(rows[begin : begin + count])
        yield piece
        begin += count
        count = max(1, min(_MOST_ROWS, count * _PIECE_BYTES // len(piece)))


# Sessions of workers that have waited for their client for longer than any worker waits for them: it is gone, or
# stopped. While PostgreSQL waits for the rows of a COPY, or for a client to take an answer, no time-out of its own ends
# a transaction (18; tried), only this. (seconds)
_END_ABANDONED = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = current_user AND application_name = 'rollcall worker' AND state = 'active'
  AND wait_event IN ('ClientRead', 'ClientWrite') AND query_start < clock_timestamp() - make_interval(secs => $1)
"""


async def end_abandoned(connection: Connection) -> int:
    """End the sessions of workers that are cut off inside a statement, and hold locks; returns how many."""
    return len(await connection.fetch(_END_ABANDONED, COPY_TIMEOUT_S))


async def copy(connection: Connection, table: str, columns: Sequence[str], pieces: Iterable[bytes]) -> None:
    """Send encoded rows, by as many COPYs as there must be: the time of each is fixed.

    Raises asyncpg.UniqueViolationError, asyncpg.DataError and what encoding them raises.
    """
    left = iter(pieces)
    piece = next(left, None)

    async def sent() -> AsyncIterator[bytes]:
        nonlocal piece
        yield _HEADER
        size = 0
        while piece is not None and size < COPY_BYTES:
            yield piece
            size += len(piece)
            piece = next(left, None)
        yield _TRAILER

    while piece is not None:
        await within_time(connection, connection.copy_to_table(table, source=sent(), columns=columns, format="binary"))


async def within_time(connection: Connection, copying: Coroutine[Any, Any, object]) -> None:
    """Await a COPY of this connection, which is terminated where that takes too long or it is lost.

    asyncpg 0.32 waits for room in the socket without its ``command_timeout``, and goes on waiting when the connection
    is gone. Raises what the COPY raises, TimeoutError, and ConnectionResetError.
    """
    lost: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def note_lost(_: object) -> None:
        if not lost.done():
            lost.set_result(None)

    connection.add_termination_listener(note_lost)
    task = asyncio.create_task(copying, name="copy")
    try:
        await asyncio.wait({task, lost}, timeout=COPY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            await asyncio.wait({task}, timeout=1.0)  # mostly it knows why
        if not task.done():
            raise ConnectionResetError("the connection was lost during a COPY") if lost.done() else TimeoutError
        task.result()
    finally:
        connection.remove_termination_listener(note_lost)
        if not task.done():
            connection.terminate()
            task.cancel()
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # its own end says nothing more
        # What it raised knows this frame: a cycle, which would keep a whole micro-batch until garbage is looked for.
        del task


def _time(moment: datetime | None) -> bytes:
    """A timestamptz field."""
    return _NULL if moment is None else _int8(8, (moment - _EPOCH) // _MICROSECOND)
