"""The index of a version: which rows it has, in which order, where they lie and where they came from.

A version is two small blobs beside its parts: the index (Arrow: row_id, part, slot, size, source, position) and the
manifest (JSON: columns, counts, digests of index and parts), whose digest names the version. Versions share parts, so
tag, roll-back and dropping rows copy nothing. Files that rows have (images, sound, films) are blobs, named
by a manifest of their own that the version's manifest names: who may read rows gets no list of a million files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from libs.common.blobs import Json, canonical
from libs.compute.versions import FORMAT, VersionIndex
from services.dataset.engines.parts import Blobs
from services.dataset.engines.rows import type_name

# Rows of a segment of the index, 3.7 MB: whoever needs a page reads one or two of them.
SEGMENT_ROWS = 65_536

# Only where rows have files, so that other versions keep their digests.
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


def compact(index: VersionIndex) -> VersionIndex:
    """The same rows with only the parts and sources that they use, numbered by first use."""
    part, parts = _renumber(index.part, index.parts)
    source, sources = _renumber(index.source, index.sources)
    media, blobs = _compact_media(index)
    return replace(index, parts=parts, sources=sources, part=part, source=source, media=media, media_blobs=blobs)


def _compact_media(index: VersionIndex) -> tuple[np.ndarray | None, list[str]]:
    if index.media is None or not (index.media >= 0).any():
        return None, []
    has = index.media >= 0
    media = np.full(len(index), -1, np.int32)
    media[has], blobs = _renumber(index.media[has], index.media_blobs)
    return media, blobs


def content_digest(index: VersionIndex) -> str:
    """SHA-256 over the row ids in order, in hexadecimal: the same for the same rows, however they are stored."""
    return hashlib.sha256(FORMAT.encode() + b"\n" + index.row_ids.tobytes()).hexdigest()


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
    index = compact(index)
    digest = blobs.write(_encode(index))
    content = content_digest(index)
    media = [blobs.write(canonical(_media_manifest(index)))] if index.media_blobs else []
    manifest: Json = {
        "format": FORMAT,
        # The index first, then the parts: `parts` of the index count from the second.
        "blobs": [
            *({"sha256": blob} for blob in (digest, *index.parts)),
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


def _media_manifest(index: VersionIndex) -> Json:
    # Nothing else in an entry: `find_media` reads one by its place.
    return {"kind": "media", "blobs": [{"sha256": blob} for blob in index.media_blobs]}


def _encode(index: VersionIndex) -> bytes:
    ids = np.ascontiguousarray(index.row_ids)
    arrays = [
        pa.Array.from_buffers(pa.binary(32), len(index), [None, pa.py_buffer(ids.tobytes())]),
        pa.array(index.part, pa.int32()),
        pa.array(index.slot, pa.int32()),
        pa.array(index.size, pa.int32()),
        pa.DictionaryArray.from_arrays(pa.array(index.source, pa.int32()), pa.array(index.sources, pa.string())),
        pa.array(index.position, pa.int64()),
    ]
    schema = _SCHEMA
    if index.media is not None:
        arrays.append(pa.array(index.media, pa.int32()))
        schema = schema.append(_MEDIA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema), max_chunksize=SEGMENT_ROWS)
    return sink.getvalue().to_pybytes()


def _renumber(codes: np.ndarray, values: list[str]) -> tuple[np.ndarray, list[str]]:
    """Keeps the values that are used, in order of first use, and rewrites the codes."""
    used, first = np.unique(codes, return_index=True)
    order = used[np.argsort(first, kind="stable")]
    numbers = np.zeros(len(values) or 1, np.int32)
    numbers[order] = np.arange(len(order), dtype=np.int32)
    return numbers[codes] if len(codes) else codes, [values[code] for code in order]
