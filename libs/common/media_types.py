"""Media types of images, sounds and films, told by the first bytes of a file.

A browser shows these types and never runs them. What a file is called, and what somebody says about it, does not count.
"""

from __future__ import annotations

# The header of Matroska names WebM within so many bytes.
HEAD_BYTES = 64

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_FILMS = ("video/mp4", "video/quicktime", "video/webm", "video/x-matroska")
# Every type that a file may leave the platform as; all others leave as bytes.
SHOWN_TYPES = frozenset({*(name for _, name in _STARTS), *_RIFF.values(), *_FILMS})


def media_type(head: bytes) -> str:
    """The type of a file, one of `SHOWN_TYPES`; empty for any other.

    Args:
        head: Its first `HEAD_BYTES` bytes, or all of them.
    """
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video/webm" if b"webm" in head else "video/x-matroska"
    # The frame sync of MPEG audio, layer III.
    return "audio/mpeg" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 else ""
