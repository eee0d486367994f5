"""Forms with files, in pieces of every size."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from libs.common.errors import ArgosyError
from services.gateway.http.multipart import Form

FORM = (
    b"ignored\r\n--xyz\r\n"
    b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a \\"b\\".jsonl"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\nline\r\n--xy\r\n\r\n--xyz--\r\nignored"
)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read(data: bytes, size: int = 7) -> list[tuple[str, str, bytes]]:
    return [
        (part.name, part.file_name, b"".join([piece async for piece in part.data]))
        async for part in Form(pieces(data, size), b"xyz").parts()
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 64, 1000])
async def test_parts_are_told_apart_wherever_they_are_cut(size: int) -> None:
    expected = [("purpose", "", b"fine-tune"), ("file", 'a "b".jsonl', b"line\r\n--xy\r\n")]
    assert await read(FORM, size) == expected


async def test_what_is_not_read_is_skipped() -> None:
    names = [part.name async for part in Form(pieces(FORM, 3), b"xyz").parts()]
    assert names == ["purpose", "file"]


async def test_the_first_delimiter_may_be_the_first_line() -> None:
    assert await read(b'--xyz\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n--xyz--') == [("a", "", b"")]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (FORM[:60], "ends inside a part"),
        (b"", "ends inside a part"),
        (b"--xyz\r\n\r\nvalue\r\n--xyz--", "has no name"),
        (b"--xyz\r\n" + b"x" * 9000, "longer than 8192 bytes"),
        (b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 40 + b"--xyz--", "more than 32 parts"),
    ],
)
async def test_what_is_no_form_is_refused(data: bytes, fault: str) -> None:
    with pytest.raises(ArgosyError, match=fault):
        await read(data, 16)


async def test_a_short_field_is_short() -> None:
    long = b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 5000 + b"\r\n--xyz--"
    with pytest.raises(ArgosyError, match="longer than 4096 bytes"):
        _ = [await part.text() async for part in Form(pieces(long, 100), b"xyz").parts()]
