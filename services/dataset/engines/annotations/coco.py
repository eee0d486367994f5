"""COCO object detection, https://cocodataset.org/#format-data: images, annotations and categories in one JSON object.

Ids of images and annotations are numbered anew; ids of categories stay. `area` and `iscrowd` are left out of an object
where they say nothing beyond its box.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import orjson

from libs.archives.errors import UnreadableFile
from libs.compute.versions import Row
from services.dataset.engines.annotations.pictures import (
    Categories,
    Object,
    Picture,
    checked_box,
    picture_of,
    side,
    with_categories,
)
from services.dataset.engines.lines import Line
from services.dataset.engines.losses import Inexpressible, Losses

# The file is in memory as a whole, as about eight times its size; instances_train2017 has 450 MB.
_MAX_BYTES = 512 * 1024 * 1024
_COPIED = 1024 * 1024


def read_coco(file: BinaryIO) -> Iterator[Line]:
    """A row for each image, those without objects too; numbered by their place in `images`. An entry that cannot be
    read is told and costs no other.

    Raises:
        UnreadableFile: It is no COCO file.
    """
    document = _document(file.read(_MAX_BYTES + 1))
    problems: list[Line] = []
    names, listed = _read_categories(document["categories"], problems)
    rows = _read_images(document["images"], problems)
    for at, given in enumerate(document["annotations"], 1):
        try:
            row = rows.get(_id(given, "image_id")) if isinstance(given, dict) else None
            if row is None:
                raise Inexpressible("is about an image that is not there")
            row["objects"].append(_read_object(given, names, row))
        except Inexpressible as reason:
            problems.append(Line(at, None, f"annotations[{at - 1}]: {reason}"))
    for number, row in enumerate(with_categories(list(rows.values()), listed, 1), 1):
        yield Line(number, row)
    yield from problems


def _document(data: bytes) -> dict[str, list[Any]]:
    if len(data) > _MAX_BYTES:
        raise UnreadableFile(f"longer than {_MAX_BYTES:,} bytes")
    try:
        # Takes NaN, as tools write it, so that it costs one annotation only.
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise UnreadableFile("not a JSON object with images, annotations and categories")
    parts = {name: document.get(name) or [] for name in ("images", "annotations", "categories")}
    for name, value in parts.items():
        if not isinstance(value, list):
            raise UnreadableFile(f"{name} is not a list")
    return parts


def _id(given: dict[str, Any], name: str) -> int | str:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Inexpressible(f"{name} is missing")
    return value


def _read_categories(given: list[Any], problems: list[Line]) -> tuple[dict[int | str, str], list[dict[str, Any]]]:
    """Names by id, and the list as a row keeps it."""
    names: dict[int | str, str] = {}
    listed: list[dict[str, Any]] = []
    told: set[str] = set()
    for at, one in enumerate(given):
        try:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str) or not one["name"]:
                raise Inexpressible("has no name")
            if _id(one, "id") in names:
                raise Inexpressible("has the id of another one")
            if one["name"] not in told:
                listed.append({name: value for name, value in one.items() if value is not None})
            names[one["id"]] = one["name"]
            told.add(one["name"])
        except Inexpressible as reason:
            problems.append(Line(at + 1, None, f"categories[{at}]: {reason}"))
    return names, listed


def _read_images(given: list[Any], problems: list[Line]) -> dict[int | str, Row]:
    rows: dict[int | str, Row] = {}
    for at, one in enumerate(given):
        try:
            if not isinstance(one, dict):
                raise Inexpressible("not an object")
            if _id(one, "id") in rows:
                raise Inexpressible("has the id of another one")
            rows[one["id"]] = _read_image(one)
        except Inexpressible as reason:
            problems.append(Line(at + 1, None, f"images[{at}]: {reason}"))
    return rows


def _read_image(given: dict[str, Any]) -> Row:
    if not isinstance(given.get("file_name"), str) or not given["file_name"]:
        raise Inexpressible("file_name is missing")
    sides = {name: side(given.get(name), name) for name in ("width", "height")}
    row: Row = {"image": given["file_name"], **{name: value for name, value in sides.items() if value}, "objects": []}
    for name, value in given.items():
        if name in ("image", "objects", "categories"):
            raise Inexpressible(f"{name}: has a meaning of its own here")
        if name not in ("id", "file_name", "width", "height") and value is not None:
            row[name] = value
    return row


def _read_object(given: dict[str, Any], names: dict[int | str, str], row: Row) -> Object:
    label = names.get(_id(given, "category_id"))
    if label is None:
        raise Inexpressible("is of a category that is not there")
    box = given.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise Inexpressible("bbox: not four numbers")
    if {"label", "box"} & given.keys():
        raise Inexpressible("label or box: has a meaning of its own here")
    box = checked_box(box, "annotation", row.get("width"), row.get("height"))
    known: Object = {"label": label, "box": box}
    default = {"area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
    for name, value in given.items():
        ours = name in ("id", "image_id", "category_id", "bbox")
        if not ours and value is not None and value != default.get(name):
            known[name] = value
    return known


def write_coco(rows: Iterable[tuple[str, Row]], listed: Iterable[Any], file: BinaryIO, losses: Losses) -> None:
    """Writes a COCO file. Annotations wait in a temporary file until all images are written.

    Args:
        rows: Row id and row of each image.
        listed: `categories` of all rows.
        file: Where it goes.
        losses: Told what is left out.
    """
    categories, images, annotations = Categories(listed), 0, 0
    with tempfile.TemporaryFile() as waiting:
        file.write(b'{"images":[')
        for row_id, row in rows:
            try:
                image, objects = _written(picture_of(row), images + 1)
            except Inexpressible as reason:
                losses.leave_out(str(reason), row_id)
                continue
            file.write((b",\n" if images else b"\n") + orjson.dumps(image))
            images += 1
            for one in objects:
                annotations += 1
                one = {"id": annotations, **one, "category_id": categories.id_of(one["category_id"])}
                waiting.write((b",\n" if annotations > 1 else b"\n") + orjson.dumps(one))
        file.write(b'],\n"annotations":[')
        waiting.seek(0)
        while data := waiting.read(_COPIED):
            file.write(data)
    file.write(b'],\n"categories":' + orjson.dumps(list(categories.all.values())) + b"}\n")


def _written(picture: Picture, number: int) -> tuple[Row, list[Object]]:
    """An image, and its annotations with labels in place of category ids."""
    taken = {"id", "file_name"} & picture.beside.keys()
    if taken:
        raise Inexpressible(f"{min(taken)}: has a meaning of its own in COCO")
    sides = {"width": picture.width, "height": picture.height}
    image = {"id": number, "file_name": picture.image, **{name: value for name, value in sides.items() if value}}
    objects = []
    for one in picture.objects:
        x, y, across, down = one["box"]
        known = {"area": across * down, "iscrowd": 0, "segmentation": []}
        own = {name: value for name, value in one.items() if name not in ("label", "box")}
        if {"id", "image_id", "category_id", "bbox"} & own.keys():
            raise Inexpressible("an object has a field with a meaning of its own in COCO")
        fixed = {"image_id": number, "category_id": one["label"], "bbox": [x, y, across, down]}
        objects.append({**known, **own, **fixed})
    return {**image, **picture.beside}, objects
