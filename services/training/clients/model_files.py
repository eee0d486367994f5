"""The files of a model version in the blob store, read again."""

from __future__ import annotations

import hashlib

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from services.training.domain.models import ModelFile, ModelVersion

# What a lost or damaged blob answers with; anything else says nothing about the blob.
_DAMAGED = ("NOT_FOUND", "INTERNAL", "CONTENT_INVALID")


def problems(blobs: BlobStore, version: ModelVersion) -> tuple[list[str], int]:
    """What of a version is not as its manifest says, a sentence each, and how many bytes were read.

    Raises:
        DomainError: STORAGE_UNAVAILABLE, the store does not answer.
    """
    try:
        manifest = blobs.load_manifest_sync(version.manifest_digest)
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
        fault, size = _fault(blobs, file)
        read += size
        if fault:
            found.append(f"{file.path}: {fault}")
    return found, read


def _fault(blobs: BlobStore, file: ModelFile) -> tuple[str, int]:
    hasher, size = hashlib.sha256(), 0
    try:
        for chunk in blobs.get_sync(file.sha256):
            hasher.update(chunk)
            size += len(chunk)
    except DomainError as error:
        if error.reason not in _DAMAGED:
            raise
        return "it is missing" if error.reason == "NOT_FOUND" else "its bytes are not those that it was made with", size
    if hasher.hexdigest() != file.sha256 or size != file.size:
        return "its bytes are not those that it was made with", size
    return "", size
