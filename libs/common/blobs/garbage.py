"""Which files of a store nobody names any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from libs.common.blobs.folder import Folder
from libs.common.blobs.grants import label_of
from libs.common.blobs.manifest import LOST, Json, manifest_digests, nested_manifests
from libs.common.domain import DomainError


@dataclass(frozen=True)
class GivenUp:
    """A manifest that its writer needs no more: what lies below it goes without a grace time.

    Attributes:
        manifest: its digest.
        prefix: of the write grant under which it was written. Equal blobs that others wrote are not touched.
        time: what was put again after it stays.
    """

    manifest: str
    prefix: str
    time: datetime


def live_blobs(manifests: Iterable[str], load: Callable[[str], Json]) -> set[str]:
    """All that is below some manifests, and they themselves.

    Args:
        load: the manifest of a digest.
    """
    live: set[str] = set()
    for digest in manifests:
        manifest = load(digest)
        live.update((digest, *manifest_digests(manifest)))
        for nested in nested_manifests(manifest):
            live.update(manifest_digests(load(nested)))
    return live


def without_grace(given_up: Iterable[GivenUp], load: Callable[[str], Json]) -> dict[str, datetime]:
    """When files were given up, by path without the suffix; `load` as above."""
    found: dict[str, datetime] = {}
    for each in given_up:
        named: list[str] = []
        try:
            named = manifest_digests(load(each.manifest))
        except DomainError as error:
            if error.reason not in LOST:
                raise
            # Gone already, or damaged: what it named goes as all garbage does.
        for digest in (each.manifest, *named):
            path = f"blobs/{digest[:2]}/{digest}.{label_of(each.prefix)}"
            found[path] = max(each.time, found.get(path, each.time))
    return found


def files_beside(live: set[str], folder: Folder) -> Iterator[str]:
    """Paths of half-written files, and of blobs that are none of the live ones."""
    yield from (f"staging/{name}" for name in folder.names("staging"))
    for shard in folder.names("blobs"):
        for name in folder.names(f"blobs/{shard}"):
            if name.partition(".")[0] not in live:
                yield f"blobs/{shard}/{name}"
