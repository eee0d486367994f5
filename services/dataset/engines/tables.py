"""Files that are tables already: Parquet and spreadsheets."""

from __future__ import annotations

import datetime
import decimal
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.etree.ElementTree import ParseError

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl import load_workbook
from openpyxl.utils.exceptions import InvalidFileException

from libs.archives.errors import BrokenOff, UnreadableFile
from libs.compute.versions import JSON, KIND
from services.dataset.engines.lines import Line, column_names
from services.dataset.engines.rows import MAX_COLUMNS

# Rows of Parquet decoded at once.
_PARQUET_ROWS = 1024
# A spreadsheet is a zip of XML whose texts are in memory together.
_XLSX_BYTES = 256 * 1024 * 1024
# What reading a file made by somebody who means harm can raise inside openpyxl, zipfile and ElementTree.
_XLSX_ERRORS = (
    zipfile.BadZipFile,
    InvalidFileException,
    ParseError,
    zlib.error,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
)


def read_parquet(file: BinaryIO) -> Iterator[Line]:
    """Rows of a Parquet file; dates become ISO 8601, decimals text, bytes base 64.

    Raises:
        UnreadableFile: It is none.
    """
    if not file.seekable():
        raise UnreadableFile("Parquet compresses itself: upload the file as it is, not packed again")
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(f"not a Parquet file: {error}") from error
    number = 0
    try:
        # Columns that an export wrote as JSON text.
        texts = {field.name for field in parquet.schema_arrow if (field.metadata or {}).get(KIND) == JSON.encode()}
        for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS):
            yield from _parquet_rows(batch, number, texts)
            number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise BrokenOff(str(error)) from error


def _parquet_rows(batch: pa.RecordBatch, before: int, texts: set[str]) -> Iterator[Line]:
    for at in range(batch.num_rows):
        try:
            (row,) = batch.slice(at, 1).to_pylist()
            for name in texts & row.keys():
                row[name] = None if row[name] is None else orjson.loads(row[name])
            yield Line(before + at + 1, {name: json_value(value) for name, value in row.items()})
        except (UnicodeDecodeError, ValueError, OverflowError, pa.ArrowException) as error:
            yield Line(before + at + 1, None, f"a value cannot be read: {error}")


def read_xlsx(file: BinaryIO) -> Iterator[Line]:
    """Rows of the first sheet of an Office Open XML workbook; its first row names the columns. A formula is its text:
    nothing is computed, and no link to another file is followed.

    Raises:
        UnreadableFile: It is none, is larger than 256 MiB when unpacked, or its header is unusable.
    """
    if not file.seekable():
        raise UnreadableFile("a workbook is a zip already: upload the file as it is, not packed again")
    _check_zip(file)
    try:
        book = load_workbook(file, read_only=True, data_only=False, keep_links=False)
        if not book.worksheets:
            raise UnreadableFile("the workbook has no sheet of cells")
        sheet = book.worksheets[0]
        # The size that the file states may be wrong.
        sheet.reset_dimensions()
        rows = sheet.iter_rows(values_only=True, max_col=MAX_COLUMNS + 1)
        header = _xlsx_header(next(rows, ()))
    except _XLSX_ERRORS as error:
        raise UnreadableFile(f"not a workbook that can be read: {error}") from error
    try:
        for number, values in enumerate(rows, 2):
            if any(value is not None for value in values):
                yield _xlsx_line(number, header, values)
    except _XLSX_ERRORS as error:
        raise BrokenOff(str(error)) from error


def _check_zip(file: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UnreadableFile(f"not a workbook: {error}") from error
    if size > _XLSX_BYTES:
        raise UnreadableFile(
            f"the workbook unpacks to {size:,} bytes, at most {_XLSX_BYTES:,} can be read; save the sheet as CSV"
        )
    file.seek(0)


def _xlsx_header(values: tuple[Any, ...]) -> list[str]:
    names = ["" if value is None else str(value).strip() for value in values]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UnreadableFile("the first row of the first sheet names no column")
    return column_names(names)


def _xlsx_line(number: int, header: list[str], values: tuple[Any, ...]) -> Line:
    if any(value is not None for value in values[len(header) :]):
        return Line(number, None, f"a cell behind the {len(header)} columns that the first row names")
    row = {name: json_value(value) for name, value in zip(header, values, strict=False) if value is not None}
    return Line(number, row)


def json_value(value: Any) -> Any:
    """What tables have and JSON lacks: dates as ISO 8601, decimals as text, bytes in base 64."""
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    if isinstance(value, dict):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    # Formulas over arrays come as objects of openpyxl.
    return str(getattr(value, "text", value))
