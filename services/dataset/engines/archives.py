"""Archives of files, read as a stream: zip, and tar as it is or compressed with gzip or zstd.

Nothing is ever written under a name that an archive gives, and names are never changed. An entry that a careless reader
could be harmed or misled by is set apart with a reason; the others are read on. Memory: a hash of each name, and of a
zip the places of its entries.
"""

from __future__ import annotations

import re
import stat
import struct
import tarfile
import unicodedata
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import BinaryIO, NamedTuple

from services.dataset.engines.lines import BrokenOff, UnreadableFile
from services.dataset.engines.unpacking import FREE_BYTES, MAX_RATIO, unpacked

# Read or unpacked at once.
_CHUNK = 256 * 1024


@dataclass(frozen=True)
class Limits:
    """What an archive may have.

    Attributes:
        entries: files and folders.
        entry_bytes: of one file, unpacked.
        total_bytes: of all files, unpacked.
        name_bytes: of a path, in UTF-8.
        depth: parts of a path.
    """

    entries: int = 1_000_000
    entry_bytes: int = 4 * 1024**3
    total_bytes: int = 1024**4
    name_bytes: int = 1024
    depth: int = 32


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive.

    Attributes:
        number: place in the archive, counted from 1, folders too.
        name: path in the archive as it stands there, without a leading `./`.
        error: why it is set apart; empty for one that can be read.
        chunks: its bytes, to be read before the next entry is asked for. Raises `BadEntry`.
    """

    number: int
    name: str
    error: str = ""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))


class BadEntry(Exception):
    """The bytes of an entry are not what the archive says, or must not be read; the others can be."""


def read_zip(file: BinaryIO, limits: Limits = LIMITS) -> Iterator[Entry]:
    """The files of a zip in the order of its central directory.

    Args:
        file: Binary and seekable.

    Raises:
        UnreadableFile: It has no central directory that can be trusted.
        BrokenOff: The rest would go beyond the limits.
    """
    directory = _find_directory(file)
    if directory.entries > limits.entries:
        raise UnreadableFile(f"{directory.entries:,} entries, at most {limits.entries:,} are read")
    starts = array("q", sorted(member.offset for member in _members(file, directory)))
    names = _Names(limits)
    total = 0
    for number, member in enumerate(_members(file, directory), 1):
        name, fault = member.text()
        if name.endswith("/") and not member.size:
            continue
        name = name.removeprefix("./")
        fault = fault or names.fault(name) or _member_fault(member, limits)
        chunks: Iterator[bytes] = iter(())
        if not fault:
            total = _add(total, member.size, limits)
            start, fault = _data_start(file, member, starts, directory.start)
            chunks = _checked(_zip_data(file, member, start))
        yield Entry(number, name, fault, chunks)


def read_tar(file: BinaryIO, limits: Limits = LIMITS) -> Iterator[Entry]:
    """The files of a tar (ustar, GNU, pax), which may be compressed with gzip or zstd, in one pass.

    Args:
        file: Binary and seekable, at its beginning.

    Raises:
        UnreadableFile: It does not begin like a tar.
        BrokenOff: It is damaged or cut off, or the rest would go beyond the limits.
    """
    stream = _TarStream(unpacked(file))
    names = _Names(limits)
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
            total = _add(total, header.size, limits)
        yield Entry(number, name, fault, _checked(stream.data()) if not fault else iter(()))


def _add(total: int, size: int, limits: Limits) -> int:
    if total + size > limits.total_bytes:
        raise BrokenOff(f"the archive unpacks to more than {limits.total_bytes:,} bytes")
    return total + size


# Names.

# Characters that make a name look like another one: bidirectional embeddings, overrides and isolates.
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_DRIVE = re.compile("[A-Za-z]:")
# What file systems take for one part of a path.
_PART_BYTES = 255
_ARCHIVES = (".zip", ".jar", ".tar", ".tgz", ".tzst", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
# First bytes of zip, gzip, zstd, 7z, RAR, xz, bzip2.
_MAGIC = (b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\xfd7zXZ\x00", b"BZh")
_NESTED = "an archive inside the archive"


class _Names:
    """Judges names one after the other, so that it knows which ones came before."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seen: set[bytes] = set()

    def fault(self, name: str) -> str:
        """Why an entry of this name is set apart, or nothing."""
        fault = self._spelling_fault(name)
        if fault:
            return fault
        # File systems that ignore case or the Unicode normal form would take them for one.
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        key = blake2b(folded.encode(), digest_size=16).digest()
        if key in self._seen:
            return "an entry before has the same name, case and Unicode form aside"
        self._seen.add(key)
        return _NESTED if name.lower().endswith(_ARCHIVES) else ""

    def _spelling_fault(self, name: str) -> str:
        if not name:
            return "it has no name"
        if any("\ud800" <= character <= "\udfff" for character in name):
            return "the name is not valid UTF-8"
        if any(unicodedata.category(character) == "Cc" for character in name) or _BIDI.search(name):
            return "the name has control characters"
        if "\\" in name:
            return "the name has a backslash"
        if name.startswith("/") or _DRIVE.match(name):
            return "the path is absolute"
        parts = name.split("/")
        if ".." in parts:
            return "the path leads to a parent folder"
        if "" in parts or "." in parts:
            return "the path has an empty part"
        if len(parts) > self._limits.depth:
            return f"{len(parts)} folders deep, at most {self._limits.depth}"
        if len(name.encode()) > self._limits.name_bytes or any(len(part.encode()) > _PART_BYTES for part in parts):
            return "the name is too long"
        return ""


