"""Pages of OGG files (RFC 3533): whether all are there and whole. Decoders leave out what is damaged, and play on."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_HEAD = struct.Struct("<4sBBqLLLB")
_LAST_PAGE = 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_fault(path: Path) -> str:
    """What is wrong with the pages of a file, for people; empty when each is whole and the last one is there."""
    at, ended = 0, False
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size or not head.startswith(b"OggS"):
                break
            _, _, flags, _, _, _, stated, segments = _HEAD.unpack(head)
            table = file.read(segments)
            body = file.read(sum(table))
            if len(table) < segments or len(body) < sum(table):
                return f"cut off or damaged: the page at byte {at:,} is not whole"
            if checksum(head[:22] + bytes(4) + head[26:] + table + body) != stated:
                return f"damaged: the page at byte {at:,} does not have its checksum"
            at, ended = file.tell(), bool(flags & _LAST_PAGE)
    # What stands behind the last page is no sound.
    return "" if ended else f"cut off or damaged: no page begins at byte {at:,}"


def checksum(page: bytes) -> int:
    """CRC-32 of a page whose own checksum is zero. It is that of zlib, but for the order of bits and the inversions."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
