# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Usual results out of their JSON, and how a slice of results is summed up and sorted.

What is taken here is a part of what `streams.decoding` takes, with the same outcome; whatever is unusual (an escape in a
string, a field given twice or unknown, a number that is written in another way than Python writes it) gives None, and
`streams.decoding` decides. So nothing is refused here.

Of a usual result every text stands in its record's value as it goes to PostgreSQL. So it stays there: the record is told
where, and most results are counted, sorted and copied without ever becoming a row of Python objects.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.datetime cimport PyDateTimeAPI, import_datetime
from cpython.float cimport PyFloat_FromDouble
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset, strncmp

from .records cimport EFFECT_TEXTS, STATUS_TEXTS, FetchedRecord, Part, is_usual, text_of
from .rows cimport (
    ATTEMPT, BATCH_ID, DURATION_MS, EFFECT, EFFECT_COUNT, EFFECTS, ERROR_CODE, ERROR_MESSAGE, GENERATION, ITEM_ID, MESSAGE,
    METRICS, OCCURRED_AT, OUTPUT, RECEIVED_AT, RETRYING, STACK_TRACE, STATUS, STATUS_COUNT, STATUSES, VERSION, WIDTH, WORKER,
    Word,
)

from datetime import UTC

import_datetime()

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static const double ROLLCALL_POWERS[] = {
        1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};

    /* The first byte from p on that a string can't hold plainly: a quote, a backslash, a control character; else end.
       Sets *wide where there is a byte beyond ASCII. Eight bytes at a time: the usual tests for a byte in a word, of
       which the lowest that answers is right. */
    static inline const char *rollcall_string_end(const char *p, const char *end, int *wide) {
        const uint64_t ones = 0x0101010101010101ULL, highs = 0x8080808080808080ULL;
        uint64_t seen = 0;
        while (end - p >= 8) {
            uint64_t word, quote, backslash, found;
            memcpy(&word, p, 8);
            quote = word ^ (ones * '"');
            backslash = word ^ (ones * '\\\\');
            found = (((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) | ((word - ones * 0x20) & ~word)) & highs;
            if (found) {
    #if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
                /* The bits below that one are those of the bytes before. */
                if ((seen | (word & ((found ^ (found - 1)) >> 8))) & highs)
                    *wide = 1;
                return p + (__builtin_ctzll(found) >> 3);
    #else
                break;
    #endif
            }
            seen |= word;
            p += 8;
        }
        if (seen & highs)
            *wide = 1;
        while (p < end) {
            unsigned char c = (unsigned char)*p;
            if (c == '"' || c == '\\\\' || c < 0x20)
                break;
            if (c >= 0x80)
                *wide = 1;
            p++;
        }
        return p;
    }

    /* A tuple of this type without its items yet. */
    static inline PyObject *rollcall_new_row(PyObject *type, Py_ssize_t length) {
        PyObject *row = PyType_GenericAlloc((PyTypeObject *)type, length);
    #if PY_VERSION_HEX >= 0x030E0000
        if (row != NULL)
            ((PyTupleObject *)row)->ob_hash = -1; /* not computed yet */
    #endif
        return row;
    }

    static inline PyObject *rollcall_ascii(const char *p, Py_ssize_t length) {
        PyObject *text = PyUnicode_New(length, 127);
        if (text != NULL)
            memcpy(PyUnicode_1BYTE_DATA(text), p, (size_t)length);
        return text;
    }
    """
    const double *POWERS "ROLLCALL_POWERS"
    const char *string_end "rollcall_string_end"(const char *p, const char *end, int *wide) nogil
    object new_row "rollcall_new_row"(object type, Py_ssize_t length)
    str ascii_text "rollcall_ascii"(const char *p, Py_ssize_t length)

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *text, Py_ssize_t length, const char *errors)
    char *PyOS_double_to_string(double value, char code, int precision, int flags, int *kind) except NULL
    double PyOS_string_to_double(const char *text, char **end, PyObject *overflow) except? -1.0
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int Py_DTSF_ADD_DOT_0

FIELDS = (
    "batch_id", "item_id", "status", "attempt", "generation", "version", "received_at", "effect", "duration_ms",
    "message", "error_code", "error_message", "stack_trace", "output", "metrics", "worker", "occurred_at",
)

cdef enum:
    # As in `schemas.events`: nothing longer is taken here. Deeper or wider JSON isn't either.
    MAX_ID_CHARS = 200
    MAX_NAME_CHARS = 200
    MAX_TEXT_BYTES = 4096
    MAX_STACK_TRACE_BYTES = 16384
    MAX_OUTPUT_BYTES = 65536
    MAX_VALUE_BYTES = 0x7FFFFFFF
    MAX_DEPTH = 32
    MAX_KEYS = 32
    KNOWN_TEXTS = 1024
    # Fields that are checked and go nowhere.
    TYPE = WIDTH
    SCHEMA_VERSION = WIDTH + 1
    NEEDED = 1 << BATCH_ID | 1 << ITEM_ID | 1 << STATUS


cdef struct Span:
    const char *at
    Py_ssize_t length
    int wide


cdef inline const char *_space(const char *p) noexcept nogil:
    """Behind white space. A bytes object ends with a NUL, which is none."""
    while p[0] == c" " or p[0] == c"\n" or p[0] == c"\r" or p[0] == c"\t":
        p += 1
    return p


cdef inline const char *_string(const char *p, const char *end, Span *span) noexcept nogil:
    """Behind a string without escapes that begins at p; NULL where there is none."""
    if p[0] != c'"':
        return NULL
    span.wide = 0
    span.at = p + 1
    p = string_end(p + 1, end, &span.wide)
    if p >= end or p[0] != c'"':
        return NULL
    span.length = p - span.at
    return p + 1


cdef inline bint _is(const Span *span, const char *text, Py_ssize_t length) noexcept nogil:
    return span.length == length and memcmp(span.at, text, length) == 0


cdef inline const char *_null(const char *p) noexcept nogil:
    """Behind a null; NULL where there is none."""
    return p + 4 if p[0] == c"n" and p[1] == c"u" and p[2] == c"l" and p[3] == c"l" else NULL


cdef inline const char *_count(const char *p, int64_t *value) noexcept nogil:
    """Behind an integer from 1 to 2^31 - 1; NULL where there is none."""
    cdef int64_t number = 0
    if p[0] < c"1" or p[0] > c"9":
        return NULL
    while c"0" <= p[0] <= c"9":
        number = number * 10 + (p[0] - c"0")
        if number > 0x7FFFFFFF:
            return NULL
        p += 1
    if p[0] == c"." or p[0] == c"e" or p[0] == c"E":
        return NULL
    value[0] = number
    return p


cdef inline const char *_milliseconds(const char *p, double *value) noexcept nogil:
    """Behind a number that isn't negative, of at most 15 digits and without exponent; NULL where there is none.

    So many digits a double holds exactly, and one division by a power of ten that it holds exactly rounds once: it is
    the double nearest to what is written (Clinger, How to Read Floating Point Numbers Accurately, 1990).
    """
    cdef long long number = 0
    cdef int digits = 0
    cdef int decimals = 0
    if p[0] < c"0" or p[0] > c"9" or (p[0] == c"0" and c"0" <= p[1] <= c"9"):
        return NULL
    while c"0" <= p[0] <= c"9":
        number = number * 10 + (p[0] - c"0")
        digits += 1
        if digits > 15:
            return NULL
        p += 1
    if p[0] == c".":
        p += 1
        while c"0" <= p[0] <= c"9":
            number = number * 10 + (p[0] - c"0")
            digits += 1
            decimals += 1
            if digits > 15:
                return NULL
            p += 1
        if not decimals:
            return NULL
    if p[0] == c"e" or p[0] == c"E":
        return NULL
    value[0] = <double>number / POWERS[decimals]
    return p


cdef const char *_json_number(const char *p) except? NULL:
    """Behind a number; NULL where there is none, or Python would write it in another way."""
    cdef const char *begin = p
    cdef const char *digits
    cdef char *read = NULL
    cdef char *written
    cdef bint is_float = False
    cdef bint is_same
    cdef double value
    if p[0] == c"-":
        p += 1
    digits = p
    while c"0" <= p[0] <= c"9":
        p += 1
    if p == digits or (digits[0] == c"0" and p - digits > 1):
        return NULL
    if p[0] == c".":
        is_float = True
        p += 1
        while c"0" <= p[0] <= c"9":
            p += 1
    if p[0] == c"e" or p[0] == c"E":
        return NULL
    if not is_float:
        # 18 digits fit whatever integers are read into; minus zero is no integer.
        return p if p - digits <= 18 and not (begin[0] == c"-" and digits[0] == c"0") else NULL
    if p - begin > 24:
        return NULL
    value = PyOS_string_to_double(begin, &read, NULL)
    if read != p:
        return NULL
    written = PyOS_double_to_string(value, c"r", 0, Py_DTSF_ADD_DOT_0, NULL)
    is_same = strncmp(written, begin, p - begin) == 0 and written[p - begin] == 0
    PyMem_Free(written)
    return p if is_same else NULL


cdef const char *_json(const char *p, const char *end, int depth, int *wide, bint of_numbers) except? NULL:
    """Behind a JSON value (an object ``of_numbers``) that is written as Python writes it without spaces; else NULL.

    Objects of more than a few keys, deep nesting and long integers are left to who looks closer.
    """
    cdef Span keys[MAX_KEYS]
    cdef Span text
    cdef int count = 0
    cdef int index
    cdef const char *behind
    if of_numbers and p[0] != c"{":
        return NULL
    if p[0] == c'"':
        behind = _string(p, end, &text)
        if behind != NULL and text.wide:
            wide[0] = 1
        return behind
    if p[0] == c"{":
        if depth >= MAX_DEPTH:
            return NULL
        p += 1
        if p[0] == c"}":
            return p + 1
        while True:
            if count == MAX_KEYS:
                return NULL
            p = _string(p, end, &keys[count])
            if p == NULL or p[0] != c":":
                return NULL
            for index in range(count):
                if _is(&keys[index], keys[count].at, keys[count].length):
                    return NULL
            if keys[count].wide:
                wide[0] = 1
            count += 1
            p = _json_number(p + 1) if of_numbers else _json(p + 1, end, depth + 1, wide, False)
            if p == NULL:
                return NULL
            if p[0] == c"}":
                return p + 1
            if p[0] != c",":
                return NULL
            p += 1
    if p[0] == c"[":
        if depth >= MAX_DEPTH:
            return NULL
        p += 1
        if p[0] == c"]":
            return p + 1
        while True:
            p = _json(p, end, depth + 1, wide, False)
            if p == NULL:
                return NULL
            if p[0] == c"]":
                return p + 1
            if p[0] != c",":
                return NULL
            p += 1
    if p[0] == c"t":
        return p + 4 if p[1] == c"r" and p[2] == c"u" and p[3] == c"e" else NULL
    if p[0] == c"f":
        return p + 5 if p[1] == c"a" and p[2] == c"l" and p[3] == c"s" and p[4] == c"e" else NULL
    if p[0] == c"n":
        return _null(p)
    return _json_number(p)


cdef inline int _two(const char *p) noexcept nogil:
    """A number of two digits; -1 where there is none."""
    if c"0" <= p[0] <= c"9" and c"0" <= p[1] <= c"9":
        return (p[0] - c"0") * 10 + (p[1] - c"0")
    return -1


cdef object _moment(const Span *span):
    """An RFC 3339 time in UTC, in the years 1000 to 9998; None where it is written in another way."""
    cdef const char *p = span.at
    cdef const char *end = p + span.length
    cdef int century, year, month, day, hour, minute, second
    cdef int microsecond = 0
    cdef int digits = 0
    if span.length < 20 or p[4] != c"-" or p[7] != c"-" or p[10] != c"T" or p[13] != c":" or p[16] != c":":
        return None
    century, year, month, day = _two(p), _two(p + 2), _two(p + 5), _two(p + 8)
    hour, minute, second = _two(p + 11), _two(p + 14), _two(p + 17)
    if century < 10 or year < 0 or (century == 99 and year == 99) or month < 1 or day < 1:
        return None
    if hour < 0 or hour > 23 or minute < 0 or second < 0:
        return None
    p += 19
    if p[0] == c".":
        p += 1
        while c"0" <= p[0] <= c"9":
            if digits == 6:
                return None
            microsecond = microsecond * 10 + (p[0] - c"0")
            digits += 1
            p += 1
        if not digits:
            return None
        while digits < 6:
            microsecond *= 10
            digits += 1
    if not (end - p == 1 and p[0] == c"Z") and not (end - p == 6 and memcmp(p, b"+00:00", 6) == 0):
        return None
    try:
        return PyDateTimeAPI.DateTime_FromDateAndTime(
            century * 100 + year, month, day, hour, minute, second, microsecond, UTC, PyDateTimeAPI.DateTimeType
        )
    except ValueError:
        return None


cdef inline object _text(const Span *span):
    """A string's text; None where it is no UTF-8."""
    if not span.wide:
        return ascii_text(span.at, span.length)
    try:
        return PyUnicode_DecodeUTF8(span.at, span.length, NULL)
    except UnicodeDecodeError:
        return None


cdef inline bint _is_text(const Span *span) except -1:
    """Whether it is UTF-8."""
    return not span.wide or _text(span) is not None


cdef inline bint _is_id(const Span *span, bint is_batch) except -1:
    """Whether it is an id; not where it has to be looked at more closely."""
    cdef Py_ssize_t index
    cdef object text
    if span.length == 0:
        return False
    if not span.wide:
        if span.length > MAX_ID_CHARS:
            return False
        for index in range(span.length):
            if span.at[index] == 0x7F or (is_batch and span.at[index] == c"/"):
                return False
        return True
    text = _text(span)
    return text is not None and len(text) <= MAX_ID_CHARS and text.isprintable() and not (is_batch and "/" in text)


cdef inline uint64_t _mixed(const char *p, uint32_t length) noexcept nogil:
    """A hash, eight bytes at a time."""
    cdef uint64_t word
    cdef uint64_t value = length * <uint64_t>0x9E3779B97F4A7C15
    while length >= 8:
        memcpy(&word, p, 8)
        value = (value ^ word) * <uint64_t>0xFF51AFD7ED558CCD
        value ^= value >> 32
        p += 8
        length -= 8
    if length:
        word = 0
        memcpy(&word, p, length)
        value = (value ^ word) * <uint64_t>0xFF51AFD7ED558CCD
        value ^= value >> 32
    # Once more, or the last bytes of a word, in which ids differ, would not reach the lowest bits.
    value *= <uint64_t>0xC4CEB9FE1A85EC53
    return value ^ (value >> 32)


cdef inline unsigned int _hash(const Span *span) noexcept nogil:
    """Of the last bytes, and of how many there are of these: the rest of similar ids is the same."""
    cdef Py_ssize_t begin = span.length - 16 if span.length > 16 else 0
    return <unsigned int>_mixed(span.at + begin, <uint32_t>(span.length - begin))


cdef inline void _set(object row, int field, object value) noexcept:
    Py_INCREF(value)
    PyTuple_SET_ITEM(row, field, value)


cdef class _Known:
    """Texts that come again and again, as one object each: those of an id are equal before they are compared."""

    cdef list texts
    cdef list encoded

    def __cinit__(self):
        self.texts = [None] * KNOWN_TEXTS
        self.encoded = [b""] * KNOWN_TEXTS

    cdef str get(self, const Span *span, bint is_batch):
        """The text of a batch id, or of any name; None where it is to be looked at more closely."""
        cdef unsigned int index = _hash(span) % KNOWN_TEXTS
        cdef PyObject *encoded = <PyObject *>PyList_GET_ITEM(self.encoded, index)
        cdef object text = None
        cdef bytes known
        if (
            PyBytes_GET_SIZE(<object>encoded) == span.length
            and memcmp(PyBytes_AS_STRING(<object>encoded), span.at, span.length) == 0
            and self.texts[index] is not None
        ):
            return self.texts[index]
        if not is_batch or _is_id(span, True):
            text = _text(span)
            if text is not None and len(text) > MAX_NAME_CHARS:
                return None
        if text is not None:
            known = span.at[:span.length]  # first: should there be no memory, nothing is half changed
            self.texts[index], self.encoded[index] = text, known
        return text


cdef const char *_error(const char *p, const char *end, Span *code, Span *message, Span *trace) noexcept nogil:
    """Behind an error; NULL where it is none, or unusual. What it doesn't have begins at NULL."""
    cdef Span key
    cdef Span *text
    cdef const char *behind
    cdef int seen = 0
    cdef int bit
    code.at = message.at = trace.at = NULL
    if p[0] != c"{":
        return NULL
    p += 1
    while True:
        p = _string(_space(p), end, &key)
        if p == NULL:
            return NULL
        p = _space(p)
        if p[0] != c":":
            return NULL
        p = _space(p + 1)
        if _is(&key, b"message", 7):
            text, bit = message, 1
        elif _is(&key, b"code", 4):
            text, bit = code, 2
        elif _is(&key, b"stack_trace", 11):
            text, bit = trace, 4
        else:
            return NULL
        if seen & bit:
            return NULL
        seen |= bit
        behind = NULL
        if bit != 1:
            behind = _null(p)
        if behind == NULL:
            behind = _string(p, end, text)
            if behind == NULL or text.length > (MAX_STACK_TRACE_BYTES if bit == 4 else MAX_TEXT_BYTES):
                return NULL
        p = _space(behind)
        if p[0] == c",":
            p += 1
        elif p[0] == c"}":
            return p + 1 if seen & 1 else NULL
        else:
            return NULL


cdef int _field(const Span *key) noexcept nogil:
    """Which field of a result this is, by where it goes in a row; -1 where it is none."""
    if _is(key, b"batch_id", 8):
        return BATCH_ID
    if _is(key, b"item_id", 7):
        return ITEM_ID
    if _is(key, b"status", 6):
        return STATUS
    if _is(key, b"type", 4):
        return TYPE
    if _is(key, b"effect", 6):
        return EFFECT
    if _is(key, b"duration_ms", 11):
        return DURATION_MS
    if _is(key, b"worker", 6):
        return WORKER
    if _is(key, b"message", 7):
        return MESSAGE
    if _is(key, b"attempt", 7):
        return ATTEMPT
    if _is(key, b"error", 5):
        return ERROR_MESSAGE
    if _is(key, b"output", 6):
        return OUTPUT
    if _is(key, b"metrics", 7):
        return METRICS
    if _is(key, b"occurred_at", 11):
        return OCCURRED_AT
    if _is(key, b"schema_version", 14):
        return SCHEMA_VERSION
    return -1


cdef inline int _number(const Span *text, const Word *words, int count) noexcept nogil:
    """Which of the words this is; -1 where it is none."""
    cdef int number
    for number in range(count):
        if words[number].text != NULL and _is(text, words[number].text, words[number].length):
            return number
    return -1


# A record that a decoder has found to be one, and has added to a list.
UsualResult = FetchedRecord


cdef void _forget(FetchedRecord result) noexcept:
    """As it was before a decoder looked at it."""
    cdef Part none
    none.begin = none.length = 0
    result.is_usual = result.of_effect = result.has_duration = False
    result.batch_id = result.made_item_id = None
    result.worker = result.received_at = result.occurred_at = None
    result.item = result.message = result.error_code = result.error_message = none
    result.stack_trace = result.output = result.metrics = none


cdef int _check(type row_type) except -1:
    """Raise TypeError unless rows of this type are named tuples of ``FIELDS``."""
    if not issubclass(row_type, tuple) or row_type._fields != FIELDS:
        raise TypeError(f"rows have the fields {FIELDS}, not {row_type._fields}")
    return 0


cdef object _row(FetchedRecord result, object row_type):
    cdef object row = new_row(row_type, WIDTH)
    _set(row, BATCH_ID, result.batch_id)
    _set(row, ITEM_ID, result.item_id)
    _set(row, STATUS, STATUS_TEXTS[result.of_status])
    _set(row, ATTEMPT, result.attempt)
    _set(row, GENERATION, 0)
    _set(row, VERSION, result.offset)
    _set(row, RECEIVED_AT, result.received_at)
    _set(row, EFFECT, EFFECT_TEXTS[result.of_effect])
    _set(row, DURATION_MS, PyFloat_FromDouble(result.duration_ms) if result.has_duration else None)
    _set(row, MESSAGE, text_of(result, &result.message))
    _set(row, ERROR_CODE, text_of(result, &result.error_code))
    _set(row, ERROR_MESSAGE, text_of(result, &result.error_message))
    _set(row, STACK_TRACE, text_of(result, &result.stack_trace))
    _set(row, OUTPUT, text_of(result, &result.output))
    _set(row, METRICS, text_of(result, &result.metrics))
    _set(row, WORKER, result.worker)
    _set(row, OCCURRED_AT, result.occurred_at)
    return row


cdef class Decoder:
    """Decodes usual results into rows of the type given, a named tuple of ``FIELDS``, or what such rows are made of."""

    cdef object row_type
    cdef _Known batch_ids
    cdef _Known workers

    def __cinit__(self, type row_type not None):
        _check(row_type)
        self.row_type = row_type
        self.batch_ids = _Known()
        self.workers = _Known()

    def decode(self, bytes value not None, int64_t offset, received_at):
        """The row of a usual result; None where `streams.decoding` has to look at it."""
        cdef FetchedRecord record = FetchedRecord.__new__(FetchedRecord)
        record.value_at, record.value_length = PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
        if not self._decode(record):
            return None
        record.offset, record.received_at = offset, received_at
        return _row(record, self.row_type)  # which holds nothing of the value

    def take(self, list records not None, Py_ssize_t begin, Py_ssize_t end, lists, append_time):
        """Make usual results of records, and add them to the lists of ``lists``, by batch id.

        Returns the index of the first record that is none, has headers, or whose list is None; else ``end``.
        ``append_time`` makes a time of a record's timestamp.
        """
        cdef FetchedRecord record
        cdef object received_at = None
        cdef int64_t timestamp = 0
        cdef object taken
        if begin < 0:
            raise IndexError(f"record {begin}")
        while begin < end and begin < PyList_GET_SIZE(records):
            record = <FetchedRecord?><object>PyList_GET_ITEM(records, begin)
            if record.value_at == NULL or record.headers or not self._decode(record):
                break
            taken = lists[record.batch_id]
            if taken is None:
                break
            if received_at is None or record.timestamp != timestamp:
                timestamp = record.timestamp
                received_at = append_time(timestamp)
            record.received_at, record.is_usual = received_at, True
            (<list?>taken).append(record)
            begin += 1
        return begin

    cdef bint _decode(self, FetchedRecord result) except -1:
        """Whether a value is a usual result; notes what it says, but for its time. Behind a value there is a NUL."""
        cdef const char *value = result.value_at
        cdef Py_ssize_t length = result.value_length
        cdef const char *p = value
        cdef const char *end = value + length
        cdef Span key
        cdef Span text
        cdef Span of_code
        cdef Span of_trace
        cdef const char *behind
        cdef int seen = 0
        cdef int bit
        cdef int64_t number
        cdef int number_of
        p = _space(p)
        if p[0] != c"{" or length > MAX_VALUE_BYTES:
            return False
        p += 1
        if result.is_tried:
            _forget(result)
        result.is_tried, result.attempt = True, 1
        while True:
            p = _string(_space(p), end, &key)
            if p == NULL:
                return False
            p = _space(p)
            if p[0] != c":":
                return False
            p = _space(p + 1)
            bit = _field(&key)
            if bit < 0 or seen & (1 << bit):
                return False
            seen |= 1 << bit
            behind = _null(p)
            if behind != NULL:
                if bit == BATCH_ID or bit == ITEM_ID or bit == STATUS:
                    return False
            elif bit == ATTEMPT or bit == SCHEMA_VERSION:
                behind = _count(p, &number)
                if behind == NULL:
                    return False
                if bit == ATTEMPT:
                    result.attempt = number
                elif number != 1:
                    return False
            elif bit == DURATION_MS:
                behind = _milliseconds(p, &result.duration_ms)
                if behind == NULL:
                    return False
                result.has_duration = True
            elif bit == OUTPUT or bit == METRICS:
                text.at, text.wide = p, 0
                behind = _json(p, end, 0, &text.wide, bit == METRICS)
                if behind == NULL:
                    return False
                text.length = behind - p
                if not _is_text(&text):
                    return False
                if bit == METRICS:
                    result.metrics = _part(value, &text)
                elif text.length <= MAX_OUTPUT_BYTES:
                    result.output = _part(value, &text)
                else:
                    return False
            elif bit == ERROR_MESSAGE:
                behind = _error(p, end, &of_code, &text, &of_trace)
                if behind == NULL or not _is_text(&text):
                    return False
                result.error_message = _part(value, &text)
                if of_code.at != NULL:
                    if not _is_text(&of_code):
                        return False
                    result.error_code = _part(value, &of_code)
                if of_trace.at != NULL:
                    if not _is_text(&of_trace):
                        return False
                    result.stack_trace = _part(value, &of_trace)
            else:
                behind = _string(p, end, &text)
                if behind == NULL:
                    return False
                if bit == BATCH_ID:
                    result.batch_id = self.batch_ids.get(&text, True)
                    if result.batch_id is None:
                        return False
                elif bit == ITEM_ID:
                    if not _is_id(&text, False):
                        return False
                    result.item = _part(value, &text)
                elif bit == STATUS:
                    number_of = _number(&text, STATUSES, STATUS_COUNT)
                    if number_of < 0:
                        return False
                    result.of_status = number_of
                elif bit == EFFECT:
                    number_of = _number(&text, EFFECTS, EFFECT_COUNT)
                    if number_of < 0:
                        return False
                    result.of_effect = number_of
                elif bit == MESSAGE:
                    if text.length > MAX_TEXT_BYTES or not _is_text(&text):
                        return False
                    result.message = _part(value, &text)
                elif bit == WORKER:
                    result.worker = self.workers.get(&text, False)
                    if result.worker is None:
                        return False
                elif bit == OCCURRED_AT:
                    result.occurred_at = _moment(&text)
                    if result.occurred_at is None:
                        return False
                elif not _is(&text, b"item.result", 11):  # the type
                    return False
            p = _space(behind)
            if p[0] == c",":
                p += 1
            elif p[0] == c"}":
                break
            else:
                return False
        return _space(p + 1) == end and seen & NEEDED == NEEDED


cdef inline Part _part(const char *value, const Span *span) noexcept nogil:
    cdef Part part
    part.begin, part.length = <uint32_t>(span.at - value), <uint32_t>span.length
    return part


def rows(records, type row_type not None):
    """A list of the same records, with a row of this type for each usual result."""
    cdef Py_ssize_t index
    cdef object each
    cdef list made = list(records)
    _check(row_type)
    for index in range(PyList_GET_SIZE(made)):
        each = <object>PyList_GET_ITEM(made, index)
        if is_usual(each):
            made[index] = _row(<FetchedRecord>each, row_type)
    return made


cdef struct Key:
    # Of a row: the ids as UTF-8, which the row holds, and the row.
    const char *batch_id
    const char *item_id
    uint32_t batch_length
    uint32_t item_length
    PyObject *row


cdef int _keys(list rows, Key *keys) except -1:
    """The ids of rows of either kind. Raises TypeError for anything else, UnicodeEncodeError for lone surrogates."""
    cdef Py_ssize_t index, length
    cdef object row
    cdef object last_batch_id = None
    cdef object batch_id
    cdef const char *encoded = NULL
    cdef Py_ssize_t encoded_length = 0
    for index in range(PyList_GET_SIZE(rows)):
        row = <object>PyList_GET_ITEM(rows, index)
        if is_usual(row):
            batch_id = (<FetchedRecord>row).batch_id
            keys[index].item_id = (<FetchedRecord>row).value_at + (<FetchedRecord>row).item.begin
            keys[index].item_length = (<FetchedRecord>row).item.length
        elif isinstance(row, tuple) and PyTuple_GET_SIZE(row) == WIDTH:
            batch_id = <object>PyTuple_GET_ITEM(row, BATCH_ID)
            keys[index].item_id = PyUnicode_AsUTF8AndSize(<object>PyTuple_GET_ITEM(row, ITEM_ID), &length)
            keys[index].item_length = <uint32_t>length
        else:
            raise TypeError(f"{row!r} is no row")
        if batch_id is not last_batch_id:
            last_batch_id = batch_id
            encoded = PyUnicode_AsUTF8AndSize(batch_id, &encoded_length)
        keys[index].batch_id, keys[index].batch_length = encoded, <uint32_t>encoded_length
        keys[index].row = <PyObject *>row
    return 0


cdef inline int _compared(const char *one, uint32_t one_length, const char *other, uint32_t other_length) noexcept nogil:
    cdef int order = memcmp(one, other, min(one_length, other_length))
    return order if order or one_length == other_length else -1 if one_length < other_length else 1


cdef inline int _ordered_by_item(const Key *one, const Key *other) noexcept nogil:
    return _compared(one.item_id, one.item_length, other.item_id, other.item_length)


cdef int _ordered(const void *first, const void *second) noexcept nogil:
    """Bytes of UTF-8 are ordered as code points are."""
    cdef const Key *one = <const Key *>first
    cdef const Key *other = <const Key *>second
    cdef int order = 0
    if one.batch_id != other.batch_id:
        order = _compared(one.batch_id, one.batch_length, other.batch_id, other.batch_length)
    return order if order else _ordered_by_item(one, other)


cdef inline bint _is_ascending(const Key *keys, Py_ssize_t count, bint of_one_batch) noexcept nogil:
    """Whether each is above the one before: then they are distinct, too. ``of_one_batch``: by item alone."""
    cdef Py_ssize_t index
    cdef int order
    for index in range(1, count):
        order = (
            _ordered_by_item(&keys[index - 1], &keys[index]) if of_one_batch else _ordered(&keys[index - 1], &keys[index])
        )
        if order >= 0:
            return False
    return True


def in_order(results):
    """Rows of either kind by batch and item, no two of the same. Raises UnicodeEncodeError for lone surrogates.

    It is quick where the batches are in order already, and where their items are, too.
    """
    cdef list rows = list(results)
    cdef Py_ssize_t count = PyList_GET_SIZE(rows)
    cdef Py_ssize_t index, behind
    cdef Key *keys = <Key *>PyMem_Malloc((count + 1) * sizeof(Key))
    if keys == NULL:
        raise MemoryError
    try:
        _keys(rows, keys)
        if _is_ascending(keys, count, False):
            return rows
        index = 0
        while index < count:
            behind = index + 1
            while behind < count and keys[behind].batch_id == keys[index].batch_id:
                behind += 1
            if not _is_ascending(&keys[index], behind - index, True):
                qsort(&keys[index], behind - index, sizeof(Key), _ordered)
            index = behind
        if not _is_ascending(keys, count, False):
            qsort(keys, count, sizeof(Key), _ordered)
        return [<object>keys[index].row for index in range(count)]
    finally:
        PyMem_Free(keys)


def item_lines(list results not None):
    """The item ids of results of either kind, a line each. Raises UnicodeEncodeError for lone surrogates."""
    cdef Py_ssize_t count = PyList_GET_SIZE(results)
    cdef Py_ssize_t index, length
    cdef Key *keys = <Key *>PyMem_Malloc((count + 1) * sizeof(Key))
    cdef char *lines = NULL
    cdef char *end
    try:
        if keys == NULL:
            raise MemoryError
        _keys(results, keys)
        length = count
        for index in range(count):
            length += keys[index].item_length
        end = lines = <char *>PyMem_Malloc(length + 1)
        if lines == NULL:
            raise MemoryError
        for index in range(count):
            memcpy(end, keys[index].item_id, keys[index].item_length)
            end += keys[index].item_length
            end[0] = c"\n"
            end += 1
        return PyUnicode_DecodeUTF8(lines, max(length - 1, 0), NULL)
    finally:
        PyMem_Free(keys)
        PyMem_Free(lines)


cdef inline bint _same_bytes(object one, object other):
    """Whether two results say the same for certain: they have the same bytes."""
    if not is_usual(one) or not is_usual(other):
        return False
    return (<FetchedRecord>one).value_length == (<FetchedRecord>other).value_length and memcmp(
        (<FetchedRecord>one).value_at, (<FetchedRecord>other).value_at, (<FetchedRecord>one).value_length
    ) == 0


cdef inline object _as_row(object result, type row_type):
    return _row(<FetchedRecord>result, row_type) if is_usual(result) else result


cdef inline bint _is_retrying(object result):
    if is_usual(result):
        return (<FetchedRecord>result).of_status == RETRYING
    return <object>PyTuple_GET_ITEM(result, STATUS) == STATUS_TEXTS[RETRYING]


cdef inline bint _is_first(object result):
    if is_usual(result):
        return (<FetchedRecord>result).attempt == 1
    return <object>PyTuple_GET_ITEM(result, ATTEMPT) == 1


cdef tuple _tally(list results):
    """How many there are of each status and effect, and how many of a terminal status."""
    cdef long usual[STATUS_COUNT][EFFECT_COUNT]
    cdef int status, effect
    cdef long retrying = 0
    cdef dict numbers = {}
    memset(usual, 0, sizeof(usual))
    for result in results:
        if is_usual(result):
            usual[(<FetchedRecord>result).of_status][(<FetchedRecord>result).of_effect] += 1
        else:
            kind = <object>PyTuple_GET_ITEM(result, STATUS), <object>PyTuple_GET_ITEM(result, EFFECT)
            numbers[kind] = numbers.get(kind, 0) + 1
            retrying += _is_retrying(result)
    for status in range(STATUS_COUNT):
        for effect in range(EFFECT_COUNT):
            if status == RETRYING:
                retrying += usual[status][effect]
            if usual[status][effect]:
                kind = STATUS_TEXTS[status], EFFECT_TEXTS[effect]
                numbers[kind] = numbers.get(kind, 0) + usual[status][effect]
    return numbers, PyList_GET_SIZE(results) - retrying


cdef enum Place:
    GONE, NEW, MOVED


def sum_up(results, dict held, unchanged_by, duplicate, type row_type not None):
    """What `handlers.fold.sum_up_in_python` gives, as a tuple; NotImplemented where too many hashes of ids collide.

    Raises UnicodeEncodeError for lone surrogates.
    """
    cdef list given = list(results)
    # The same, with a row for each that had to become one; only where the results are more than new ones.
    cdef list as_rows = None
    cdef list kept = []
    cdef list new = []
    cdef list moved = []
    cdef list displaced = []
    cdef dict unchanged = {}
    cdef Py_ssize_t count = PyList_GET_SIZE(given)
    cdef Py_ssize_t index, other
    cdef uint32_t room = 16
    cdef uint32_t place
    cdef uint64_t left = 16 + 8 * <uint64_t>count
    cdef const Key *key
    cdef Key *keys = NULL
    # By hash of the item: one more than the index of its register, 0 where there is none yet. What each result became.
    cdef uint32_t *table = NULL
    cdef char *places = NULL
    cdef object row, met, why
    _check(row_type)
    try:
        keys = <Key *>PyMem_Malloc((count + 1) * sizeof(Key))
        if keys == NULL:
            raise MemoryError
        _keys(given, keys)
        # Many jobs go through their items in order.
        if not held and _is_ascending(keys, count, True):
            for index in range(count if held is None else 0):
                if not _is_first(<object>PyList_GET_ITEM(given, index)):
                    return None
            return given, given, (), (), unchanged, *_tally(given)
        while room < 2 * count:
            room *= 2
        table = <uint32_t *>PyMem_Calloc(room, sizeof(uint32_t))
        places = <char *>PyMem_Calloc(count + 1, 1)
        if table == NULL or places == NULL:
            raise MemoryError
        for index in range(count):
            row = <object>PyList_GET_ITEM(given, index)
            key = &keys[index]
            place = <uint32_t>(_mixed(key.item_id, key.item_length) & (room - 1))
            while True:
                other = <Py_ssize_t>table[place] - 1
                if other < 0 or (
                    keys[other].item_length == key.item_length
                    and memcmp(keys[other].item_id, key.item_id, key.item_length) == 0
                ):
                    break
                left -= 1
                if left == 0:
                    return NotImplemented
                place = (place + 1) & (room - 1)
            if other >= 0:
                if _same_bytes(<object>PyList_GET_ITEM(given, other), row):
                    unchanged[duplicate] = unchanged.get(duplicate, 0) + 1
                    continue
                met = given[other] if as_rows is None else as_rows[other]
            elif held is not None:
                met = held.get(row.item_id) if held else None
            elif _is_first(row):
                met = None
            else:
                return None
            if met is not None:
                if as_rows is None:
                    as_rows = list(given)
                row = _as_row(row, row_type)
                why = unchanged_by(_as_row(met, row_type), row)
                if why is not None:
                    unchanged[why] = unchanged.get(why, 0) + 1
                    continue
                if not _is_retrying(met):
                    return None
            if other >= 0:
                displaced.append(met)
                places[index], places[other] = places[other], GONE
            else:
                places[index] = NEW if met is None else MOVED
            if places[index] == MOVED:
                as_rows[index] = row  # there is one: something was met
            table[place] = <uint32_t>index + 1
        if as_rows is None and not unchanged:
            return given, given, (), (), unchanged, *_tally(given)
        for index in range(count):
            if places[index] == GONE:
                continue
            kept.append(given[index])
            if places[index] == NEW:
                new.append(given[index])
            else:
                moved.append(as_rows[index])
    finally:
        PyMem_Free(keys)
        PyMem_Free(table)
        PyMem_Free(places)
    return kept, new, tuple(moved), tuple(displaced), unchanged, *_tally(kept)
