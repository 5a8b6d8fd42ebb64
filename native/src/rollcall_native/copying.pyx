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

from .results cimport EFFECTS, STATUSES, Part, UsualResult
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


cdef inline int _bytes(Piece *piece, const char *encoded, Py_ssize_t length) except -1:
    """A text field as UTF-8, null where there is none. Room for what is fixed is there, and is behind it."""
    if encoded == NULL:
        _int4(piece, 0xFFFFFFFFu)
        return 0
    _make_room(piece, length + FIXED_BYTES)
    _int4(piece, <uint32_t>length)
    memcpy(piece.begin + piece.size, encoded, length)
    piece.size += length
    return 0


cdef inline int _text(Piece *piece, object text) except -1:
    """A text field. Raises UnicodeEncodeError for lone surrogates."""
    cdef Py_ssize_t length = 0
    cdef const char *encoded = NULL
    if text is not None:
        encoded = PyUnicode_AsUTF8AndSize(text, &length)
    return _bytes(piece, encoded, length)


cdef inline int _part(Piece *piece, const char *value, const Part *part) except -1:
    """A text field that stands in a value."""
    return _bytes(piece, value + part.begin if part.begin else NULL, part.length)


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


cdef class _Written:
    """Bytes to come, and the time of the last row as it was written."""

    cdef Piece piece
    cdef object last_received_at
    cdef int64_t received

    def __cinit__(self, Py_ssize_t rows):
        self.piece.room = 512 * rows + FIXED_BYTES
        self.piece.begin = <char *>PyMem_Malloc(self.piece.room)
        if self.piece.begin == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.piece.begin)

    cdef int received_at(self, object moment) except -1:
        if moment is not self.last_received_at or moment is None:
            self.last_received_at, self.received = moment, _microseconds(moment)
        _int4(&self.piece, 8)
        _int8(&self.piece, <uint64_t>self.received)
        return 0

    cdef int usual(self, UsualResult result) except -1:
        cdef Piece *piece = &self.piece
        _text(piece, result.batch_id)
        _part(piece, result.value, &result.item)
        _bytes(piece, STATUSES[result.of_status].text, STATUSES[result.of_status].length)
        _bytes(piece, EFFECTS[result.of_effect].text, EFFECTS[result.of_effect].length)
        _text(piece, result.worker)
        _part(piece, result.value, &result.error_code)
        _part(piece, result.value, &result.error_message)
        _part(piece, result.value, &result.stack_trace)
        _part(piece, result.value, &result.output)
        _part(piece, result.value, &result.metrics)
        _time(piece, result.occurred_at)
        self.numbers(<uint32_t>result.attempt, 0, <uint64_t>result.version)
        self.received_at(result.received_at)
        self.duration(result.has_duration, result.duration_ms)
        _part(piece, result.value, &result.message)
        return 0

    cdef int row(self, object row) except -1:
        cdef Piece *piece = &self.piece
        cdef object duration = <object>PyTuple_GET_ITEM(row, DURATION_MS)
        cdef int attempt = <object>PyTuple_GET_ITEM(row, ATTEMPT)
        cdef int generation = <object>PyTuple_GET_ITEM(row, GENERATION)
        cdef int64_t version = <object>PyTuple_GET_ITEM(row, VERSION)
        _text(piece, <object>PyTuple_GET_ITEM(row, BATCH_ID))
        _text(piece, <object>PyTuple_GET_ITEM(row, ITEM_ID))
        _text(piece, <object>PyTuple_GET_ITEM(row, STATUS))
        _text(piece, <object>PyTuple_GET_ITEM(row, EFFECT))
        _text(piece, <object>PyTuple_GET_ITEM(row, WORKER))
        _text(piece, <object>PyTuple_GET_ITEM(row, ERROR_CODE))
        _text(piece, <object>PyTuple_GET_ITEM(row, ERROR_MESSAGE))
        _text(piece, <object>PyTuple_GET_ITEM(row, STACK_TRACE))
        _text(piece, <object>PyTuple_GET_ITEM(row, OUTPUT))
        _text(piece, <object>PyTuple_GET_ITEM(row, METRICS))
        _time(piece, <object>PyTuple_GET_ITEM(row, OCCURRED_AT))
        self.numbers(<uint32_t>attempt, <uint32_t>generation, <uint64_t>version)
        self.received_at(<object>PyTuple_GET_ITEM(row, RECEIVED_AT))
        self.duration(duration is not None, 0.0 if duration is None else <double>duration)
        _text(piece, <object>PyTuple_GET_ITEM(row, MESSAGE))
        return 0

    cdef void numbers(self, uint32_t attempt, uint32_t generation, uint64_t version) noexcept:
        cdef Piece *piece = &self.piece
        _int4(piece, 4)
        _int4(piece, attempt)
        _int4(piece, 4)
        _int4(piece, generation)
        _int4(piece, 8)
        _int8(piece, version)

    cdef void duration(self, bint is_known, double milliseconds) noexcept:
        cdef uint64_t bits
        if is_known:
            memcpy(&bits, &milliseconds, 8)
            _int4(&self.piece, 8)
            _int8(&self.piece, bits)
        else:
            _int4(&self.piece, 0xFFFFFFFFu)


def item_rows(rows):
    """The bytes of rows, and of usual results, columns in the order of `ITEM_COLUMNS` in `store.copying`.

    Times have to be in UTC. Raises UnicodeEncodeError for lone surrogates, OverflowError for numbers too large.
    """
    cdef _Written written = _Written(len(rows))
    cdef Piece *piece = &written.piece
    cdef object row
    for row in rows:
        _make_room(piece, FIXED_BYTES)
        piece.begin[piece.size], piece.begin[piece.size + 1] = 0, WIDTH
        piece.size += 2
        if type(row) is UsualResult:
            written.usual(<UsualResult>row)
        elif isinstance(row, tuple) and PyTuple_GET_SIZE(row) == WIDTH:
            written.row(row)
        else:
            raise ValueError(f"a row of items has {WIDTH} fields")
    return PyBytes_FromStringAndSize(piece.begin, piece.size)
