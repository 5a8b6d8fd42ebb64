# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The records of one batch of Kafka's format 2, one after the other.

Format: Kafka's documentation, "Record Batch" and "Record". Batches are read, checked and uncompressed by aiokafka.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from .rows cimport EFFECT_COUNT, EFFECTS, STATUS_COUNT, STATUSES, Word

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *text, Py_ssize_t length, const char *errors)

cdef tuple _NO_HEADERS = ()


cdef tuple _texts(const Word *words, int count):
    return tuple([None if words[n].text == NULL else words[n].text[:words[n].length].decode() for n in range(count)])

STATUS_TEXTS = _texts(STATUSES, STATUS_COUNT)
EFFECT_TEXTS = _texts(EFFECTS, EFFECT_COUNT)


@cython.auto_pickle(False)  # it would take what is fetched for C strings
@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class FetchedRecord:
    """A record as every consumer of Rollcall's gives it; ``timestamp`` in milliseconds. See `streams.fetched`.

    Its key and value are copied out of what was fetched, which it holds, once they are asked for (a value that has no NUL
    behind it, since headers are, at once). Once a decoder has found a usual result in it, it is one.
    """

    def __init__(self, str topic not None, long partition, int64_t offset, int64_t timestamp, key, value, headers):
        if self.topic is not None:
            raise TypeError("a record is made once")  # a result may point into its value
        self.topic, self.partition, self.offset, self.timestamp = topic, partition, offset, timestamp
        self.headers = headers
        self.key_at, self.key_length, self.made_key = NULL, 0 if key is None else len(key), key
        self.value_at, self.value_length, self.made_value = NULL, 0 if value is None else len(value), value
        if type(value) is bytes:
            self.value_at = PyBytes_AS_STRING(value)
        self.holder = None

    @property
    def key(self):
        if self.made_key is None and self.key_at != NULL:
            self.made_key = PyBytes_FromStringAndSize(self.key_at, self.key_length)
        return self.made_key

    @property
    def value(self):
        if self.made_value is None and self.value_at != NULL:
            self.made_value = PyBytes_FromStringAndSize(self.value_at, self.value_length)
        return self.made_value

    @property
    def size(self):
        """Bytes of key and value."""
        return self.key_length + self.value_length

    @property
    def item_id(self):
        """Of a usual result."""
        if self.made_item_id is None:
            self.made_item_id = text_of(self, &self.item)
        return self.made_item_id

    @property
    def status(self):
        """Of a usual result."""
        return STATUS_TEXTS[self.of_status] if self.is_usual else None

    def __eq__(self, other):
        if not isinstance(other, FetchedRecord):
            return NotImplemented
        return _fields(self) == _fields(other)

    def __repr__(self):
        return f"FetchedRecord{_fields(self)!r}"

    __hash__ = None


cdef str text_of(FetchedRecord result, const Part *part):
    """A text of a usual result; None where there is none."""
    return PyUnicode_DecodeUTF8(result.value_at + part.begin, part.length, NULL) if part.begin else None


cdef tuple _fields(FetchedRecord record):
    return (
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, list(record.headers),
    )


def fitting(list records not None, Py_ssize_t most, Py_ssize_t room):
    """As `streams.fetched.fitting_in_python`."""
    cdef Py_ssize_t index
    cdef FetchedRecord record
    for index in range(PyList_GET_SIZE(records)):
        record = <FetchedRecord?><object>PyList_GET_ITEM(records, index)
        room -= record.key_length + record.value_length
        if room <= 0 or index + 1 >= most:
            return index + 1, room
    return PyList_GET_SIZE(records), room


