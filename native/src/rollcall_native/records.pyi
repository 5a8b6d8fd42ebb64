from collections.abc import Iterator, Sequence

class FetchedRecord:
    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def size(self) -> int: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...
    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> None: ...

def fitting(records: list[FetchedRecord], most: int, room: int) -> tuple[int, int]: ...

class BatchRecords:
    next_offset: int
    def __init__(
        self,
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
    def __iter__(self) -> Iterator[FetchedRecord]: ...
    def __next__(self) -> FetchedRecord: ...
    def take(self, most: int) -> list[FetchedRecord]: ...
