"""The blob store as engines see it: some stores to read from, one to write to."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.versions import VersionReader, load_index


class StoreBlobs:
    """`Blobs` over the stores that a task has grants for.

    Args:
        write: Where outputs go, also read from; None for reading only.
        reads: Stores of read grants.
    """

    def __init__(self, write: BlobStore | None, *reads: BlobStore) -> None:
        self._write = write
        self._reads = (*reads, write) if write is not None else reads

    def read(self, digest: str) -> bytes:
        """The whole blob, from the first store whose grant covers it."""
        *others, last = self._reads
        for store in others:
            try:
                return store.read_sync(digest)
            except DomainError as error:
                if error.reason not in ("GRANT_DENIED", "NOT_FOUND"):
                    raise
        return last.read_sync(digest)

    def write(self, data: bytes) -> str:
        """Stores the bytes durably and returns their SHA-256 in hexadecimal."""
        return self._writable().put_sync(data).sha256

    def write_file(self, path: Path) -> str:
        """`write` of what is in a file."""
        return self._writable().put_sync(path).sha256

    def _writable(self) -> BlobStore:
        if self._write is None:
            raise DomainError("GRANT_DENIED", "this store is for reading only")
        return self._write


class Scratch:
    """`Blobs` that reads from others and keeps in memory what is written: for a trial of which nothing stays."""

    def __init__(self, blobs: StoreBlobs) -> None:
        self._blobs = blobs
        self._written: dict[str, bytes] = {}

    def read(self, digest: str) -> bytes:
        """The whole blob."""
        written = self._written.get(digest)
        return self._blobs.read(digest) if written is None else written

    def write(self, data: bytes) -> str:
        """Keeps the bytes and returns their SHA-256 in hexadecimal."""
        digest = hashlib.sha256(data).hexdigest()
        self._written[digest] = data
        return digest

    def write_file(self, path: Path) -> str:
        """`write` of what is in a file."""
        return self.write(path.read_bytes())


def open_version(store: BlobStore, manifest: str, blobs: StoreBlobs | None = None) -> VersionReader:
    """The version with this manifest.

    Args:
        store: Has the manifest.
        blobs: Where its parts are read; else from `store`.
    """
    blobs = blobs or StoreBlobs(None, store)
    return VersionReader(load_index(store.load_manifest_sync(manifest), blobs), blobs)


# One version at a time: a worker that gets several shards of it reads the index once.
@lru_cache(maxsize=1)
def granted_version(grant: str, version: str) -> VersionReader:
    """The version with this manifest, opened in a Ray worker by its grant."""
    return open_version(BlobStore.from_grant(grant), version)
