"""Compressed files, JSON documents and spreadsheets: what is whole is read, what is broken or hostile is named."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.domain.formats import FORMATS, format_of
from services.dataset.engines import formats, tables, unpacking
from services.dataset.engines.formats import read_lines
from services.dataset.engines.lines import UnreadableFile
from services.dataset.engines.rows import MAX_ROW_BYTES, RowError, canonical

ROWS = b"".join(b'{"n": %d}\n' % number for number in range(1000))


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def read(data: bytes, format_name: str) -> list[Any]:
    return [line.row if line.row is not None else line.error for line in read_lines(io.BytesIO(data), format_name)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.jsonl", "jsonl"),
        ("a.JSONL.GZ", "jsonl"),
        ("a.json.zst", "json"),
        ("a.tsv", "tsv"),
        ("book.xlsx", "xlsx"),
        ("a.gz", None),
        ("jsonl", None),
    ],
)
def test_the_name_tells_the_format(name: str, meant: str | None) -> None:
    assert format_of(name) == meant
    assert meant is None or meant in FORMATS


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_compressed_files_are_told_by_their_first_bytes(pack: Callable[[bytes], bytes]) -> None:
    assert read(pack(ROWS), "jsonl") == [{"n": number} for number in range(1000)]
    assert read(pack(b"a\tb\n1\t2,3\n"), "tsv") == [{"a": "1", "b": "2,3"}]
    # Members one after the other, as `cat a.gz b.gz` makes them.
    assert len(read(pack(ROWS) + pack(ROWS), "jsonl")) == 2000


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_cut_file_gives_what_was_before(pack: Callable[[bytes], bytes]) -> None:
    noise = b"".join(b'{"n": "%s"}\n' % json.dumps(str(hash((n, "x")))).encode().strip(b'"') for n in range(60_000))
    packed = pack(noise)
    *rows, last = read(packed[: len(packed) // 2], "jsonl")
    assert len(rows) > 1000
    assert rows[0] == json.loads(noise.split(b"\n")[0])
    assert "damaged or cut off" in last


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_is_not_unpacked(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_FREE_BYTES", 1 << 20)
    bomb = pack(b'{"n": 1}\n' * 2_000_000)
    *rows, last = read(bomb, "jsonl")
    assert len(rows) < 1_000_000
    assert f"more than {unpacking.MAX_RATIO} times" in last


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"[", b"{"]))
@settings(max_examples=100, deadline=None)
def test_no_bytes_break_a_reader(data: bytes, start: bytes) -> None:
    for format_name in FORMATS:
        try:
            numbers = [line.number for line in read_lines(io.BytesIO(start + data), format_name)]
        except UnreadableFile as error:
            assert str(error)
        else:
            assert numbers == sorted(set(numbers))


def test_json_documents() -> None:
    assert read(b'\xef\xbb\xbf [{"a": 1}, 2, {"a": {"b": [1.5, null]}}]\n', "json") == [
        {"a": 1},
        "not a JSON object",
        {"a": {"b": [1.5, None]}},
    ]
    assert read(b'{"a": 1, "b": "\xe4\xb8\x96"}', "json") == [{"a": 1, "b": "世"}]
    assert read(b"[]", "json") == []
    assert read(b'[{"a": "]},\\"["}, {"a" 1}, {"b": 1}, , {"c": 1}]', "json")[0::2] == [
        {"a": ']},"['},
        {"b": 1},
        {"c": 1},
    ]
    *rows, last = read(b'[{"a": 1}, {"a": 2}, {"a"', "json")
    assert rows == [{"a": 1}, {"a": 2}]
    assert last == "this line and all behind it cannot be read: the JSON array is not closed"
    *rows, last = read(b'[{"a": 1}] {"a": 2}', "json")
    assert rows == [{"a": 1}]
    assert "behind the end" in last
    with pytest.raises(UnreadableFile):
        read(b'"text"', "json")


def test_a_huge_json_row_is_not_held_in_memory() -> None:
    class Endless(io.RawIOBase):
        """`[{"a": 1}, {"a": "xxx...` without an end."""

        taken = 0

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, *_: Any) -> int:
            self.taken = 0
            return 0

        def readinto(self, buffer: Any) -> int:
            start = b'[{"a": 1}, {"a": "'
            buffer[:] = b"x" * len(buffer)
            if self.taken == 0:
                size = min(len(buffer), len(start))
                buffer[:size] = start[:size]
                self.taken += size
                return size
            self.taken += len(buffer)
            return len(buffer)

    source = Endless()
    first, last = read_lines(io.BufferedReader(source, 1 << 16), "json")
    assert first.row == {"a": 1}
    assert "longer than" in last.error
    assert source.taken < 3 * MAX_ROW_BYTES


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=4),
            st.recursive(
                st.text(max_size=6) | st.none() | st.floats(0, 1),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            ),
            max_size=3,
        ),
        max_size=6,
    ),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)
@settings(max_examples=100, deadline=None)
def test_json_arrays_are_read_as_they_were_written(rows: list[Any], size: int, indent: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_JSON_BYTES", size)
        assert read(json.dumps(rows, indent=indent, ensure_ascii=False).encode(), "json") == rows


def test_a_deeply_nested_row_is_an_error_of_that_row() -> None:
    for depth in (300, 900, 1_000_000):
        (row,) = read(b'[{"a": ' + b"[" * depth + b"]" * depth + b"}]", "json")
        if depth < 1024:
            with pytest.raises(RowError, match=r"deep|ecursion"):
                canonical(row)
        else:
            assert "not valid JSON" in row


def workbook(*rows: tuple[Any, ...]) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in rows:
        sheet.append(row)
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


def test_spreadsheets() -> None:
    data = workbook(("name", "n", None), ("x", 1), (), ("=SUM(B2:B2)", 2.5), ("y", 1, "behind"), (None, True))
    assert [(line.number, line.row or line.error) for line in read_lines(io.BytesIO(data), "xlsx")] == [
        (2, {"name": "x", "n": 1}),
        (4, {"name": "=SUM(B2:B2)", "n": 2.5}),
        (5, "a cell behind the 2 columns that the first row names"),
        (6, {"n": True}),
    ]


def edited(data: bytes, name: str, change: Callable[[bytes], bytes | None]) -> bytes:
    """The workbook with one of its parts changed, or taken out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            content = change(old.read(member)) if member == name else old.read(member)
            if content is not None:
                new.writestr(member, content)
    return result.getvalue()