cdef class BatchRecords:
    """An iterator of the records of one batch.

    ``buffer`` holds ``count`` records from ``position`` to its end. Timestamps are ``first_timestamp`` and what a record
    adds to it, unless there is an ``append_timestamp``. Those before ``from_offset`` are passed over; ``next_offset`` is
    behind the last one given. Raises ValueError where a record is not
    what the format says, or has a header whose name is no UTF-8: another reader has to say what.
    """

    cdef Py_buffer view
    cdef bint has_view
    cdef const unsigned char *begin
    cdef const unsigned char *at
    cdef const unsigned char *end
    cdef long left
    cdef str topic
    cdef long partition
    cdef int64_t base_offset
    cdef int64_t first_timestamp
    cdef int64_t append_timestamp
    cdef bint has_append_timestamp
    cdef readonly int64_t next_offset

    def __cinit__(
        self, str topic not None, long partition, buffer, Py_ssize_t position, long count,
        int64_t base_offset, int64_t first_timestamp, append_timestamp, int64_t from_offset,
    ):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        if position < 0 or position > self.view.len:
            raise ValueError(f"position {position} of {self.view.len}")
        self.at = <const unsigned char *>self.view.buf + position
        self.end = <const unsigned char *>self.view.buf + self.view.len
        self.left = count
        self.topic, self.partition = topic, partition
        self.base_offset, self.first_timestamp = base_offset, first_timestamp
        self.has_append_timestamp = append_timestamp is not None
        self.append_timestamp = append_timestamp if self.has_append_timestamp else 0
        self.next_offset = from_offset

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    def __iter__(self):
        return self

    def __next__(self):
        cdef FetchedRecord record = self._next()
        if record is None:
            raise StopIteration
        return record

    def take(self, Py_ssize_t most):
        """A list of so many records at most: fewer at the end, and where the next one cannot be read."""
        cdef list taken = []
        cdef FetchedRecord record
        while len(taken) < most:
            try:
                record = self._next()
            except ValueError:
                self.at = self.begin
                break
            if record is None:
                break
            taken.append(record)
        return taken

    cdef FetchedRecord _next(self):
        """The next record that is not passed over; None at the end."""
        cdef const unsigned char *end
        cdef int64_t length, delta, offset, count
        cdef FetchedRecord record
        cdef object headers, name
        cdef const unsigned char *key
        cdef const unsigned char *value
        cdef Py_ssize_t key_length = 0
        cdef Py_ssize_t value_length = 0
        cdef bint ends_with_nul
        while self.left > 0:
            self.begin = self.at
            length = self._varint()
            if length < 0 or length > self.end - self.at:
                raise ValueError(f"a record of {length} bytes")
            end = self.at + length
            self._varint()  # attributes, none so far
            delta = self._varint()
            offset = self.base_offset + self._varint()
            key = self._span(&key_length)
            value = self._span(&value_length)
            ends_with_nul = self.at < self.end and self.at[0] == 0  # without headers, as their number is usually written
            count = self._varint()
            if count < 0 or count > end - self.at:
                raise ValueError(f"{count} headers")
            headers = _NO_HEADERS
            if count:
                headers = []
                while count:
                    name = self._bytes()
                    if name is None:
                        raise ValueError("a header without a name")
                    (<list>headers).append(((<bytes>name).decode(), self._bytes()))
                    count -= 1
            if self.at != end:
                raise ValueError(f"{end - self.at} bytes behind a record's headers")
            self.left -= 1
            if offset < self.next_offset:
                continue
            self.next_offset = offset + 1
            record = FetchedRecord.__new__(FetchedRecord)
            record.topic, record.partition, record.offset = self.topic, self.partition, offset
            record.timestamp = self.append_timestamp if self.has_append_timestamp else self.first_timestamp + delta
            record.headers, record.holder = headers, self
            record.key_at, record.key_length = <const char *>key, key_length
            record.value_at, record.value_length = <const char *>value, value_length
            if value != NULL and not ends_with_nul:
                record.made_value = PyBytes_FromStringAndSize(<const char *>value, value_length)
                record.value_at = PyBytes_AS_STRING(record.made_value)
            return record
        self.begin = self.at
        if self.at != self.end:
            raise ValueError("bytes behind the last record")
        return None

    cdef int64_t _varint(self) except? -1:
        """A zigzag-encoded integer of variable length."""
        cdef uint64_t value = 0
        cdef int shift = 0
        cdef unsigned char byte
        while self.at < self.end and shift < 64:
            byte = self.at[0]
            self.at += 1
            value |= <uint64_t>(byte & 0x7F) << shift
            if byte < 0x80:
                return <int64_t>(value >> 1) ^ -<int64_t>(value & 1)
            shift += 7
        raise ValueError("an integer that does not end")

    cdef const unsigned char *_span(self, Py_ssize_t *length) except? NULL:
        """Where bytes behind their length are; NULL, and of no length, where that is negative."""
        cdef int64_t number = self._varint()
        cdef const unsigned char *found = self.at
        if number < 0:
            length[0] = 0
            return NULL
        if number > self.end - self.at:
            raise ValueError(f"{number} bytes, where {self.end - self.at} are left")
        length[0] = number
        self.at += number
        return found

    cdef object _bytes(self):
        """Bytes behind their length; None where that is negative."""
        cdef Py_ssize_t length = 0
        cdef const unsigned char *found = self._span(&length)
        return None if found == NULL else PyBytes_FromStringAndSize(<const char *>found, length)
