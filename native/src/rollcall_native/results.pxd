from libc.stdint cimport int64_t, uint32_t


cdef struct Part:
    # Of a result's value: where it begins, 0 where there is none of it, and how long it is.
    uint32_t begin
    uint32_t length


cdef class UsualResult:
    cdef object holder
    cdef const char *value
    cdef readonly str batch_id
    cdef str made_item_id
    cdef object worker
    cdef object received_at
    cdef object occurred_at
    cdef int64_t version
    cdef double duration_ms
    cdef bint has_duration
    cdef int attempt
    # Numbers of statuses and effects, as in `results.pyx`; 0 is no effect.
    cdef int of_status
    cdef int of_effect
    cdef Part item
    cdef Part message
    cdef Part error_code
    cdef Part error_message
    cdef Part stack_trace
    cdef Part output
    cdef Part metrics
