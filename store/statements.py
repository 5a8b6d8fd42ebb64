"""What the hot-path statements are built from: column lists and typed ``unnest`` of their arrays."""

from collections.abc import Iterable, Sequence

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


def column_list(columns: Iterable[str], prefix: str = "") -> str:
    """``a, b, c`` with an optional ``x.`` before each."""
    return ", ".join(f"{prefix}{column}" for column in columns)


def unnest(table: Table, columns: Sequence[str]) -> str:
    """``unnest($1::text[], ...) AS v(a, ...)``: rows of a table from one array parameter a column."""
    arrays = ", ".join(f"${number}::{_TYPES[type(table.c[column].type)]}[]" for number, column in enumerate(columns, 1))
    return f"unnest({arrays}) AS v({column_list(columns)})"


def transposed(rows: Iterable[Sequence[object]]) -> list[list[object]]:
    """Rows, of which there is at least one, as one array a column."""
    return [list(column) for column in zip(*rows, strict=True)]
