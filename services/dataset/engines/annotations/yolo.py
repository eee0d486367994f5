"""YOLO as Ultralytics reads it, https://docs.ultralytics.com/datasets/detect: `data.yaml`, a list of images, and for
each image a text file with `class x y width height`, the box by its centre in shares of the image.

A label file has neither the ending nor the size of its image: those are in `train.txt` and `image_sizes.csv`, which
Ultralytics reads and ignores.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import yaml

from libs.archives.errors import UnreadableFile
from libs.compute.versions import Row
from services.dataset.engines.annotations.pictures import (
    Categories,
    Members,
    Object,
    checked_box,
    member,
    number,
    picture_of,
    with_categories,
)
from services.dataset.engines.lines import Line
from services.dataset.engines.losses import Inexpressible, Losses
from services.dataset.engines.zip_writer import Archive

_SIZES = "image_sizes.csv"
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_YAML_BYTES = 1024 * 1024

Size = tuple[int, int]


def read_yolo(files: Mapping[str, bytes], size_of: Callable[[str], Size | None]) -> Iterator[Line]:
    """A row for each image, those without objects too.

    Args:
        files: Text files and the names of images, by their path in the archive.
        size_of: Width and height of the image at a path, if it can be read.

    Raises:
        UnreadableFile: There is no `data.yaml` with names.
    """
    names = names_of(files)
    sizes, problems = _sizes(files)
    rows: list[Row] = []
    for path in _image_paths(files, sizes):
        found = sizes.get(_image(path)) or size_of(path)
        if found is None:
            problems.append(f"{path}: its size is not known")
            continue
        labels = label_path(path)
        objects, faults = objects_of(files.get(labels, b""), labels, names, found)
        problems += faults
        rows.append({"image": _image(path), "width": found[0], "height": found[1], "objects": objects})
    listed = [{"id": at, "name": name} for at, name in names.items()]
    numbered = enumerate(with_categories(rows, listed, 0), 1)
    yield from (Line(at, row) for at, row in numbered)
    yield from (Line(at, None, problem) for at, problem in enumerate(problems, len(rows) + 1))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def names_of(files: Mapping[str, bytes]) -> dict[int, str]:
    """The classes of `data.yaml` by their number. Raises `UnreadableFile` if there is none, or it has none."""
    path = next((path for path in sorted(files) if PurePosixPath(path).name in ("data.yaml", "data.yml")), None)
    if path is None:
        raise UnreadableFile("there is no data.yaml")
    try:
        given = yaml.safe_load(files[path][:_YAML_BYTES])
        names: Any = given["names"]
        names = dict(enumerate(names)) if isinstance(names, list) else names
        if all(type(at) is int and at >= 0 and isinstance(name, str) and name for at, name in names.items()):
            return names
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise UnreadableFile(f"{path} has no names of classes")


def _sizes(files: Mapping[str, bytes]) -> tuple[dict[str, Size], list[str]]:
    sizes: dict[str, Size] = {}
    problems: list[str] = []
    rows = csv.reader(io.StringIO(_text(files.get(_SIZES, b"")), newline=""))
    try:
        for fields in rows:
            if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal() and len("".join(fields[1:])) < 15:
                sizes[fields[0]] = (int(fields[1]), int(fields[2]))
            elif rows.line_num > 1:
                problems.append(f"{_SIZES}, line {rows.line_num}: not a name and two sides")
    except csv.Error as error:
        problems.append(f"{_SIZES}: {error}")
    return sizes, problems


def _image_paths(files: Mapping[str, bytes], sizes: Mapping[str, Size]) -> list[str]:
    """Paths of all images: those that are there, and those that a list names."""
    there = [path for path in sorted(files) if path.lower().endswith(_IMAGES)]
    return list(dict.fromkeys([*(f"images/{image}" for image in sizes), *there]))


def _image(path: str) -> str:
    return path.removeprefix("images/")


def label_path(path: str) -> str:
    """Where the labels of an image are, as Ultralytics finds them: the last folder `images` becomes `labels`."""
    stem = f"/{PurePosixPath(path).with_suffix('.txt')}"
    return "/labels/".join(stem.rsplit("/images/", 1))[1:]


def objects_of(data: bytes, path: str, names: Mapping[int, str], size: Size) -> tuple[list[Object], list[str]]:
    """The objects of a label file, and what is wrong with its other lines.

    Args:
        data: The file.
        path: Of it, for people.
        names: Of the classes.
        size: Width and height of the image.
    """
    objects: list[Object] = []
    problems: list[str] = []
    for at, line in enumerate(_text(data).splitlines(), 1):
        try:
            objects += [_object(line, names, size)] if line.strip() else []
        except Inexpressible as reason:
            problems.append(f"{path}, line {at}: {reason}")
    return objects, problems


def _object(line: str, names: Mapping[int, str], size: Size) -> Object:
    fields = line.split()
    if len(fields) != 5:
        raise Inexpressible(f"{len(fields)} fields where a box has 5")
    try:
        kind, *shares = (float(field) for field in fields)
    except ValueError:
        raise Inexpressible("not five numbers") from None
    label = names.get(int(number(kind, "class")) if kind == int(number(kind, "class")) else -1)
    if label is None:
        raise Inexpressible("is of a class that data.yaml does not name")
    x, y, across, down = (number(share, "box") * side for share, side in zip(shares, size * 2, strict=True))
    return {"label": label, "box": checked_box([x - across / 2, y - down / 2, across, down], "object", *size)}


def write_yolo(rows: Iterable[tuple[str, Row]], listed: Iterable[Any], file: BinaryIO, losses: Losses) -> None:
    """Writes a zip. Lists wait in temporary files until all labels are written.

    Args:
        rows: Row id and row of each image.
        listed: `categories` of all rows.
        file: Where it goes.
        losses: Told what is left out or changed.
    """
    archive, members, labels = Archive(file), Members(), _Classes(listed)
    with tempfile.TemporaryFile() as images, tempfile.TemporaryFile() as sizes:
        sizes.write(b"image,width,height\n")
        for row_id, row in rows:
            try:
                picture = picture_of(row)
                size = picture.sized("YOLO")
                path = members.take(member(picture.image, "labels", ".txt"))
            except Inexpressible as reason:
                losses.leave_out(str(reason), row_id)
                continue
            for name in sorted({name for one in picture.objects for name in one} - {"label", "box"}):
                losses.change(f"YOLO has no place for {name} of an object", row_id)
            archive.add(path, "".join(_line(one, labels, size) for one in picture.objects).encode())
            images.write(f"./images/{picture.image}\n".encode())
            sizes.write(_csv_line([picture.image, *size]))
        archive.copy("train.txt", images)
        archive.copy(_SIZES, sizes)
    # Ultralytics wants a list to validate on; there is no other split in a version.
    data = {"path": ".", "train": "train.txt", "val": "train.txt", "names": labels.names()}
    archive.add("data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())
    archive.close()


class _Classes:
    """Labels numbered from 0 without gaps."""

    def __init__(self, listed: Iterable[Any]) -> None:
        self._numbers = {name: at for at, name in enumerate(Categories(listed, 0).all)}

    def number_of(self, label: str) -> int:
        """Number of a label; a new one gets the next."""
        return self._numbers.setdefault(label, len(self._numbers))

    def names(self) -> dict[int, str]:
        """Labels by number."""
        return {number: name for name, number in self._numbers.items()}


def _line(one: Object, labels: _Classes, size: Size) -> str:
    (x, y, across, down), (width, height) = one["box"], size
    shares = ((x + across / 2) / width, (y + down / 2) / height, across / width, down / height)
    return f"{labels.number_of(one['label'])} {' '.join(map(repr, shares))}\n"


def _csv_line(fields: list[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(fields)
    return out.getvalue().encode()