def _checked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, unless they begin like an archive."""
    for number, chunk in enumerate(chunks):
        if number == 0 and (chunk.startswith(_MAGIC) or chunk[257:262] == b"ustar"):
            raise BadEntry(_NESTED)
        yield chunk


# Zip: APPNOTE.TXT 6.3.10 of PKWARE, whose sections are named below.

_END = struct.Struct("<4s4H2LH")  # 4.3.16
_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_MEMBER = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_MOST_COMMENT = 65_535
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1 << 0, 1 << 3, 1 << 11  # 4.4.4
_STORED, _DEFLATED = 0, 8  # 4.4.5
_UNIX, _MACOS = 3, 19  # 4.4.2


class _Directory(NamedTuple):
    """Where the central directory lies, and how many entries it says that it has."""

    start: int
    size: int
    entries: int


class _Member(NamedTuple):
    """An entry as the central directory has it."""

    made_by: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    attributes: int
    offset: int
    name: bytes

    def text(self) -> tuple[str, str]:
        """The name, and what is wrong with its bytes. Without the flag for UTF-8 it may be UTF-8 all the same, as
        macOS writes it; otherwise it is code page 437 (appendix D)."""
        try:
            return self.name.decode(), ""
        except UnicodeDecodeError:
            return self.name.decode("cp437"), "the name is not valid UTF-8" if self.flags & _UTF8 else ""


def _find_directory(file: BinaryIO) -> _Directory:
    size = file.seek(0, 2)
    tail_start = max(0, size - _END.size - _MOST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise UnreadableFile("not a zip, or cut off: it has no central directory")
    _, disk, first_disk, _, count, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise UnreadableFile("something stands behind the end of the zip")
    end = tail_start + at
    if 0xFFFF in (disk, count) or 0xFFFFFFFF in (length, start):
        end, disk, first_disk, count, length, start = _find_directory64(file, end)
    if disk or first_disk:
        raise UnreadableFile("a zip of several parts cannot be read")
    if start + length != end or length < count * _MEMBER.size:
        raise UnreadableFile("the central directory is not where the zip says that it is")
    return _Directory(start, length, count)


def _find_directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int, int, int]:
    file.seek(max(0, end - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if len(locator) < _LOCATOR.size or not locator.startswith(b"PK\x06\x07"):
        raise UnreadableFile("the zip says that it is a large one (zip64) and is none")
    end64 = _LOCATOR.unpack(locator)[2]
    file.seek(min(end64, end))
    record = file.read(_END64.size)
    if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
        raise UnreadableFile("the zip says that it is a large one (zip64) and is none")
    _, _, _, _, disk, first_disk, _, count, length, start = _END64.unpack(record)
    return end64, disk, first_disk, count, length, start


def _members(file: BinaryIO, directory: _Directory) -> Iterator[_Member]:
    at, end = directory.start, directory.start + directory.size
    for _ in range(directory.entries):
        # Others read other places of the file between two entries.
        file.seek(at)
        record = file.read(_MEMBER.size)
        if len(record) < _MEMBER.size or not record.startswith(b"PK\x01\x02"):
            raise UnreadableFile("the central directory is damaged")
        (_, made_by, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment, *rest) = (
            _MEMBER.unpack(record)
        )
        _, _, attributes, offset = rest
        name, extra = file.read(name_length), file.read(extra_length)
        at += _MEMBER.size + name_length + extra_length + comment
        if at > end:
            raise UnreadableFile("the central directory is damaged")
        size, packed, offset = _large(extra, size, packed, offset)
        yield _Member(made_by >> 8, flags, method, crc, packed, size, attributes, offset, name)
    if at != end:
        raise UnreadableFile("the central directory has more than the entries that it counts")


def _large(extra: bytes, *values: int) -> tuple[int, int, int]:
    """The values, those that do not fit 32 bits from the extra field (4.5.3)."""
    found = list(values)
    wanted = [at for at, value in enumerate(values) if value == 0xFFFFFFFF]
    while wanted and len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1 and length >= 8 * len(wanted) and len(extra) >= 4 + length:
            for place, at in enumerate(wanted):
                (found[at],) = struct.unpack_from("<Q", extra, 4 + 8 * place)
            break
        extra = extra[4 + length :]
    return found[0], found[1], found[2]


def _member_fault(member: _Member, limits: Limits) -> str:
    mode = member.attributes >> 16 if member.made_by in (_UNIX, _MACOS) else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "a link" if stat.S_ISLNK(mode) else "not a file: a device, a pipe or a folder with content"
    if member.flags & _ENCRYPTED:
        return "it is encrypted"
    if member.method not in (_STORED, _DEFLATED):
        return f"compressed by method {member.method}; stored and deflated entries are read"
    if member.method == _STORED and member.packed != member.size:
        return "its two sizes differ although it is not compressed"
    if member.size > limits.entry_bytes:
        return f"{member.size:,} bytes, at most {limits.entry_bytes:,} are read"
    if member.size > max(FREE_BYTES, MAX_RATIO * member.packed):
        return f"it unpacks to more than {MAX_RATIO} times its size"
    return ""


def _data_start(file: BinaryIO, member: _Member, starts: array[int], end: int) -> tuple[int, str]:
    """Where the bytes of an entry begin, or why they must not be read.

    Args:
        starts: Offsets of all entries in order.
        end: Of the entries.
    """
    file.seek(min(member.offset, end))
    record = file.read(_LOCAL.size)
    if len(record) < _LOCAL.size or not record.startswith(b"PK\x03\x04"):
        return 0, "it is not where the central directory says"
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(record)
    name, extra = file.read(name_length), file.read(extra_length)
    size, packed, _ = _large(extra, size, packed, 0)
    stated = (crc, packed, size) if not flags & _DESCRIPTOR else (member.crc, member.packed, member.size)
    known = (member.name, member.method, member.flags & _ENCRYPTED, member.crc, member.packed, member.size)
    if (name, method, flags & _ENCRYPTED, *stated) != known:
        return 0, "its own header and the central directory contradict each other"
    start = member.offset + _LOCAL.size + name_length + extra_length
    after = bisect_right(starts, member.offset)
    limit = starts[after] if after < len(starts) else end
    # Overlapping entries make a small zip large without any ratio that shows: Fifield, A better zip bomb, WOOT 2019.
    if after - bisect_left(starts, member.offset) > 1 or start + member.packed > limit:
        return 0, "it overlaps another entry"
    return start, ""


def _zip_data(file: BinaryIO, member: _Member, start: int) -> Iterator[bytes]:
    crc = size = 0
    for chunk in _inflated(file, member, start) if member.method == _DEFLATED else _stored(file, member, start):
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
        if size > member.size:
            break
        yield chunk
    if size != member.size or crc != member.crc:
        raise BadEntry("its bytes are not those that the archive has the size and the checksum of")


def _stored(file: BinaryIO, member: _Member, start: int) -> Iterator[bytes]:
    for at in range(0, member.packed, _CHUNK):
        file.seek(start + at)
        yield file.read(min(_CHUNK, member.packed - at))


def _inflated(file: BinaryIO, member: _Member, start: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(file, member, start):
            rest = packed
            while rest and not inflate.eof:
                if chunk := inflate.decompress(rest, _CHUNK):
                    yield chunk
                rest = inflate.unconsumed_tail
        while not inflate.eof and (more := inflate.decompress(inflate.unconsumed_tail, _CHUNK)):
            yield more
    except zlib.error as error:
        raise BadEntry("its compressed data is damaged") from error
    if not inflate.eof:
        raise BadEntry("its compressed data is cut off")


# Tar: POSIX.1-2017, pax Interchange Format; GNU tar manual, appendix D.

_BLOCK = tarfile.BLOCKSIZE
# Headers that only name things; without a limit one could be as large as the memory.
_MOST_EXTENDED = 1024 * 1024
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


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
            chunk = self._read(min(_CHUNK, self._left))
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
