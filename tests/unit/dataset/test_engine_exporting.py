"""Versions become files that read back as what they were; what a format cannot say is told."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.context import EngineCancelled, EngineError, LocalContext
from services.dataset.domain.exports import Export, file_name, require_choices, require_columns
from services.dataset.engines import exporting
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.annotations.label_studio import UNLISTED
from services.dataset.engines.formats import read_lines
from services.dataset.engines.index import Saved, save
from services.dataset.engines.row_files import EMPTY_TEXT, SEVERAL_LINES
from services.dataset.engines.rows import split_provenance
from services.dataset.engines.writing import VersionWriter
from tests.unit.dataset.test_engine_storage import ROWS

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    ["a\r\nb", "\r", '"', "a,b\tc", "\ufeff", " ", "\n\n", "=1+1", "\\", "\x00", "\x1f"]
)


@pytest.fixture(scope="module")
def store() -> BlobStore:
    # A folder would wait for the disk a thousand times.
    return BlobStore("memory://exports")


def written(store: BlobStore, rows: list[dict[str, Any]]) -> Saved:
    """A version of these rows; `source` and `position` are provenance."""
    blobs = StoreBlobs(store)
    writer = VersionWriter(blobs)
    for number, row in enumerate(rows, 1):
        writer.add(*split_provenance(dict(row), "rows.jsonl", number))
    return save(writer.finish(), blobs)


def context(store: BlobStore, versions: dict[str, Saved], format_name: str, **choices: Any) -> LocalContext:
    splits = [
        {"split": split, "version": f"orgs/acme/datasets/d/versions/{split}", "manifest": one.manifest_digest}
        for split, one in versions.items()
    ]
    spec = {"compression": "", "text_column": "text", "with_source": False, "file_name": "file", **choices}
    spec |= {"format": format_name, "splits": [{**split, "grant": ""} for split in splits]}
    return LocalContext(spec, blobs_write=store, blobs_read=store)


def export(store: BlobStore, saved: Saved, format_name: str, **choices: Any) -> tuple[bytes, dict[str, Any]]:
    """The one file and what the engine said."""
    made = exporting.run(context(store, {"train": saved}, format_name, **choices))
    (file,) = made["files"]
    data = store.read_sync(file["sha256"])
    assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    return data, made


def imported(store: BlobStore, data: bytes, format_name: str) -> Saved:
    lines = list(read_lines(io.BytesIO(data), format_name))
    assert not [line.error for line in lines if line.error]
    return written(store, [line.row for line in lines if line.row is not None])


@settings(max_examples=15, deadline=None)
@given(ROWS.filter(bool), st.sampled_from(["jsonl", "json", "parquet"]))
@example([{"a": [{"b": 1}, {"b": 1, "c": None}], "d": {}}], "parquet")
def test_rows_of_any_kind_come_back(store: BlobStore, rows: list[dict[str, Any]], format_name: str) -> None:
    saved = written(store, rows)
    if not saved.columns and format_name == "parquet":
        return
    data, made = export(store, saved, format_name)
    assert imported(store, data, format_name).content_digest == saved.content_digest
    assert (made["report"]["rows_out"], made["report"]["losses"]) == (len(rows), [])
    assert export(store, saved, format_name)[0] == data


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.dictionaries(TEXTS.filter(lambda name: "\x00" not in name), TEXTS, max_size=3), min_size=1, max_size=6),
    st.sampled_from(["csv", "tsv"]),
)
@example([{"\ufeffa": "\ufeff"}], "csv")
def test_texts_come_back_from_tables(store: BlobStore, rows: list[dict[str, str]], format_name: str) -> None:
    saved = written(store, rows)
    if not saved.columns:
        return
    data, made = export(store, saved, format_name)
    assert imported(store, data, format_name).content_digest == saved.content_digest
    assert not made["report"]["losses"]
    assert not made["report"]["notes"]


CELLS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1, max_size=8
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"t": CELLS | st.just("=1+1\r\n")},
            optional={
                "n": st.integers(-(2**53), 2**53),
                "x": st.floats(allow_nan=False, allow_infinity=False),
                "b": st.booleans(),
            },
        ),
        min_size=1,
        max_size=5,
    )
)
def test_cells_come_back_from_a_workbook(store: BlobStore, rows: list[dict[str, Any]]) -> None:
    saved = written(store, rows)
    data, made = export(store, saved, "xlsx")
    assert not made["report"]["losses"]
    assert imported(store, data, "xlsx").content_digest == saved.content_digest
    assert export(store, saved, "xlsx")[0] == data


def test_what_a_workbook_cannot_say_is_told(store: BlobStore) -> None:
    rows = [{"a": "x", "l": [1]}, {"a": "\x01"}, {"a": "y" * 40_000}, {"a": "_x0041_"}, {}, {"a": "", "n": 2**60}]
    data, made = export(store, written(store, rows), "xlsx")
    assert [line.row for line in read_lines(io.BytesIO(data), "xlsx")] == [{"a": "x", "l": "[1]"}, {"n": str(2**60)}]
    report = made["report"]
    assert report["notes"] == ["a sheet has only text for these: l, n"]
    assert sum(loss["left_out"] for loss in report["losses"]) == 4
    assert [loss["changed"] for loss in report["losses"] if loss["changed"]] == [1]
    with pytest.raises(EngineError, match="blanks around the name of the column ' a'"):
        export(store, written(store, [{" a": 1}]), "xlsx")


def test_a_source_comes_back_too(store: BlobStore) -> None:
    saved = written(store, [{"n": number, "source": f"{number % 3}.txt", "position": 9} for number in range(20)])
    for format_name in ("jsonl", "json", "parquet"):
        data, _ = export(store, saved, format_name, with_source=True)
        assert imported(store, data, format_name).manifest_digest == saved.manifest_digest
    table, _ = export(store, saved, "csv", with_source=True)
    assert table.splitlines()[:2] == [b"n,source,position", b"0,0.txt,9"]


def test_what_a_table_cannot_say_is_told(store: BlobStore) -> None:
    saved = written(store, [{"a": "", "n": 1, "t": [1]}, {"a": "x", "n": 2.5, "t": None}, {"a": ""}])
    data, made = export(store, saved, "csv")
    assert data == b"a,n,t\n,1.0,[1]\nx,2.5,\n,,\n"
    (loss,) = made["report"]["losses"]
    assert (loss["reason"], loss["changed"], loss["left_out"], len(loss["row_ids"])) == (EMPTY_TEXT, 2, 0, 2)
    assert made["report"]["notes"] == ["CSV has only text, so these read back as text: n, t"]


def test_text_is_a_line_a_row(store: BlobStore) -> None:
    saved = written(store, [{"text": "one", "k": 1}, {"text": "two\nlines"}, {"text": " "}, {"k": 2}, {"text": 5}])
    data, made = export(store, saved, "text")
    assert data == b"one\ntwo\nlines\n5\n"
    losses = {loss["reason"]: (loss["left_out"], loss["changed"]) for loss in made["report"]["losses"]}
    assert losses == {"text is missing or blank": (2, 0), SEVERAL_LINES: (0, 1)}
    assert (made["report"]["rows_in"], made["report"]["rows_out"]) == (5, 3)
    assert made["report"]["notes"] == ["not in the file: k"]
    with pytest.raises(EngineError, match="no row can be written as text: text is missing"):
        export(store, written(store, [{"k": 1}]), "text")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_files_are_the_same_each_time(store: BlobStore, compression: str) -> None:
    saved = written(store, [{"text": f"row {number}"} for number in range(1000)])
    plain, _ = export(store, saved, "jsonl")
    data, _ = export(store, saved, "jsonl", compression=compression)
    assert export(store, saved, "jsonl", compression=compression)[0] == data
    assert len(data) < len(plain) / 4
    assert pa.CompressedInputStream(pa.BufferReader(data), compression).read() == plain
    if compression == "gzip":
        assert gzip.decompress(data) == plain
        assert data[3:8] == bytes(5), "neither a name nor a time"
    assert imported(store, data, "jsonl").content_digest == saved.content_digest


def test_batches_do_not_show(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = written(store, [{"text": "x" * (number % 50), "tags": [number]} for number in range(300)])
    whole = [export(store, saved, name)[0] for name in ("jsonl", "json", "csv")]
    monkeypatch.setattr(exporting, "_BATCH_BYTES", 100)
    assert [export(store, saved, name)[0] for name in ("jsonl", "json", "csv")] == whole
    monkeypatch.setattr(exporting, "_BATCH_ROWS", 7)
    data, _ = export(store, saved, "parquet")
    assert imported(store, data, "parquet").content_digest == saved.content_digest


def test_lists_and_objects_of_one_shape_are_nested(store: BlobStore) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]
    rows = [{"messages": messages, "odd": [1], "deep": []}, {"messages": [], "odd": {"a": 1}}]
    data, made = export(store, written(store, rows), "parquet")
    table = pq.read_table(io.BytesIO(data))
    assert table["messages"].to_pylist() == [[{"content": m["content"], "role": m["role"]} for m in messages], []]
    assert table["odd"].to_pylist() == ["[1]", '{"a":1}']
    assert made["report"]["notes"] == ["as JSON text, because shapes differ: odd"]


def test_a_folder_for_load_dataset(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    train = written(store, [{"text": f"row {number}", "n": number} for number in range(100)])
    test = written(store, [{"text": "t", "n": 0.5, "tags": ["a"]}])
    monkeypatch.setattr(exporting, "SHARD_BYTES", train.byte_count // 3 + 1)
    made = exporting.run(context(store, {"train": train, "test": test}, "datasets"))
    files = {file["path"]: store.read_sync(file["sha256"]) for file in made["files"]}
    shards = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    assert list(files) == [*shards, "data/test-00000-of-00001.parquet", "README.md"]
    tables = [pq.read_table(io.BytesIO(files[path])) for path in shards]
    assert [row for table in tables for row in table["text"].to_pylist()] == [f"row {n}" for n in range(100)]
    assert min(table.num_rows for table in tables) > 20
    other = pq.read_schema(io.BytesIO(files["data/test-00000-of-00001.parquet"]))
    assert other.equals(tables[0].schema)
    header = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert header["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"},
        {"split": "test", "path": "data/test-*.parquet"},
    ]
    assert "| train | orgs/acme/datasets/d/versions/train | 100 |" in files["README.md"].decode()
    assert exporting.run(context(store, {"train": train, "test": test}, "datasets"))["files"] == made["files"]


def test_an_export_that_fails_leaves_no_file(store: BlobStore, tmp_path: Path) -> None:
    saved = written(store, [{"text": "a"}])
    own = BlobStore(f"file://{tmp_path}")
    spec = context(store, {"train": saved}, "jsonl").spec
    with pytest.raises(EngineCancelled):
        exporting.run(LocalContext(spec, blobs_write=own, blobs_read=store, cancel_when=lambda _: True))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_conversations_are_lines_with_reasons(store: BlobStore) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": turns, "id": 7},
        {"messages": turns[:1]},
        {"text": "none"},
        {"instruction": "i", "output": "o"},
    ]
    data, made = export(store, written(store, rows), "alpaca")
    assert [json.loads(line) for line in data.splitlines()] == [
        {"instruction": "q", "input": "", "output": "a", "id": 7},
        {"instruction": "i", "input": "", "output": "o"},
    ]
    assert sorted(loss["left_out"] for loss in made["report"]["losses"]) == [1, 1]


def test_annotated_images_are_exported_and_read_again(store: BlobStore) -> None:
    rows = [
        {"image": "a.jpg", "width": 10, "height": 8, "objects": [{"label": "cat", "box": [1, 1, 2.5, 2]}], "site": 4},
        {"image": "b.jpg", "width": 10, "height": 8, "objects": []},
    ]
    listed = [{"id": 3, "name": "dog"}, {"id": 5, "name": "cat"}]
    saved = written(store, rows)
    for format_name in ("coco", "label-studio"):
        data, made = export(store, saved, format_name, compression="gzip")
        assert imported(store, data, format_name).content_digest == saved.content_digest
        assert not made["report"]["notes"]
    known = written(store, [rows[0], {**rows[1], "categories": listed}])
    assert json.loads(export(store, known, "coco")[0])["categories"] == listed
    (loss,) = export(store, known, "label-studio")[1]["report"]["losses"]
    assert (loss["reason"], loss["changed"]) == (UNLISTED, 1)
    names = {"yolo": ["labels/a.txt", "labels/b.txt", "train.txt", "image_sizes.csv", "data.yaml"]}
    names["voc"] = ["Annotations/a.xml", "Annotations/b.xml", "labelmap.txt"]
    for format_name, paths in names.items():
        data, made = export(store, known, format_name)
        archive = zipfile.ZipFile(io.BytesIO(data))
        assert archive.namelist() == paths
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert export(store, known, format_name)[0] == data
        names_only = "of the categories, names and order are in the files"
        assert made["report"]["notes"] == ["not in the files: site", names_only]


def test_choices_that_a_format_does_not_take_are_named() -> None:
    def check(format_name: str, **choices: Any) -> None:
        none: dict[str, Any] = {"compression": "", "text_column": "", "with_source": False, "split": "", "others": []}
        require_choices(format_name, **{**none, **choices})

    for format_name, choice in (
        ("parquet", {"compression": "gzip"}),
        ("csv", {"text_column": "a"}),
        ("alpaca", {"with_source": True}),
        ("jsonl", {"split": "train"}),
        ("datasets", {"others": ["train"]}),
        ("jsonl", {"others": ["a"]}),
    ):
        with pytest.raises(DomainError) as caught:
            check(format_name, **choice)
        wanted = "other_splits" if "others" in choice else next(iter(choice))
        assert (caught.value.reason, caught.value.metadata["field"]) == ("INVALID_FIELD", wanted)
    check("datasets", split="all", others=["train", "test"], with_source=True)
    assert file_name("orgs/acme/datasets/docs/versions/v3", "openai", "zstd") == "docs-v3.jsonl.zst"


def test_a_file_of_an_export_is_found_by_its_path() -> None:
    fields: dict[str, Any] = dict.fromkeys(("uid", "name", "create_time", "update_time", "expire_time", "format"), "x")
    one, two = {"path": "a", "size": 1}, {"path": "b", "size": 1}
    assert Export(**fields, files=[one]).file("") is one
    assert Export(**fields, files=[one, two]).file("b") is two
    for path, reason in (("", "INVALID_FIELD"), ("../a", "NOT_FOUND")):
        with pytest.raises(DomainError) as caught:
            Export(**fields, files=[one, two]).file(path)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("format_name", "columns", "needs"),
    [
        ("csv", [], "needs a column"),
        ("coco", ["text"], "one of the columns image, file_name"),
        ("dpo", ["messages"], "one of the columns chosen"),
    ],
)
def test_a_format_that_could_say_no_row_is_refused_at_once(format_name: str, columns: list[str], needs: str) -> None:
    with pytest.raises(DomainError, match=needs) as caught:
        require_columns(format_name, columns)
    assert caught.value.metadata == {"field": "format"}
    require_columns(format_name, ["image", "chosen"])
