"""Events as lines of JSON: cut out of chunks of bytes in bounded memory, and each checked as intake will. Pure."""

import codecs
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from schemas.dead_letters import Reason, Refused
from schemas.topics import MAX_EVENT_BYTES
from streams.decoding import decode

_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class Line(NamedTuple):
    """A line by its number, from 1; ``value`` is None where it is longer than a record may be."""

    number: int
    value: bytes | None


class Lines:
    """Cuts what it is fed into lines; blank ones are counted and left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._number = 0
        self._too_long = False

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that end in this chunk."""
        *ended, self._rest = (self._rest + chunk).split(b"\n")
        for text in ended:
            yield from self._line(text)
        if len(self._rest) > MAX_EVENT_BYTES:
            self._rest, self._too_long = b"", True

    def end(self) -> Iterator[Line]:
        """The last line, where no line end closes it."""
        text, self._rest = self._rest, b""
        if text or self._too_long:
            yield from self._line(text)

    def _line(self, text: bytes) -> Iterator[Line]:
        self._number += 1
        if self._number == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        text = text.strip()
        if self._too_long or len(text) > MAX_EVENT_BYTES:
            self._too_long = False
            yield Line(self._number, None)
        elif text:
            yield Line(self._number, text)


def batch_of(line: Line) -> str:
    """The batch of a line's event. Raises Refused, with what would become of it as a record: a dead letter."""
    if line.value is None:
        raise Refused(
            Reason.TOO_LARGE, f"the line is longer than {MAX_EVENT_BYTES:,} bytes, the most a record may have"
        )
    return decode(line.value, 0, _ANY_TIME).batch_id
