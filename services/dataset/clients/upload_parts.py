"""The parts of an upload in the blob store, and the file that they make."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from libs.common.blobs import BlobStore
from services.dataset.domain.streams import Batch
from services.dataset.domain.uploads import UploadPart

_FORMAT = "argosy.upload/1"


async def whole_file(blobs: BlobStore, parts: Sequence[UploadPart | Batch]) -> tuple[str, str]:
    """SHA-256 of a file in hexadecimal, and its manifest.

    Args:
        blobs: Where the parts are.
        parts: In order.
    """
    digest = await asyncio.to_thread(_digest, blobs, parts)
    named = [{"sha256": part.sha256, "size": part.size} for part in parts]
    return digest, await blobs.commit({"format": _FORMAT, "blobs": named})


def _digest(blobs: BlobStore, parts: Sequence[UploadPart | Batch]) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        for chunk in blobs.get_sync(part.sha256):
            hasher.update(chunk)
    return hasher.hexdigest()
