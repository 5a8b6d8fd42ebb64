from collections.abc import Sequence

from rollcall_native.results import UsualResult

def item_rows(rows: Sequence[tuple[object, ...] | UsualResult]) -> bytes: ...