BOOK = workbook(("a", "b"), ("x", "y"), ("z", 1))
SHEET = "xl/worksheets/sheet1.xml"
LAUGHS = b'<!DOCTYPE x [<!ENTITY a "ha">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + level, b"&%c;" % (97 + level) * 20) for level in range(12)
)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a workbook"),
        (b"PK\x03\x04", "not a workbook"),
        (BOOK[: len(BOOK) // 2], "not a workbook"),
        (workbook(()), "names no column"),
        (workbook(("a", None, "b")), "column 2"),
        (workbook(("a", "a")), "twice"),
        (edited(BOOK, "xl/workbook.xml", lambda _: None), "cannot be read|not a workbook"),
        (edited(BOOK, "xl/workbook.xml", lambda _: b"<x/>"), "."),
        (edited(BOOK, SHEET, lambda _: None), "."),
        (edited(BOOK, SHEET, lambda xml: xml[:100]), "."),
        (edited(BOOK, SHEET, lambda xml: LAUGHS + b"]>" + xml.replace(b"<t>", b"<t>&m;")), "."),
        (edited(BOOK, "[Content_Types].xml", lambda _: b"\xff\xfe"), "."),
    ],
)
def test_broken_spreadsheets_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(UnreadableFile, match=said):
        read(data, "xlsx")


def test_a_spreadsheet_that_breaks_off_keeps_its_rows() -> None:
    broken = edited(BOOK, SHEET, lambda xml: xml[: xml.index(b'<row r="3"')] + b"<row><c><v")
    rows = read(broken, "xlsx")
    assert rows[:-1] == [{"a": "x", "b": "y"}]
    assert "cannot be read" in rows[-1]


def test_a_spreadsheet_that_would_become_huge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_XLSX_BYTES", 1000)
    with pytest.raises(UnreadableFile, match="save the sheet as CSV"):
        read(BOOK, "xlsx")


def test_tables_are_not_packed_twice() -> None:
    for format_name in ("xlsx", "parquet"):
        with pytest.raises(UnreadableFile, match="not packed again"):
            read(gzip.compress(BOOK), format_name)
