"""Files are read line by line; what is broken is told and the rest stays."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, EngineError, LocalContext
from libs.compute.versions import VersionReader
from services.dataset.engines import importing, sharded_import
from services.dataset.engines.formats import read_lines
from services.dataset.engines.lines import UnreadableFile
from services.dataset.engines.rows import MAX_ROW_BYTES
from services.dataset.engines.writing import VersionWriter
from tests.unit.dataset.memory import MemoryBlobs


def read(data: bytes, format_name: str = "jsonl") -> list[tuple[int, Any]]:
    return [
        (line.number, line.row if line.row is not None else line.error)
        for line in read_lines(io.BytesIO(data), format_name)
    ]


def test_jsonl_keeps_the_good_lines() -> None:
    lines = read(b'\xef\xbb\xbf{"a": 1}\r\n\n[1]\n{"a": NaN}\n{"a": "\xff"}\n{"a": 2}')
    assert [number for number, _ in lines] == [1, 3, 4, 5, 6]
    assert lines[0][1] == {"a": 1}
    assert lines[4][1] == {"a": 2}
    assert lines[1][1] == "not a JSON object"
    assert all("not valid JSON" in error for _, error in lines[2:4])


@given(st.binary(max_size=300), st.sampled_from(["jsonl", "csv", "text"]))
def test_no_bytes_break_a_reader(data: bytes, format_name: str) -> None:
    try:
        lines = read(data, format_name)
    except UnreadableFile:
        assert format_name == "csv"
    else:
        assert len(lines) <= data.count(b"\n") + 1
        assert [number for number, _ in lines] == sorted({number for number, _ in lines})


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


def context(format_name: str = "jsonl", **options: Any) -> LocalContext:
    return LocalContext({"file_name": f"rows.{format_name}", "format": format_name}, **options)


def test_import_reports_the_first_errors_and_counts_all() -> None:
    data = b"".join(b"bad\n" if number % 2 else b'{"n": %d}\n' % number for number in range(600))
    writer = VersionWriter(MemoryBlobs())
    report = importing.import_file(context(), io.BytesIO(data), writer)
    assert (report["rows_in"], report["rows_out"], report["line_error_count"]) == (600, 300, 300)
    assert len(report["line_errors"]) == 100
    assert report["line_errors"][0]["line"] == 2
    index = writer.finish()
    assert index.sources == ["rows.jsonl"]
    assert index.position[:3].tolist() == [1, 3, 5]


@pytest.mark.parametrize("data", [b"[1]\n", b"\n\n"])
def test_import_of_nothing_is_an_error(tmp_path: Any, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(f"file://{tmp_path}")
    spec = uploaded(store, [data])
    for whole_bytes in (100, 0):
        monkeypatch.setattr(importing, "_WHOLE_BYTES", whole_bytes)
        with pytest.raises(EngineError) as caught:
            importing.run(LocalContext(spec, blobs_write=store, blobs_read=store))
        assert caught.value.reason == "CONTENT_INVALID"


def test_import_hears_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_REPORT_SECONDS", 0.0)
    data = b'{"a": 1}\n' * 5000
    with pytest.raises(EngineCancelled):
        importing.import_file(context(cancel_when=lambda _: True), io.BytesIO(data), VersionWriter(MemoryBlobs()))


def test_import_runs_whole(tmp_path: Any) -> None:
    store = BlobStore(f"file://{tmp_path}")
    spec = uploaded(store, [b'{"a": 1, "source": "s"}\n{"a"', b": 2}\n"])
    result = importing.run(LocalContext(spec, blobs_write=store, blobs_read=store))
    assert result["row_count"] == 2
    again = {**spec, "base": result["manifest_digest"], "base_grant": ""}
    repeated = importing.run(LocalContext(again, blobs_write=store, blobs_read=store))
    assert repeated["manifest_digest"] == result["manifest_digest"]
    assert repeated["new_byte_count"] == 0


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def uploaded(store: BlobStore, pieces: list[bytes]) -> dict[str, str]:
    """The spec of an import of these pieces of a file."""
    blobs = [{"sha256": store.put_sync(piece).sha256, "size": len(piece)} for piece in pieces]
    return {
        "upload": store.commit_sync({"blobs": blobs}),
        "upload_grant": "",
        "file_name": "rows.jsonl",
        "format": "jsonl",
    }


LINES = st.lists(
    st.one_of(
        st.builds(lambda n: b'{"n": %d}' % n, st.integers(0, 5)),
        st.builds(lambda n: b'{"text": "%s", "source": "s%d"}' % (b"x" * n, n % 3), st.integers(0, 40)),
        st.sampled_from([b"", b"bad", b"[1]", b'{"position": 7, "n": 1.5}', b'\xef\xbb\xbf{"n": 1}', b'{"n": 2}\r']),
    ),
    max_size=30,
)


@given(LINES, st.booleans(), st.integers(1, 40), st.integers(1, 100), st.booleans())
@settings(max_examples=100, deadline=None)
def test_shards_give_what_one_process_gives(
    rows: list[bytes], ends: bool, size: int, shard_bytes: int, has_base: bool
) -> None:
    data = b"\n".join(rows) + (b"\n" if ends else b"")
    blobs = MemoryBlobs()
    known = None
    if has_base:
        earlier = VersionWriter(blobs)
        earlier.add({"n": 1}, "old", 1)
        earlier.add({"n": 4}, "old", 2)
        known = earlier.finish()
    writer = VersionWriter(blobs, known)
    pieces = pieces_of(data, size)
    manifest = {"blobs": [{"sha256": blobs.write(piece), "size": len(piece)} for piece in pieces]}
    spec = {"upload": "", "upload_grant": "", "file_name": "rows.jsonl", "format": "jsonl"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_import, "SHARD_BYTES", shard_bytes)
        try:
            whole = importing.import_file(LocalContext(spec), io.BytesIO(data), writer)
        except UnreadableFile:
            return
        expected = writer.finish()
        if not pieces:
            return
        index, report, new_bytes = sharded_import.import_shards(LocalContext(spec), blobs, manifest, known, blobs)
    assert report == whole
    assert new_bytes == writer.new_bytes
    assert index.columns == expected.columns
    assert index.sources == expected.sources
    for column in ("row_ids", "size", "source", "position"):
        assert getattr(index, column).tolist() == getattr(expected, column).tolist()
    everything = np.arange(len(index))
    assert VersionReader(index, blobs).rows(everything) == VersionReader(expected, blobs).rows(everything)


def test_a_large_file_gives_the_same_rows(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(f"file://{tmp_path}")
    data = b"".join(b'{"n": %d, "text": "%s"}\n' % (number % 900, b"w" * (number % 50)) for number in range(3000))
    spec = uploaded(store, pieces_of(data, 5000))
    small = importing.run(LocalContext(spec, blobs_write=store, blobs_read=store))
    monkeypatch.setattr(importing, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(sharded_import, "SHARD_BYTES", 20_000)
    context = LocalContext(spec, blobs_write=store, blobs_read=store)
    large = importing.run(context)
    assert len(context.recorded.progress) > 3
    for field in ("content_digest", "row_count", "byte_count", "new_byte_count", "columns"):
        assert large[field] == small[field], field
    # Compressed, it cannot be read from its middle.
    spec = uploaded(store, pieces_of(gzip.compress(data, 0), 5000))
    packed = importing.run(LocalContext(spec, blobs_write=store, blobs_read=store))
    assert packed["content_digest"] == small["content_digest"]
