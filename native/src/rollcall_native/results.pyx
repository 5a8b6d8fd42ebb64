# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""A usual result's JSON straight into its row, and how a slice of rows is tallied.

What is taken here is a part of what `streams.decoding` takes, with the same outcome; whatever is unusual (an escape in a
string, a field given twice or unknown, a number that is written in another way than Python writes it) gives None, and
`streams.decoding` decides. So nothing is refused here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.datetime cimport PyDateTimeAPI, import_datetime
from cpython.float cimport PyFloat_FromDouble
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_SET_ITEM
from libc.stdint cimport int64_t
from libc.string cimport memcmp, strncmp

from .records cimport FetchedRecord
from .rows cimport (
    ATTEMPT, BATCH_ID, DURATION_MS, EFFECT, ERROR_CODE, ERROR_MESSAGE, GENERATION, ITEM_ID, MESSAGE, METRICS, OCCURRED_AT,
    OUTPUT, RECEIVED_AT, STACK_TRACE, STATUS, VERSION, WIDTH, WORKER,
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
       Sets *wide where there is a byte beyond ASCII. Eight bytes at a time: the usual tests for a byte in a word. */
    static inline const char *rollcall_string_end(const char *p, const char *end, int *wide) {
        const uint64_t ones = 0x0101010101010101ULL, highs = 0x8080808080808080ULL;
        uint64_t seen = 0;
        while (end - p >= 8) {
            uint64_t word, quote, backslash;
            memcpy(&word, p, 8);
            quote = word ^ (ones * '"');
            backslash = word ^ (ones * '\\\\');
            if ((((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) | ((word - ones * 0x20) & ~word)) & highs)
                break;
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
    void PyMem_Free(void *memory)
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
    MAX_DEPTH = 32
    MAX_KEYS = 32
    KNOWN_TEXTS = 1024
    # Fields that are checked and go nowhere.
    TYPE = WIDTH
    SCHEMA_VERSION = WIDTH + 1


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


cdef inline object _id(const Span *span, bint is_batch):
    """An id's text; None where it is none, or one that has to be looked at more closely."""
    cdef Py_ssize_t index
    cdef object text
    if span.length == 0:
        return None
    if not span.wide:
        if span.length > MAX_ID_CHARS:
            return None
        for index in range(span.length):
            if span.at[index] == 0x7F or (is_batch and span.at[index] == c"/"):
                return None
        return ascii_text(span.at, span.length)
    text = _text(span)
    if text is None or len(text) > MAX_ID_CHARS or not text.isprintable() or (is_batch and "/" in text):
        return None
    return text


cdef inline unsigned int _hash(const Span *span) noexcept nogil:
    """FNV-1a, over the length and the last bytes: the rest of similar ids is the same."""
    cdef unsigned int value = 2166136261u ^ <unsigned int>span.length
    cdef Py_ssize_t index = span.length - 12 if span.length > 12 else 0
    while index < span.length:
        value = (value ^ <unsigned char>span.at[index]) * 16777619u
        index += 1
    return value


cdef class _Known:
    """Texts that come again and again, as one object each: those of an id are equal before they are compared."""

    cdef list texts
    cdef list encoded

    def __cinit__(self):
        self.texts = [None] * KNOWN_TEXTS
        self.encoded = [b""] * KNOWN_TEXTS

    cdef object get(self, const Span *span, bint is_batch):
        """The text of a batch id, or of any name; None where it is to be looked at more closely."""
        cdef unsigned int index = _hash(span) % KNOWN_TEXTS
        cdef PyObject *encoded = <PyObject *>PyList_GET_ITEM(self.encoded, index)
        cdef object text
        cdef bytes known
        if (
            PyBytes_GET_SIZE(<object>encoded) == span.length
            and memcmp(PyBytes_AS_STRING(<object>encoded), span.at, span.length) == 0
            and self.texts[index] is not None
        ):
            return self.texts[index]
        if is_batch:
            text = _id(span, True)
        else:
            text = _text(span)
            if text is not None and len(text) > MAX_NAME_CHARS:
                return None
        if text is not None:
            known = span.at[:span.length]  # first: should there be no memory, nothing is half changed
            self.texts[index], self.encoded[index] = text, known
        return text


cdef inline void _set(object row, int field, object value) noexcept:
    Py_INCREF(value)
    PyTuple_SET_ITEM(row, field, value)


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


cdef object _status(const Span *text):
    """A status as one object each; None where it is none."""
    if _is(text, b"succeeded", 9):
        return "succeeded"
    if _is(text, b"failed", 6):
        return "failed"
    if _is(text, b"skipped", 7):
        return "skipped"
    if _is(text, b"partial", 7):
        return "partial"
    if _is(text, b"retrying", 8):
        return "retrying"
    return None


cdef object _effect(const Span *text):
    """An effect as one object each; None where it is none."""
    if _is(text, b"created", 7):
        return "created"
    if _is(text, b"updated", 7):
        return "updated"
    if _is(text, b"unchanged", 9):
        return "unchanged"
    return None


cdef class Decoder:
    """Decodes usual results into rows of the type given, a named tuple of ``FIELDS``."""

    cdef object row_type
    cdef _Known batch_ids
    cdef _Known workers

    def __cinit__(self, type row_type not None):
        if not issubclass(row_type, tuple) or row_type._fields != FIELDS:
            raise TypeError(f"rows have the fields {FIELDS}, not {row_type._fields}")
        self.row_type = row_type
        self.batch_ids = _Known()
        self.workers = _Known()

    def decode(self, bytes value not None, offset, received_at):
        """The row of a usual result; None where `streams.decoding` has to look at it."""
        cdef const char *begin = PyBytes_AS_STRING(value)
        return self._decode(begin, begin + PyBytes_GET_SIZE(value), offset, received_at)

    def take(self, list records not None, Py_ssize_t begin, Py_ssize_t end, lists, append_time):
        """Add the rows of usual results to the lists of ``lists``, by batch id.

        Returns the index of the first record that is none, has headers, or whose list is None; else ``end``.
        ``append_time`` makes a time of a record's timestamp.
        """
        cdef FetchedRecord record
        cdef object received_at = None
        cdef int64_t timestamp = 0
        cdef object value, row, rows
        cdef const char *at
        if begin < 0:
            raise IndexError(f"record {begin}")
        while begin < end and begin < PyList_GET_SIZE(records):
            record = <FetchedRecord?><object>PyList_GET_ITEM(records, begin)
            value = record.value
            if record.headers or type(value) is not bytes:
                break
            if received_at is None or record.timestamp != timestamp:
                timestamp = record.timestamp
                received_at = append_time(timestamp)
            at = PyBytes_AS_STRING(value)
            row = self._decode(at, at + PyBytes_GET_SIZE(value), record.offset, received_at)
            if row is None:
                break
            rows = lists[<object>PyTuple_GET_ITEM(row, BATCH_ID)]
            if rows is None:
                break
            (<list?>rows).append(row)
            begin += 1
        return begin

    cdef object _decode(self, const char *p, const char *end, object offset, object received_at):
        cdef Span key
        cdef Span text
        cdef Span of_code
        cdef Span of_trace
        cdef const char *behind
        cdef int seen = 0
        cdef int bit
        cdef int64_t number
        cdef double milliseconds
        cdef object batch_id = None
        cdef object item_id = None
        cdef object status = None
        cdef object attempt = 1
        cdef object effect = None
        cdef object duration = None
        cdef object message = None
        cdef object code = None
        cdef object error = None
        cdef object trace = None
        cdef object output = None
        cdef object metrics = None
        cdef object worker = None
        cdef object occurred_at = None
        cdef object row
        p = _space(p)
        if p[0] != c"{":
            return None
        p += 1
        while True:
            p = _string(_space(p), end, &key)
            if p == NULL:
                return None
            p = _space(p)
            if p[0] != c":":
                return None
            p = _space(p + 1)
            bit = _field(&key)
            if bit < 0 or seen & (1 << bit):
                return None
            seen |= 1 << bit
            behind = _null(p)
            if behind != NULL:
                if bit == BATCH_ID or bit == ITEM_ID or bit == STATUS:
                    return None
            elif bit == ATTEMPT or bit == SCHEMA_VERSION:
                behind = _count(p, &number)
                if behind == NULL:
                    return None
                if bit == ATTEMPT:
                    attempt = number
                elif number != 1:
                    return None
            elif bit == DURATION_MS:
                behind = _milliseconds(p, &milliseconds)
                if behind == NULL:
                    return None
                duration = PyFloat_FromDouble(milliseconds)
            elif bit == OUTPUT or bit == METRICS:
                text.at, text.wide = p, 0
                behind = _json(p, end, 0, &text.wide, bit == METRICS)
                if behind == NULL:
                    return None
                text.length = behind - p
                if bit == METRICS:
                    metrics = _text(&text)
                    if metrics is None:
                        return None
                else:
                    if text.length > MAX_OUTPUT_BYTES:
                        return None
                    output = _text(&text)
                    if output is None:
                        return None
            elif bit == ERROR_MESSAGE:
                behind = _error(p, end, &of_code, &text, &of_trace)
                if behind == NULL:
                    return None
                error = _text(&text)
                if error is None:
                    return None
                if of_code.at != NULL:
                    code = _text(&of_code)
                    if code is None:
                        return None
                if of_trace.at != NULL:
                    trace = _text(&of_trace)
                    if trace is None:
                        return None
            else:
                behind = _string(p, end, &text)
                if behind == NULL:
                    return None
                if bit == BATCH_ID:
                    batch_id = self.batch_ids.get(&text, True)
                    if batch_id is None:
                        return None
                elif bit == ITEM_ID:
                    item_id = _id(&text, False)
                    if item_id is None:
                        return None
                elif bit == STATUS:
                    status = _status(&text)
                    if status is None:
                        return None
                elif bit == EFFECT:
                    effect = _effect(&text)
                    if effect is None:
                        return None
                elif bit == MESSAGE:
                    if text.length > MAX_TEXT_BYTES:
                        return None
                    message = _text(&text)
                    if message is None:
                        return None
                elif bit == WORKER:
                    worker = self.workers.get(&text, False)
                    if worker is None:
                        return None
                elif bit == OCCURRED_AT:
                    occurred_at = _moment(&text)
                    if occurred_at is None:
                        return None
                elif not _is(&text, b"item.result", 11):  # the type
                    return None
            p = _space(behind)
            if p[0] == c",":
                p += 1
            elif p[0] == c"}":
                break
            else:
                return None
        if _space(p + 1) != end or batch_id is None or item_id is None or status is None:
            return None
        row = new_row(self.row_type, WIDTH)
        _set(row, BATCH_ID, batch_id)
        _set(row, ITEM_ID, item_id)
        _set(row, STATUS, status)
        _set(row, ATTEMPT, attempt)
        _set(row, GENERATION, 0)
        _set(row, VERSION, offset)
        _set(row, RECEIVED_AT, received_at)
        _set(row, EFFECT, effect)
        _set(row, DURATION_MS, duration)
        _set(row, MESSAGE, message)
        _set(row, ERROR_CODE, code)
        _set(row, ERROR_MESSAGE, error)
        _set(row, STACK_TRACE, trace)
        _set(row, OUTPUT, output)
        _set(row, METRICS, metrics)
        _set(row, WORKER, worker)
        _set(row, OCCURRED_AT, occurred_at)
        return row


def tally(list results not None):
    """How many rows there are of each (status, attempt, effect); None unless `fold_fast` may take them (`handlers.fold`)."""
    cdef Py_ssize_t count = PyList_GET_SIZE(results)
    cdef Py_ssize_t index
    cdef set ids = set()
    cdef dict numbers = {}
    cdef object row, status, attempt, effect
    cdef object last_status = None
    cdef object last_attempt = None
    cdef object last_effect = None
    cdef long run = 0
    for index in range(count):
        row = <object>PyList_GET_ITEM(results, index)
        if not isinstance(row, tuple) or PyTuple_GET_SIZE(row) != WIDTH:
            raise TypeError(f"{row!r} is no row")
        ids.add(<object>PyTuple_GET_ITEM(row, ITEM_ID))
        status = <object>PyTuple_GET_ITEM(row, STATUS)
        attempt = <object>PyTuple_GET_ITEM(row, ATTEMPT)
        effect = <object>PyTuple_GET_ITEM(row, EFFECT)
        if status is not last_status or effect is not last_effect or attempt is not last_attempt:
            if run:
                _add(numbers, last_status, last_attempt, last_effect, run)
            if attempt != 1 or status == "retrying":
                return None
            last_status, last_attempt, last_effect, run = status, attempt, effect, 0
        run += 1
    if run:
        _add(numbers, last_status, last_attempt, last_effect, run)
    return numbers if len(ids) == count else None


cdef int _add(dict numbers, object status, object attempt, object effect, long number) except -1:
    cdef tuple kind = (status, attempt, effect)
    numbers[kind] = numbers.get(kind, 0) + number
    return 0
