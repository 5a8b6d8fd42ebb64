"""What the hot-path statements are built from: column lists, and rows given as one parameter a column."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import BigInteger, Boolean, DateTime, Double, Integer, LargeBinary, Table, Text
from sqlalchemy.dialects.postgresql import JSON

_TYPES = {
    Text: "text",
    Integer: "int4",
    BigInteger: "int8",
    Boolean: "bool",
    DateTime: "timestamptz",
    Double: "float8",
    LargeBinary: "bytea",
    JSON: "json",
}

_encode = msgspec.json.Encoder().encode


def column_list(columns: Iterable[str], prefix: str = "") -> str:
    """``a, b, c`` with an optional ``x.`` before each."""
    return ", ".join(f"{prefix}{column}" for column in columns)


def types_of(table: Table, columns: Iterable[str]) -> dict[str, str]:
    """PostgreSQL's types of some columns."""
    return {column: _TYPES[type(table.c[column].type)] for column in columns}


class Rows:
    """Rows as a statement takes them: ``SELECT {rows.columns} FROM {rows.source}``, given ``rows.parameters(...)``.

    Numbers, flags, times and short texts of a column go as one text, PostgreSQL's literal of an array: the driver asks
    of each element of an array what it is. ``large`` texts, JSON and bytes go as arrays: PostgreSQL looks at each byte
    of a literal.
    """

    def __init__(self, types: Mapping[str, str], large: Collection[str] = ()) -> None:
        self._is_array = [kind in ("json", "bytea") or column in large for column, kind in types.items()]
        arrays = ", ".join(
            f"${number}::{kind}[]" if is_array else f"${number}::text::{kind}[]"
            for number, (kind, is_array) in enumerate(zip(types.values(), self._is_array, strict=True), 1)
        )
        self.columns = column_list(types)
        self.source = f"unnest({arrays}) AS v({self.columns})"

    def parameters(self, rows: Iterable[Sequence[object]]) -> list[object]:
        """The parameters for these rows, of which there is at least one."""
        columns = zip(*rows, strict=True)
        return [
            list(column) if is_array else array_literal(column)
            for is_array, column in zip(self._is_array, columns, strict=True)
        ]


def array_literal(values: Sequence[object]) -> str:
    """PostgreSQL's text form of an array of finite numbers, flags, times in UTC, or texts, in which None is null.

    It is JSON's, but for the brackets and the escapes of control characters. Source: PostgreSQL manual, Arrays, "Array
    Input and Output Syntax".
    """
    elements = _encode(values)[1:-1].decode()
    if "\\" in elements:
        elements = ",".join(map(_element, values))
    return f"{{{elements}}}"


def _element(text: object) -> str:
    return "null" if text is None else '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
