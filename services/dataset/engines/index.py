"""The index of a version: which rows it has, in which order, where they lie and where they came from.

A version is two small blobs beside its parts: the index (Arrow: row_id, part, slot, size, source, position) and the manifest
(JSON: columns, counts, digests of index and parts), whose digest names the version. Versions share parts, so tag, roll-back and
dropping rows copy nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from services.dataset.engines.parts import Blobs
from services.dataset.engines.rows import type_name

FORMAT = "argosy.rows/1"
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


@dataclass(slots=True)
class VersionIndex:
    """Rows of a version, column by column; n is the number of rows.

    Attributes:
        parts: digests of the parts.
        sources: distinct sources.
        columns: name to type, in order (`services.dataset.engines.rows.kind_of`).
        row_ids: (n, 32) uint8.
        part: (n,) int32, into `parts`.
        slot: (n,) int32, row inside the part.
        size: (n,) int32, bytes of canonical content.
        source: (n,) int32, into `sources`.
        position: (n,) int64, line or row in the source.
    """

    parts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    row_ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 32), np.uint8))
    part: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    slot: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    size: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    source: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    position: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.part)

    @property
    def byte_count(self) -> int:
        """Bytes of canonical content of all rows."""
        return int(self.size.sum(dtype=np.int64))

    def select(self, rows: np.ndarray) -> VersionIndex:
        """The index of these rows (positions or a mask), sharing `parts`, `sources` and `columns`."""
        return VersionIndex(
            self.parts,
            self.sources,
            self.columns,
            self.row_ids[rows],
            self.part[rows],
            self.slot[rows],
            self.size[rows],
            self.source[rows],
            self.position[rows],
        )

    def compact(self) -> VersionIndex:
        """The same rows with only the parts and sources that they use, numbered by first use."""
        part, parts = _renumber(self.part, self.parts)
        source, sources = _renumber(self.source, self.sources)
        return VersionIndex(
            parts, sources, self.columns, self.row_ids, part, self.slot, self.size, source, self.position
        )

    def content_digest(self) -> str:
        """SHA-256 over the row ids in order, in hexadecimal: the same for the same rows, however they are stored."""
        return hashlib.sha256(FORMAT.encode() + b"\n" + self.row_ids.tobytes()).hexdigest()

    def id_of(self, row: int) -> str:
        """Row id in hexadecimal."""
        return self.row_ids[row].tobytes().hex()


@dataclass(frozen=True, slots=True)
class Saved:
    """A version in the store, as the service keeps it."""

    manifest: dict[str, Any]
    content_digest: str
    row_count: int
    byte_count: int
    columns: list[dict[str, str]]


def save(index: VersionIndex, blobs: Blobs) -> Saved:
    """Stores the index and makes the manifest. The caller commits the manifest: that is what makes it a version."""
    index = index.compact()
    digest = blobs.write(_encode(index))
    content = index.content_digest()
    manifest = {
        "format": FORMAT,
        # The index first, then the parts: `parts` of the index count from the second.
        "blobs": [{"sha256": blob} for blob in (digest, *index.parts)],
        "columns": [{"name": name, "kind": kind} for name, kind in index.columns.items()],
        "row_count": len(index),
        "byte_count": index.byte_count,
        "content": content,
    }
    columns = [{"name": name, "type": type_name(kind)} for name, kind in index.columns.items()]
    return Saved(manifest, content, len(index), index.byte_count, columns)


def load(manifest: dict[str, Any], blobs: Blobs) -> VersionIndex:
    """The index behind a manifest.

    Raises:
        ValueError: The manifest is of a format that this version does not know.
    """
    if manifest.get("format") != FORMAT:
        raise ValueError(f"manifest of unknown format {manifest.get('format')!r}")
    index, *parts = [entry["sha256"] for entry in manifest["blobs"]]
    table = pa.ipc.open_file(pa.BufferReader(blobs.read(index))).read_all()
    ids = table.column("row_id").combine_chunks()
    source = table.column("source").combine_chunks()
    buffer = ids.buffers()[1]
    row_ids = np.frombuffer(buffer, np.uint8, count=32 * len(ids)) if buffer is not None else np.zeros(0, np.uint8)
    return VersionIndex(
        parts=parts,
        sources=source.dictionary.to_pylist(),
        columns={column["name"]: column["kind"] for column in manifest["columns"]},
        row_ids=row_ids.reshape(-1, 32),
        part=table.column("part").to_numpy(),
        slot=table.column("slot").to_numpy(),
        size=table.column("size").to_numpy(),
        source=source.indices.to_numpy(zero_copy_only=False).astype(np.int32),
        position=table.column("position").to_numpy(),
    )


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
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
    return sink.getvalue().to_pybytes()


def _renumber(codes: np.ndarray, values: list[str]) -> tuple[np.ndarray, list[str]]:
    """Keeps the values that are used, in order of first use, and rewrites the codes."""
    used, first = np.unique(codes, return_index=True)
    order = used[np.argsort(first, kind="stable")]
    numbers = np.zeros(len(values) or 1, np.int32)
    numbers[order] = np.arange(len(order), dtype=np.int32)
    return numbers[codes] if len(codes) else codes, [values[code] for code in order]
