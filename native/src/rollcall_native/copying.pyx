# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Rows of items in PostgreSQL's binary COPY format, as `store.copying` writes them in Python."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.datetime cimport (
    PyDateTime_DATE_GET_HOUR,
    PyDateTime_DATE_GET_MICROSECOND,
    PyDateTime_DATE_GET_MINUTE,
    PyDateTime_DATE_GET_SECOND,
    PyDateTime_GET_DAY,
    PyDateTime_GET_MONTH,
    PyDateTime_GET_YEAR,
    datetime,
    datetime_tzinfo,
    import_datetime,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .rows cimport (
    ATTEMPT, BATCH_ID, DURATION_MS, EFFECT, ERROR_CODE, ERROR_MESSAGE, GENERATION, ITEM_ID, MESSAGE, METRICS, OCCURRED_AT,
    OUTPUT, RECEIVED_AT, STACK_TRACE, STATUS, VERSION, WIDTH, WORKER,
)

from datetime import UTC

import_datetime()

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    # What a row's fields take but for their texts: the number of fields, a length each, and the numbers and times.
    FIXED_BYTES = 2 + WIDTH * 4 + 4 + 4 + 8 + 8 + 8 + 8

cdef object _UTC = UTC


cdef struct Piece:
    char *begin
    Py_ssize_t size
    Py_ssize_t room


cdef int _make_room(Piece *piece, Py_ssize_t more) except -1:
    cdef Py_ssize_t room
    cdef char *grown
    if piece.size + more > piece.room:
        room = max(piece.room * 2, piece.size + more)
        grown = <char *>PyMem_Realloc(piece.begin, room)
        if grown == NULL:
            raise MemoryError
        piece.begin, piece.room = grown, room
    return 0


cdef inline void _int4(Piece *piece, uint32_t value) noexcept nogil:
    cdef char *p = piece.begin + piece.size
    p[0], p[1], p[2], p[3] = <char>(value >> 24), <char>(value >> 16), <char>(value >> 8), <char>value
    piece.size += 4


cdef inline void _int8(Piece *piece, uint64_t value) noexcept nogil:
    _int4(piece, <uint32_t>(value >> 32))
    _int4(piece, <uint32_t>value)


cdef inline int _text(Piece *piece, object text) except -1:
    """A text field. Room for what is fixed is there. Raises UnicodeEncodeError for lone surrogates."""
    cdef Py_ssize_t length
    cdef const char *encoded
    if text is None:
        _int4(piece, 0xFFFFFFFFu)
        return 0
    encoded = PyUnicode_AsUTF8AndSize(text, &length)
    _make_room(piece, length + FIXED_BYTES)
    _int4(piece, <uint32_t>length)
    memcpy(piece.begin + piece.size, encoded, length)
    piece.size += length
    return 0


cdef int64_t _microseconds(datetime moment) except? -1:
    """Since 2000, of a time in UTC. Days by the era: Howard Hinnant, chrono-Compatible Low-Level Date Algorithms."""
    cdef int64_t year, month, era, of_era, of_year, days
    if moment is None or datetime_tzinfo(moment) is not _UTC:
        raise ValueError(f"{moment!r} is not in UTC")
    year, month = PyDateTime_GET_YEAR(moment), PyDateTime_GET_MONTH(moment)
    if month <= 2:
        year -= 1
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + PyDateTime_GET_DAY(moment) - 1
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 730425
    return (
        (days * 24 + PyDateTime_DATE_GET_HOUR(moment)) * 60 + PyDateTime_DATE_GET_MINUTE(moment)
    ) * 60_000_000 + PyDateTime_DATE_GET_SECOND(moment) * 1_000_000 + PyDateTime_DATE_GET_MICROSECOND(moment)


cdef inline int _time(Piece *piece, object moment) except -1:
    if moment is None:
        _int4(piece, 0xFFFFFFFFu)
    else:
        _int4(piece, 8)
        _int8(piece, <uint64_t>_microseconds(moment))
    return 0


def item_rows(list rows not None):
    """The rows' bytes, columns in the order of `ITEM_COLUMNS` in `store.copying`; times have to be in UTC.

    Raises UnicodeEncodeError for lone surrogates, OverflowError for numbers too large.
    """
    cdef Piece piece
    cdef object row, received_at, duration
    cdef object last_received_at = rows  # no time
    cdef int64_t received = 0
    cdef double milliseconds
    cdef uint64_t bits
    cdef int attempt, generation
    piece.size, piece.room = 0, 512 * len(rows) + FIXED_BYTES
    piece.begin = <char *>PyMem_Malloc(piece.room)
    if piece.begin == NULL:
        raise MemoryError
    try:
        for row in rows:
            if not isinstance(row, tuple) or PyTuple_GET_SIZE(row) != WIDTH:
                raise ValueError(f"a row of items has {WIDTH} fields")
            _make_room(&piece, FIXED_BYTES)
            piece.begin[piece.size], piece.begin[piece.size + 1] = 0, WIDTH
            piece.size += 2
            _text(&piece, <object>PyTuple_GET_ITEM(row, BATCH_ID))
            _text(&piece, <object>PyTuple_GET_ITEM(row, ITEM_ID))
            _text(&piece, <object>PyTuple_GET_ITEM(row, STATUS))
            _text(&piece, <object>PyTuple_GET_ITEM(row, EFFECT))
            _text(&piece, <object>PyTuple_GET_ITEM(row, WORKER))
            _text(&piece, <object>PyTuple_GET_ITEM(row, ERROR_CODE))
            _text(&piece, <object>PyTuple_GET_ITEM(row, ERROR_MESSAGE))
            _text(&piece, <object>PyTuple_GET_ITEM(row, STACK_TRACE))
            _text(&piece, <object>PyTuple_GET_ITEM(row, OUTPUT))
            _text(&piece, <object>PyTuple_GET_ITEM(row, METRICS))
            _time(&piece, <object>PyTuple_GET_ITEM(row, OCCURRED_AT))
            attempt = <object>PyTuple_GET_ITEM(row, ATTEMPT)
            generation = <object>PyTuple_GET_ITEM(row, GENERATION)
            _int4(&piece, 4)
            _int4(&piece, <uint32_t>attempt)
            _int4(&piece, 4)
            _int4(&piece, <uint32_t>generation)
            _int4(&piece, 8)
            _int8(&piece, <uint64_t><int64_t><object>PyTuple_GET_ITEM(row, VERSION))
            received_at = <object>PyTuple_GET_ITEM(row, RECEIVED_AT)
            if received_at is not last_received_at:
                last_received_at, received = received_at, _microseconds(received_at)
            _int4(&piece, 8)
            _int8(&piece, <uint64_t>received)
            duration = <object>PyTuple_GET_ITEM(row, DURATION_MS)
            if duration is None:
                _int4(&piece, 0xFFFFFFFFu)
            else:
                milliseconds = duration
                memcpy(&bits, &milliseconds, 8)
                _int4(&piece, 8)
                _int8(&piece, bits)
            _text(&piece, <object>PyTuple_GET_ITEM(row, MESSAGE))
        return PyBytes_FromStringAndSize(piece.begin, piece.size)
    finally:
        PyMem_Free(piece.begin)
