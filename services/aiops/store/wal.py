"""The journal in front of the columnar files: what was acknowledged survives any kill.

A segment is a file of frames `length (4) | crc32 (4) | signal (1) | org length (1) | org | OTLP request`. One thread
writes; many requests that wait at the same time share one fsync (group commit).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

Signal = Literal["spans", "logs", "metrics"]
SIGNALS: tuple[Signal, ...] = ("spans", "logs", "metrics")

_HEAD = struct.Struct(">II")
_TRUSTED = 255  # org length that says: the request speaks for itself
_FRAME_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One OTLP request as it came in. `org` None: sent by the mesh itself and trusted about its organizations."""

    signal: Signal
    org: str | None
    body: bytes


def encode(frame: Frame) -> bytes:
    org = b"" if frame.org is None else frame.org.encode()
    length = _TRUSTED if frame.org is None else len(org)
    payload = bytes((SIGNALS.index(frame.signal), length)) + org + frame.body
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def frames_of(path: Path) -> Iterator[Frame]:
    """The whole frames of a segment; a torn one at the end was never acknowledged and is left out."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                return
            length, checksum = _HEAD.unpack(head)
            if length > _FRAME_LIMIT:
                return
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            org_length = payload[1]
            start = 2 if org_length == _TRUSTED else 2 + org_length
            org = None if org_length == _TRUSTED else payload[2:start].decode()
            yield Frame(SIGNALS[payload[0]], org, payload[start:])


class Segment:
    """The segment that is being written. Not for several threads at once."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / f"{number:012d}.wal"
        self._file: BinaryIO = self.path.open("ab", buffering=0)
        self.size = self._file.tell()

    def append(self, frames: list[Frame]) -> None:
        """Writes and syncs. After an error (a full disk) the file is as it was before."""
        data = b"".join(encode(frame) for frame in frames)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
