"""The files of an export on their way into the blob store: hashed while they are written, never whole in memory."""

from __future__ import annotations

import gzip
import io
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from libs.common.blobs import BlobStore, Json

_FORMAT = "argosy.export/1"
_BUFFER = 1024 * 1024
# A third of the time of level 9, and 2 % more bytes of text.
_GZIP_LEVEL = 6


class ExportedFiles:
    """Writes files one after the other.

    Args:
        store: Where they go.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._made: list[Json] = []

    @contextmanager
    def new(self, path: str, compression: str = "") -> Generator[BinaryIO]:
        """A file to write; it is in the store when the block has ended well, and nowhere otherwise.

        Args:
            path: Relative, with `/` between its parts.
            compression: `gzip`, `zstd` or none. Both carry neither a name nor a time, so equal rows are equal bytes.
        """
        with self._store.writer() as writer:
            sink = _Raw(writer)
            raw = cast("BinaryIO", io.BufferedWriter(sink, _BUFFER))
            file = _compressed(raw, compression)
            try:
                yield file
                file.close()
                raw.close()
            finally:
                sink.forget()
            blob = writer.finish()
        self._made.append({"path": path, "size": blob.size, "sha256": blob.sha256})

    def finish(self) -> Json:
        """Stores the manifest. Gives `files` and `manifest_digest`, as an export keeps them."""
        return {
            "files": self._made,
            "manifest_digest": self._store.commit_sync({"format": _FORMAT, "blobs": self._made}),
        }


class _Raw(io.RawIOBase):
    """A blob that is written, as a raw file."""

    def __init__(self, writer: Any) -> None:
        self._writer: Any = writer

    def forget(self) -> None:
        """Takes no more: a file that is given up empties its buffers when it is collected."""
        self._writer = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._writer is not None:
            self._writer.write(bytes(data))
        return len(data)


def _compressed(raw: BinaryIO, compression: str) -> BinaryIO:
    if compression == "gzip":
        packed = gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0)
        return cast("BinaryIO", packed)
    if compression == "zstd":
        return cast("BinaryIO", pa.CompressedOutputStream(pa.PythonFile(raw, "w"), "zstd"))
    return raw
