"""Blobs as local files, for what has to seek."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO

from libs.common.blobs import BlobStore
from libs.common.blobs.folder import storage_errors


@contextmanager
def joined_file(store: BlobStore, digests: list[str]) -> Generator[BinaryIO]:
    """Blobs in order as one local file: Parquet is read from its end, and a file system read is the cheapest
    stream."""
    with tempfile.TemporaryFile() as file:
        with storage_errors("the file that is imported"):
            for digest in digests:
                for chunk in store.get_sync(digest):
                    file.write(chunk)
            file.seek(0)
        yield file  # type: ignore[misc]
