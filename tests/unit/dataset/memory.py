"""A blob store in memory, and versions in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from libs.compute.versions import VersionIndex, VersionReader, load_index
from services.dataset.engines.index import Saved, save
from services.dataset.engines.rows import split_provenance
from services.dataset.engines.writing import VersionWriter


class MemoryBlobs:
    """`Blobs` in a dictionary; `written` counts the bytes of every write."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.written = 0

    def read(self, digest: str) -> bytes:
        return self.blobs[digest]

    def write(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.written += len(data)
        self.blobs[digest] = data
        return digest

    def write_file(self, path: Path) -> str:
        return self.write(path.read_bytes())


def write_rows(
    blobs: MemoryBlobs, rows: Iterable[dict[str, Any]], known: VersionIndex | None = None
) -> tuple[Saved, VersionWriter]:
    """Saves rows as a version."""
    writer = VersionWriter(blobs, known)
    for number, row in enumerate(rows, 1):
        writer.add(*split_provenance(dict(row), "file.jsonl", number))
    return save(writer.finish(), blobs), writer


def open_version(blobs: MemoryBlobs, saved: Saved) -> VersionReader:
    """A reader of a saved version."""
    return VersionReader(load_index(orjson.loads(blobs.read(saved.manifest_digest)), blobs), blobs)
