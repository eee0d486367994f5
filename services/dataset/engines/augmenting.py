"""Augmentation: copies of rows, changed at random, beside their originals.

What becomes of a copy depends on the seed, the id of its row, its number and the operator, and on nothing else: not on
the rows around it, and not on how many workers there are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from libs.common.blobs import BlobStore
from libs.compute.context import EngineContext
from libs.compute.scratch import scratch_folder
from libs.compute.versions import VersionReader
from services.dataset.engines.access import StoreBlobs, granted_version, open_version
from services.dataset.engines.index import save
from services.dataset.engines.media import FACTS, MediaChild, MediaError, worker_child
from services.dataset.engines.report import RuleTally, version_result
from services.dataset.engines.rows import Row, RowError
from services.dataset.engines.shards import map_shards
from services.dataset.engines.text_augmentation import augment_text
from services.dataset.engines.texts import Change, Source, Texts
from services.dataset.engines.writing import VersionWriter

# Rows of one shard. Of rows with files few, because a shard comes back with the new files.
_SHARD_ROWS = {"text": 4096, "image": 32, "audio": 8, "video": 1}
# Rule in the report under which copies are that could not be made.
_FAILED = "not_augmented"
# Endings of the files that are written, by the codec of the original; the others by the kind of file.
_ENDINGS = {"jpeg": ".jpg", "MJPG": ".avi", "image": ".png", "audio": ".wav", "video": ".mp4"}

Step = dict[str, Any]


@dataclass(slots=True)
class Copy:
    """A changed copy of a row, or why there is none.

    Attributes:
        at: of the original, counted from the first row of the shard.
        row: empty when there is none.
        file: what its file holds; empty when the row has none.
        applied: operators that changed it.
        error: why it could not be made; empty when no step changed it.
    """

    at: int
    row: Row = field(default_factory=dict)
    file: bytes = b""
    applied: list[str] = field(default_factory=list)
    error: str = ""


@dataclass(slots=True)
class Copies:
    """Of a shard.

    Attributes:
        count: rows of the shard.
        copies: in the order of their originals, then of their numbers.
        examples: operator to its first changes.
    """

    count: int
    copies: list[Copy]
    examples: dict[str, list[Change]] = field(default_factory=dict)


def run(ctx: EngineContext) -> dict[str, Any]:
    """Augments one version.

    The spec names `version` and `grant` (manifest), `media_grant` (for the files of its rows; empty without any),
    `media_type` (`text`, `image`, `audio`, `video`), `text_column`, and `recipe` (`seed`, `copies`, `steps`).
    """
    started = time.monotonic()
    spec = ctx.spec
    store = ctx.blobs_read(spec["grant"])
    blobs = StoreBlobs(ctx.blobs_write, store)
    reader = open_version(store, spec["version"], blobs)
    merged = _Merged(reader, ctx.blobs_write, [step["operator"] for step in spec["recipe"]["steps"]])
    total, size = len(reader.index), _SHARD_ROWS[spec["media_type"]]
    shards = [(spec, start, min(total, start + size)) for start in range(0, total, size)]

    media = ctx.blobs_read(spec["media_grant"]) if spec["media_grant"] else None
    with MediaChild() as child:

        def local(spec: dict[str, Any], start: int, stop: int) -> Copies:
            return augment(reader, media, child, spec, start, stop)

        for copies in map_shards(augment_shard, shards, local, ctx.log):
            ctx.stop_if_cancelled()
            merged.add(copies)
            message = f"{merged.seen:,} of {total:,} rows copied and changed"
            ctx.progress(0.95 * merged.seen / total, message, rows=merged.seen)
    saved = save(merged.writer.finish(), blobs)
    ctx.progress(1.0, f"{saved.row_count:,} rows of {total:,}", rows=saved.row_count, bytes=saved.byte_count)
    report = {**merged.report(), "seconds": time.monotonic() - started}
    return version_result(saved, report, merged.writer.new_bytes)


def augment_shard(spec: dict[str, Any], start: int, stop: int) -> Copies:
    """`augment` in a Ray worker, which opens the version by its grants."""
    media = BlobStore.from_grant(spec["media_grant"]) if spec["media_grant"] else None
    return augment(granted_version(spec["grant"], spec["version"]), media, worker_child(), spec, start, stop)


def augment(
    reader: VersionReader, media: BlobStore | None, child: MediaChild, spec: dict[str, Any], start: int, stop: int
) -> Copies:
    """Changed copies of rows [start, stop).

    Args:
        media: Has the files of the rows; None where they have none.
        child: Decodes them.
    """
    if spec["media_type"] == "text":
        return _texts(reader, spec["text_column"], spec["recipe"], start, stop)
    made = Copies(stop - start, [])
    with scratch_folder("argosy-media-") as folder:
        files = _Files(child, media, folder / "original", spec["media_type"], spec["recipe"])
        for at, row in enumerate(reader.rows(np.arange(start, stop))):
            digest, row_id = reader.index.media_of(start + at), reader.index.id_of(start + at)
            made.copies += files.copies(at, row, row_id, digest)
    return made


def step_seed(seed: int, row_id: str, operator: str, copy: int) -> int:
    """Seed of the random stream of one operator for one copy of one row.

    Args:
        operator: Its name, and which one of that name it is: `noise#1`.
        copy: Counted from 1.
    """
    told = f"{seed}\n{row_id}\n{operator}\n{copy}".encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=16).digest(), "little")


def _seeded(recipe: dict[str, Any], row_id: str, copy: int) -> Iterator[Step]:
    counts: dict[str, int] = {}
    for step in recipe["steps"]:
        name = step["operator"]
        counts[name] = counts.get(name, 0) + 1
        yield {**step, "seed": step_seed(recipe["seed"], row_id, f"{name}#{counts[name]}", copy)}


def _texts(reader: VersionReader, column: str, recipe: dict[str, Any], start: int, stop: int) -> Copies:
    numbers = np.arange(start, stop)
    rows = reader.rows(numbers)
    originals = reader.texts(column, numbers)
    made = Copies(stop - start, [])
    for copy in range(1, recipe["copies"] + 1):
        texts = Texts(originals, Source.of_texts(originals))
        for at in range(stop - start):
            for step in _seeded(recipe, reader.index.id_of(start + at), copy):
                random = np.random.default_rng(step["seed"])
                texts.begin(step["operator"])
                if random.random() < step["probability"]:
                    texts.replace(at, augment_text(texts.texts[at], step["operator"], step, random))
        for at, applied in texts.changes.items():
            row = {**rows[at], column: texts.texts[at], "augmented_from": reader.index.id_of(start + at)}
            made.copies.append(Copy(at, row, applied=applied))
        for operator, changes in texts.examples.items():
            made.examples.setdefault(operator, []).extend(changes)
    # Stable: of one original in the order of their numbers.
    made.copies.sort(key=lambda one: one.at)
    return made


class _Files:
    """Makes copies of rows with files.

    Args:
        media: Has the files.
        path: Where the file lies that is copied now.
    """

    def __init__(
        self, child: MediaChild, media: BlobStore | None, path: Path, media_type: str, recipe: dict[str, Any]
    ) -> None:
        self._child = child
        self._media = media
        self._path = path
        self._media_type = media_type
        self._recipe = recipe

    def copies(self, at: int, row: Row, row_id: str, digest: str | None) -> list[Copy]:
        """All copies of one row.

        Args:
            at: Of the row, for `Copy.at`.
            digest: Of its file, if it has one.
        """
        if self._media is None or digest is None:
            return [Copy(at, error="the row has no file")]
        self._media.export_sync(digest, self._path)
        return [self._copy(at, row, row_id, number) for number in range(1, self._recipe["copies"] + 1)]

    def _copy(self, at: int, row: Row, row_id: str, number: int) -> Copy:
        out = self._path.with_name(f"copy{_ending(row, self._media_type)}")
        try:
            objects = _objects(row)
            steps, boxes = list(_seeded(self._recipe, row_id, number)), [one["box"] for one in objects]
            told = self._child.augment(self._path, out, self._media_type, steps, boxes)
            if not told.applied:
                return Copy(at)
            data = out.read_bytes()
        except (MediaError, OSError) as error:
            return Copy(at, error=str(error))
        finally:
            out.unlink(missing_ok=True)
        new = {name: value for name, value in row.items() if name not in FACTS} | told.facts
        new |= {
            "file_name": _copy_name(str(row.get("file_name", "")), number, out.suffix),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "augmented_from": row_id,
        }
        if objects:
            moved = zip(objects, told.boxes, strict=True)
            new["objects"] = [{**one, "box": box} for one, box in moved if box is not None]
        return Copy(at, new, data, told.applied)


def _ending(row: Row, media_type: str) -> str:
    return _ENDINGS.get(str(row.get("codec")), _ENDINGS[media_type])


def _copy_name(name: str, copy: int, ending: str) -> str:
    """`cat.png` becomes `cat.augmented1.png`: files that are read by name must not share one."""
    folder, slash, file = name.rpartition("/")
    stem, _, last = file.rpartition(".")
    return f"{folder}{slash}{stem or last}.augmented{copy}{ending}"


def _objects(row: Row) -> list[dict[str, Any]]:
    """What is on an image. Raises MediaError for boxes that are none."""
    objects = row.get("objects", [])
    if not isinstance(objects, list) or not all(isinstance(one, dict) and _is_box(one.get("box")) for one in objects):
        raise MediaError("objects: each has a box of four numbers: left, top, width, height")
    return objects


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)


class _Merged:
    """Originals and copies, written in order.

    Args:
        store: Takes the files of copies.
    """

    def __init__(self, reader: VersionReader, store: BlobStore, operators: Sequence[str]) -> None:
        self._reader = reader
        self._store = store
        self._tally = RuleTally(reader.index, [*operators, _FAILED])
        self.writer = VersionWriter(StoreBlobs(store), reader.index)
        self.seen = 0

    def add(self, shard: Copies) -> None:
        """Takes the next rows."""
        first = self.seen
        self.seen += shard.count
        for operator, changes in shard.examples.items():
            self._tally.show_changes(operator, first, changes)
        copies = iter(shard.copies)
        copy = next(copies, None)
        for at, row in enumerate(self._reader.rows(np.arange(first, self.seen))):
            self._write(row, first + at, self._reader.index.media_of(first + at) or "")
            while copy is not None and copy.at == at:
                self._add_copy(copy, first + at)
                copy = next(copies, None)

    def report(self) -> dict[str, Any]:
        """Fields of `argosy.dataset.v1.Report`."""
        rules, changed = self._tally.rules(), self._tally.changed
        return {"rows_in": self.seen, "rows_out": len(self.writer), "rules": rules, "changed": changed}

    def _add_copy(self, copy: Copy, original: int) -> None:
        error = copy.error
        if copy.row:
            try:
                self._write(copy.row, original, self._store.put_sync(copy.file).sha256 if copy.file else "")
                self._tally.change(copy.applied)
            except RowError as reason:
                error = str(reason)
        if error:
            self._tally.drop(_FAILED, original, error, "")

    def _write(self, row: Row, original: int, media: str) -> None:
        index = self._reader.index
        source = index.sources[int(index.source[original])]
        self.writer.add(row, source, int(index.position[original]), media)
