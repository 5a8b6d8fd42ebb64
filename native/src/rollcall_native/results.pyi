from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar, final

_Row = TypeVar("_Row", bound=tuple[object, ...])
_Result = TypeVar("_Result", bound=tuple[object, ...] | UsualResult)

FIELDS: tuple[str, ...]

@final
class UsualResult:
    @property
    def batch_id(self) -> str: ...
    @property
    def item_id(self) -> str: ...
    @property
    def status(self) -> str: ...

class Decoder(Generic[_Row]):
    def __init__(self, row_type: type[_Row]) -> None: ...
    def decode(self, value: bytes, offset: int, received_at: datetime) -> _Row | None: ...
    def take(
        self,
        records: list[Any],
        begin: int,
        end: int,
        lists: Mapping[str, list[Any] | None],
        append_time: Callable[[int], datetime],
    ) -> int: ...

def rows(records: Sequence[object], row_type: type[_Row]) -> list[Any]: ...
def item_lines(results: list[Any]) -> str: ...
def in_order(results: Iterable[_Result]) -> list[_Result]: ...
def sum_up(
    results: Sequence[tuple[object, ...] | UsualResult],
    held: dict[str, _Row] | None,
    unchanged_by: Callable[[_Row, _Row], Any],
    duplicate: object,
    row_type: type[_Row],
) -> Any: ...
