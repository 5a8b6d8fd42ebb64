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

from .records cimport FetchedRecord, Part, is_usual
from .rows cimport (
    ATTEMPT, BATCH_ID, DURATION_MS, EFFECT, EFFECTS, ERROR_CODE, ERROR_MESSAGE, GENERATION, ITEM_ID, MESSAGE, METRICS,
    OCCURRED_AT, OUTPUT, RECEIVED_AT, STACK_TRACE, STATUS, STATUSES, VERSION, WIDTH, WORKER, Word,
)

from datetime import UTC

import_datetime()

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    # What a row's fields take but for their texts: the number of fields, a length each, and the numbers and times.
    FIXED_BYTES = 2 + WIDTH * 4 + 4 + 4 + 8 + 8 + 8 + 8

cdef enum:
    TEXT_COUNT = 11

cdef object _UTC = UTC

# The texts of a row, in the order in which they are written: the message is the last of all fields.
cdef int[TEXT_COUNT] TEXTS = [
    BATCH_ID, ITEM_ID, STATUS, EFFECT, WORKER, ERROR_CODE, ERROR_MESSAGE, STACK_TRACE, OUTPUT, METRICS, MESSAGE,
]


cdef inline char *_int4(char *p, uint32_t value) noexcept nogil:
    p[0], p[1], p[2], p[3] = <char>(value >> 24), <char>(value >> 16), <char>(value >> 8), <char>value
    return p + 4


cdef inline char *_int8(char *p, uint64_t value) noexcept nogil:
    return _int4(_int4(p, <uint32_t>(value >> 32)), <uint32_t>value)


cdef inline char *_bytes(char *p, const char *encoded, Py_ssize_t length) noexcept nogil:
    """A text field as UTF-8, null where there is none."""
    if encoded == NULL:
        return _int4(p, 0xFFFFFFFFu)
    p = _int4(p, <uint32_t>length)
    memcpy(p, encoded, length)
    return p + length


cdef inline char *_part(char *p, const char *value, const Part *part) noexcept nogil:
    """A text field that stands in a value."""
    return _bytes(p, value + part.begin if part.begin else NULL, part.length)


cdef inline const char *_encoded(object text, Py_ssize_t *length) except? NULL:
    """A text as UTF-8, which it holds; NULL, and of no length, where there is none."""
    length[0] = 0
    return NULL if text is None else PyUnicode_AsUTF8AndSize(text, length)


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


cdef inline char *_time(char *p, object moment) except NULL:
    return _int4(p, 0xFFFFFFFFu) if moment is None else _int8(_int4(p, 8), <uint64_t>_microseconds(moment))


cdef inline char *_numbers(char *p, uint32_t attempt, uint32_t generation, uint64_t version) noexcept nogil:
    return _int8(_int4(_int4(_int4(_int4(_int4(p, 4), attempt), 4), generation), 8), version)


cdef inline char *_duration(char *p, bint is_known, double milliseconds) noexcept nogil:
    cdef uint64_t bits
    if not is_known:
        return _int4(p, 0xFFFFFFFFu)
    memcpy(&bits, &milliseconds, 8)
    return _int8(_int4(p, 8), bits)


