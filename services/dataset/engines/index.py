"""The index of a version: which rows it has, in which order, where they lie and where they came from.

A version is two small blobs beside its parts: the index (Arrow: row_id, part, slot, size, source, position) and the
manifest (JSON: columns, counts, digests of index and parts), whose digest names the version. Versions share parts, so
tag, roll-back and dropping rows copy nothing. Files that rows have (images, sound, films) are blobs, named
by a manifest of their own that the version's manifest names: who may read rows gets no list of a million files.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from libs.common.blobs import Json, canonical
from libs.compute.versions import FORMAT, VersionIndex
from services.dataset.engines.index_columns import strides
from services.dataset.engines.parts import Blobs
from services.dataset.engines.rows import type_name

# Rows of a segment of the index, 3.7 MB: whoever needs a page reads one or two of them.
SEGMENT_ROWS = 65_536

_MEDIA = pa.field("media", pa.int32())
_SCHEMA = pa.schema(
    [
        ("row_id", pa.binary(32)),
        ("part", pa.int32()),
        ("slot", pa.int32()),
        ("size", pa.int32()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("position", pa.int64()),
    ]
)


def content_digest(index: VersionIndex) -> str:
    """SHA-256 over the row ids in order, in hexadecimal: the same for the same rows, however they are stored."""
    digest = hashlib.sha256(FORMAT.encode() + b"\n")
    for rows in strides(len(index)):
        digest.update(index.row_ids[rows].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Saved:
    """A version in the store, as the service keeps it."""

    manifest_digest: str
    content_digest: str
    row_count: int
    byte_count: int
    columns: list[dict[str, str]]


def save(index: VersionIndex, blobs: Blobs) -> Saved:
    """Stores index and manifest. They are a version once the service has a row with the manifest's digest."""
    used = _Used(index)
    with tempfile.NamedTemporaryFile(prefix="argosy-index-") as file:
        _encode(index, used, file)
        file.flush()
        digest = blobs.write_file(Path(file.name))
    content = content_digest(index)
    media = [blobs.write(canonical(_media_manifest(used.media_blobs)))] if used.media_blobs else []
    manifest: Json = {
        "format": FORMAT,
        # The index first, then the parts: `parts` of the index count from the second.
        "blobs": [
            *({"sha256": blob} for blob in (digest, *used.parts)),
            *({"sha256": blob, "manifest": True} for blob in media),
        ],
        "columns": [{"name": name, "kind": kind} for name, kind in index.columns.items()],
        "row_count": len(index),
        "index_rows": SEGMENT_ROWS,
        "byte_count": index.byte_count,
        "content": content,
    }
    columns = [{"name": name, "type": type_name(kind)} for name, kind in index.columns.items()]
    return Saved(blobs.write(canonical(manifest)), content, len(index), index.byte_count, columns)


def _media_manifest(media_blobs: list[str]) -> Json:
    # Nothing else in an entry: `find_media` reads one by its place.
    return {"kind": "media", "blobs": [{"sha256": blob} for blob in media_blobs]}


class _Used:
    """What of an index's lists its rows use, in order of first use, and the new number of each."""

    def __init__(self, index: VersionIndex) -> None:
        self.part_numbers, self.parts = _renumber(index.part, index.parts)
        self.source_numbers, self.sources = _renumber(index.source, index.sources)
        media = np.zeros(0, np.int32) if index.media is None else index.media
        self.media_numbers, self.media_blobs = _renumber(media, index.media_blobs)


def _encode(index: VersionIndex, used: _Used, sink: IO[bytes]) -> None:
    """Writes the Arrow file of an index, a segment at a time."""
    # Only where rows have files, so that other versions keep their digests.
    schema = _SCHEMA.append(_MEDIA) if used.media_blobs else _SCHEMA
    sources = pa.array(used.sources, pa.string())
    with pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(index), SEGMENT_ROWS):
            rows = slice(start, min(len(index), start + SEGMENT_ROWS))
            ids = pa.py_buffer(np.ascontiguousarray(index.row_ids[rows]).tobytes())
            arrays = [
                pa.Array.from_buffers(pa.binary(32), rows.stop - rows.start, [None, ids]),
                pa.array(used.part_numbers[index.part[rows]], pa.int32()),
                pa.array(index.slot[rows], pa.int32()),
                pa.array(index.size[rows], pa.int32()),
                pa.DictionaryArray.from_arrays(pa.array(used.source_numbers[index.source[rows]], pa.int32()), sources),
                pa.array(index.position[rows], pa.int64()),
            ]
            if used.media_blobs:
                assert index.media is not None
                codes = index.media[rows]
                arrays.append(pa.array(np.where(codes >= 0, used.media_numbers[codes], -1), pa.int32()))
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _renumber(codes: np.ndarray, values: list[str]) -> tuple[np.ndarray, list[str]]:
    """The values that are used, in order of first use, and by its old number the new one of each, -1 for the others.

    Args:
        codes: int32[n], into `values`; below 0: none.
    """
    numbers = np.full(len(values) or 1, -1, np.int32)
    kept: list[str] = []
    for rows in strides(len(codes)):
        used, first = np.unique(codes[rows], return_index=True)
        order = used[np.argsort(first, kind="stable")]
        new = order[(order >= 0) & (numbers[order] < 0)]
        numbers[new] = np.arange(len(kept), len(kept) + len(new), dtype=np.int32)
        kept += [values[code] for code in new]
    return numbers, kept
