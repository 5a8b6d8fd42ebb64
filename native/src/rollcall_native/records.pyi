from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

_Record = TypeVar("_Record")

class Records(Generic[_Record]):
    next_offset: int
    def __init__(
        self,
        make: Callable[[str, int, int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes]]], _Record],
        topic: str,
        partition: int,
        buffer: bytes | bytearray | memoryview,
        position: int,
        count: int,
        base_offset: int,
        first_timestamp: int,
        append_timestamp: int | None,
        from_offset: int,
    ) -> None: ...
    def __iter__(self) -> Iterator[_Record]: ...
    def __next__(self) -> _Record: ...
