"""Compressed files: told by their first bytes, unpacked as a stream, with a limit on how much they may become."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, cast

import pyarrow as pa

from libs.archives.errors import BrokenOff

# First bytes: RFC 1952, section 2.3.1; RFC 8878, section 3.1.1.
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# Rows compress 5 to 40 times; a bomb of gzip reaches 1,030 times, one of zstd more than 10,000.
MAX_RATIO = 200
# Below this any ratio is taken: a small file of one repeated row is no attack.
FREE_BYTES = 64 * 1024 * 1024
# Unpacked at once; when the data is cut off, so much before the cut may be lost.
_BUFFER = 16 * 1024


def codec_of(start: bytes) -> str | None:
    """How a file with this beginning is compressed; None: not at all."""
    return next((codec for magic, codec in _MAGIC.items() if start.startswith(magic)), None)


def unpacked(file: BinaryIO) -> BinaryIO:
    """The file as it is, or, when its first bytes say that it is compressed, what is in it.

    Args:
        file: Binary and seekable, at its beginning.

    Returns:
        A stream. Reading it raises `BrokenOff` when the compressed data is damaged, cut off, or becomes more than
        `MAX_RATIO` times as large.
    """
    codec = codec_of(file.read(4))
    file.seek(0)
    return cast("BinaryIO", io.BufferedReader(_Unpacking(file, codec), _BUFFER)) if codec else file


class _Unpacking(io.RawIOBase):
    def __init__(self, file: BinaryIO, codec: str) -> None:
        self._file = file
        self._codec = codec
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise BrokenOff(f"the {self._codec} data is damaged or cut off") from error
        self._unpacked += len(data)
        if self._unpacked > max(FREE_BYTES, MAX_RATIO * self._file.tell()):
            raise BrokenOff(f"the {self._codec} data unpacks to more than {MAX_RATIO} times its size")
        buffer[: len(data)] = data
        return len(data)
