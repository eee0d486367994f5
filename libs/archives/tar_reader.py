"""Tar as it is, or compressed with gzip or zstd, read as a stream."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from libs.archives.entries import CHUNK, LIMITS, Entry, Limits, Names, add_size, checked
from libs.archives.errors import BrokenOff, UnreadableFile
from libs.archives.unpacking import unpacked

# POSIX.1-2017, pax Interchange Format; GNU tar manual, appendix D.
_BLOCK = tarfile.BLOCKSIZE
# Headers that only name things; without a limit one could be as large as the memory.
_MOST_EXTENDED = 1024 * 1024
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


def read_tar(file: BinaryIO, limits: Limits = LIMITS) -> Iterator[Entry]:
    """The files of a tar (ustar, GNU, pax), which may be compressed with gzip or zstd, in one pass.

    Args:
        file: Binary and seekable, at its beginning.

    Raises:
        UnreadableFile: It does not begin like a tar.
        BrokenOff: It is damaged or cut off, or the rest would go beyond the limits.
    """
    stream = _TarStream(unpacked(file))
    names = Names(limits)
    total = number = 0
    while (header := stream.next_header()) is not None:
        number += 1
        if number > limits.entries:
            raise BrokenOff(f"more than {limits.entries:,} entries")
        name = header.name.removeprefix("./")
        if header.isdir():
            continue
        fault = names.fault(name) or _type_fault(header)
        if not fault and header.size > limits.entry_bytes:
            fault = f"{header.size:,} bytes, at most {limits.entry_bytes:,} are read"
        if not fault:
            total = add_size(total, header.size, limits)
        yield Entry(number, name, fault, checked(stream.data()) if not fault else iter(()))


class _TarStream:
    """Headers and data of a tar, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begun = False
        # Bytes of the entry that is being read, and what fills its last block.
        self._left = self._padding = 0

    def next_header(self) -> tarfile.TarInfo | None:
        """The next entry, its long name put in; None at the end."""
        for _ in self.data():
            pass
        self._read(self._padding)
        path, size, sparse = None, None, False
        while (header := self._header()) is not None:
            if header.type == tarfile.GNUTYPE_LONGNAME:
                path = self._extended(header).rstrip(b"\x00")
            elif header.type == tarfile.XHDTYPE:
                fields = _pax_fields(self._extended(header))
                path, size = fields.get(b"path", path), fields.get(b"size", size)
                sparse = sparse or any(name.startswith(b"GNU.sparse") for name in fields)
            elif header.type in _EXTENDED:
                self._extended(header)
            else:
                break
        if header is None:
            return None
        if path is not None:
            header.name = path.decode(errors="surrogateescape")
        if size is not None:
            header.size = int(size) if size.isdigit() else -1
        if sparse:
            header.type = tarfile.GNUTYPE_SPARSE
        # Links, devices and folders have no data, whatever size they state.
        self._expect(header.size if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES else 0)
        return header

    def data(self) -> Iterator[bytes]:
        """What is left of the entry's bytes."""
        while self._left:
            chunk = self._read(min(CHUNK, self._left))
            self._left -= len(chunk)
            yield chunk

    def _header(self) -> tarfile.TarInfo | None:
        block = self._read(_BLOCK)
        if not block.strip(b"\x00"):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not self._begun:
                raise UnreadableFile("not a tar") from error
            raise BrokenOff("a header of the tar is damaged") from error
        self._begun = True
        if header.type == tarfile.GNUTYPE_SPARSE:
            # Its map goes on in further blocks as long as they say so (GNU tar manual, D.2).
            more = block[482]
            while more:
                more = self._read(_BLOCK)[504]
        return header

    def _extended(self, header: tarfile.TarInfo) -> bytes:
        if not 0 <= header.size <= _MOST_EXTENDED:
            raise BrokenOff("a name or an extended header of the tar is too long")
        data = self._read(header.size)
        self._read(-header.size % _BLOCK)
        return data

    def _expect(self, size: int) -> None:
        if size < 0:
            raise BrokenOff("a size in the tar is none")
        self._left, self._padding = size, -size % _BLOCK

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            if not self._begun:
                raise UnreadableFile("not a tar, or cut off at its beginning")
            raise BrokenOff("the tar is cut off")
        return data


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """Records of the form `length name=value`, each with a line feed."""
    fields: dict[bytes, bytes] = {}
    while data:
        length, separator, _ = data.partition(b" ")
        if not separator or not length.isdigit() or len(length) > 7 or not len(length) + 2 < int(length) <= len(data):
            raise BrokenOff("an extended header of the tar is damaged")
        name, _, value = data[len(length) + 1 : int(length)].removesuffix(b"\n").partition(b"=")
        fields[name] = value
        data = data[int(length) :]
    return fields


def _type_fault(header: tarfile.TarInfo) -> str:
    if header.issym() or header.islnk():
        return "a link"
    if header.type == tarfile.GNUTYPE_SPARSE:
        return "a sparse file"
    return "" if header.isreg() else "not a file: a device or a pipe"
