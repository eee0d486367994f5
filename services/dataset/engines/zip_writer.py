"""Zip archives that are the same bytes for the same members."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

# The first day that a zip can name.
_DAY = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16


class Archive:
    """Writes members one after the other into a stream.

    Args:
        file: Where it goes; need not be seekable.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)

    def add(self, path: str, data: bytes) -> None:
        """Adds a small member."""
        self._zip.writestr(_info(path), data)

    def copy(self, path: str, source: BinaryIO) -> None:
        """Adds a member from a file, read from its beginning."""
        source.seek(0)
        with self._zip.open(_info(path), "w", force_zip64=True) as member:
            while data := source.read(1024 * 1024):
                member.write(data)

    def close(self) -> None:
        """Writes the table of contents."""
        self._zip.close()


def _info(path: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, _DAY)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, _MODE
    return info
