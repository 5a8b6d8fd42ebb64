from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

_Row = TypeVar("_Row", bound=tuple[object, ...])

FIELDS: tuple[str, ...]

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

def tally(results: list[_Row]) -> dict[tuple[str, int, str | None], int] | None: ...
