"""Writing rows: those that an earlier version has are referenced, only new ones are stored."""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from libs.compute.versions import VersionIndex
from services.dataset.engines.index_columns import IndexColumns
from services.dataset.engines.parts import PART_BYTES, PART_ROWS, Sink, encode
from services.dataset.engines.rows import Row, canonical, row_id, widen_columns

# Rows of this run whose place is remembered, so that a repeated row is stored once; about 150 bytes each.
_REMEMBERED = 500_000


class Place(NamedTuple):
    """Where a row lies."""

    row_id: bytes
    part: int
    slot: int
    size: int
    is_new: bool


class KnownRows:
    """Finds a row of an existing version by its id in 16 bytes a row."""

    def __init__(self, index: VersionIndex) -> None:
        self._index = index
        prefixes = np.ascontiguousarray(index.row_ids[:, :8]).view(np.uint64).reshape(-1)
        self._order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]

    def find(self, wanted: bytes) -> tuple[int, int] | None:
        """Part and slot of the row with this id."""
        prefix = np.frombuffer(wanted, np.uint64, 1)[0]
        at = int(np.searchsorted(self._prefixes, prefix))
        while at < len(self._prefixes) and self._prefixes[at] == prefix:
            row = int(self._order[at])
            if self._index.row_ids[row].tobytes() == wanted:
                return int(self._index.part[row]), int(self._index.slot[row])
            at += 1
        return None


class PartWriter:
    """Puts rows into parts. Memory: one part and the places of the last rows.

    Args:
        blobs: Where parts go.
        known: A version whose rows are referenced instead of stored again; its parts keep their numbers in `parts`.
    """

    def __init__(self, blobs: Sink, known: VersionIndex | None = None) -> None:
        self._blobs = blobs
        self._known = KnownRows(known) if known is not None and len(known) else None
        self.parts: list[str] = list(known.parts) if known is not None else []
        self.new_bytes = 0
        self._ids: list[bytes] = []
        self._rows: list[Row] = []
        self._open_bytes = 0
        self._recent: dict[bytes, tuple[int, int]] = {}

    def stage(self, row: Row, content: bytes) -> Place:
        """Finds or stores a canonical row; `content` is its canonical form."""
        wanted = row_id(content)
        place = self._recent.get(wanted) or (self._known.find(wanted) if self._known else None)
        if place is not None:
            return Place(wanted, *place, len(content), False)
        if self._rows and (self._open_bytes + len(content) > PART_BYTES or len(self._rows) >= PART_ROWS):
            self.flush()
        place = (len(self.parts), len(self._rows))
        self._ids.append(wanted)
        self._rows.append(row)
        self._open_bytes += len(content)
        self.new_bytes += len(content)
        if len(self._recent) >= _REMEMBERED:
            self._recent.clear()
        self._recent[wanted] = place
        return Place(wanted, *place, len(content), True)

    def flush(self) -> None:
        """Closes the open part."""
        if self._rows:
            self.parts.append(self._blobs.write(encode(self._ids, self._rows)))
            self._ids, self._rows, self._open_bytes = [], [], 0


class VersionWriter:
    """Writes a version row by row. Memory: that of `PartWriter`, and one segment of the index."""

    def __init__(self, blobs: Sink, known: VersionIndex | None = None) -> None:
        self._writer = PartWriter(blobs, known)
        self._columns: dict[str, str] = {}
        self._sources: dict[str, int] = {}
        self._rows = 0
        self._written = IndexColumns()
        self._ids = bytearray()
        self._part, self._slot, self._size, self._source = array("i"), array("i"), array("i"), array("i")
        self._position = array("q")
        self._media_blobs: dict[str, int] = {}
        self._media = array("i")

    def __len__(self) -> int:
        return self._rows

    @property
    def new_bytes(self) -> int:
        """Bytes of rows that no earlier version had."""
        return self._writer.new_bytes

    def add(self, row: Row, source: str, position: int, media: str = "") -> None:
        """Appends a row without provenance.

        Args:
            media: Digest of the file that the row has, which must be in the store; empty: it has none.

        Raises:
            RowError: The row cannot be kept; nothing has changed.
        """
        plain, content = canonical(row)
        widen_columns(self._columns, plain)
        place = self._writer.stage(plain, content)
        self._ids += place.row_id
        self._part.append(place.part)
        self._slot.append(place.slot)
        self._size.append(place.size)
        self._source.append(self._sources.setdefault(source, len(self._sources)))
        self._position.append(position)
        self._media.append(self._media_blobs.setdefault(media, len(self._media_blobs)) if media else -1)
        self._rows += 1
        if len(self._part) >= PART_ROWS:
            self._put_away()

    def finish(self) -> VersionIndex:
        """Closes the last part and returns the index, not yet saved."""
        self._writer.flush()
        self._put_away()
        index = self._written.index(self._writer.parts, list(self._sources), self._columns)
        index.media_blobs = list(self._media_blobs)
        index.media = index.media if self._media_blobs else None
        return index

    def _put_away(self) -> None:
        columns = {
            "row_ids": self._ids,
            "part": self._part,
            "slot": self._slot,
            "size": self._size,
            "source": self._source,
            "position": self._position,
            "media": self._media,
        }
        self._written.add(**columns)
        for column in columns.values():
            del column[:]
