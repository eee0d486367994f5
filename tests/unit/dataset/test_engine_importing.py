"""A file becomes a version: errors are counted, and shards give what one process gives."""

from __future__ import annotations

import gzip
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.archives.errors import UnreadableFile
from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, EngineError, LocalContext
from libs.compute.versions import VersionReader
from services.dataset.engines import importing, index_columns, sharded_import
from services.dataset.engines.access import open_version
from services.dataset.engines.lines import Line
from services.dataset.engines.number_texts import number_columns, with_numbers
from services.dataset.engines.writing import VersionWriter
from tests.unit.dataset.memory import MemoryBlobs

ROWS = ("rows.jsonl", "jsonl")


def test_import_reports_the_first_errors_and_counts_all() -> None:
    data = b"".join(b"bad\n" if number % 2 else b'{"n": %d}\n' % number for number in range(600))
    writer = VersionWriter(MemoryBlobs())
    report = importing.import_file(LocalContext({}), io.BytesIO(data), writer, *ROWS)
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
        context = LocalContext({}, cancel_when=lambda _: True)
        importing.import_file(context, io.BytesIO(data), VersionWriter(MemoryBlobs()), *ROWS)


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


@given(LINES, st.booleans(), st.integers(1, 40), st.integers(1, 100), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_shards_give_what_one_process_gives(
    rows: list[bytes], ends: bool, size: int, shard_bytes: int, has_base: bool, long: bool
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
        if long:
            patch.setattr(index_columns, "_SPOOLED", 16)
            patch.setattr(index_columns, "STRIDE_ROWS", 3)
            patch.setattr(sharded_import, "STRIDE_ROWS", 3)
        try:
            whole = importing.import_file(LocalContext(spec), io.BytesIO(data), writer, *ROWS)
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


CELLS = b"zip,age,height,mixed,empty,huge\n01099,31,1.80,4,,9999999999999999999\n10115,-7,2e1,four,,1\n80331,0,1,5,,2\n"


@pytest.mark.parametrize("is_table", [True, False])
def test_columns_of_numbers_of_a_table_are_numbers(tmp_path: Any, is_table: bool) -> None:
    store = BlobStore(f"file://{tmp_path}")
    spec = uploaded(store, [CELLS]) | {"file_name": "people.csv", "format": "csv", "is_table": is_table}
    result = importing.run(LocalContext(spec, blobs_write=store, blobs_read=store))
    version = open_version(store, result["manifest_digest"])
    assert version.rows(np.arange(3))[:2] == (
        [
            {"zip": "01099", "age": 31, "height": 1.8, "mixed": "4", "huge": "9999999999999999999"},
            {"zip": "10115", "age": -7, "height": 20.0, "mixed": "four", "huge": "1"},
        ]
        if is_table
        else [
            {"zip": "01099", "age": "31", "height": "1.80", "mixed": "4", "huge": "9999999999999999999"},
            {"zip": "10115", "age": "-7", "height": "2e1", "mixed": "four", "huge": "1"},
        ]
    )


@given(st.one_of(st.integers(-(10**18) + 1, 10**18 - 1), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_number_comes_back_as_itself(number: float) -> None:
    numbers = number_columns([Line(1, {"a": repr(number)})])
    assert with_numbers(Line(1, {"a": repr(number)}), numbers).row == {"a": number}


def test_no_digit_is_lost() -> None:
    wide, fraction = Line(1, {"a": "123456789012345678"}), Line(2, {"a": "0.5"})
    assert number_columns([wide])["a"]("123456789012345678") == 123456789012345678
    assert not number_columns([wide, fraction])
    assert not number_columns([fraction, wide])
    assert number_columns([fraction, Line(2, {"a": "3.10"})])["a"]("3.10") == 3.1


TEXTS = [
    "",
    " 1",
    "1 ",
    "+1",
    "01",
    "1,5",
    ".5",
    "5.",
    "1e999",
    "nan",
    "inf",
    "0x1",
    "1_000",
    "\u0661",
    "0.1234567890123456789",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_says_more_than_a_number_stays_a_text(text: str) -> None:
    assert not number_columns([Line(1, {"a": "1"}), Line(2, {"a": text})])
