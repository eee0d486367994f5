"""Files are read line by line; what is broken is told and the rest stays."""

from __future__ import annotations

import datetime
import decimal
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.archives.errors import UnreadableFile
from services.dataset.domain.formats import ARCHIVES, FORMATS, format_of
from services.dataset.engines import formats
from services.dataset.engines.formats import read_lines
from services.dataset.engines.rows import MAX_ROW_BYTES, RowError, canonical
from tests.unit.dataset.reading import values


def read(data: bytes, format_name: str = "jsonl") -> list[tuple[int, Any]]:
    return [
        (line.number, line.row if line.row is not None else line.error)
        for line in read_lines(io.BytesIO(data), format_name)
    ]


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


@given(st.binary(max_size=300), st.sampled_from(["jsonl", "csv", "text"]))
def test_no_bytes_make_more_lines_than_there_are(data: bytes, format_name: str) -> None:
    try:
        lines = read(data, format_name)
    except UnreadableFile:
        assert format_name == "csv"
    else:
        assert len(lines) <= data.count(b"\n") + 1
        assert [number for number, _ in lines] == sorted({number for number, _ in lines})


def test_jsonl_keeps_the_good_lines() -> None:
    lines = read(b'\xef\xbb\xbf{"a": 1}\r\n\n[1]\n{"a": NaN}\n{"a": "\xff"}\n{"a": 2}')
    assert [number for number, _ in lines] == [1, 3, 4, 5, 6]
    assert lines[0][1] == {"a": 1}
    assert lines[4][1] == {"a": 2}
    assert lines[1][1] == "not a JSON object"
    assert all("not valid JSON" in error for _, error in lines[2:4])


@pytest.mark.parametrize("format_name", ["jsonl", "text"])
def test_a_huge_line_is_skipped_in_bounded_memory(format_name: str) -> None:
    class Endless(io.RawIOBase):
        """A line of 200 MB that is never in memory as a whole, then a short one."""

        left = 200 << 20

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, *_: Any) -> int:
            self.left = 200 << 20
            return 0

        def readinto(self, buffer: Any) -> int:
            if self.left <= 0:
                return 0
            size = min(len(buffer), self.left)
            buffer[:size] = b"x" * size
            self.left -= size
            if self.left == 0:
                buffer[size - 10 : size] = b'\n{"a": 1}\n'
            return size

    lines = list(read_lines(io.BufferedReader(Endless(), 1 << 16), format_name))
    assert lines[0].error == f"longer than {MAX_ROW_BYTES} bytes"
    assert lines[1].number == 2
    assert lines[1].row is not None


def test_csv() -> None:
    data = b'a,b\n1,"x\ny"\n1,2,3\n\xff,2\n,\n"x"y,1\n4,5\n'
    assert read(data, "csv") == [
        (2, {"a": "1", "b": "x\ny"}),
        (4, "3 fields where the header has 2"),
        (5, "not valid UTF-8"),
        (6, {}),
        (7, "not valid CSV: ',' expected after '\"'"),
        (8, {"a": "4", "b": "5"}),
    ]
    with pytest.raises(UnreadableFile, match="twice"):
        read(b"a,a\n1,2\n", "csv")


def test_a_column_without_a_name_is_called_by_its_place() -> None:
    """As pandas writes its index."""
    assert read(b",a,\n0,x,y\n", "csv") == [(2, {"column_1": "0", "a": "x", "column_3": "y"})]
    with pytest.raises(UnreadableFile, match="twice"):
        read(b",column_1\n", "csv")


def test_text() -> None:
    lines = read(b"one\n\n two \r\n\xff\n", "text")
    assert lines == [(1, {"text": "one"}), (3, {"text": " two "}), (4, "not valid UTF-8 at byte 0")]


def test_parquet_values_become_json() -> None:
    table = pa.table(
        {
            "n": [1, 2],
            "x": [0.5, float("nan")],
            "when": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)] * 2,
            "price": [decimal.Decimal("1.50"), None],
            "raw": [b"\x00\xff", None],
            "deep": [{"a": [1, 2]}, None],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    (_, row), (number, _) = read(sink.getvalue(), "parquet")
    assert number == 2
    assert row == {
        "n": 1,
        "x": 0.5,
        "when": "2026-01-02T00:00:00+00:00",
        "price": "1.50",
        "raw": "AP8=",
        "deep": {"a": [1, 2]},
    }
    with pytest.raises(UnreadableFile):
        read(b"PAR1 nothing", "parquet")


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
    assert meant is None or meant in (*FORMATS, *ARCHIVES)


def test_json_documents() -> None:
    assert values(b'\xef\xbb\xbf [{"a": 1}, 2, {"a": {"b": [1.5, null]}}]\n', "json") == [
        {"a": 1},
        "not a JSON object",
        {"a": {"b": [1.5, None]}},
    ]
    assert values(b'{"a": 1, "b": "\xe4\xb8\x96"}', "json") == [{"a": 1, "b": "世"}]
    assert values(b"[]", "json") == []
    assert values(b'[{"a": "]},\\"["}, {"a" 1}, {"b": 1}, , {"c": 1}]', "json")[0::2] == [
        {"a": ']},"['},
        {"b": 1},
        {"c": 1},
    ]
    *rows, last = values(b'[{"a": 1}, {"a": 2}, {"a"', "json")
    assert rows == [{"a": 1}, {"a": 2}]
    assert last == "this line and all behind it cannot be read: the JSON array is not closed"
    *rows, last = values(b'[{"a": 1}] {"a": 2}', "json")
    assert rows == [{"a": 1}]
    assert "behind the end" in last
    with pytest.raises(UnreadableFile):
        values(b'"text"', "json")


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
        assert values(json.dumps(rows, indent=indent, ensure_ascii=False).encode(), "json") == rows


def test_a_deeply_nested_row_is_an_error_of_that_row() -> None:
    for depth in (300, 900, 100_000):
        (row,) = values(b'[{"a": ' + b"[" * depth + b"]" * depth + b"}]", "json")
        if depth < 1024:
            with pytest.raises(RowError, match=r"deep|ecursion"):
                canonical(row)
        else:
            assert "not valid JSON" in row
