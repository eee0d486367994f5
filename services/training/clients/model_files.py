"""The files of a model version in the blob store, read again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from services.training.domain.models import ModelFile, ModelVersion

# What a lost or damaged blob answers with; anything else says nothing about the blob.
_DAMAGED = ("NOT_FOUND", "INTERNAL", "CONTENT_INVALID")
# Of at most 1 MiB each: a thread then has some 10 ms of work.
_CHUNKS_AT_ONCE = 8


async def problems(blobs: BlobStore, version: ModelVersion) -> tuple[list[str], int]:
    """What of a version is not as its manifest says, a sentence each, and how many bytes were read.

    Some MB at a time are read in a thread, so that a model of many gigabytes leaves threads to other calls, and nothing
    is read for a caller who has gone.

    Raises:
        DomainError: STORAGE_UNAVAILABLE, the store does not answer.
    """
    try:
        manifest = await blobs.load_manifest(version.manifest_digest)
    except DomainError as error:
        if error.reason not in _DAMAGED:
            raise
        return ["its manifest is missing or damaged"], 0
    stated = [(entry.get("path"), entry["sha256"], entry.get("size")) for entry in manifest.get("blobs", ())]
    if sorted(stated, key=str) != sorted(((f.path, f.sha256, f.size) for f in version.files), key=str):
        return ["its list of files is not that of its manifest"], 0
    found: list[str] = []
    read = 0
    for file in version.files:
        fault, size = await _fault(blobs, file)
        read += size
        if fault:
            found.append(f"{file.path}: {fault}")
    return found, read


async def _fault(blobs: BlobStore, file: ModelFile) -> tuple[str, int]:
    hasher, size = hashlib.sha256(), 0
    chunks = blobs.get_sync(file.sha256)
    try:
        while read := await asyncio.to_thread(_hashed, chunks, hasher):
            size += read
    except DomainError as error:
        if error.reason not in _DAMAGED:
            raise
        return "it is missing" if error.reason == "NOT_FOUND" else "its bytes are not those that it was made with", size
    if hasher.hexdigest() != file.sha256 or size != file.size:
        return "its bytes are not those that it was made with", size
    return "", size


def _hashed(chunks: Iterator[bytes], hasher: Any) -> int:
    """Takes the next chunks into a hash; how many bytes they had, 0 at the end."""
    size = 0
    for chunk in islice(chunks, _CHUNKS_AT_ONCE):
        hasher.update(chunk)
        size += len(chunk)
    return size
