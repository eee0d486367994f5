"""An archive becomes rows with files: names stay, broken files are named, and the garbage collector keeps the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.context import EngineError, LocalContext
from libs.compute.versions import VersionIndex, VersionReader, load_index
from services.dataset.domain.recipes import read_recipe
from services.dataset.engines import cleaning, importing, media_import
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.index import save
from services.dataset.engines.media import MediaChild
from tests.unit.dataset.media_files import image, sound
from tests.unit.dataset.test_engine_archives import tarred, zipped


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


@pytest.fixture(scope="module")
def child() -> Iterator[MediaChild]:
    with MediaChild() as running:
        yield running


@pytest.fixture(autouse=True)
def one_child_for_all(child: MediaChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child a test would take as long as all else that is tested here."""
    monkeypatch.setattr(media_import, "MediaChild", lambda: nullcontext(child))


def imported(store: BlobStore, archive: bytes, media_type: str = "image", format: str = "zip") -> dict[str, Any]:
    """The result of an import."""
    piece = {"sha256": store.put_sync(archive).sha256, "size": len(archive)}
    spec = {"upload": store.commit_sync({"blobs": [piece]}), "upload_grant": "", "file_name": f"files.{format}"}
    context = LocalContext({**spec, "format": format, "media_type": media_type}, blobs_write=store, blobs_read=store)
    return importing.run(context)


def opened(store: BlobStore, manifest: str) -> VersionReader:
    blobs = StoreBlobs(None, store)
    return VersionReader(load_index(store.load_manifest_sync(manifest), blobs), blobs)


def rows_of(store: BlobStore, result: dict[str, Any]) -> list[dict[str, Any]]:
    reader = opened(store, result["manifest_digest"])
    return reader.rows(np.arange(len(reader.index)))


LABELS = [
    {"file_name": "cat.png", "label": "cat", "width": "broad"},
    {"file_name": "sub/dog.jpg", "objects": [{"label": "dog", "box": [1, 2, 3, 4]}]},
    {"file_name": "gone.png", "label": "gone"},
    {"label": "nobody"},
]
FILES: list[tuple[Any, bytes]] = [
    ("train/cat.png", image()),
    ("train/sub/dog.jpg", image(40, 30, "JPEG")),
    ("train/broken.png", image()[:200]),
    ("train/notes.txt", b"hello"),
    ("__MACOSX/train/._cat.png", b"x"),
    ("../up.png", image()),
    # Behind the files that it is about.
    ("train/metadata.jsonl", b"".join(json.dumps(label).encode() + b"\n" for label in LABELS)),
]


@pytest.mark.parametrize(("packed", "format"), [(zipped, "zip"), (tarred, "tar")])
def test_a_row_a_file(store: BlobStore, packed: Any, format: str) -> None:
    result = imported(store, packed(*FILES), format=format)
    cat, dog = rows_of(store, result)
    digest = hashlib.sha256(image()).hexdigest()
    assert cat == {
        "file_name": "train/cat.png",
        "media_type": "image",
        "bytes": len(image()),
        "sha256": digest,
        "width": 32,
        "height": 24,
        "codec": "png",
        "label": "cat",
        "width_": "broad",
    }
    assert (dog["file_name"], dog["objects"]) == ("train/sub/dog.jpg", LABELS[1]["objects"])
    assert store.read_sync(digest) == image()
    index = opened(store, result["manifest_digest"]).index
    assert [index.media_of(row) for row in range(2)] == [digest, dog["sha256"]]
    report = result["report"]
    assert (report["rows_in"], report["rows_out"], report["line_error_count"]) == (8, 2, 6)
    reasons = [error["error"] for error in report["line_errors"]]
    for wanted in ("no column file_name", "broken.png: cannot be decoded", "notes.txt: not an image", "hidden file"):
        assert any(wanted in reason for reason in reasons), reasons
    assert any("../up.png: the path leads to a parent folder" in reason for reason in reasons)
    assert any("names train/gone.png, which is not in the archive" in reason for reason in reasons)


def test_boxes_of_yolo_and_voc_come_with_their_images(store: BlobStore) -> None:
    voc = b"<annotation><filename>cat.png</filename><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
    voc += b"<xmax>5</xmax><ymax>9</ymax></bndbox></object></annotation>"
    result = imported(store, zipped(("JPEGImages/cat.png", image()), ("Annotations/cat.xml", voc), ("no.txt", b"x")))
    (cat,) = rows_of(store, result)
    assert (cat["file_name"], cat["objects"]) == ("JPEGImages/cat.png", [{"label": "cat", "box": [1, 2, 4, 7]}])
    assert result["report"]["line_error_count"] == 0
    yolo = [
        ("labels/cat.txt", b"1 .5 .5 .5 .5\n9 .5 .5 .5 .5\n"),
        ("images/cat.png", image()),
        ("images/empty.png", image(8, 8)),
        ("data.yaml", b"names: [dog, cat]\n"),
        ("labels/gone.txt", b"1 .5 .5 .5 .5\n"),
    ]
    result = imported(store, zipped(*yolo))
    cat, empty = rows_of(store, result)
    assert cat["objects"] == [{"label": "cat", "box": [8, 6, 16, 12]}]
    assert (empty["objects"], cat["categories"][0]) == ([], {"id": 0, "name": "dog"})
    reasons = [error["error"] for error in result["report"]["line_errors"]]
    assert [reason.split(" ")[0] for reason in reasons] == ["labels/cat.txt,", "labels/gone.txt"]


