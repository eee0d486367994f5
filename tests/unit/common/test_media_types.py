"""Media types are told by the first bytes, and none of them is ever run by a browser."""

from __future__ import annotations

import pytest

from libs.common.media_types import HEAD_BYTES, SHOWN_TYPES, media_type
from tests.unit.dataset.media_files import image, sound

MATROSKA = b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84"


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (image(), "image/png"),
        (image(format="JPEG"), "image/jpeg"),
        (image(format="WEBP"), "image/webp"),
        (image(mode="P", format="GIF"), "image/gif"),
        (image(format="BMP"), "image/bmp"),
        (image(format="TIFF"), "image/tiff"),
        (b"MM\0*\0\0\0\x08", "image/tiff"),
        (sound(), "audio/wav"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"OggS\0\x02", "audio/ogg"),
        (b"ID3\x04\0\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "audio/mpeg"),
        (b"\0\0\0\x1cftypisom", "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
        (MATROSKA + b"webm", "video/webm"),
        (MATROSKA + b"matroska", "video/x-matroska"),
        (b"", ""),
        (b"\xff", ""),
        (b"\xff\xfe<\0h\0t\0m\0l\0", ""),
        (b"RIFF\0\0\0\0WEBX", ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", ""),
        (b"<!doctype html><script>", ""),
        (b"%PDF-1.7", ""),
    ],
)
def test_the_first_bytes_tell(start: bytes, name: str) -> None:
    assert media_type(start[:HEAD_BYTES]) == name
    assert not name or name in SHOWN_TYPES


def test_nothing_on_the_list_is_run() -> None:
    assert {name.partition("/")[0] for name in SHOWN_TYPES} == {"image", "audio", "video"}
    assert not any("xml" in name or "html" in name for name in SHOWN_TYPES)
