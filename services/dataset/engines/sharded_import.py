"""Import of a large file of lines in shards, on as many workers as there are: same rows, same version as with one.

A shard is some pieces of the upload. A worker reads the lines that start in them and returns rows as finished parts,
which this process stores; so workers need no right to write. Lines and rows are counted from the shard's beginning and
shifted when shards are put together, in order.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from libs.common.blobs import BlobStore, Json, manifest_digests
from libs.compute.context import EngineContext, EngineError
from libs.compute.versions import VersionIndex
from services.dataset.engines.access import StoreBlobs, granted_version
from services.dataset.engines.formats import read_jsonl, read_text
from services.dataset.engines.index_columns import STRIDE_ROWS, IndexColumns, strides
from services.dataset.engines.intake import LINE_ERRORS, Intake
from services.dataset.engines.lines import PhysicalLines
from services.dataset.engines.parts import Blobs
from services.dataset.engines.rows import MAX_COLUMNS, widen
from services.dataset.engines.shards import map_shards
from services.dataset.engines.writing import VersionWriter

# Formats whose lines can be read from anywhere on.
SHARDED = {"jsonl": read_jsonl, "text": read_text}
# A shard has whole pieces of together at least so many bytes: a second of work.
SHARD_BYTES = 32 * 1024 * 1024


@dataclass(slots=True)
class Shard:
    """What one worker made of its pieces.

    Attributes:
        parts: new parts, in order.
        index: of the rows; part numbers below that of the base version's parts are the base's. A position below 0 is
            that of a row without one of its own: the number of its line within the shard, negated.
        new_bytes: of the rows that the base does not have.
        lines: physical lines.
        report: of these lines.
    """

    parts: list[bytes]
    index: VersionIndex
    new_bytes: int
    lines: int
    report: dict[str, Any]


class _Pieces(io.RawIOBase):
    """The blobs of a manifest from one on, as a stream."""

    def __init__(self, uploads: Blobs, digests: list[str], shard: int) -> None:
        self._uploads = uploads
        self._digests = iter(digests)
        self._left = shard
        self._piece = memoryview(b"")
        # Bytes of the shard's own pieces that have been read; all of them before a line behind them is.
        self.own_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._piece:
            digest = next(self._digests, None)
            if digest is None:
                return 0
            self._piece = memoryview(self._uploads.read(digest))
            if self._left:
                self._left -= 1
                self.own_bytes += len(self._piece)
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size


class _Kept:
    """A `Sink` whose blobs stay in memory until the shard is handed over."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> str:
        self.parts.append(data)
        return hashlib.sha256(data).hexdigest()


def read_shard(
    uploads: Blobs,
    digests: list[str],
    first: int,
    last: int,
    known: VersionIndex | None,
    format_name: str,
    file_name: str,
) -> Shard:
    """Reads the lines that start in pieces [first, last).

    Args:
        uploads: Has the pieces.
        digests: Of all pieces of the upload.
        first: Number of the shard's first piece.
        last: Number of the piece behind its last one.
        known: Version whose rows are referenced instead of stored again.
        format_name: One of `SHARDED`.
        file_name: Source of rows that name none.
    """
    pieces = _Pieces(uploads, digests[first:], last - first)
    # A line that starts right behind the shard's last byte is the shard's: the next one leaves out its first line.
    lines = PhysicalLines(io.BufferedReader(pieces, 1 << 20), first > 0, lambda: pieces.own_bytes)
    kept = _Kept()
    writer = VersionWriter(kept, known)
    intake = Intake(writer, file_name)
    for line in SHARDED[format_name](lines):
        intake.add(line, -line.number)
    index = writer.finish()
    return Shard(kept.parts, index, writer.new_bytes, lines.count, intake.report())


def read_shard_by_grant(
    grant: str, upload: str, first: int, last: int, base_grant: str, base: str, format_name: str, file_name: str
) -> Shard:
    """`read_shard` in a Ray worker, which opens everything by its grants."""
    uploads, digests = _open_upload(grant, upload)
    return read_shard(uploads, digests, first, last, _open_base(base_grant, base), format_name, file_name)


# A worker that gets several shards reads the manifest and the base's index once.
@lru_cache(maxsize=1)
def _open_upload(grant: str, upload: str) -> tuple[Blobs, list[str]]:
    store = BlobStore.from_grant(grant)
    return StoreBlobs(None, store), manifest_digests(store.load_manifest_sync(upload))


@lru_cache(maxsize=1)
def _open_base(grant: str, base: str) -> VersionIndex | None:
    if not base:
        return None
    return granted_version(grant, base).index


