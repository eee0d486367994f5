"""Zip, read as a stream: APPNOTE.TXT 6.3.10 of PKWARE, whose sections are named below."""

from __future__ import annotations

import stat
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from libs.archives.entries import CHUNK, LIMITS, BadEntry, Entry, Limits, Names, add_size, checked
from libs.archives.errors import UnreadableFile
from libs.archives.unpacking import FREE_BYTES, MAX_RATIO

_END = struct.Struct("<4s4H2LH")  # 4.3.16
_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_MEMBER = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_MOST_COMMENT = 65_535
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1 << 0, 1 << 3, 1 << 11  # 4.4.4
_STORED, _DEFLATED = 0, 8  # 4.4.5
_UNIX, _MACOS = 3, 19  # 4.4.2


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
    names = Names(limits)
    total = 0
    for number, member in enumerate(_members(file, directory), 1):
        name, fault = member.text()
        if name.endswith("/") and not member.size:
            continue
        name = name.removeprefix("./")
        fault = fault or names.fault(name) or _member_fault(member, limits)
        chunks: Iterator[bytes] = iter(())
        if not fault:
            total = add_size(total, member.size, limits)
            start, fault = _data_start(file, member, starts, directory.start)
            chunks = checked(_zip_data(file, member, start))
        yield Entry(number, name, fault, chunks)


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
    for at in range(0, member.packed, CHUNK):
        file.seek(start + at)
        yield file.read(min(CHUNK, member.packed - at))


def _inflated(file: BinaryIO, member: _Member, start: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(file, member, start):
            rest = packed
            while rest and not inflate.eof:
                if chunk := inflate.decompress(rest, CHUNK):
                    yield chunk
                rest = inflate.unconsumed_tail
        while not inflate.eof and (more := inflate.decompress(inflate.unconsumed_tail, CHUNK)):
            yield more
    except zlib.error as error:
        raise BadEntry("its compressed data is damaged") from error
    if not inflate.eof:
        raise BadEntry("its compressed data is cut off")
