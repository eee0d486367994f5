"""Rows as a workbook (Office Open XML, ECMA-376): one sheet, its first row names the columns, the same bytes each time.

Texts are inline strings, so what begins with `=` is a text to every program and never a formula.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

from libs.compute.versions import BOOL, DOUBLE, INT, STRING, Row, to_json
from services.dataset.engines.losses import Inexpressible, Losses
from services.dataset.engines.row_files import EMPTY_TEXT
from services.dataset.engines.xml_text import xml_text
from services.dataset.engines.zip_writer import Archive

# https://support.microsoft.com/office/excel-specifications-and-limits: rows of a sheet, characters of a cell.
_MOST_ROWS, _MOST_CHARACTERS = 1_048_576, 32_767
# What Excel takes for an escape of a character that XML cannot hold.
_ESCAPE = re.compile("_x[0-9A-Fa-f]{4}_")
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_SHEET = "xl/worksheets/sheet1.xml"
_PARTS = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/{_SHEET}" ContentType="{_TYPE}.worksheet+xml"/></Types>'
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">'
        '<sheets><sheet name="rows" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>'
    ),
}


def workbook_notes(kinds: dict[str, str]) -> list[str]:
    """What is true of all rows: columns that a sheet has only as text."""
    as_text = [name for name, kind in kinds.items() if kind not in (STRING, BOOL, INT, DOUBLE)]
    return [f"a sheet has only text for these: {', '.join(as_text)}"] if as_text else []


def require_header(kinds: dict[str, str]) -> None:
    """Raises `Inexpressible` for names of columns that would not come back."""
    for name in kinds:
        if name != name.strip():
            raise Inexpressible(f"a sheet takes away the blanks around the name of the column {name!r}")
        _text(name)


def write_workbook(rows: Iterable[tuple[str, Row]], kinds: dict[str, str], file: BinaryIO, losses: Losses) -> None:
    """Writes a workbook. The sheet waits in a temporary file.

    Args:
        rows: Row id and row.
        kinds: Type of each column, in order; `require_header` has seen them.
        file: Where it goes.
        losses: Told what is left out or changed.
    """
    letters = [_letters(at) for at in range(len(kinds))]
    with tempfile.TemporaryFile() as sheet:
        sheet.write(f'{_XML}<worksheet xmlns="{_MAIN}"><sheetData>'.encode())
        header = "".join(_cell(f"{letter}1", name) for letter, name in zip(letters, kinds, strict=True))
        sheet.write(f'<row r="1">{header}</row>\n'.encode())
        number = 1
        for row_id, row in rows:
            try:
                line = _row(number + 1, row, kinds, letters)
            except Inexpressible as reason:
                losses.leave_out(str(reason), row_id)
                continue
            if "" in row.values():
                losses.change(EMPTY_TEXT, row_id)
            sheet.write(line.encode())
            number += 1
        sheet.write(b"</sheetData></worksheet>\n")
        archive = Archive(file)
        for path, text in _PARTS.items():
            archive.add(path, f"{_XML}{text}\n".encode())
        archive.copy(_SHEET, sheet)
        archive.close()


def _row(number: int, row: Row, kinds: dict[str, str], letters: list[str]) -> str:
    if number > _MOST_ROWS:
        raise Inexpressible(f"a sheet has at most {_MOST_ROWS:,} rows")
    cells: list[str] = []
    for letter, (name, kind) in zip(letters, kinds.items(), strict=True):
        value = row.get(name)
        if value is not None and value != "":
            plain = kind in (STRING, BOOL, INT, DOUBLE)
            cells.append(_cell(f"{letter}{number}", value if plain else to_json(value)))
    if not cells:
        raise Inexpressible("a row without a value is no row of a sheet")
    return f'<row r="{number}">{"".join(cells)}</row>\n'


def _cell(place: str, value: str | bool | int | float) -> str:
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{_text(value)}</t></is></c>'
    return f'<c r="{place}"><v>{value!r}</v></c>'


def _text(text: str) -> str:
    if len(text) > _MOST_CHARACTERS:
        raise Inexpressible(f"a cell has at most {_MOST_CHARACTERS:,} characters")
    problem = "a text has characters that a workbook cannot hold"
    if _ESCAPE.search(text):
        raise Inexpressible(problem)
    return xml_text(text, problem)


def _letters(at: int) -> str:
    """Name of a column, counted from 0: A, ..., Z, AA, ..."""
    letters = ""
    at += 1
    while at:
        at, letter = divmod(at - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters
