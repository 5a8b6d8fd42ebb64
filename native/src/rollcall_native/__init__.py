"""What a worker does for each single result, compiled: the innermost loops of `streams`, `handlers` and `store`.

Where nothing could be compiled, or `ROLLCALL_NO_NATIVE` is set, ``compiled`` is false and they do the same in Python.
"""

import os

SWITCH = "ROLLCALL_NO_NATIVE"
"""The environment variable that has everything done in Python."""

compiled = False
reason = f"{SWITCH} is set"
"""Why nothing is."""

if not os.environ.get(SWITCH):
    try:
        from rollcall_native import copying, hashing, records, results
    except ImportError as error:
        reason = f"it was installed without a C compiler, or for another Python ({error})"
    else:
        compiled, reason = True, ""

__all__ = ["SWITCH", "compiled", "copying", "hashing", "reason", "records", "results"]
