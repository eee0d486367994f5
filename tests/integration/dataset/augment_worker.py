"""What a worker of its own process does; apart from the tests, so that it imports no more than it needs."""

from __future__ import annotations

from typing import Any

from libs.common.blobs import BlobStore
from libs.compute.versions import VersionReader, load_index
from services.dataset.engines import augmenting
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.media import MediaChild


def augmented_shard(spec: dict[str, Any], folder: str, bounds: tuple[int, int]) -> list[augmenting.Copy]:
    """The copies of the rows from the first bound to the second."""
    store = BlobStore(f"file://{folder}")
    blobs = StoreBlobs(None, store)
    reader = VersionReader(load_index(store.load_manifest_sync(spec["version"]), blobs), blobs)
    with MediaChild() as child:
        return augmenting.augment(reader, None, child, spec, *bounds).copies
