"""The columns of an index while its rows come: long ones lie in files, so that memory does not grow with the rows."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from libs.compute.versions import VersionIndex

_TYPES = {
    "row_ids": np.uint8,
    "part": np.int32,
    "slot": np.int32,
    "size": np.int32,
    "source": np.int32,
    "position": np.int64,
    "media": np.int32,
}
# Bytes of a column that stay in memory; those of a shard or a small version make no file.
_SPOOLED = 4 * 1024 * 1024
# Rows that are looked at together where a whole column would be too much.
STRIDE_ROWS = 1 << 20


class IndexColumns:
    """Columns of a `VersionIndex` by name, appended to piece by piece."""

    def __init__(self) -> None:
        # They have no names, and go with this object and its arrays.
        self._files = {name: tempfile.SpooledTemporaryFile(_SPOOLED) for name in _TYPES}  # noqa: SIM115

    def add(self, **columns: Any) -> None:
        """Appends to columns, arrays each."""
        for name, values in columns.items():
            self._files[name].write(np.ascontiguousarray(values, _TYPES[name]).tobytes())

    def index(self, parts: list[str], sources: list[str], columns: dict[str, str]) -> VersionIndex:
        """The index of all rows; nothing can be added any more. Its arrays are the files, and may be written to."""
        arrays: dict[str, Any] = {name: self._array(name) for name in _TYPES}
        media = arrays.pop("media")
        arrays["row_ids"] = arrays["row_ids"].reshape(-1, 32)
        return VersionIndex(parts, sources, columns, **arrays, media=media if len(media) else None)

    def _array(self, name: str) -> np.ndarray:
        file = self._files[name]
        size = file.tell()
        if size <= _SPOOLED:
            file.seek(0)
            return np.frombuffer(bytearray(file.read()), _TYPES[name])
        file.flush()
        # The map keeps the file, which has no name, until nobody has the array any more.
        return np.frombuffer(mmap.mmap(file.fileno(), size), _TYPES[name])


def strides(rows: int) -> Iterator[slice]:
    """All rows in strides."""
    return (slice(start, min(rows, start + STRIDE_ROWS)) for start in range(0, rows, STRIDE_ROWS))