cdef class _Written:
    """Bytes to come, and the time of the last row as it was written."""

    cdef char *begin
    cdef Py_ssize_t size
    cdef Py_ssize_t room
    cdef object last_received_at
    cdef int64_t received

    def __cinit__(self, Py_ssize_t rows):
        self.room = 512 * rows + FIXED_BYTES
        self.begin = <char *>PyMem_Malloc(self.room)
        if self.begin == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.begin)

    cdef char *next_row(self, Py_ssize_t texts) except NULL:
        """Where the fields of a row with so many bytes of texts go: there is room for them."""
        cdef Py_ssize_t needed = self.size + FIXED_BYTES + texts
        cdef char *grown
        if needed > self.room:
            needed = max(self.room * 2, needed)
            grown = <char *>PyMem_Realloc(self.begin, needed)
            if grown == NULL:
                raise MemoryError
            self.begin, self.room = grown, needed
        grown = self.begin + self.size
        grown[0], grown[1] = 0, WIDTH
        return grown + 2

    cdef char *received_at(self, char *p, object moment) except NULL:
        if moment is not self.last_received_at or moment is None:
            self.last_received_at, self.received = moment, _microseconds(moment)
        return _int8(_int4(p, 8), <uint64_t>self.received)

    cdef int usual(self, FetchedRecord result) except -1:
        cdef const Word *status = &STATUSES[result.of_status]
        cdef const Word *effect = &EFFECTS[result.of_effect]
        cdef const char *value = result.value_at
        cdef Py_ssize_t batch_length, worker_length
        cdef const char *batch = _encoded(result.batch_id, &batch_length)
        cdef const char *worker = _encoded(result.worker, &worker_length)
        # All parts are different bytes of the value.
        cdef char *p = self.next_row(batch_length + worker_length + status.length + effect.length + result.value_length)
        p = _bytes(p, batch, batch_length)
        p = _part(p, value, &result.item)
        p = _bytes(p, status.text, status.length)
        p = _bytes(p, effect.text, effect.length)
        p = _bytes(p, worker, worker_length)
        p = _part(p, value, &result.error_code)
        p = _part(p, value, &result.error_message)
        p = _part(p, value, &result.stack_trace)
        p = _part(p, value, &result.output)
        p = _part(p, value, &result.metrics)
        p = _time(p, result.occurred_at)
        p = _numbers(p, <uint32_t>result.attempt, 0, <uint64_t>result.offset)
        p = self.received_at(p, result.received_at)
        p = _duration(p, result.has_duration, result.duration_ms)
        p = _part(p, value, &result.message)
        self.size = p - self.begin
        return 0

    cdef int row(self, object row) except -1:
        cdef const char *texts[TEXT_COUNT]
        cdef Py_ssize_t lengths[TEXT_COUNT]
        cdef Py_ssize_t length = 0
        cdef int number
        cdef object duration = <object>PyTuple_GET_ITEM(row, DURATION_MS)
        cdef int attempt = <object>PyTuple_GET_ITEM(row, ATTEMPT)
        cdef int generation = <object>PyTuple_GET_ITEM(row, GENERATION)
        cdef int64_t version = <object>PyTuple_GET_ITEM(row, VERSION)
        cdef char *p
        for number in range(TEXT_COUNT):
            texts[number] = _encoded(<object>PyTuple_GET_ITEM(row, TEXTS[number]), &lengths[number])
            length += lengths[number]
        p = self.next_row(length)
        for number in range(TEXT_COUNT - 1):
            p = _bytes(p, texts[number], lengths[number])
        p = _time(p, <object>PyTuple_GET_ITEM(row, OCCURRED_AT))
        p = _numbers(p, <uint32_t>attempt, <uint32_t>generation, <uint64_t>version)
        p = self.received_at(p, <object>PyTuple_GET_ITEM(row, RECEIVED_AT))
        p = _duration(p, duration is not None, 0.0 if duration is None else <double>duration)
        p = _bytes(p, texts[TEXT_COUNT - 1], lengths[TEXT_COUNT - 1])
        self.size = p - self.begin
        return 0


def item_rows(rows):
    """The bytes of rows, and of usual results, columns in the order of `ITEM_COLUMNS` in `store.copying`.

    Times have to be in UTC. Raises UnicodeEncodeError for lone surrogates, OverflowError for numbers too large.
    """
    cdef _Written written = _Written(len(rows))
    cdef object row
    for row in rows:
        if is_usual(row):
            written.usual(<FetchedRecord>row)
        elif isinstance(row, tuple) and PyTuple_GET_SIZE(row) == WIDTH:
            written.row(row)
        else:
            raise ValueError(f"a row of items has {WIDTH} fields")
    return PyBytes_FromStringAndSize(written.begin, written.size)
