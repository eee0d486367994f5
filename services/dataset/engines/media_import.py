"""Import of an archive of images, sound or films: a row a file, which keeps its name; its bytes become a blob.

Labels come from `metadata.jsonl` or `metadata.csv` beside the files, whose column `file_name` is the path from there:
the convention of ImageFolder of Hugging Face datasets. Boxes of images may be in files of YOLO or Pascal VOC instead.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from libs.archives.entries import BadEntry, Entry
from libs.archives.errors import BrokenOff, UnreadableFile
from libs.archives.tar_reader import read_tar
from libs.archives.zip_reader import read_zip
from libs.common.blobs.folder import storage_errors
from libs.compute.context import EngineContext, EngineError
from libs.compute.scratch import scratch_folder
from services.dataset.engines.annotations.beside import LabelFiles, may_be_labels, text_of
from services.dataset.engines.formats import read_lines
from services.dataset.engines.intake import Intake
from services.dataset.engines.lines import Line
from services.dataset.engines.media import MediaChild, MediaError
from services.dataset.engines.rows import Row
from services.dataset.engines.writing import VersionWriter

_METADATA = {"metadata.jsonl": "jsonl", "metadata.csv": "csv"}
_FILE_NAME = "file_name"
# Rows of metadata are in memory together, as JSON: a row alone may have 8 MiB.
_MOST_LABELS, _MOST_LABEL_BYTES = 1_000_000, 512 * 1024 * 1024
_IMAGE = "image"
_REPORT_SECONDS = 0.5
# Of a name in the report.
_NAME_CHARACTERS = 200
# What macOS and desktops put beside the files of people.
_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")


def import_archive(
    ctx: EngineContext, file: BinaryIO, writer: VersionWriter, file_name: str, format_name: str
) -> dict[str, Any]:
    """Adds every file of an archive that can be decoded to `writer`; their bytes go to the store of outputs.

    Args:
        ctx: Its spec names `media_type` (`image`, `audio` or `video`).
        file: The archive, seekable.
        file_name: Of the archive, for people.
        format_name: `zip` or `tar`.

    Returns:
        The report (fields of `argosy.dataset.v1.Report`); `line` counts the entries of the archive.

    Raises:
        EngineError: CONTENT_INVALID, when it is no archive, or the dataset holds no media.
    """
    if not ctx.spec["media_type"]:
        text = "an archive becomes a version of a dataset of type IMAGE, AUDIO or VIDEO only"
        raise EngineError("CONTENT_INVALID", f"{file_name}: {text}", detail=text)
    intake = Intake(writer, file_name)
    try:
        with MediaChild() as child, scratch_folder("argosy-media-") as folder:
            importer = _Importer(ctx, intake, format_name, child, folder / "file")
            importer.take(file)
    except UnreadableFile as error:
        raise EngineError("CONTENT_INVALID", f"{file_name}: {error}", detail=str(error)) from error
    return intake.report()


def _entries(file: BinaryIO, format_name: str) -> Iterator[Entry]:
    file.seek(0)
    return (read_zip if format_name == "zip" else read_tar)(file)


def _shown(name: str) -> str:
    """A name for the report: what is not printable, and what the database cannot keep, is escaped."""
    return repr(name[:_NAME_CHARACTERS])[1:-1]


class _Label(NamedTuple):
    """A row of metadata.

    Attributes:
        number: of the entry with the metadata.
        metadata: name of that entry.
        row: JSON.
    """

    number: int
    metadata: str
    row: bytes


class _Importer:
    """One import.

    Args:
        path: Of the file that is looked at now.
    """

    def __init__(self, ctx: EngineContext, intake: Intake, format_name: str, child: MediaChild, path: Path) -> None:
        self._ctx = ctx
        self._intake = intake
        self._format = format_name
        self._store = ctx.blobs_write
        self._child = child
        self._path = path
        self._labels: dict[str, _Label] = {}
        self._label_bytes = 0
        self._texts: dict[str, bytes] = {}
        self._beside = LabelFiles({})

    def take(self, file: BinaryIO) -> None:
        """Reads the archive twice: the labels of a file may stand behind it."""
        size = file.seek(0, io.SEEK_END)
        # Where it breaks off is told when its files are read.
        with suppress(BrokenOff):
            for entry in _entries(file, self._format):
                self._ctx.stop_if_cancelled()
                if _is_metadata(entry):
                    self._read_labels(entry)
                elif self._ctx.spec["media_type"] == _IMAGE and not entry.error and may_be_labels(entry.name):
                    self._keep_text(entry)
        self._beside = LabelFiles(self._texts)
        number, reported = 0, time.monotonic()
        try:
            for entry in _entries(file, self._format):
                number = entry.number
                self._ctx.stop_if_cancelled()
                if not _is_metadata(entry) and not self._beside.has(entry.name):
                    self._take_file(entry)
                if time.monotonic() - reported > _REPORT_SECONDS:
                    reported, share = time.monotonic(), min(1.0, file.tell() / size)
                    self._ctx.progress(0.95 * share, f"{self._intake.seen:,} files read", rows=self._intake.seen)
        except BrokenOff as error:
            self._set_apart(number + 1, f"this entry and all behind it cannot be read: {error}")
        for name, label in self._labels.items():
            missing = f"{_shown(label.metadata)} names {_shown(name)}, which is not in the archive"
            self._set_apart(label.number, missing)
        for name, reason in self._beside.left():
            self._set_apart(number, f"{_shown(name)} {reason}")

    def _keep_text(self, entry: Entry) -> None:
        """Keeps a file that may be about images; one that is too large is looked at as what it claims to be."""
        text = text_of(entry, _MOST_LABEL_BYTES - self._label_bytes)
        if text is not None:
            self._label_bytes += len(text)
            self._texts[entry.name] = text

    def _read_labels(self, entry: Entry) -> None:
        folder, _, metadata = entry.name.rpartition("/")
        with tempfile.TemporaryFile() as copy:
            try:
                for chunk in entry.chunks:
                    copy.write(chunk)
                copy.seek(0)
                for line in read_lines(copy, _METADATA[metadata]):  # type: ignore[arg-type]
                    self._read_label(entry, folder, line)
            except (BadEntry, UnreadableFile) as error:
                self._set_apart(entry.number, f"{_shown(entry.name)}: {error}")

    def _read_label(self, entry: Entry, folder: str, line: Line) -> None:
        where = f"{_shown(entry.name)}, line {line.number}"
        name = line.row.pop(_FILE_NAME, None) if line.row is not None else None
        if not isinstance(name, str):
            self._set_apart(entry.number, f"{where}: {line.error or f'no column {_FILE_NAME}'}")
            return
        name = f"{folder}/{name}" if folder else name
        packed = orjson.dumps(line.row)
        fault = self._label_fault(name, len(name.encode()) + len(packed))
        if fault:
            self._set_apart(entry.number, f"{where}: {_shown(name)} {fault}")
            return
        self._label_bytes += len(name.encode()) + len(packed)
        self._labels[name] = _Label(entry.number, entry.name, packed)

    def _label_fault(self, name: str, size: int) -> str:
        if name in self._labels:
            return "is named twice"
        if len(self._labels) == _MOST_LABELS:
            return f"more than {_MOST_LABELS:,} files are named"
        if self._label_bytes + size > _MOST_LABEL_BYTES:
            return f"all that is said of files has more than {_MOST_LABEL_BYTES:,} bytes"
        return ""

    def _take_file(self, entry: Entry) -> None:
        label = self._labels.pop(entry.name, None)
        labels: Row = {} if label is None else orjson.loads(label.row)
        try:
            if entry.error:
                raise MediaError(entry.error)
            if any(part in _HIDDEN or part.startswith(".") for part in entry.name.split("/")):
                raise MediaError("a hidden file")
            digest, size = self._copy(entry)
            facts = self._child.probe(self._path, self._ctx.spec["media_type"])
        except (BadEntry, MediaError) as error:
            self._set_apart(entry.number, f"{_shown(entry.name)}: {error}")
            return
        self._store.put_sync(self._path)
        row = {_FILE_NAME: entry.name, "media_type": self._ctx.spec["media_type"], "bytes": size, "sha256": digest}
        row |= facts
        if self._ctx.spec["media_type"] == _IMAGE:
            said, faults = self._beside.of(entry.name, (facts["width"], facts["height"]))
            labels = said | labels
            for fault in faults:
                self._set_apart(entry.number, _shown(fault))
        # A label that has the name of a column of ours stays under a name with an underscore behind it.
        row |= {f"{name}_" if name in row else name: value for name, value in labels.items()}
        self._intake.add(Line(entry.number, row), entry.number, digest)

    def _copy(self, entry: Entry) -> tuple[str, int]:
        """Writes the entry to the local file. Returns its SHA-256 and its size."""
        digest, size = hashlib.sha256(), 0
        with storage_errors("the file that is imported"), self._path.open("wb") as copy:
            for chunk in entry.chunks:
                digest.update(chunk)
                size += len(chunk)
                copy.write(chunk)
        return digest.hexdigest(), size

    def _set_apart(self, number: int, reason: str) -> None:
        self._intake.add(Line(number, None, reason), number)


def _is_metadata(entry: Entry) -> bool:
    return not entry.error and entry.name.rpartition("/")[2] in _METADATA
