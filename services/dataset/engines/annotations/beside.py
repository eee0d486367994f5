"""Labels in files beside the images of an archive, as YOLO and Pascal VOC have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from libs.archives.entries import BadEntry, Entry
from libs.archives.errors import UnreadableFile
from libs.archives.zip_reader import read_zip
from services.dataset.engines.annotations import voc, yolo
from services.dataset.engines.lines import Line
from services.dataset.engines.losses import Inexpressible

# Of one file of labels, and of all of an archive: they are in memory together.
_MOST_FILE, _MOST_FILES = 8 * 1024 * 1024, 512 * 1024 * 1024
_ENDINGS = (".txt", ".xml", ".yaml", ".yml", ".csv")


def may_be_labels(name: str) -> bool:
    """Whether a file of this name may be about images, to be looked at before them."""
    return name.lower().endswith(_ENDINGS)


class LabelFiles:
    """The text files of an archive, as labels of its images.

    An archive with a `data.yaml` that names classes is YOLO: the labels of `images/a.jpg` are in `labels/a.txt`, and an
    image without has no objects. Else XML files that are annotations are Pascal VOC: `Annotations/a.xml` is about the
    image called `a`, in whatever folder.

    Args:
        files: by path, as `may_be_labels` chose them.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._names = _classes(files)
        self._annotations: dict[str, str] = {}
        self._problems: list[tuple[str, str]] = []
        self._first = True
        if self._names is None:
            self._find_annotations()
        self._unused = set(self._annotations.values()) if self._names is None else _label_texts(files)

    def _find_annotations(self) -> None:
        for path in sorted(self._files):
            stem = PurePosixPath(path).stem
            if not path.lower().endswith(".xml") or b"<annotation" not in self._files[path]:
                continue
            if stem in self._annotations:
                self._problems.append((path, f"{self._annotations[stem]} is about an image {stem} too"))
            else:
                self._annotations[stem] = path

    def has(self, name: str) -> bool:
        """Whether a file is part of the labels, and no image that somebody wanted to import."""
        if self._names is not None:
            return name in self._files
        return name in self._files and bool(self._annotations) and name.lower().endswith((".xml", ".txt"))

    def of(self, image: str, size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
        """Columns for the row of an image, and what of its labels could not be read.

        Args:
            image: path in the archive.
            size: width and height in pixels.
        """
        if self._names is not None:
            return self._of_yolo(image, self._names, size)
        path = self._annotations.get(PurePosixPath(image).stem)
        if path is None:
            return {}, []
        self._unused.discard(path)
        problems: list[str] = []
        try:
            objects = voc.read_annotation(self._files[path], path, problems)["objects"]
        except Inexpressible as reason:
            return {}, [f"{path}: {reason}"]
        return {"objects": objects}, problems

    def _of_yolo(self, image: str, names: dict[int, str], size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
        path = yolo.label_path(image)
        self._unused.discard(path)
        objects, problems = yolo.objects_of(self._files.get(path, b""), path, names, size)
        found: dict[str, Any] = {"objects": objects}
        if self._first:
            # The numbers of the classes: an export gives them again.
            self._first, found["categories"] = False, [{"id": at, "name": name} for at, name in names.items()]
        return found, problems

    def left(self) -> list[tuple[str, str]]:
        """Files that no image took, each with the reason; to be asked after the last image."""
        missing = [(path, "is about an image that is not in the archive") for path in sorted(self._unused)]
        return [*self._problems, *missing]


def text_of(entry: Entry, room: int) -> bytes | None:
    """A file of labels; None for one that is too large or damaged.

    Args:
        room: bytes that it may have.
    """
    data, most = bytearray(), min(room, _MOST_FILE)
    try:
        for chunk in entry.chunks:
            data += chunk
            if len(data) > most:
                return None
    except BadEntry:
        return None
    return bytes(data)


def read_zipped(file: BinaryIO, read: Callable[[Mapping[str, bytes]], Iterator[Line]]) -> Iterator[Line]:
    """The rows of a zip of labels, without its images.

    Args:
        read: Gives the rows of its text files; of other files it gets the names.
    """
    files: dict[str, bytes] = {}
    room, skipped = _MOST_FILES, list[str]()
    for entry in read_zip(file):
        text = text_of(entry, room) if may_be_labels(entry.name) and not entry.error else b""
        if entry.error or text is None:
            skipped.append(f"{entry.name[:200]!r}: {entry.error or 'too large or damaged'}")
        else:
            room -= len(text)
            files[entry.name] = text
    number = 0
    for line in read(files):
        number = line.number
        yield line
    yield from (Line(at, None, reason) for at, reason in enumerate(skipped, number + 1))


def _classes(files: dict[str, bytes]) -> dict[int, str] | None:
    try:
        return yolo.names_of(files)
    except UnreadableFile:
        return None


def _label_texts(files: dict[str, bytes]) -> set[str]:
    return {path for path in files if path.endswith(".txt") and "labels" in PurePosixPath(path).parts[:-1]}
