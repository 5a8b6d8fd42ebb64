from libc.stdint cimport uint32_t


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


cdef enum:
    # Indices into a row of items, as in `store.rows`.
    BATCH_ID = 0
    ITEM_ID = 1
    STATUS = 2
    ATTEMPT = 3
    GENERATION = 4
    VERSION = 5
    RECEIVED_AT = 6
    EFFECT = 7
    DURATION_MS = 8
    MESSAGE = 9
    ERROR_CODE = 10
    ERROR_MESSAGE = 11
    STACK_TRACE = 12
    OUTPUT = 13
    METRICS = 14
    WORKER = 15
    OCCURRED_AT = 16
    WIDTH = 17
