"""Rows go in and come out; versions share what they have in common."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.compute.versions import JSON, VersionIndex, find_media, load_index, load_window
from services.dataset.engines import index, writing
from services.dataset.engines.reading import batches, difference
from services.dataset.engines.rows import MAX_COLUMNS, RowError, canonical, row_id, split_provenance, widen
from tests.unit.dataset.memory import MemoryBlobs, open_version, write_rows

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text(min_size=1, max_size=8).filter(lambda name: "\x00" not in name) | st.sampled_from(
    ["row_id", "a", "text"]
)
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=25)


def ids_of(rows: list[dict[str, Any]]) -> list[bytes]:
    return [row_id(canonical(split_provenance(dict(row), "f", 1)[0])[1]) for row in rows]


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_no_row_is_lost_doubled_or_changed(rows: list[dict[str, Any]]) -> None:
    blobs = MemoryBlobs()
    saved, _ = write_rows(blobs, rows)
    reader = open_version(blobs, saved)
    stored = reader.rows(np.arange(len(rows)))
    assert [bytes(row) for row in reader.index.row_ids] == ids_of(rows)
    assert [row_id(canonical(row)[1]) for row in stored] == ids_of(rows)
    assert saved.byte_count == sum(len(canonical(row)[1]) for row in stored)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_the_same_rows_have_the_same_digests(rows: list[dict[str, Any]]) -> None:
    first, second = write_rows(MemoryBlobs(), rows)[0], write_rows(MemoryBlobs(), rows)[0]
    assert first == second
    turned = write_rows(MemoryBlobs(), rows[::-1])[0]
    assert (turned.content_digest == first.content_digest) == (ids_of(rows) == ids_of(rows[::-1]))


@settings(max_examples=40, deadline=None)
@given(ROWS, st.lists(st.integers(0, 24), max_size=10))
def test_a_known_row_is_not_stored_again(rows: list[dict[str, Any]], again: list[int]) -> None:
    blobs = MemoryBlobs()
    first = open_version(blobs, write_rows(blobs, rows)[0])
    chosen = [rows[number] for number in again if number < len(rows)]
    saved, writer = write_rows(blobs, chosen, first.index)
    assert writer.new_bytes == 0
    reader = open_version(blobs, saved)
    assert [bytes(row) for row in reader.index.row_ids] == ids_of(chosen)
    assert set(reader.index.parts) <= set(first.index.parts)


def test_content_does_not_depend_on_how_rows_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"text {number}"} for number in range(100)]
    together = write_rows(MemoryBlobs(), rows)[0]
    monkeypatch.setattr(writing, "PART_ROWS", 7)
    blobs = MemoryBlobs()
    apart = write_rows(blobs, rows)[0]
    assert apart.manifest_digest != together.manifest_digest
    assert apart.content_digest == together.content_digest
    reader = open_version(blobs, apart)
    assert len(reader.index.parts) == 15
    some = np.array([99, 0, 50, 50, 7])
    assert reader.texts("text", some) == [f"text {number}" for number in some]


def test_provenance_is_no_content() -> None:
    one = write_rows(MemoryBlobs(), [{"text": "a", "source": "x.py", "position": 4}])[0]
    other = write_rows(MemoryBlobs(), [{"text": "a"}])[0]
    assert one.content_digest == other.content_digest
    assert one.manifest_digest != other.manifest_digest


def test_columns_of_ours_that_are_not_ours_keep_their_data() -> None:
    row, source, position = split_provenance({"row_id": "mine", "position": "left", "source": 5}, "f", 9)
    assert (row, source, position) == ({"row_id_": "mine", "position_": "left"}, "5", 9)


def test_types_widen_without_loss() -> None:
    rows = [{"a": 1, "b": 1, "c": 2**60, "d": [1]}, {"a": 0.5, "b": "x", "c": 0.5, "d": None}]
    blobs = MemoryBlobs()
    reader = open_version(blobs, write_rows(blobs, rows)[0])
    both = np.arange(2)
    assert reader.column("a", both).to_pylist() == [1.0, 0.5]
    assert reader.column("b", both).to_pylist() == ["1", '"x"']
    assert reader.column("c", both).to_pylist() == [str(2**60), "0.5"]
    assert reader.column("d", both).to_pylist() == ["[1]", None]


@given(*[st.sampled_from(["string", "bool", "int53", "int64", "double", "json"])] * 3)
def test_widening_does_not_depend_on_order(one: str, two: str, three: str) -> None:
    assert widen(one, two) == widen(two, one)
    assert widen(widen(one, two), three) == widen(one, widen(two, three))
    assert widen(one, JSON) == JSON


@pytest.mark.parametrize(
    "row",
    [
        {"": 1},
        {"x" * 129: 1},
        {"a\x00": 1},
        {str(number): 1 for number in range(MAX_COLUMNS + 1)},
        {"a": "x" * (9 << 20)},
    ],
)
def test_a_row_that_cannot_be_kept_says_why(row: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        canonical(row)


def test_nan_is_null() -> None:
    assert canonical({"a": float("nan"), "b": [float("inf"), 1.0], "c": -0.0})[1] == b'{"b":[null,1],"c":0}'


def test_batches_are_small_and_resume() -> None:
    blobs = MemoryBlobs()
    rows = [{"text": "x" * (number % 3000), "n": number} for number in range(3000)]
    reader = open_version(blobs, write_rows(blobs, rows)[0])
    seen = list(batches(reader, ["n"], 0, 3000))
    assert max(len(batch) for batch, _ in batches(reader, [], 0, 3000)) <= 1 << 20
    again = list(batches(reader, ["n"], seen[0][1], 3000))
    assert again == seen[1:]
    tables = [pa.ipc.open_stream(batch).read_all() for batch, _ in seen]
    assert tables[0].column_names == ["row_id", "source", "position", "n"]
    assert [value for table in tables for value in table["n"].to_pylist()] == list(range(3000))


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_difference_counts_repetitions(base: list[int], other: list[int]) -> None:
    def index(numbers: list[int]) -> VersionIndex:
        ids = np.array([[number] * 31 + [0] for number in numbers], np.uint8).reshape(-1, 32)
        return VersionIndex(row_ids=ids, part=np.zeros(len(numbers), np.int32))

    added, removed, common = difference(index(base), index(other))
    for number in range(6):
        more = other.count(number) - base.count(number)
        assert [other[at] for at in added].count(number) == max(0, more)
        assert [base[at] for at in removed].count(number) == max(0, -more)
    assert common == len(other) - len(added)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 1), (7, 8), (5, 25), (9, 11), (20, 40), (25, 40), (26, 27)])
def test_a_window_is_what_the_whole_has_there(start: int, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SEGMENT_ROWS", 10)
    blobs = MemoryBlobs()
    saved, _ = write_rows(blobs, [{"number": number} for number in range(26)])
    manifest = orjson.loads(blobs.read(saved.manifest_digest))
    whole = load_index(manifest, blobs)
    window = load_window(manifest, lambda digest: io.BytesIO(blobs.read(digest)), start, stop)
    expected = whole.select(np.arange(26)[start:stop])
    assert len(window) == len(expected)
    assert (window.row_ids == expected.row_ids).all()
    for name in ("part", "slot", "size", "position"):
        assert (getattr(window, name) == getattr(expected, name)).all(), name
    sources = [[one.sources[code] for code in one.source] for one in (window, expected)]
    assert sources[0] == sources[1]


def test_the_file_of_a_row_is_found_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SEGMENT_ROWS", 10)
    blobs, files = MemoryBlobs(), [hashlib.sha256(bytes([number])).hexdigest() for number in range(7)]
    writer = writing.VersionWriter(blobs)
    for number in range(26):
        # Each third row has none, and some share one.
        writer.add({"number": number}, "a.zip", number, files[number % 7] if number % 3 else "")
    manifest = orjson.loads(blobs.read(index.save(writer.finish(), blobs).manifest_digest))
    whole = load_index(manifest, blobs)

    def found(row: str) -> str | None:
        return find_media(manifest, lambda digest: io.BytesIO(blobs.read(digest)), row)

    assert [found(whole.id_of(number)) for number in range(26)] == [whole.media_of(number) for number in range(26)]
    assert len({found(whole.id_of(number)) for number in range(26)}) == 8
    with pytest.raises(KeyError):
        found("0" * 64)
