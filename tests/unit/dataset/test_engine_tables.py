"""Spreadsheets: cells become rows, formulas stay text, what is broken or hostile is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import openpyxl
import pytest

from libs.archives.errors import UnreadableFile
from services.dataset.engines import tables
from services.dataset.engines.formats import read_lines
from tests.unit.dataset.reading import values


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
    unnamed = workbook((None, "a"), (0, "x"))
    assert [line.row for line in read_lines(io.BytesIO(unnamed), "xlsx")] == [{"column_1": 0, "a": "x"}]


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
        (workbook(("a", "a")), "twice"),
        (workbook((None, "column_1")), "twice"),
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
        values(data, "xlsx")


def test_a_spreadsheet_that_breaks_off_keeps_its_rows() -> None:
    broken = edited(BOOK, SHEET, lambda xml: xml[: xml.index(b'<row r="3"')] + b"<row><c><v")
    rows = values(broken, "xlsx")
    assert rows[:-1] == [{"a": "x", "b": "y"}]
    assert "cannot be read" in rows[-1]


def test_a_spreadsheet_that_would_become_huge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_XLSX_BYTES", 1000)
    with pytest.raises(UnreadableFile, match="save the sheet as CSV"):
        values(BOOK, "xlsx")
