from libc.stdint cimport int64_t


cdef class FetchedRecord:
    cdef readonly str topic
    cdef readonly long partition
    cdef readonly int64_t offset
    cdef readonly int64_t timestamp
    cdef readonly object headers
    # Of a value that is bytes, or NULL. Behind it is a NUL, as behind a bytes object. What holds them is ``holder``, or
    # the object itself.
    cdef const char *value_at
    cdef Py_ssize_t value_length
    cdef const char *key_at
    cdef Py_ssize_t key_length
    cdef object holder
    cdef object made_key
    cdef object made_value