def test_labels_from_a_table(store: BlobStore) -> None:
    table = b"file_name,text\na.wav,one\na.wav,again\n"
    result = imported(store, zipped(("a.wav", sound()), ("metadata.csv", table)), "audio")
    (row,) = rows_of(store, result)
    assert (row["text"], row["sample_rate"], row["duration"]) == ("one", 8000, 0.1)
    assert [error["error"] for error in result["report"]["line_errors"]] == [
        "metadata.csv, line 3: a.wav is named twice"
    ]


def test_an_archive_that_breaks_off_keeps_what_was_read(store: BlobStore) -> None:
    whole = tarred(("a.png", image()), ("b.png", image(9, 9)))
    result = imported(store, whole[: 512 + 2560 + 512 + 100], format="tar")
    assert [row["file_name"] for row in rows_of(store, result)] == ["a.png"]
    assert "cut off" in result["report"]["line_errors"][0]["error"]


@pytest.mark.parametrize("data", [b"no archive", zipped(("a.txt", b"x"))])
def test_an_archive_without_a_file_of_the_kind_is_refused(store: BlobStore, data: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        imported(store, data)
    assert caught.value.reason == "CONTENT_INVALID"


def test_the_garbage_collector_keeps_files_of_rows_that_live(store: BlobStore) -> None:
    result = imported(store, zipped(("a.png", image()), ("b.png", image(9, 9))))
    first, second = (row["sha256"] for row in rows_of(store, result))
    reader = opened(store, result["manifest_digest"])
    fewer = save(reader.index.select(np.array([1])), StoreBlobs(store)).manifest_digest
    store.collect_sync([result["manifest_digest"], fewer], [], -1)
    assert store.read_sync(first) == image()
    # Only the version without the first row lives on.
    store.collect_sync([fewer], [], -1)
    assert store.read_sync(second) == image(9, 9)
    with pytest.raises(DomainError, match="not in the store"):
        store.read_sync(first)
    assert opened(store, fewer).index.media_of(0) == second


def test_files_stay_with_their_rows_when_these_are_cleaned(store: BlobStore) -> None:
    labels = b"".join(
        json.dumps({"file_name": f"{name}.png", "text": text}).encode() + b"\n"
        for name, text in (("a", "<b>a caption of a cat</b>"), ("b", "x"), ("c", "a caption of a house"))
    )
    files = [(f"{name}.png", image(9 + at, 9)) for at, name in enumerate("abc")]
    result = imported(store, zipped(*files, ("metadata.jsonl", labels)))
    recipe = read_recipe({"steps": ["html", {"length": {"min_chars": 5}}]}).to_json()
    spec = {"version": result["manifest_digest"], "grant": "", "text_column": "text", "recipe": recipe}
    cleaned = cleaning.run(LocalContext(spec, blobs_write=store, blobs_read=store))
    reader = opened(store, cleaned["manifest_digest"])
    rows = reader.rows(np.arange(2))
    assert [row["text"] for row in rows] == ["a caption of a cat", "a caption of a house"]
    assert [reader.index.media_of(at) for at in range(2)] == [row["sha256"] for row in rows]
    assert len(reader.index.media_blobs) == 2


def test_a_grant_for_rows_is_none_for_files(store: BlobStore) -> None:
    result = imported(store, zipped(("a.png", image())))
    digest = rows_of(store, result)[0]["sha256"]
    granted = BlobStore.from_grant(store.grant_sync(result["manifest_digest"], "somebody", 60))
    assert opened(granted, result["manifest_digest"]).index.media_of(0) == digest
    with pytest.raises(DomainError) as caught:
        granted.read_sync(digest)
    assert caught.value.reason == "GRANT_DENIED"


def test_a_version_without_files_is_stored_as_before(store: BlobStore) -> None:
    index = VersionIndex(media=np.array([], np.int32), media_blobs=[])
    assert "media" not in str(store.load_manifest_sync(save(index, StoreBlobs(store)).manifest_digest))


def test_labels_of_all_files_together_have_a_limit(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of metadata may have 8 MiB, and they are in memory until their files come."""
    monkeypatch.setattr(media_import, "_MOST_LABEL_BYTES", 250)
    labels = [{"file_name": f"{n}.png", "note": "x" * 100} for n in range(3)]
    files = [(f"{n}.png", image(32 + n)) for n in range(3)]
    text = b"".join(json.dumps(label).encode() + b"\n" for label in labels)
    result = imported(store, zipped(*files, ("metadata.jsonl", text)))
    assert [row.get("note") for row in rows_of(store, result)] == ["x" * 100, "x" * 100, None]
    assert "all that is said of files has more than 250 bytes" in str(result["report"])
