"""What all formats of annotated images share: a row that was looked at, its boxes, and the list of labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from libs.compute.versions import Row
from services.dataset.engines.losses import Inexpressible

Object = dict[str, Any]

# Larger than any image that a detector was ever shown; coordinates beyond are mistakes or mischief.
MAX_SIDE = 1_000_000
# Tools round; a box may reach so many pixels beyond its image.
_OUTSIDE = 1.0
# Coordinates are kept to a millionth of a pixel, which hides what a way through percents and shares costs a double.
_DECIMALS = 6


@dataclass(frozen=True)
class Picture:
    """A row as an annotated image.

    Attributes:
        image: its name, as it came.
        width, height: in pixels; None where they are not known.
        objects: each with `label` and `box`, checked.
        beside: all other columns but `categories`.
    """

    image: str
    width: int | None
    height: int | None
    objects: list[Object]
    beside: Row

    def sized(self, what: str) -> tuple[int, int]:
        """Width and height. Raises `Inexpressible` if they are not known."""
        if self.width is None or self.height is None:
            raise Inexpressible(f"{what} needs width and height of the image")
        return self.width, self.height


def picture_of(row: Row) -> Picture:
    """The row as an annotated image. Raises `Inexpressible`, naming the place at fault."""
    # Rows of an archive of images have their names in `file_name`.
    name_column = "image" if row.get("image") is not None else "file_name"
    image = row.get(name_column)
    if not isinstance(image, str) or not image:
        raise Inexpressible("image: is no name")
    width, height = (side(row.get(name), name) for name in ("width", "height"))
    given = row.get("objects")
    if given is not None and not isinstance(given, list):
        raise Inexpressible("objects: not a list")
    objects = [object_of(one, f"objects[{at}]", width, height) for at, one in enumerate(given or [])]
    beside = {
        name: value
        for name, value in row.items()
        if name not in (name_column, "width", "height", "objects", "categories")
    }
    return Picture(image, width, height, objects, beside)


def object_of(value: Any, place: str, width: int | None, height: int | None) -> Object:
    """An object with a label and a box, null fields left out. Raises `Inexpressible`."""
    if not isinstance(value, dict):
        raise Inexpressible(f"{place}: not an object")
    label = value.get("label")
    if not isinstance(label, str) or not label:
        raise Inexpressible(f"{place}.label: is missing")
    box = value.get("box")
    if not isinstance(box, list) or len(box) != 4:
        raise Inexpressible(f"{place}.box: not four numbers")
    kept = {name: inner for name, inner in value.items() if inner is not None}
    return {**kept, "box": checked_box(box, place, width, height)}


def checked_box(box: list[Any], place: str, width: int | None, height: int | None) -> list[float]:
    """[x, y, width, height] in pixels, finite, not empty, and in the image. Raises `Inexpressible`."""
    x, y, across, down = (round(number(value, f"{place}.box"), _DECIMALS) for value in box)
    if across <= 0 or down <= 0:
        raise Inexpressible(f"{place}.box: has no area")
    right, bottom = (MAX_SIDE if side is None else side for side in (width, height))
    if x < -_OUTSIDE or y < -_OUTSIDE or x + across > right + _OUTSIDE or y + down > bottom + _OUTSIDE:
        raise Inexpressible(f"{place}.box: reaches out of the image")
    return [x, y, across, down]


def number(value: Any, place: str) -> float:
    """A finite number within bounds. Raises `Inexpressible`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Inexpressible(f"{place}: not a number")
    if abs(value) > MAX_SIDE or not math.isfinite(value):
        raise Inexpressible(f"{place}: not a number that a pixel can have")
    return float(value)


def side(value: Any, place: str) -> int | None:
    """Pixels of one side; None if they are not given. Raises `Inexpressible`."""
    if value is None:
        return None
    if number(value, place) <= 0 or value != int(value):
        raise Inexpressible(f"{place}: not a whole number above 0")
    return int(value)


def member(image: str, folder: str, ending: str) -> str:
    """Path of the file about an image in an archive: its own path with another ending.

    Raises:
        Inexpressible: The name of the image is no relative path.
    """
    path = PurePosixPath(image)
    if path.is_absolute() or "://" in image or "\\" in image or {"..", ""} & set(image.split("/")):
        raise Inexpressible("image: its name is no relative path")
    if not image.isprintable() or not path.stem:
        raise Inexpressible("image: its name cannot be the name of a file")
    return f"{folder}/{path.with_suffix('')}{ending}"


class Members:
    """Paths in an archive, each once: `a.jpg` and `a.png` cannot both have an `a.txt`."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, path: str) -> str:
        """The path, which nobody has taken. Raises `Inexpressible`."""
        # Some file systems do not tell capitals from small letters.
        if path.casefold() in self._taken:
            raise Inexpressible("image: another one has the same name but for its ending")
        self._taken.add(path.casefold())
        return path


class Categories:
    """Labels and their numbers: those of a list in order, then others as they come.

    Args:
        listed: `categories` of rows, each with `name` and, where it has one, `id`.
        first: Number of the first label that has none.
    """

    def __init__(self, listed: Iterable[Any] = (), first: int = 1) -> None:
        self.all: dict[str, dict[str, Any]] = {}
        self._taken: set[int] = set()
        self._next = first
        for one in listed:
            self._list(one)

    def _list(self, one: Any) -> None:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str) or one["name"] in self.all:
            return
        number = one.get("id")
        if isinstance(number, bool) or not isinstance(number, int) or number in self._taken:
            # The next one is above all that are taken.
            number = self._next + 1 if self._taken else self._next
        self._taken.add(number)
        self.all[one["name"]] = {**one, "id": number}
        self._next = max(self._next, number + 1)

    def id_of(self, label: str) -> int:
        """Number of a label; a new one gets the next."""
        if label not in self.all:
            self.all[label] = {"id": self._next, "name": label}
            self._next += 1
        return self.all[label]["id"]


def untold(listed: list[dict[str, Any]], rows: Iterable[Row], first: int) -> bool:
    """Whether a list of categories says more than the objects of the rows do.

    Args:
        first: Number of the first label where nothing is listed.
    """
    told = Categories((), first)
    for row in rows:
        for one in row["objects"]:
            told.id_of(one["label"])
    return list(told.all.values()) != listed


def with_categories(rows: list[Row], listed: list[dict[str, Any]], first: int) -> Iterator[Row]:
    """Rows of which the first carries the list of categories, if it says more than they do."""
    if listed and untold(listed, rows, first):
        rows = [{**rows[0], "categories": listed}, *rows[1:]] if rows else [{"categories": listed}]
    return iter(rows)
