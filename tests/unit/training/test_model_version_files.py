"""Reading the files of a version again."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from services.training.clients.model_files import problems
from services.training.domain.models import ModelFile, ModelVersion
from tests.unit.factories import resource_fields

CHUNK = b"x" * 1000


class Endless:
    """A store with one file that does not end in the time of a test."""

    def __init__(self) -> None:
        self.read = 0
        self.began = threading.Event()

    async def load_manifest(self, digest: str) -> Any:
        return {"blobs": [{"path": "model.safetensors", "sha256": "0" * 64, "size": 1}]}

    def get_sync(self, sha256: str) -> Iterator[bytes]:
        for _ in range(1_000_000):
            self.read += 1
            self.began.set()
            yield CHUNK


class Sound(Endless):
    """A store with one file of twenty chunks."""

    async def load_manifest(self, digest: str) -> Any:
        return {"blobs": [{"path": "model.safetensors", "sha256": DIGEST, "size": 20_000}]}

    def get_sync(self, sha256: str) -> Iterator[bytes]:
        yield from [CHUNK] * 20


DIGEST = hashlib.sha256(CHUNK * 20).hexdigest()


def version(digest: str, size: int) -> ModelVersion:
    files = [ModelFile("model.safetensors", digest, size)]
    return ModelVersion(
        **resource_fields("orgs/acme/modelProjects/p/versions/1"), manifest_digest="1" * 64, files=files
    )


async def test_every_byte_counts() -> None:
    store: Any = Sound()
    assert await problems(store, version(DIGEST, 20_000)) == ([], 20_000)


async def test_nothing_is_read_for_a_caller_who_has_gone() -> None:
    store: Any = Endless()
    reading = asyncio.ensure_future(problems(store, version("0" * 64, 1)))
    await asyncio.to_thread(store.began.wait, 5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    # What one thread was about to read, however late.
    async with asyncio.timeout(10):
        read = -1
        while read != store.read:
            read = store.read
            await asyncio.sleep(0.05)
