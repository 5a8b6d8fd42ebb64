"""How answers look: aligned lines and tables for people, one JSON object for programs.

What comes from the stream is shown so that it cannot do anything to a terminal: control characters become escapes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 30
GAP = 2
READABLE_WIDTH = 20
NOTHING = "-"

_COLOURS = {
    "completed": "green",
    "succeeded": "green",
    "completed_with_errors": "yellow",
    "partial": "yellow",
    "expired": "yellow",
    "retrying": "yellow",
    "failed": "red",
    "processing": "cyan",
    "pending": "cyan",
    "ok": "green",
    "note": "yellow",
    "wrong": "red",
}

# Marks that turn the direction of text around: they could make an id look like another one.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSHOWABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class ColumnStyle:
    """A table's column, and what becomes of it on a terminal too narrow for all.

    ``fixed`` columns keep their width, ``folded`` ones go on below, ``cut`` ones show the beginning of a value.
    The last column that isn't ``needed`` is left out first.
    """

    heading: str
    fits: Literal["fixed", "folded", "cut"] = "fixed"
    right: bool = False
    needed: bool = True


def print_json(answer: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout, in UTF-8 whatever the locale; times in RFC 3339."""
    text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"), default=_as_json)
    write_line(text.encode())


def write_line(line: bytes) -> None:
    """A line on stdout, at once."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def print_line(line: str = "") -> None:
    """A line of text on stdout; what its encoding lacks is escaped."""
    write_line(line.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def note(line: str) -> None:
    """A remark beside the answer, on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def print_table(columns: Sequence[ColumnStyle], rows: Sequence[Sequence[str | None]]) -> None:
    """A table that fits the terminal; where stdout is none, the same uncut: a line a row, all columns."""
    headings = [column.heading.upper() for column in columns]
    lines = [[showable(value or NOTHING) for value in row] for row in rows]
    natural = [max(cell_len(line[index]) for line in [headings, *lines]) for index in range(len(columns))]
    if not sys.stdout.isatty():
        for line in [headings, *lines]:
            cells = map(_padded, line, natural, columns)
            print_line((" " * GAP).join(cells).rstrip())
        return
    console = Console()
    empty = {index for index in range(1, len(columns)) if not any(row[index] for row in rows)}
    widths = column_widths(columns, natural, console.width, without=empty)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for index, width in widths.items():
        table.add_column(
            headings[index],
            justify="right" if columns[index].right else "left",
            width=width,
            no_wrap=columns[index].fits != "folded",
            overflow="fold" if columns[index].fits == "folded" else "ellipsis",
        )
    for line in lines:
        table.add_row(*(_coloured(line[index]) for index in widths))
    console.print(table)


def column_widths(
    columns: Sequence[ColumnStyle], natural: Sequence[int], room: int, *, without: Collection[int] = ()
) -> dict[int, int]:
    """The columns to show, by index, and how wide each is, so that together they fit into `room` cells."""
    shown = [index for index in range(len(columns)) if index not in without]
    while True:
        flexible = [index for index in shown if columns[index].fits != "fixed"]
        left = room - GAP * (len(shown) - 1) - sum(natural[index] for index in shown if index not in flexible)
        unneeded = [index for index in shown if not columns[index].needed]
        if not unneeded or left >= sum(min(natural[index], READABLE_WIDTH) for index in flexible):
            break
        shown.remove(unneeded[-1])
    widths = {index: natural[index] for index in shown}
    # The narrow ones take what they need, the wide ones share the rest.
    for number, index in enumerate(sorted(flexible, key=lambda index: natural[index])):
        widths[index] = max(1, min(natural[index], left // (len(flexible) - number)))
        left -= widths[index]
    return widths


def print_fields(fields: Sequence[tuple[str, str | None]]) -> None:
    """Label and value on a line each; fields without a value are left out."""
    width = max(len(label) for label, _ in fields)
    console = Console(soft_wrap=True) if sys.stdout.isatty() else None
    for label, value in fields:
        if value is None:
            continue
        shown = showable(value)
        if console is None:
            print_line(f"{label:<{width}}  {shown}")
        else:
            console.print(Text.assemble((f"{label:<{width}}  ", "dim"), _coloured(shown)))


def showable(text: str) -> str:
    """The text with control characters, line separators and direction marks as escapes (``\\n``, ``\\x1b``)."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(_escaped(char) for char in text)


def progress_bar(percent: float | None) -> str:
    """``[####------]  40.0%``: full only at 100; question marks where no total is known."""
    if percent is None:
        return "[" + "?" * BAR_WIDTH + "]"
    filled = math.floor(BAR_WIDTH * percent / 100)
    return "[" + "#" * filled + "-" * (BAR_WIDTH - filled) + f"] {percent:5.1f}%"


def rfc3339(moment: datetime) -> str:
    """In UTC with milliseconds, as the events have it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def at(moment: datetime | None, *, milliseconds: bool = True) -> str | None:
    """A time for people: ``2026-11-22 10:00:00.123Z``."""
    if moment is None:
        return None
    return moment.isoformat(" ", "milliseconds" if milliseconds else "seconds").replace("+00:00", "Z")


def lasted(milliseconds: float | None) -> str | None:
    """A duration for people: ``12.5 ms``, ``3.20 s``, ``1 h 02 min``."""
    if milliseconds is None:
        return None
    if milliseconds < 1_000:
        return f"{milliseconds:.3g} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1_000
    if seconds < 60:
        return f"{seconds:.2f} s"
    if seconds < 3_600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3_600:.0f} h {seconds % 3_600 // 60:02.0f} min"


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Whoever reads our stdout (`head`) may stop reading: then there is nothing left to do, and nothing went wrong."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    # What is still buffered would fail once more when the interpreter ends.
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), stream.fileno())


def _padded(text: str, width: int, column: ColumnStyle) -> str:
    padding = " " * (width - cell_len(text))
    return padding + text if column.right else text + padding


def _coloured(text: str) -> Text:
    return Text(text, style=_COLOURS.get(text, ""))


def _escaped(char: str) -> str:
    if char in _DIRECTION_MARKS or unicodedata.category(char) in _UNSHOWABLE:
        return char.encode("unicode_escape").decode()
    return char


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return rfc3339(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
