"""Forms with files, read as they come: RFC 7578, on the delimiters of RFC 2046, section 5.1.1."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from libs.common.errors import ArgosyError
from services.gateway.http.errors import HttpError
from services.gateway.http.exchange import Exchange

_TYPE = b"multipart/form-data"
# RFC 2046 allows 70 characters.
_BOUNDARY = re.compile(rb';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_FILE_NAME = re.compile(rb'[;\s]filename="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_HEAD_BYTES = 8192
_MOST_PARTS = 32
_FIELD_BYTES = 4096


@dataclass(frozen=True)
class Part:
    """One field of a form.

    Attributes:
        name: of the field.
        file_name: as the sender calls the file; empty for a field that is none.
        data: its bytes; what is not read of them is skipped.
    """

    name: str
    file_name: str
    data: AsyncIterator[bytes]

    async def text(self) -> str:
        """The value of a short field. Raises BODY_INVALID for one that is long or not UTF-8."""
        value = bytearray()
        async for piece in self.data:
            value += piece
            if len(value) > _FIELD_BYTES:
                raise ArgosyError("BODY_INVALID", f"The field {self.name!r} is longer than {_FIELD_BYTES} bytes.")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ArgosyError("BODY_INVALID", f"The field {self.name!r} is not UTF-8.") from None


def boundary_of(exchange: Exchange) -> bytes:
    """The boundary between the parts. Raises 415 if the body is no form with files."""
    given = exchange.headers.get(b"content-type", b"")
    matched = _BOUNDARY.search(given)
    if given.partition(b";")[0].strip().lower() != _TYPE or matched is None:
        shown = given.decode("ascii", "replace")[:100]
        message = f"This route takes {_TYPE.decode()} with a boundary, not {shown or 'a body without a type'}."
        raise HttpError(415, ArgosyError("BODY_INVALID", message, metadata={"content_type": shown}))
    return matched[1] or matched[2]


class Form:
    """A form with files, of which no more than a piece is in memory.

    Args:
        pieces: of the body.
        boundary: between its parts.
    """

    def __init__(self, pieces: AsyncIterator[bytes], boundary: bytes) -> None:
        self._pieces = pieces
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter has no line before it.
        self._held = bytearray(b"\r\n")

    async def parts(self) -> AsyncIterator[Part]:
        """Each part; it must be read before the next one is asked for. Raises BODY_INVALID where this is no form."""
        await _skip(self._until_delimiter())
        for _ in range(_MOST_PARTS):
            if await self._take(2) == b"--":
                await _skip(self._pieces)
                return
            part = await self._head()
            yield part
            await _skip(part.data)
        raise ArgosyError("BODY_INVALID", f"The form has more than {_MOST_PARTS} parts.")

    async def _head(self) -> Part:
        # An end of the line stands before the headers already, so that a part without headers ends here too.
        self._held[:0] = b"\r\n"
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > _HEAD_BYTES:
                raise ArgosyError("BODY_INVALID", f"The head of a part is longer than {_HEAD_BYTES} bytes.")
            await self._more()
        head = bytes(self._held[:end])
        del self._held[: end + 4]
        disposition = next(
            (line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")), b""
        )
        name, file_name = _NAME.search(disposition), _FILE_NAME.search(disposition)
        if name is None:
            raise ArgosyError("BODY_INVALID", "A part of the form has no name.")
        return Part(_unquoted(name[1]), _unquoted(file_name[1]) if file_name else "", self._until_delimiter())

    async def _until_delimiter(self) -> AsyncIterator[bytes]:
        keep = len(self._delimiter) - 1
        while (at := self._held.find(self._delimiter)) < 0:
            # The end may be the beginning of a delimiter.
            if len(self._held) > keep:
                piece = bytes(self._held[:-keep])
                del self._held[:-keep]
                yield piece
            await self._more()
        piece = bytes(self._held[:at])
        del self._held[: at + len(self._delimiter)]
        if piece:
            yield piece

    async def _take(self, count: int) -> bytes:
        while len(self._held) < count:
            await self._more()
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    async def _more(self) -> None:
        piece = await anext(self._pieces, None)
        if piece is None:
            raise ArgosyError("BODY_INVALID", "The form ends inside a part.")
        self._held += piece


async def _skip(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass


def _unquoted(value: bytes) -> str:
    return re.sub(rb"\\(.)", rb"\1", value).decode("utf-8", "replace")
