# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The records of one batch of Kafka's format 2, one after the other.

Format: Kafka's documentation, "Record Batch" and "Record". Batches are read, checked and uncompressed by aiokafka.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t

cdef tuple _NO_HEADERS = ()


cdef class Records:
    """An iterator of what ``make`` makes of topic, partition, offset, timestamp, key, value and headers of each record.

    ``buffer`` holds ``count`` records from ``position`` to its end. Timestamps are ``first_timestamp`` and what a record
    adds to it, unless there is an ``append_timestamp``. Those before ``from_offset`` are passed over; ``next_offset`` is
    behind the last one given. Raises ValueError where a record is not
    what the format says, or has a header whose name is no UTF-8: another reader has to say what.
    """

    cdef Py_buffer view
    cdef bint has_view
    cdef const unsigned char *at
    cdef const unsigned char *end
    cdef long left
    cdef object make
    cdef object topic
    cdef object partition
    cdef int64_t base_offset
    cdef int64_t first_timestamp
    cdef object append_timestamp
    cdef readonly int64_t next_offset

    def __cinit__(
        self, make, topic, partition, buffer, Py_ssize_t position, long count,
        int64_t base_offset, int64_t first_timestamp, append_timestamp, int64_t from_offset,
    ):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        if position < 0 or position > self.view.len:
            raise ValueError(f"position {position} of {self.view.len}")
        self.at = <const unsigned char *>self.view.buf + position
        self.end = <const unsigned char *>self.view.buf + self.view.len
        self.left = count
        self.make = make
        self.topic, self.partition = topic, partition
        self.base_offset, self.first_timestamp, self.append_timestamp = base_offset, first_timestamp, append_timestamp
        self.next_offset = from_offset

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    def __iter__(self):
        return self

    def __next__(self):
        cdef object record
        while True:
            record = self._next()
            if record is not None:
                return record

    cdef object _next(self):
        """The next record; None where it is passed over."""
        cdef const unsigned char *end
        cdef int64_t length, delta, offset, count
        cdef object timestamp, key, value, name
        cdef object headers = _NO_HEADERS
        if self.left <= 0:
            if self.at != self.end:
                raise ValueError("bytes behind the last record")
            raise StopIteration
        length = self._varint()
        if length < 0 or length > self.end - self.at:
            raise ValueError(f"a record of {length} bytes")
        end = self.at + length
        self._varint()  # attributes, none so far
        delta = self._varint()
        timestamp = self.append_timestamp
        if timestamp is None:
            timestamp = self.first_timestamp + delta
        offset = self.base_offset + self._varint()
        key = self._bytes()
        value = self._bytes()
        count = self._varint()
        if count < 0 or count > end - self.at:
            raise ValueError(f"{count} headers")
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
            return None
        self.next_offset = offset + 1
        return self.make(self.topic, self.partition, offset, timestamp, key, value, headers)

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

    cdef object _bytes(self):
        """Bytes behind their length; None where that is negative."""
        cdef int64_t length = self._varint()
        cdef object found
        if length < 0:
            return None
        if length > self.end - self.at:
            raise ValueError(f"{length} bytes, where {self.end - self.at} are left")
        found = PyBytes_FromStringAndSize(<const char *>self.at, length)
        self.at += length
        return found
