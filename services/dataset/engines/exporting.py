"""Export: the rows of a version become files of a format, in bounded memory and always the same bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from libs.compute.context import EngineContext, EngineError
from libs.compute.versions import INT, JSON, STRING, Row, VersionReader
from services.dataset.domain.exports import CONVERSATION_FORMATS, FOLDER_FORMAT
from services.dataset.engines.access import open_version
from services.dataset.engines.annotations.coco import write_coco
from services.dataset.engines.annotations.label_studio import write_task
from services.dataset.engines.annotations.voc import write_voc
from services.dataset.engines.annotations.yolo import write_yolo
from services.dataset.engines.conversations import WRITERS
from services.dataset.engines.exported_files import ExportedFiles
from services.dataset.engines.hub_card import card
from services.dataset.engines.losses import Inexpressible, Losses
from services.dataset.engines.parquet_files import ParquetRows, Shapes, write_parquet
from services.dataset.engines.row_files import (
    LineFormat,
    json_format,
    jsonl_format,
    records_format,
    table_format,
    text_format,
)
from services.dataset.engines.rows import widen
from services.dataset.engines.workbook import require_header, workbook_notes, write_workbook

# Rows held at once: as much as a part of a version, or one row.
_BATCH_BYTES, _BATCH_ROWS = 8 * 1024 * 1024, 16_384
# Content of one Parquet file of a folder; Hugging Face's own are of half a gigabyte compressed.
SHARD_BYTES = 512 * 1024 * 1024

# Formats that need the categories of all rows before the first is written.
PICTURE_WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
_CATEGORIES = "categories"
# What archives of labels have a place for.
_LABELLED = ("image", "file_name", "width", "height", "objects", _CATEGORIES)


@dataclass(frozen=True)
class Split:
    """One version that is exported."""

    name: str
    version: str
    reader: VersionReader


def run(ctx: EngineContext) -> dict[str, Any]:
    """Exports versions.

    The spec names `splits` (`split`, `version`, `manifest` and `grant` of each), `format`, `compression`,
    `text_column`, `with_source` and `file_name`.

    Returns:
        `files`, `manifest_digest` and `report`, the fields of `argosy.dataset.v1.ExportReport`.

    Raises:
        EngineError: CONTENT_INVALID, when not a single row can be said in the format.
    """
    started = time.monotonic()
    export = _Export(ctx, [_open(ctx, given) for given in ctx.spec["splits"]])
    if ctx.spec["format"] in (FOLDER_FORMAT, "parquet"):
        export.write_tables()
    elif ctx.spec["format"] == "xlsx":
        export.write_workbook()
    elif ctx.spec["format"] in PICTURE_WRITERS:
        export.write_pictures()
    else:
        export.write_lines()
    return export.finish(started)


def _open(ctx: EngineContext, given: dict[str, str]) -> Split:
    return Split(given["split"], given["version"], open_version(ctx.blobs_read(given["grant"]), given["manifest"]))


class _Export:
    """One export under way."""

    def __init__(self, ctx: EngineContext, splits: list[Split]) -> None:
        self._ctx = ctx
        self._spec = ctx.spec
        self._splits = splits
        self._files = ExportedFiles(ctx.blobs_write)
        self._losses = Losses()
        self._notes: list[str] = []
        self._rows = sum(len(split.reader.index) for split in splits)
        # Rows are read a second time where something must be known of all before the first is written.
        self._passes = 1
        self._read = 0

    def finish(self, started: float) -> dict[str, Any]:
        """What `run` returns."""
        losses, written = self._losses.report(), self._rows - self._losses.left_out
        if self._rows and not written:
            message = f"no row can be written as {self._spec['format']}: {losses[0]['reason']}"
            raise EngineError("CONTENT_INVALID", message, detail=losses[0]["reason"])
        report = {
            "rows_in": self._rows,
            "rows_out": written,
            "losses": losses,
            "notes": self._notes,
            "seconds": time.monotonic() - started,
        }
        made = self._files.finish()
        self._ctx.progress(1.0, f"{written:,} rows exported", rows=written)
        return {**made, "report": report}

    def write_lines(self) -> None:
        """One file of lines."""
        reader = self._splits[0].reader
        style = self._line_format(reader)
        self._notes += style.notes
        with self._files.new(self._spec["file_name"], self._spec["compression"]) as file:
            file.write(style.head)
            between = b""
            for numbers in self._batches(reader):
                lines = list(self._encoded(reader, numbers, style))
                if lines:
                    file.write(between + style.between.join(lines))
                    between = style.between
            file.write(style.tail)

    def _encoded(self, reader: VersionReader, numbers: np.ndarray, style: LineFormat) -> Iterator[bytes]:
        for number, row in zip(numbers.tolist(), self._rows_of(reader, numbers), strict=True):
            try:
                line, changes = style.encode(row)
            except Inexpressible as reason:
                self._losses.leave_out(str(reason), reader.index.id_of(number))
                continue
            for change in changes:
                self._losses.change(change, reader.index.id_of(number))
            yield line

    def _rows_of(self, reader: VersionReader, numbers: np.ndarray) -> Iterator[Row]:
        """Rows with their columns in the order of the version, in which parts need not have them."""
        index = reader.index
        for number, row in zip(numbers.tolist(), reader.rows(numbers), strict=True):
            ordered = {name: row[name] for name in index.columns if name in row}
            if self._spec["with_source"]:
                ordered |= {"source": index.sources[index.source[number]], "position": int(index.position[number])}
            yield ordered

    def _columns(self, reader: VersionReader) -> dict[str, str]:
        """Type of each column of the files."""
        provenance = {"source": STRING, "position": INT} if self._spec["with_source"] else {}
        return {**reader.index.columns, **provenance}

    def _line_format(self, reader: VersionReader) -> LineFormat:
        name, columns = self._spec["format"], self._columns(reader)
        if name in CONVERSATION_FORMATS:
            return records_format(WRITERS[name])
        if name == "label-studio":
            return records_format(write_task, as_array=True)
        if name in ("csv", "tsv"):
            return table_format(columns, "," if name == "csv" else "\t")
        if name == "text":
            column = self._spec["text_column"]
            return text_format(column, [other for other in columns if other != column])
        return json_format() if name == "json" else jsonl_format()

    def write_workbook(self) -> None:
        """One sheet. Raises `EngineError` if the names of the columns cannot stand in it."""
        reader = self._splits[0].reader
        columns = self._columns(reader)
        try:
            require_header(columns)
        except Inexpressible as reason:
            raise EngineError("CONTENT_INVALID", str(reason), detail="header") from reason
        self._notes += workbook_notes(columns)
        with self._files.new(self._spec["file_name"]) as file:
            write_workbook(self._identified(reader), columns, file, self._losses)

    def write_pictures(self) -> None:
        """One file with the annotations of all images."""
        reader, write = self._splits[0].reader, PICTURE_WRITERS[self._spec["format"]]
        listed = self._categories(reader)
        more = [name for name in reader.index.columns if name not in _LABELLED]
        if more and write is not write_coco:
            self._notes.append(f"not in the files: {', '.join(more)}")
        if listed and write is not write_coco:
            self._notes.append("of the categories, names and order are in the files")
        with self._files.new(self._spec["file_name"], self._spec["compression"]) as file:
            write(self._identified(reader), listed, file, self._losses)

    def _categories(self, reader: VersionReader) -> list[dict[str, Any]]:
        """What the rows list, in order, each name once: every row may list all categories again."""
        if reader.index.columns.get(_CATEGORIES) != JSON:
            return []
        self._passes = 2
        found: dict[str, dict[str, Any]] = {}
        for numbers in self._batches(reader):
            for text in reader.column(_CATEGORIES, numbers).to_pylist():
                listed = None if text is None else orjson.loads(text)
                for one in listed if isinstance(listed, list) else ():
                    if isinstance(one, dict) and isinstance(one.get("name"), str):
                        found.setdefault(one["name"], one)
        return list(found.values())

    def _identified(self, reader: VersionReader) -> Iterator[tuple[str, Row]]:
        """Row ids and rows."""
        for numbers in self._batches(reader):
            yield from zip(map(reader.index.id_of, numbers.tolist()), self._rows_of(reader, numbers), strict=True)

    def write_tables(self) -> None:
        """Parquet: one file, or a folder with files for each split and a card."""
        columns: dict[str, str] = {}
        for split in self._splits:
            for name, kind in split.reader.index.columns.items():
                columns[name] = widen(columns.get(name, kind), kind)
        rows = ParquetRows(columns, self._shapes(columns), self._spec["with_source"])
        if rows.text_columns:
            self._notes.append(f"as JSON text, because shapes differ: {', '.join(rows.text_columns)}")
        for split in self._splits:
            for path, start, stop in self._tables_of(split):
                tables = (rows.table(split.reader, part) for part in self._batches(split.reader, start, stop))
                with self._files.new(path) as file:
                    write_parquet(file, rows.schema, tables)
        if self._spec["format"] == FOLDER_FORMAT:
            with self._files.new("README.md") as file:
                file.write(card({split.name: split.version for split in self._splits}, self._sizes()).encode())

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and bytes of each split."""
        indexes = {split.name: split.reader.index for split in self._splits}
        return {name: (len(index), index.byte_count) for name, index in indexes.items()}

    def _tables_of(self, split: Split) -> Iterator[tuple[str, int, int]]:
        """Path, first row and row behind the last of each Parquet file of a split."""
        index = split.reader.index
        if self._spec["format"] != FOLDER_FORMAT:
            yield self._spec["file_name"], 0, len(index)
            return
        sizes = np.cumsum(index.size, dtype=np.int64)
        count = max(1, -(-index.byte_count // SHARD_BYTES))
        bounds = np.searchsorted(sizes, np.arange(1, count) * SHARD_BYTES, side="left").tolist()
        for number, (start, stop) in enumerate(zip([0, *bounds], [*bounds, len(index)], strict=True)):
            yield f"data/{split.name}-{number:05d}-of-{count:05d}.parquet", start, stop

    def _shapes(self, columns: dict[str, str]) -> dict[str, Any]:
        """The shapes of columns of lists and objects, for which their values are read once more."""
        shapes = Shapes(name for name, kind in columns.items() if kind == JSON)
        if shapes.open:
            self._passes = 2
            for split in self._splits:
                for numbers in self._batches(split.reader):
                    for name in shapes.open:
                        self._add_shapes(shapes, name, split.reader, numbers)
        return shapes.finish()

    @staticmethod
    def _add_shapes(shapes: Shapes, name: str, reader: VersionReader, numbers: np.ndarray) -> None:
        kind = reader.index.columns.get(name)
        values = reader.column(name, numbers).to_pylist() if kind is not None else []
        shapes.add(name, values if kind == JSON else [orjson.dumps(value).decode() for value in values])

    def _batches(self, reader: VersionReader, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Numbers of rows that are held at once."""
        stop = len(reader.index) if stop is None else stop
        while start < stop:
            self._ctx.stop_if_cancelled()
            sizes = np.cumsum(reader.index.size[start : min(stop, start + _BATCH_ROWS)], dtype=np.int64)
            end = start + max(1, int(np.searchsorted(sizes, _BATCH_BYTES, side="right")))
            yield np.arange(start, end)
            self._read += end - start
            share = 0.99 * self._read / (self._passes * self._rows)
            self._ctx.progress(share, f"{self._read:,} of {self._passes * self._rows:,} rows read", rows=self._read)
            start = end