def import_shards(
    ctx: EngineContext, uploads: Blobs, manifest: Json, known: VersionIndex | None, blobs: Blobs
) -> tuple[VersionIndex, dict[str, Any], int]:
    """Imports an upload of many pieces.

    Args:
        ctx: Its spec is that of `importing.run`.
        uploads: Has the pieces.
        manifest: Of the pieces.
        known: The base version, if the spec names one.
        blobs: Where parts go.

    Returns:
        The index, not yet saved; fields of `argosy.dataset.v1.Report`; bytes of rows that the base does not have.

    Raises:
        EngineError: CONTENT_INVALID, when all rows together have too many columns.
    """
    spec = ctx.spec
    upload = (spec["upload_grant"], spec["upload"])
    base = (spec.get("base_grant", ""), spec.get("base", ""))
    kind = (spec["format"], spec["file_name"])
    digests = manifest_digests(manifest)

    def local(_grant: str, _upload: str, first: int, last: int, *_: str) -> Shard:
        return read_shard(uploads, digests, first, last, known, *kind)

    merged = _Merged(known, blobs)
    shards = [(*upload, first, last, *base, *kind) for first, last in _ranges(manifest)]
    for number, shard in enumerate(map_shards(read_shard_by_grant, shards, local, ctx.log), 1):
        ctx.stop_if_cancelled()
        merged.add(shard)
        ctx.progress(0.95 * number / len(shards), f"{merged.rows:,} rows read", rows=merged.rows)
    return merged.finish()


def _ranges(manifest: Json) -> Iterator[tuple[int, int]]:
    """Numbers of the first piece of each shard and of the one behind its last."""
    first = size = 0
    pieces = manifest["blobs"]
    for number, piece in enumerate(pieces, 1):
        size += piece["size"]
        if size >= SHARD_BYTES or number == len(pieces):
            yield first, number
            first, size = number, 0


class _Merged:
    """Puts shards together, in order."""

    def __init__(self, known: VersionIndex | None, blobs: Blobs) -> None:
        self._blobs = blobs
        self._base = list(known.parts) if known is not None else []
        self._parts = list(self._base)
        self._columns: dict[str, str] = {}
        self._sources: dict[str, int] = {}
        self._rows = IndexColumns()
        self._lines = 0
        self._new_bytes = 0
        self._report: dict[str, Any] = {"rows_in": 0, "rows_out": 0, "line_errors": [], "line_error_count": 0}

    @property
    def rows(self) -> int:
        """How many there are so far."""
        return self._report["rows_out"]

    def add(self, shard: Shard) -> None:
        """Stores the parts of the next shard and takes over its rows."""
        index, base = shard.index, len(self._base)
        index.part = np.where(index.part >= base, index.part + (len(self._parts) - base), index.part).astype(np.int32)
        self._parts += [self._blobs.write(part) for part in shard.parts]
        numbers = [self._sources.setdefault(source, len(self._sources)) for source in index.sources]
        index.source = np.array(numbers, np.int32)[index.source] if len(index) else index.source
        index.position = np.where(index.position < 0, self._lines - index.position, index.position)
        for name, kind in index.columns.items():
            self._columns[name] = widen(self._columns.get(name, kind), kind)
        if len(self._columns) > MAX_COLUMNS:
            raise EngineError(
                "CONTENT_INVALID", f"the rows have more than {MAX_COLUMNS} different columns", detail="columns"
            )
        self._take_over(shard.report)
        self._rows.add(
            row_ids=index.row_ids,
            part=index.part,
            slot=index.slot,
            size=index.size,
            source=index.source,
            position=index.position,
        )
        self._lines += shard.lines
        self._new_bytes += shard.new_bytes

    def _take_over(self, report: dict[str, Any]) -> None:
        for count in ("rows_in", "rows_out", "line_error_count"):
            self._report[count] += report[count]
        errors = self._report["line_errors"]
        wanted = report["line_errors"][: LINE_ERRORS - len(errors)]
        errors += [{**error, "line": self._lines + error["line"]} for error in wanted]

    def finish(self) -> tuple[VersionIndex, dict[str, Any], int]:
        """What `import_shards` returns."""

        index = self._rows.index(self._parts, list(self._sources), self._columns)
        repeated = _point_to_first(index)
        return index, self._report, self._new_bytes - repeated


def _point_to_first(index: VersionIndex) -> int:
    """Makes rows of equal content lie where the first of them lies. Returns the bytes of the copies that are not
    needed: a row that came in two shards was stored by both."""
    # Row ids are digests: those that begin alike are an even share of all.
    buckets = min(256, -(-len(index) // STRIDE_ROWS))
    return sum(_point_bucket_to_first(index, bucket, buckets) for bucket in range(buckets))


def _point_bucket_to_first(index: VersionIndex, bucket: int, buckets: int) -> int:
    found = [
        rows.start + np.flatnonzero(index.row_ids[rows, 0].astype(np.int32) * buckets >> 8 == bucket)
        for rows in strides(len(index))
    ]
    own = np.concatenate(found)
    prefixes = np.ascontiguousarray(index.row_ids[own, :8]).view(np.uint64).reshape(-1)
    order = np.argsort(prefixes, kind="stable")
    ranked = prefixes[order]
    spare: dict[tuple[int, int], int] = {}
    for at in np.flatnonzero(ranked[1:] == ranked[:-1]) + 1:
        row, first = int(own[order[at]]), int(own[order[at - 1]])
        if (index.row_ids[row] != index.row_ids[first]).any():
            continue
        place = int(index.part[row]), int(index.slot[row])
        # Ascending, so the row before has its final place already.
        if place != (int(index.part[first]), int(index.slot[first])):
            spare[place] = int(index.size[row])
            index.part[row], index.slot[row] = index.part[first], index.slot[first]
    return sum(spare.values())
