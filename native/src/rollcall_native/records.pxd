from libc.stdint cimport int64_t


cdef class FetchedRecord:
    cdef readonly str topic
    cdef readonly long partition
    cdef readonly int64_t offset
    cdef readonly int64_t timestamp
    cdef readonly object key
    cdef readonly object value
    cdef readonly object headers
