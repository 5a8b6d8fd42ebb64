from libc.stdint cimport int64_t, uint32_t


cdef extern from *:
    """
    #ifndef ROLLCALL_WORDS
    #define ROLLCALL_WORDS
    typedef struct { const char *text; uint32_t length; } rollcall_word;
    #define ROLLCALL_WORD(text) {text, sizeof(text) - 1}
    static const rollcall_word ROLLCALL_STATUSES[] = {
        ROLLCALL_WORD("succeeded"), ROLLCALL_WORD("partial"), ROLLCALL_WORD("failed"), ROLLCALL_WORD("skipped"),
        ROLLCALL_WORD("retrying")};
    static const rollcall_word ROLLCALL_EFFECTS[] = {
        {NULL, 0}, ROLLCALL_WORD("created"), ROLLCALL_WORD("updated"), ROLLCALL_WORD("unchanged")};
    #endif
    """
    # A word of a result by its number; no text where there is none.
    ctypedef struct Word "rollcall_word":
        const char *text
        uint32_t length
    const Word *STATUSES "ROLLCALL_STATUSES"
    const Word *EFFECTS "ROLLCALL_EFFECTS"

cdef enum:
    STATUS_COUNT = 5
    RETRYING = 4
    EFFECT_COUNT = 4


cdef struct Part:
    # Of a result's value: where it begins, 0 where there is none of it, and how long it is.
    uint32_t begin
    uint32_t length


cdef class UsualResult:
    cdef object holder
    cdef const char *value
    cdef uint32_t length
    cdef readonly str batch_id
    cdef str made_item_id
    cdef object worker
    cdef object received_at
    cdef object occurred_at
    cdef int64_t version
    cdef double duration_ms
    cdef bint has_duration
    cdef int attempt
    # Into STATUSES and EFFECTS.
    cdef int of_status
    cdef int of_effect
    cdef Part item
    cdef Part message
    cdef Part error_code
    cdef Part error_message
    cdef Part stack_trace
    cdef Part output
    cdef Part metrics
