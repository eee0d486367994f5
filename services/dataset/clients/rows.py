"""Rows of versions for the handlers: a port to the engines, which read Arrow in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from libs.common.blobs import BlobStore
from libs.common.media_types import HEAD_BYTES, media_type

if TYPE_CHECKING:
    from libs.compute.versions import VersionReader

# Rows whose index is in memory while a version is read, 4 MB: a segment of the index.
_WINDOW_ROWS = 65_536
# A preview is for people: a page stops here, and a value is cut there.
_PAGE_BYTES = 2 * 1024 * 1024
_VALUE_CHARACTERS = 20_000


@dataclass(frozen=True)
class PreviewedRow:
    """One row as people see it."""

    row_id: str
    source: str
    position: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Rows that came and went, counted, with examples."""

    added: int
    removed: int
    common: int
    added_examples: list[PreviewedRow]
    removed_examples: list[PreviewedRow]


@dataclass(frozen=True)
class RowFile:
    """The file of a row.

    Attributes:
        content_type: one of `SHOWN_TYPES`; empty for any other.
    """

    sha256: str
    size: int
    content_type: str


class VersionRows:
    """Reads versions by the digest of their manifest.

    pyarrow is imported at the first use, in the thread that works: a process that nobody asks for rows stays 80 MB
    smaller.

    Args:
        blobs: The service's store.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def preview(self, manifest_digest: str, start: int, count: int) -> tuple[list[PreviewedRow], int]:
        """At most `count` rows from number `start`, and the number to go on at; fewer when they are large."""
        return await asyncio.to_thread(self._preview, manifest_digest, start, count)

    async def batches(
        self, manifest_digest: str, projection: list[str], start: int, stop: int
    ) -> AsyncIterator[tuple[bytes, int]]:
        """Arrow IPC streams of rows [start, stop), each with the number of the row after its last."""
        batches = self._batches(manifest_digest, projection, start, stop)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            yield batch

    async def file(self, manifest_digest: str, row_id: str) -> RowFile | None:
        """The file of a row; None for a row without one. Raises KeyError if no row has this id."""
        return await asyncio.to_thread(self._file, manifest_digest, row_id)

    async def difference(self, base: str, other: str, examples: int) -> Difference:
        """What `other` has and `base` lacks, and the other way round."""
        return await asyncio.to_thread(self._difference, base, other, examples)

    def _whole(self, manifest_digest: str) -> VersionReader:
        from services.dataset.engines.access import open_version

        return open_version(self._blobs, manifest_digest)

    def _window(self, manifest_digest: str, start: int, stop: int) -> VersionReader:
        """Rows [start, stop) of a version as if they were all, however many there are."""
        from libs.compute.versions import VersionReader, load_window
        from services.dataset.engines.access import StoreBlobs

        manifest = self._blobs.load_manifest_sync(manifest_digest)
        return VersionReader(load_window(manifest, self._blobs.open, start, stop), StoreBlobs(None, self._blobs))

    def _file(self, manifest_digest: str, row_id: str) -> RowFile | None:
        from libs.compute.versions import find_media

        digest = find_media(self._blobs.load_manifest_sync(manifest_digest), self._blobs.open, row_id)
        if digest is None:
            return None
        content_type = media_type(self._blobs.read_sync(digest, 0, HEAD_BYTES))
        return RowFile(digest, self._blobs.stat_sync(digest).size, content_type)

    def _preview(self, manifest_digest: str, start: int, count: int) -> tuple[list[PreviewedRow], int]:
        reader = self._window(manifest_digest, start, start + count)
        rows = len(reader.index)
        total, end = 0, 0
        while end < rows and (total := total + int(reader.index.size[end])) <= _PAGE_BYTES:
            end += 1
        end = max(end, min(rows, 1))
        return self._rows(reader, list(range(end))), start + end

    def _batches(
        self, manifest_digest: str, projection: list[str], start: int, stop: int
    ) -> Iterator[tuple[bytes, int]]:
        from services.dataset.engines.reading import batches

        while start < stop:
            # Up to the end of a segment, so that none is read twice.
            behind = min(stop, (start // _WINDOW_ROWS + 1) * _WINDOW_ROWS)
            for batch, end in batches(self._window(manifest_digest, start, behind), projection, 0, behind - start):
                yield batch, start + end
            start = behind

    def _difference(self, base: str, other: str, examples: int) -> Difference:
        from services.dataset.engines.reading import difference

        base_reader, other_reader = self._whole(base), self._whole(other)
        added, removed, common = difference(base_reader.index, other_reader.index)
        return Difference(
            len(added),
            len(removed),
            common,
            self._rows(other_reader, added[:examples].tolist()),
            self._rows(base_reader, removed[:examples].tolist()),
        )

    @staticmethod
    def _rows(reader: VersionReader, numbers: list[int]) -> list[PreviewedRow]:
        import numpy as np

        index = reader.index
        rows = reader.rows(np.array(numbers, np.int64))
        return [
            PreviewedRow(
                index.id_of(number),
                index.sources[index.source[number]],
                int(index.position[number]),
                {name: _shown(value) for name, value in row.items()},
            )
            for number, row in zip(numbers, rows, strict=True)
        ]


def _shown(value: Any) -> Any:
    """A value as a preview shows it: long ones cut, and integers that a JSON number cannot hold as text."""
    if isinstance(value, str):
        return value if len(value) <= _VALUE_CHARACTERS else value[:_VALUE_CHARACTERS] + "…"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    if isinstance(value, list | dict):
        from libs.compute.versions import to_json

        text = to_json(value)
        return value if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "…"
    return value
