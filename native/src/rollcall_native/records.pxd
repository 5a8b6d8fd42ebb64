from libc.stdint cimport int64_t, uint32_t


cdef struct Part:
    # Of a result's value: where it begins, 0 where there is none of it, and how long it is.
    uint32_t begin
    uint32_t length


# A record. Where a decoder has found a usual result in it, also that: then the texts of the result are parts of the value.
cdef class FetchedRecord:
    # In the order in which they are looked at, for the lines of the processor's cache.
    # Of a value that is bytes, or NULL. Behind it is a NUL, as behind a bytes object. What holds them is ``holder``, or
    # the object itself.
    cdef const char *value_at
    cdef Py_ssize_t value_length
    cdef readonly str batch_id
    cdef Part item
    cdef int attempt
    cdef unsigned char is_tried
    cdef unsigned char is_usual
    # Into STATUSES and EFFECTS.
    cdef unsigned char of_status
    cdef unsigned char of_effect
    cdef unsigned char has_duration
    cdef readonly int64_t offset
    cdef double duration_ms
    cdef object received_at
    cdef object worker
    cdef object occurred_at
    cdef Part message
    cdef object holder
    cdef const char *key_at
    cdef Py_ssize_t key_length
    cdef readonly str topic
    cdef readonly long partition
    cdef readonly int64_t timestamp
    cdef readonly object headers
    cdef object made_key
    cdef object made_value
    cdef str made_item_id
    cdef Part error_code
    cdef Part error_message
    cdef Part stack_trace
    cdef Part output
    cdef Part metrics


cdef inline bint is_usual(object record) noexcept:
    return type(record) is FetchedRecord and (<FetchedRecord>record).is_usual


cdef str text_of(FetchedRecord result, const Part *part)

cdef tuple STATUS_TEXTS
cdef tuple EFFECT_TEXTS
