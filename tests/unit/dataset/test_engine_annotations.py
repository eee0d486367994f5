"""Annotated images in the formats of labelling tools, there and back, and what comes from those who mean harm.

Boxes are kept to a millionth of a pixel; within that, every format gives back what it got.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.archives.errors import UnreadableFile
from services.dataset.engines.annotations.beside import LabelFiles
from services.dataset.engines.annotations.coco import read_coco, write_coco
from services.dataset.engines.annotations.label_studio import read_task, write_task
from services.dataset.engines.annotations.pictures import Categories
from services.dataset.engines.annotations.voc import parse, read_voc, write_voc
from services.dataset.engines.annotations.yolo import read_yolo, write_yolo
from services.dataset.engines.formats import read_lines
from services.dataset.engines.lines import Line
from services.dataset.engines.losses import Inexpressible, Losses
from services.dataset.engines.rows import canonical

LABELS = st.sampled_from(["cat", "dog", "a:b", "猫 <&>", "#1", " x ", "'\""])
NAMES = ["a.jpg", "b/a.png", "c d.jpeg", "é.webp", "no ending", "x.y.jpg", 'z,"q".jpg']


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> list[float]:
    """A box inside an image, in millionths of a pixel."""
    found: list[float] = []
    for side in (width, height):
        most = side * 1_000_000
        start = draw(st.integers(0, most - 1))
        found += [start / 1e6, draw(st.integers(1, most - start)) / 1e6]
    return [found[0], found[2], found[1], found[3]]


@st.composite
def pictures(draw: st.DrawFn, with_categories: bool = True) -> list[dict[str, Any]]:
    """Rows of annotated images, some without objects; labels that no object has come last in the list."""
    rows: list[dict[str, Any]] = []
    for image in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)):
        width, height = draw(st.integers(1, 4000)), draw(st.integers(1, 4000))
        objects = st.builds(lambda label, box: {"label": label, "box": box}, LABELS, boxes(width, height))
        rows.append({"image": image, "width": width, "height": height, "objects": draw(st.lists(objects, max_size=3))})
    unused = draw(st.lists(st.sampled_from(["bird", "fish"]), unique=True)) if with_categories else []
    seen = list(dict.fromkeys(one["label"] for row in rows for one in row["objects"]))
    if unused:
        rows[0]["categories"] = [{"id": at, "name": name} for at, name in enumerate([*seen, *unused], 1)]
    return rows


def same(one: list[Any], other: list[Any]) -> bool:
    """Whether rows are the same to a version."""
    return [canonical(row)[1] for row in one] == [canonical(row)[1] for row in other]


def write(writer: Any, rows: list[dict[str, Any]]) -> tuple[bytes, Losses]:
    file, losses = io.BytesIO(), Losses()
    listed = [one for row in rows for one in row.get("categories", [])]
    writer([(f"{at:064x}", row) for at, row in enumerate(rows)], listed, file, losses)
    return file.getvalue(), losses


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rows_of(lines: Any) -> list[Any]:
    found = list(lines)
    assert not [line.error for line in found if line.error]
    return [line.row for line in found]


def errors_of(lines: list[Line]) -> list[str]:
    return [line.error for line in lines if line.error]


@settings(max_examples=30, deadline=None)
@given(pictures())
def test_coco_comes_back(rows: list[dict[str, Any]]) -> None:
    rows[0]["licence"] = 3
    for row in rows:
        for one in row["objects"][:1]:
            one |= {"iscrowd": 1, "segmentation": [[0, 0, 1, 1]], "area": 0.5}
    data, losses = write(write_coco, rows)
    assert same(rows_of(read_coco(io.BytesIO(data))), rows)
    assert not losses.report()
    document = json.loads(data)
    assert [image["file_name"] for image in document["images"]] == [row["image"] for row in rows]
    assert write(write_coco, rows)[0] == data


@settings(max_examples=30, deadline=None)
@given(pictures())
def test_yolo_comes_back(rows: list[dict[str, Any]]) -> None:
    for one in rows[0].get("categories", []):
        one["id"] -= 1
    data, losses = write(write_yolo, rows)
    assert same(rows_of(read_lines(io.BytesIO(data), "yolo")), rows)
    assert not losses.report()
    assert write(write_yolo, rows)[0] == data


@settings(max_examples=30, deadline=None)
@given(pictures())
def test_voc_comes_back(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for one in row["objects"][:1]:
            one |= {"difficult": 1, "pose": "Left"}
    data, losses = write(write_voc, rows)
    assert same(rows_of(read_lines(io.BytesIO(data), "voc")), rows)
    assert not losses.report()


TEXTS = st.dictionaries(
    st.text(min_size=1, max_size=4), st.lists(st.text(max_size=5), min_size=1, max_size=2), max_size=2
)


@settings(max_examples=30, deadline=None)
@given(pictures(with_categories=False), TEXTS, TEXTS)
def test_label_studio_comes_back(rows: list[dict[str, Any]], choices: dict[str, Any], texts: dict[str, Any]) -> None:
    answers = {name: value for name, value in (("choices", choices), ("texts", texts)) if value}
    rows[0] |= {**answers, "split": "train"}
    for row in rows:
        for one in row["objects"][:1]:
            one |= {"rotation": 30.5, "score": 0.5}
    rows.append({"text": "about a text", **answers})
    found = [back for row in rows for back in read_task(json.loads(json.dumps(write_task(row)[0])))]
    assert same(found, rows)


def test_categories_that_no_image_has_survive() -> None:
    empty = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat", "supercategory": "animal"}]}
    (row,) = rows_of(read_coco(io.BytesIO(json.dumps(empty).encode())))
    assert row == {"categories": empty["categories"]}
    rows = [{"image": "a.jpg", "width": 9, "height": 9, "objects": [], **row}]
    assert json.loads(write(write_coco, rows)[0])["categories"] == empty["categories"]


def coco(**changes: Any) -> bytes:
    """A file with one image and one annotation, of which some fields are changed."""
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **changes}
    document = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, "not a number that a pixel can have"),
        ({"bbox": [1, 2, 10**400, 4]}, "not a number that a pixel can have"),
        ({"bbox": [1, 2, True, 4]}, "not a number"),
        ({"bbox": [1, 2, "3", 4]}, "not a number"),
        ({"bbox": [1, 2, 3]}, "not four numbers"),
        ({"bbox": None}, "not four numbers"),
        ({"bbox": [1, 2, 0, 4]}, "no area"),
        ({"bbox": [1, 2, -3, 4]}, "no area"),
        ({"bbox": [98, 2, 4, 4]}, "reaches out of the image"),
        ({"bbox": [-2, 2, 4, 4]}, "reaches out of the image"),
        ({"image_id": 9}, "image that is not there"),
        ({"image_id": [1]}, "image_id is missing"),
        ({"category_id": 9}, "category that is not there"),
        ({"category_id": None}, "category_id is missing"),
        ({"label": "x"}, "meaning of its own"),
    ],
)
def test_a_bad_annotation_costs_no_other_one(changes: dict[str, Any], reason: str) -> None:
    found = list(read_coco(io.BytesIO(coco(**changes))))
    assert found[0].row is not None
    assert found[0].row["objects"] == []
    (error,) = errors_of(found)
    assert error.startswith("annotations[0]")
    assert reason in error


def test_doubled_and_broken_entries_are_told() -> None:
    image = {"id": 1, "file_name": "a.jpg"}
    document = {
        "images": [image, {**image, "file_name": "b.jpg"}, {"id": 2}, 5, {"id": 3, "file_name": "c", "width": -1}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 1, 1]}, 7],
        "categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 2}, {"id": 5, "name": "cat"}],
    }
    found = list(read_lines(io.BytesIO(json.dumps(document).encode()), "coco"))
    assert [line.row for line in found if line.row] == [
        {"image": "a.jpg", "objects": [{"label": "cat", "box": [1, 1, 1, 1]}]}
    ]
    assert [error.split(":")[0] for error in errors_of(found)] == [
        *("categories[1]", "categories[2]"),
        *("images[1]", "images[2]", "images[3]", "images[4]"),
        "annotations[1]",
    ]


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"images": 5}', b"[" * 200_000, b'{"images": [' + b"9" * 5000])
def test_what_is_no_coco_is_refused_whole(data: bytes) -> None:
    with pytest.raises(UnreadableFile):
        list(read_coco(io.BytesIO(data)))


BOMB = b'<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><annotation><filename>&b;</filename></annotation>'
OUTER = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (BOMB, "document type"),
        (OUTER, "document type"),
        (b'<!DOCTYPE a SYSTEM "http://example.com/a.dtd"><annotation/>', "document type"),
        (b"<annotation><filename>&nope;</filename></annotation>", "not valid XML"),
        (b"<annotation>", "not valid XML"),
        (b"", "not valid XML"),
        (b"<a>" * 1000, "nested too deeply"),
        (b'<?xml version="1.0" encoding="nope"?><a/>', "not valid XML"),
        (b"<annotation/>", "filename is missing"),
        (b" " * (9 << 20), "longer than"),
    ],
)
def test_hostile_xml_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    good = b"<annotation><filename>a.jpg</filename></annotation>"
    found = list(read_voc({"Annotations/bad.xml": data, "Annotations/good.xml": good}))
    assert [line.row for line in found if line.row] == [{"image": "a.jpg", "objects": []}]
    (error,) = errors_of(found)
    assert error.startswith("Annotations/bad.xml")
    assert reason in error


def test_character_references_are_no_entities() -> None:
    assert parse(b"<a>&lt;&#13;&#x732b;</a>").text == "<\r猫"


@pytest.mark.parametrize("corner", ["nan", "inf", "1e999", "0x10", "", "1_0", "9" * 400])
def test_a_corner_that_is_no_number_costs_one_object(corner: str) -> None:
    box = "<name>cat</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = "".join(f"<object>{box.format(value)}</object>" for value in (corner, "1"))
    data = f"<annotation><filename>a.jpg</filename>{objects}</annotation>".encode()
    found = list(read_voc({"a.xml": data}))
    assert found[0].row == {"image": "a.jpg", "objects": [{"label": "cat", "box": [1, 1, 8, 8]}]}
    assert errors_of(found)[0].startswith("a.xml, object 1: xmin")


def test_yolo_as_tools_write_it() -> None:
    files = {
        "data.yaml": b"train: ../train/images\nnc: 2\nnames: ['cat', 'dog']\n",
        "train/images/a.jpg": b"",
        "train/images/empty.jpg": b"",
        "train/labels/a.txt": b"1 .5 .5 .5 1\n0 .5 .5\n7 .5 .5 .1 .1\n0 nan .5 .1 .1\n0 .1 .1 .1 9\n\xff\n",
    }
    found = list(read_yolo(files, lambda path: (200, 100)))
    assert [line.row for line in found if line.row] == [
        {
            "image": "train/images/a.jpg",
            "width": 200,
            "height": 100,
            "objects": [{"label": "dog", "box": [50, 0, 100, 100]}],
            "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        },
        {"image": "train/images/empty.jpg", "width": 200, "height": 100, "objects": []},
    ]
    assert [error.split(":")[0] for error in errors_of(found)] == [
        f"train/labels/a.txt, line {at}" for at in range(2, 7)
    ]
    assert "size is not known" in errors_of(list(read_yolo(files, lambda path: None)))[0]


@pytest.mark.parametrize(
    "data", [b"", b"names: 5", b"names: {a: b}", b"names: [1]", b"[", b"names: !!python/object:os.x {}"]
)
def test_yolo_without_names_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableFile):
        list(read_yolo({"data.yaml": data}, lambda path: None))


def test_labels_of_yolo_are_found_beside_their_images() -> None:
    files = {
        "data.yaml": b"names: [cat, dog]\n",
        "train/labels/a.txt": b"1 .5 .5 .5 1\n0 .5\n",
        "train/labels/gone.txt": b"1 .5 .5 .5 1\n",
        "README.txt": b"hello",
    }
    beside = LabelFiles(files)
    assert all(beside.has(name) for name in files)
    assert not beside.has("train/images/a.jpg")
    row, problems = beside.of("train/images/a.jpg", (200, 100))
    assert row["objects"] == [{"label": "dog", "box": [50, 0, 100, 100]}]
    assert [one["name"] for one in row["categories"]] == ["cat", "dog"]
    assert problems == ["train/labels/a.txt, line 2: 2 fields where a box has 5"]
    assert beside.of("train/images/empty.jpg", (200, 100)) == ({"objects": []}, [])
    assert beside.left() == [("train/labels/gone.txt", "is about an image that is not in the archive")]


def test_annotations_of_voc_are_found_by_the_name_of_their_image() -> None:
    box = b"<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object>"
    whole = b"<annotation><filename>a.jpg</filename>" + box + b"</annotation>"
    files = {"Annotations/a.xml": whole, "b.xml": b"<annotation/>", "old/a.xml": whole, "feed.xml": b"<rss/>"}
    beside = LabelFiles(files)
    assert beside.of("JPEGImages/a.jpg", (20, 20)) == ({"objects": [{"label": "cat", "box": [1, 2, 4, 7]}]}, [])
    assert beside.of("JPEGImages/b.jpg", (20, 20)) == ({}, ["b.xml: filename is missing"])
    assert beside.of("JPEGImages/c.jpg", (20, 20)) == ({}, [])
    assert beside.left() == [("old/a.xml", "Annotations/a.xml is about an image a too")]


def test_texts_that_are_no_labels_are_left_to_the_import() -> None:
    assert not any(LabelFiles({name: b"hello"}).has(name) for name in ("notes.txt", "feed.xml", "table.csv"))


def task(**result: Any) -> dict[str, Any]:
    value = {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["cat"]}
    whole = {"type": "rectanglelabels", "from_name": "l", "original_width": 10, "original_height": 20, "value": value}
    return {"data": {"image": "a.jpg"}, "annotations": [{"result": [{**whole, **result}]}]}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"original_width": None}, "original_width is missing"),
        ({"original_width": 10**30}, "pixel can have"),
        ({"original_height": float("nan")}, "pixel can have"),
        ({"value": {"x": 90, "y": 0, "width": 50, "height": 5, "rectanglelabels": ["c"]}}, "out of the image"),
        ({"value": {"x": "1", "y": 0, "width": 5, "height": 5, "rectanglelabels": ["c"]}}, "not a number"),
        ({"value": {"x": 1, "y": 0, "width": 5, "height": 5}}, "no label"),
        ({"value": []}, "has no value"),
        ({"type": "brushlabels"}, "brushlabels: is not read"),
        ({"type": "choices", "value": {"choices": [1]}}, "not a list of texts"),
        ({"type": "textarea", "from_name": None, "value": {"text": ["a"]}}, "from_name is missing"),
    ],
)
def test_a_bad_result_costs_no_other_one(result: dict[str, Any], reason: str) -> None:
    row, problem = read_task(task(**result))
    assert isinstance(row, dict)
    assert row["objects"] == []
    assert isinstance(problem, str)
    assert reason in problem


def test_every_annotator_has_a_row() -> None:
    given = task()
    given["annotations"] += [{"was_cancelled": True, "result": []}, {"result": []}]
    assert [len(row["objects"]) for row in read_task(given) if isinstance(row, dict)] == [1, 0]
    assert list(read_task({"data": {"image": "b.jpg"}})) == [{"image": "b.jpg", "objects": []}]
    lines = list(read_lines(io.BytesIO(json.dumps([given, {"data": 5}, task(type="x")]).encode()), "label-studio"))
    assert [(line.number, bool(line.row)) for line in lines] == [
        (1, True),
        (1, True),
        (2, False),
        (3, True),
        (3, False),
    ]
    with pytest.raises(Inexpressible, match=r"data\.objects"):
        list(read_task({"data": {"objects": []}}))


PICTURE = {"image": "a.jpg", "width": 10, "height": 10, "objects": [{"label": "cat", "box": [1, 1, 2, 2]}]}


@pytest.mark.parametrize(
    ("writer", "change", "reason"),
    [
        (write_yolo, {"image": "../a.jpg"}, "no relative path"),
        (write_yolo, {"image": "/a.jpg"}, "no relative path"),
        (write_voc, {"image": "http://x/a.jpg"}, "no relative path"),
        (write_voc, {"image": "a\\b.jpg"}, "no relative path"),
        (write_voc, {"image": "a\n.jpg"}, "name of a file"),
        (write_yolo, {"width": None}, "needs width and height"),
        (write_yolo, {"image": "A.png"}, "same name but for its ending"),
        (write_voc, {"image": "b.jpg", "objects": [{"label": "\x01", "box": [1, 1, 1, 1]}]}, "XML cannot hold"),
        (write_coco, {"image": 5}, "is no name"),
        (write_coco, {"objects": [{"label": "cat", "box": [1, 1, 1]}]}, r"objects[0].box: not four numbers"),
        (write_coco, {"objects": [{"box": [1, 1, 1, 1]}]}, "objects[0].label: is missing"),
        (write_coco, {"file_name": "x"}, "meaning of its own in COCO"),
    ],
)
def test_what_a_format_cannot_say_is_left_out_with_a_reason(writer: Any, change: dict[str, Any], reason: str) -> None:
    _, losses = write(writer, [PICTURE, {**PICTURE, **change}])
    (loss,) = losses.report()
    assert (loss["left_out"], loss["changed"], loss["row_ids"]) == (1, 0, [f"{1:064x}"])
    assert reason in loss["reason"]


def test_rows_of_an_archive_have_their_names_in_another_column() -> None:
    row = {"file_name": "a.jpg", "sha256": "0" * 64, **{name: PICTURE[name] for name in ("width", "height", "objects")}}
    (image,) = json.loads(write(write_coco, [row])[0])["images"]
    assert (image["file_name"], image["sha256"]) == ("a.jpg", "0" * 64)
    assert "labels/a.txt" in members(write(write_yolo, [row])[0])


def test_what_an_object_loses_is_told() -> None:
    rows = [{**PICTURE, "objects": [{**PICTURE["objects"][0], "score": 0.5, "difficult": 1}]}]
    for writer, reasons in ((write_yolo, 2), (write_voc, 1), (write_coco, 0)):
        assert [loss["changed"] for loss in write(writer, rows)[1].report()] == [1] * reasons


def test_many_categories_take_linear_time() -> None:
    """With a look through all that came before, 100,000 would take minutes."""
    listed = [{"id": at, "name": f"kind {at}"} for at in range(100_000)]
    began = time.process_time()
    assert list(Categories(listed).all.values()) == listed
    document = {"images": [], "annotations": [], "categories": listed}
    (line,) = read_coco(io.BytesIO(json.dumps(document).encode()))
    assert line.row == {"categories": listed}
    assert time.process_time() - began < 5
