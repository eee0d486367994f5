"""Annotation by a detector: boxes with scores for the images of a version, in the column `objects`.

What is found in an image depends on the image and on nothing else: not on the rows around it, and not on how many
workers there are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from libs.common.blobs import BlobStore
from libs.compute.context import EngineContext
from libs.compute.scratch import scratch_folder
from libs.compute.versions import VersionReader
from services.dataset.domain.detectors import DetectorKind
from services.dataset.engines.access import StoreBlobs, granted_version, open_version
from services.dataset.engines.annotations.pictures import Object
from services.dataset.engines.detection.adapters import Detector, open_detector
from services.dataset.engines.detection.making import fetch_detector
from services.dataset.engines.detection.proposing import propose
from services.dataset.engines.index import save
from services.dataset.engines.media import MediaChild, MediaError, worker_child
from services.dataset.engines.report import RuleTally, version_result
from services.dataset.engines.rows import Row
from services.dataset.engines.shards import map_shards
from services.dataset.engines.writing import VersionWriter

_SHARD_ROWS = 32
_OBJECTS = "objects"
# Images that could not be read, in the report.
_MOST_ERRORS = 100


@dataclass(slots=True)
class Looked:
    """A shard that was looked at.

    Attributes:
        objects: row by row; None for one that stays as it is.
        errors: number of a row in the shard to why its image could not be read.
    """

    objects: list[list[Object] | None] = field(default_factory=list[list[Object] | None])
    errors: dict[int, str] = field(default_factory=dict[int, str])


def run(ctx: EngineContext) -> dict[str, Any]:
    """Annotates one version.

    The spec names `version` and `grant` (manifest), `media_grant` (for the files of its rows; empty without any),
    `detector`, `detector_grant` and `kind`, and `targets`, `excluded` and `least_score`.
    """
    started = time.monotonic()
    spec = ctx.spec
    store = ctx.blobs_read(spec["grant"])
    blobs = StoreBlobs(ctx.blobs_write, store)
    reader = open_version(store, spec["version"], blobs)
    total = len(reader.index)
    shards = [(spec, start, min(total, start + _SHARD_ROWS)) for start in range(0, total, _SHARD_ROWS)]
    media = ctx.blobs_read(spec["media_grant"]) if spec["media_grant"] else None
    ctx.progress(0.0, "Opening the detector")
    detector = _opened(ctx.blobs_read(spec["detector_grant"]), spec)
    merged = _Merged(reader, blobs, spec["targets"])
    with MediaChild() as child:

        def local(spec: dict[str, Any], start: int, stop: int) -> Looked:
            return look(reader, media, child, detector, spec, start, stop)

        for looked in map_shards(look_at_shard, shards, local, ctx.log):
            ctx.stop_if_cancelled()
            merged.add(looked)
            ctx.progress(0.95 * merged.seen / total, f"{merged.seen:,} of {total:,} images", rows=merged.seen)
    saved = save(merged.writer.finish(), blobs)
    if merged.left:
        ctx.log(f"{merged.left:,} rows stay as people annotated them")
    ctx.progress(1.0, f"{merged.boxes:,} boxes in {total:,} images", rows=saved.row_count, bytes=saved.byte_count)
    report = {**merged.report(), "seconds": time.monotonic() - started}
    return version_result(saved, report, merged.writer.new_bytes)


def look_at_shard(spec: dict[str, Any], start: int, stop: int) -> Looked:
    """`look` in a Ray worker, which opens version and detector by their grants."""
    media = BlobStore.from_grant(spec["media_grant"]) if spec["media_grant"] else None
    detector = _granted_detector(spec["detector_grant"], spec["detector"], spec["kind"])
    reader = granted_version(spec["grant"], spec["version"])
    return look(reader, media, worker_child(), detector, spec, start, stop)


def look(
    reader: VersionReader,
    media: BlobStore | None,
    child: MediaChild,
    detector: Detector,
    spec: dict[str, Any],
    start: int,
    stop: int,
) -> Looked:
    """What a detector finds in the images of rows [start, stop).

    Args:
        media: Has the images; None where rows have none.
        child: Decodes them.
    """
    looked = Looked()
    with scratch_folder("argosy-media-") as folder:
        path, out = folder / "image", folder / "pixels"
        for at, row in enumerate(reader.rows(np.arange(start, stop))):
            looked.objects.append(None)
            if _is_by_people(row):
                continue
            digest = reader.index.media_of(start + at)
            if media is None or digest is None:
                looked.errors[at] = "the row has no file"
                continue
            media.export_sync(digest, path)
            try:
                image = child.pixels(path, out)
            except MediaError as error:
                looked.errors[at] = str(error)
                continue
            (found,) = propose(detector, [image], spec["targets"], spec["excluded"], spec["least_score"])
            looked.objects[-1] = found
    return looked


def _is_by_people(row: Row) -> bool:
    """Whether somebody has said what is on the image: what a detector says has a score."""
    objects = row.get(_OBJECTS)
    if not isinstance(objects, list) or not objects:
        return False
    return not all(isinstance(one, dict) and "score" in one for one in objects)


@lru_cache(maxsize=1)
def _granted_detector(grant: str, manifest: str, kind: int) -> Detector:
    """One detector at a time: a worker that gets several shards opens it once."""
    return _opened(BlobStore.from_grant(grant), {"detector": manifest, "kind": kind})


def _opened(store: BlobStore, spec: dict[str, Any]) -> Detector:
    with scratch_folder("argosy-detector-") as folder:
        fetch_detector(store, spec["detector"], folder)
        return open_detector(DetectorKind(spec["kind"]), folder)


class _Merged:
    """Rows with their objects, written in order."""

    def __init__(self, reader: VersionReader, blobs: StoreBlobs, targets: list[str]) -> None:
        self._reader = reader
        self._tally = RuleTally(reader.index, targets)
        self._errors: list[dict[str, Any]] = []
        self._error_count = 0
        self.writer = VersionWriter(blobs, reader.index)
        self.seen = self.boxes = self.left = 0

    def add(self, looked: Looked) -> None:
        """Takes the next rows."""
        first, index = self.seen, self._reader.index
        self.seen += len(looked.objects)
        self.left += sum(objects is None for objects in looked.objects) - len(looked.errors)
        self._error_count += len(looked.errors)
        told = [{"line": first + at + 1, "error": error} for at, error in looked.errors.items()]
        self._errors += told[: _MOST_ERRORS - len(self._errors)]
        for at, row in enumerate(self._reader.rows(np.arange(first, self.seen))):
            objects = looked.objects[at]
            if objects is not None:
                row = {**row, _OBJECTS: objects}
                self.boxes += len(objects)
                self._tally.change(list(dict.fromkeys(one["label"] for one in objects)))
            number = first + at
            source = index.sources[int(index.source[number])]
            self.writer.add(row, source, int(index.position[number]), index.media_of(number) or "")

    def report(self) -> dict[str, Any]:
        """Fields of `argosy.dataset.v1.Report`: a rule a target, which changed the rows that have it."""
        return {
            "rows_in": self.seen,
            "rows_out": len(self.writer),
            "rules": self._tally.rules(),
            "changed": self._tally.changed,
            "line_errors": self._errors,
            "line_error_count": self._error_count,
        }
