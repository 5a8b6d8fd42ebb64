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
