"""Files of rows, read as a stream in bounded memory. What cannot be read is told line by line, and the rest stays."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, cast

import orjson

from libs.archives.errors import BrokenOff, UnreadableFile
from libs.archives.unpacking import unpacked
from services.dataset.engines.annotations.beside import read_zipped
from services.dataset.engines.annotations.coco import read_coco
from services.dataset.engines.annotations.label_studio import read_task
from services.dataset.engines.annotations.voc import read_voc
from services.dataset.engines.annotations.yolo import read_yolo
from services.dataset.engines.conversations import READERS
from services.dataset.engines.lines import BOM, TOO_LONG, Line, PhysicalLines, column_names
from services.dataset.engines.losses import Inexpressible
from services.dataset.engines.rows import MAX_ROW_BYTES, Row
from services.dataset.engines.tables import read_parquet, read_xlsx

# Read at once.
_JSON_BYTES = 64 * 1024
# Whole strings, a string that is not whole, and what gives an array its structure.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)


def read_lines(file: BinaryIO, format_name: str) -> Iterator[Line]:
    """The lines of `file`, which may be compressed with gzip or zstd.

    Args:
        file: Binary and seekable.
        format_name: One of `services.dataset.domain.formats.FORMATS`, or a form of conversations or annotated images.

    Raises:
        UnreadableFile: Not even the header can be read.
    """
    readers: dict[str, Callable[[BinaryIO], Iterator[Line]]] = {
        "jsonl": lambda file: read_jsonl(PhysicalLines(file)),
        "json": _read_json,
        "csv": partial(_read_csv, delimiter=","),
        "tsv": partial(_read_csv, delimiter="\t"),
        "parquet": read_parquet,
        "xlsx": read_xlsx,
        "text": lambda file: read_text(PhysicalLines(file)),
        **{name: partial(_read_records, read=partial(_one, read)) for name, read in READERS.items()},
        "label-studio": partial(_read_records, read=read_task),
        "coco": read_coco,
        "yolo": partial(read_zipped, read=partial(read_yolo, size_of=lambda _path: None)),
        "voc": partial(read_zipped, read=read_voc),
    }
    number = 0
    try:
        for line in readers[format_name](unpacked(file)):
            number = line.number
            yield line
    except BrokenOff as error:
        yield Line(number + 1, None, f"this line and all behind it cannot be read: {error}")


def read_jsonl(lines: PhysicalLines) -> Iterator[Line]:
    """A JSON object in each line; blank ones are left out."""
    for number, line in lines:
        if line is None:
            yield Line(number, None, TOO_LONG)
        elif line.strip():
            yield _json_line(number, line)


def _json_line(number: int, line: bytes) -> Line:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Line(number, None, f"not valid JSON: {error.msg} at column {error.colno}")
    return Line(number, row) if isinstance(row, dict) else Line(number, None, "not a JSON object")


def _read_records(file: BinaryIO, read: Callable[[Row], Iterator[Row | str]]) -> Iterator[Line]:
    """Rows from records of another form, which are an array of JSON or lines of it.

    Args:
        read: Gives the rows of a record, and in words what of it is none; raises `Inexpressible`.
    """
    # A stream that is unpacked cannot go back, but looks ahead.
    start = file.read(_JSON_BYTES) if file.seekable() else cast("io.BufferedReader", file).peek(1)
    if file.seekable():
        file.seek(0)
    is_array = start.removeprefix(BOM).lstrip().startswith(b"[")
    for line in _read_json(file) if is_array else read_jsonl(PhysicalLines(file)):
        if line.row is None:
            yield line
            continue
        try:
            for found in read(line.row):
                yield Line(line.number, None, found) if isinstance(found, str) else Line(line.number, found)
        except Inexpressible as reason:
            yield Line(line.number, None, str(reason))


def _one(read: Callable[[Row], Row], record: Row) -> Iterator[Row | str]:
    yield read(record)


def _read_json(file: BinaryIO) -> Iterator[Line]:
    """One array of objects, or one object; numbered by its place in the array. An element that is not valid costs no
    other one as long as its brackets pair."""
    buffer = b""
    while not buffer and (data := file.read(_JSON_BYTES)):
        buffer = data.removeprefix(BOM).lstrip()
    if buffer.startswith(b"{"):
        whole = buffer + file.read(MAX_ROW_BYTES)
        yield Line(1, None, TOO_LONG) if len(whole) > MAX_ROW_BYTES else _json_line(1, whole)
    elif buffer.startswith(b"["):
        for number, element in enumerate(_elements(buffer, file), 1):
            yield _json_line(number, element)
    else:
        raise UnreadableFile("neither a JSON array nor a JSON object")


def _elements(buffer: bytes, file: BinaryIO) -> Iterator[bytes]:
    """The texts between the commas of an array.

    Args:
        buffer: The beginning of the array.
        file: What follows.
    """
    start = position = depth = 1
    count = 0
    while True:
        for token in _JSON_TOKEN.finditer(buffer, position):
            kind = token[0]
            position = token.end()
            if kind == b'"':
                # The rest of the string is not here yet.
                position = token.start()
                break
            if kind in b"[{":
                depth += 1
            elif kind in b"]}":
                depth -= 1
            if depth == 0 or (depth == 1 and kind == b","):
                element = buffer[start : token.start()]
                if count or kind == b"," or element.strip():
                    count += 1
                    yield element
                start = position
            if depth == 0:
                if buffer[position:].strip() or file.read(_JSON_BYTES).strip():
                    raise BrokenOff("something stands behind the end of the JSON array")
                return
        else:
            position = len(buffer)
        if len(buffer) - start > MAX_ROW_BYTES:
            raise BrokenOff(TOO_LONG)
        # At least as much as is here already, so that a long string is not looked through again and again.
        data = file.read(max(_JSON_BYTES, len(buffer) - start))
        if not data:
            raise BrokenOff("the JSON array is not closed")
        buffer, position, start = buffer[start:] + data, position - start, 0


def read_text(lines: PhysicalLines) -> Iterator[Line]:
    """A row with the column `text` from each line; blank ones are left out."""
    for number, line in lines:
        if line is None:
            yield Line(number, None, TOO_LONG)
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield Line(number, None, f"not valid UTF-8 at byte {error.start}")
            continue
        if text.strip():
            yield Line(number, {"text": text})


def _read_csv(file: BinaryIO, delimiter: str) -> Iterator[Line]:
    # A bad byte must not tear a quoted field apart, so it travels as a surrogate through the parser and is found in
    # the field.
    lines = PhysicalLines(file, keep_ends=True)
    texts = ("\n" if line is None else line.decode(errors="surrogateescape") for _, line in lines)
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
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
    return column_names(header)


def _csv_line(number: int, header: list[str], fields: list[str]) -> Line:
    if len(fields) != len(header):
        return Line(number, None, f"{len(fields)} fields where the header has {len(header)}")
    if any(_has_bad_bytes(value) for value in fields):
        return Line(number, None, "not valid UTF-8")
    return Line(number, {name: value for name, value in zip(header, fields, strict=True) if value})


def _has_bad_bytes(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
