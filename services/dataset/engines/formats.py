"""Files of rows, read as a stream in bounded memory. What cannot be read is told line by line, and the rest stays."""

from __future__ import annotations

import csv
import datetime
import decimal
import itertools
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from services.dataset.engines.rows import MAX_ROW_BYTES, Row

_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1024 * 1024
# Rows of Parquet decoded at once.
_PARQUET_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line or row of a file.

    Attributes:
        number: counted from 1.
        row: None when it cannot be read.
        error: why it cannot be read.
    """

    number: int
    row: Row | None
    error: str = ""


class UnreadableFile(Exception):
    """The file as a whole is not of its format."""


def read_lines(file: BinaryIO, format_name: str) -> Iterator[Line]:
    """The lines of `file`.

    Args:
        file: Binary; Parquet needs it seekable.
        format_name: `jsonl`, `csv`, `parquet` or `text`.

    Raises:
        UnreadableFile: Not even the header can be read.
    """
    readers: dict[str, Callable[[BinaryIO], Iterator[Line]]] = {
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "text": _read_text,
    }
    return readers[format_name](file)


def _physical_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines without their end, counted from 1; None for one that is longer than a row may be."""
    for number in itertools.count(1):
        line = file.readline(MAX_ROW_BYTES + 2)
        if not line:
            return
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_SKIP_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        yield number, line.rstrip(b"\r\n")


_TOO_LONG = f"longer than {MAX_ROW_BYTES} bytes"


def _read_jsonl(file: BinaryIO) -> Iterator[Line]:
    for number, line in _physical_lines(file):
        if line is None:
            yield Line(number, None, _TOO_LONG)
        elif line.strip():
            yield _json_line(number, line)


def _json_line(number: int, line: bytes) -> Line:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Line(number, None, f"not valid JSON: {error.msg} at column {error.colno}")
    if not isinstance(row, dict):
        return Line(number, None, "not a JSON object")
    return Line(number, row)


def _read_text(file: BinaryIO) -> Iterator[Line]:
    for number, line in _physical_lines(file):
        if line is None:
            yield Line(number, None, _TOO_LONG)
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield Line(number, None, f"not valid UTF-8 at byte {error.start}")
            continue
        if text.strip():
            yield Line(number, {"text": text})


def _read_csv(file: BinaryIO) -> Iterator[Line]:
    # A bad byte must not tear a quoted field apart, so it travels as a surrogate through the parser and is found in
    # the field.
    texts = (
        "\n" if line is None else line.decode(errors="surrogateescape") + "\n" for _, line in _physical_lines(file)
    )
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(texts, strict=True)
    header = _csv_header(reader)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Line(number, None, f"not valid CSV: {error}")
            continue
        if fields:
            yield _csv_line(number, header, fields)


def _csv_header(reader: Any) -> list[str]:
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise UnreadableFile(f"the header is not valid CSV: {error}") from error
    if any(_has_bad_bytes(name) for name in header):
        raise UnreadableFile("the header is not valid UTF-8")
    if len(set(header)) != len(header):
        raise UnreadableFile("the header names a column twice")
    return header


def _csv_line(number: int, header: list[str], fields: list[str]) -> Line:
    if len(fields) != len(header):
        return Line(number, None, f"{len(fields)} fields where the header has {len(header)}")
    if any(_has_bad_bytes(value) for value in fields):
        return Line(number, None, "not valid UTF-8")
    return Line(number, {name: value for name, value in zip(header, fields, strict=True) if value})


def _has_bad_bytes(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _read_parquet(file: BinaryIO) -> Iterator[Line]:
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(f"not a Parquet file: {error}") from error
    number = 0
    try:
        for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS):
            yield from _parquet_rows(batch, number)
            number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        yield Line(number + 1, None, f"this row and all behind it cannot be read: {error}")


def _parquet_rows(batch: pa.RecordBatch, before: int) -> Iterator[Line]:
    for at in range(batch.num_rows):
        try:
            (row,) = batch.slice(at, 1).to_pylist()
            yield Line(before + at + 1, {name: _json_value(value) for name, value in row.items()})
        except (UnicodeDecodeError, ValueError, OverflowError, pa.ArrowException) as error:
            yield Line(before + at + 1, None, f"a value cannot be read: {error}")


def _json_value(value: Any) -> Any:
    """What Parquet has and JSON lacks: dates as ISO 8601, decimals as text, bytes in base 64."""
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(inner) for inner in value]
    return value
