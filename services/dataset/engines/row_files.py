"""Rows as lines of a file: JSON, CSV, TSV, plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from libs.compute.versions import JSON, STRING, Row, to_json
from services.dataset.engines.losses import Inexpressible

# A byte order mark at the beginning of a file would be taken for one of ours.
_QUOTED = re.compile(r'["\r\n\ufeff]')
_LINE_BREAKS = re.compile(r"[\r\n]")

EMPTY_TEXT = "an empty text reads back as a missing value"
SEVERAL_LINES = "a text with line breaks reads back as several rows"

# A row as its line, and how it would come back otherwise.
Encoded = tuple[bytes, list[str]]


@dataclass(frozen=True)
class LineFormat:
    """How rows become a file.

    Attributes:
        encode: the bytes of a row; raises `Inexpressible`.
        head: stands at the beginning.
        between: stands between two rows.
        tail: stands at the end.
        notes: what is true of all rows, for people.
    """

    encode: Callable[[Row], Encoded]
    head: bytes = b""
    between: bytes = b""
    tail: bytes = b""
    notes: tuple[str, ...] = ()


def jsonl_format() -> LineFormat:
    """An object a line."""
    return LineFormat(lambda row: (orjson.dumps(row) + b"\n", []))


def json_format() -> LineFormat:
    """One array of objects."""
    return LineFormat(lambda row: (orjson.dumps(row), []), b"[\n", b",\n", b"\n]\n")


def records_format(write: Callable[[Row], tuple[Row, list[str]]], *, as_array: bool = False) -> LineFormat:
    """Rows in another form, each an object a line or all in one array.

    Args:
        write: The record of a row, and how it would come back otherwise; raises `Inexpressible`.
    """

    def encode(row: Row) -> Encoded:
        record, changes = write(row)
        return orjson.dumps(record) + (b"" if as_array else b"\n"), changes

    return LineFormat(encode, b"[\n", b",\n", b"\n]\n") if as_array else LineFormat(encode)


def text_format(column: str, others: list[str]) -> LineFormat:
    """A text a line.

    Args:
        column: With the texts.
        others: Columns that the file has no place for.
    """

    def encode(row: Row) -> Encoded:
        text = row.get(column)
        text = text if text is None or isinstance(text, str) else to_json(text)
        if text is None or not text.strip():
            raise Inexpressible(f"{column} is missing or blank")
        return text.encode() + b"\n", [SEVERAL_LINES] if _LINE_BREAKS.search(text) else []

    notes = (f"not in the file: {', '.join(others)}",) if others else ()
    return LineFormat(encode, notes=notes)


def table_format(kinds: dict[str, str], delimiter: str) -> LineFormat:
    """CSV (RFC 4180, lines end in a line feed) with a header.

    Args:
        kinds: Type of each column, in order.
        delimiter: A comma or a tab.
    """
    special = re.compile(f"{_QUOTED.pattern}|{delimiter}")

    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if special.search(text) else text

    def line(fields: list[str]) -> bytes:
        # One empty field alone would be a blank line, which readers skip.
        return (delimiter.join(fields) if fields != [""] else '""').encode() + b"\n"

    def encode(row: Row) -> Encoded:
        fields = [quoted(_field(row.get(name), kind)) for name, kind in kinds.items()]
        return line(fields), [EMPTY_TEXT] if "" in row.values() else []

    typed = [name for name, kind in kinds.items() if kind != STRING]
    notes = (f"CSV has only text, so these read back as text: {', '.join(typed)}",) if typed else ()
    return LineFormat(encode, line([quoted(name) for name in kinds]), notes=notes)


def _field(value: object, kind: str) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) and kind != JSON else to_json(value)
