"""Scalars in TensorBoard's event files, written and read without TensorFlow.

A file is a row of records (tensorflow/core/lib/io/record_writer.h): the length in 8 bytes, the masked CRC-32C of these
8 bytes, the content, its masked CRC-32C; all little-endian. The content is a message `Event`
(tensorflow/core/util/event.proto), its values a `Summary` (tensorflow/core/framework/summary.proto). Of both only what
scalars need is known here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

_POLYNOMIAL = 0x82F63B78
# tensorflow/core/lib/hash/crc32c.h: a CRC of data that holds CRCs is masked.
_MASK_DELTA = 0xA282EAD8
_HEAD, _FOOT = 12, 4
_VERSION = b"brain.Event:2"
# A larger record holds a picture or a graph, and no scalar.
LARGEST_RECORD = 4 * 1024 * 1024
# Fields of the messages.
_WALL_TIME, _STEP, _SUMMARY = 1, 2, 5
_VALUE = 1
_TAG, _SIMPLE_VALUE, _TENSOR = 1, 2, 8
_DTYPE, _SHAPE, _CONTENT, _FLOATS, _DOUBLES = 1, 2, 4, 5, 6
_DT_FLOAT, _DT_DOUBLE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Scalar:
    """One value of one tag; `time` in microseconds since 1970."""

    tag: str
    step: int
    time: int
    value: float


@dataclass(frozen=True)
class Fault:
    """A record that cannot be read.

    Attributes:
        offset: of the record in the file.
    """

    offset: int
    reason: str


@dataclass
class Part:
    """What a part of a file holds.

    Attributes:
        next_offset: where the next part begins.
        skipped: values that are no scalars.
    """

    next_offset: int
    scalars: list[Scalar] = field(default_factory=list[Scalar])
    faults: list[Fault] = field(default_factory=list[Fault])
    skipped: int = 0


class _Malformed(ValueError):
    """The content of a record is no event."""


def _table() -> tuple[int, ...]:
    found: list[int] = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4)."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


# The records of a file have few lengths.
@lru_cache(maxsize=4096)
def _head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", _masked(packed))


def record(content: bytes) -> bytes:
    """A content in its frame."""
    return _head(len(content)) + content + struct.pack("<I", _masked(content))


def opening(time: int) -> bytes:
    """The record that a file begins with. `time`: microseconds since 1970."""
    return record(_wall(time) + _sized(3, _VERSION))


def scalar(tag: str, step: int, time: int, value: float) -> bytes:
    """The record of a scalar.

    Args:
        step: not negative.
        time: microseconds since 1970.
        value: kept in 32 bits, as TensorBoard has it.
    """
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", math.copysign(math.inf, value))
    summary = _sized(_VALUE, _sized(_TAG, tag.encode()) + b"\x15" + packed)
    return record(_wall(time) + b"\x10" + _varint(step) + _sized(_SUMMARY, summary))


def _wall(time: int) -> bytes:
    return b"\x09" + struct.pack("<d", time / 1e6)


def _sized(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def read_part(data: bytes, offset: int, last: bool) -> Part:
    """The scalars of a part of a file.

    A record whose checksum is wrong is set apart. Where a length is wrong, reading goes on at the next place that has
    a right one.

    Args:
        data: from `offset` on; it begins with a record.
        last: nothing follows behind it.
    """
    at, part = 0, Part(offset)
    while at + _HEAD <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        if data[at : at + _HEAD] != _head(length):
            following = _next_head(data, at + 1)
            part.faults.append(Fault(offset + at, f"the length is damaged; {following - at} bytes are left out"))
            at = following
            continue
        end = at + _HEAD + length + _FOOT
        if length > LARGEST_RECORD:
            part.skipped += 1
            at = end
            continue
        if end > len(data):
            break
        _take(part, data[at + _HEAD : end - _FOOT], data[end - _FOOT : end], offset + at)
        at = end
    if last and at < len(data):
        part.faults.append(Fault(offset + at, "the file ends within the record"))
        at = len(data)
    part.next_offset = offset + at
    return part


def _next_head(data: bytes, at: int) -> int:
    """The next place where a length with its right checksum stands; as far as that can be known, else the end."""
    while True:
        # The lengths of all records that are read have five bytes of zero at the end.
        zeros = data.find(b"\0\0\0\0\0", at + 3)
        if zeros < 0 or zeros + 9 > len(data):
            # A head may begin in the last bytes and go on in the next part.
            return max(at, len(data) - _HEAD + 1)
        at = zeros - 3
        if data[at : at + _HEAD] == _head(int.from_bytes(data[at : at + 8], "little")):
            return at
        at += 1


def _take(part: Part, content: bytes, checksum: bytes, offset: int) -> None:
    """Reads one record into the part."""
    if int.from_bytes(checksum, "little") != _masked(content):
        part.faults.append(Fault(offset, "the checksum of the record is wrong"))
        return
    try:
        scalars, skipped = _event(content)
    except _Malformed as error:
        part.faults.append(Fault(offset, str(error)))
        return
    part.scalars += scalars
    part.skipped += skipped


def _event(content: bytes) -> tuple[list[Scalar], int]:
    wall, step, summaries = 0.0, 0, list[bytes]()
    for number, kind, value in _fields(content):
        if number == _WALL_TIME and kind == _FIXED64:
            (wall,) = struct.unpack("<d", value)
        elif number == _STEP and kind == _VARINT:
            step = int.from_bytes(value, "little")
        elif number == _SUMMARY and kind == _BYTES:
            summaries.append(value)
    if not summaries:
        return [], 0
    if step >= 1 << 63:
        raise _Malformed("the step is negative")
    if not 0 <= wall < 1e11:
        raise _Malformed("the time is no time")
    scalars, skipped = list[Scalar](), 0
    for summary in summaries:
        for number, kind, value in _fields(summary):
            if number == _VALUE and kind == _BYTES:
                found = _value(value)
                if found is None:
                    skipped += 1
                else:
                    scalars.append(Scalar(found[0], step, round(wall * 1e6), found[1]))
    return scalars, skipped


def _value(content: bytes) -> tuple[str, float] | None:
    """Tag and number of a value; None for one that is no scalar."""
    tag, number = "", None
    for name, kind, value in _fields(content):
        if name == _TAG and kind == _BYTES:
            try:
                tag = value.decode()
            except UnicodeDecodeError:
                raise _Malformed("a tag is not UTF-8") from None
        elif name == _SIMPLE_VALUE and kind == _FIXED32:
            (number,) = struct.unpack("<f", value)
        elif name == _TENSOR and kind == _BYTES:
            number = _tensor(value)
    return None if number is None else (tag, number)


def _tensor(content: bytes) -> float | None:
    """The number of a tensor without dimensions (tensorflow/core/framework/tensor.proto); None for any other."""
    dtype, shape, held = 0, b"", dict[int, bytes]()
    for number, kind, value in _fields(content):
        if number == _DTYPE and kind == _VARINT:
            dtype = int.from_bytes(value, "little")
        elif number == _SHAPE and kind == _BYTES:
            shape = value
        else:
            held[number] = held.get(number, b"") + value
    if shape or dtype not in (_DT_FLOAT, _DT_DOUBLE):
        return None
    form, size, number = ("<f", 4, _FLOATS) if dtype == _DT_FLOAT else ("<d", 8, _DOUBLES)
    packed = held.get(_CONTENT) or held.get(number, b"")
    return struct.unpack(form, packed)[0] if len(packed) == size else None


def _fields(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, wire type and bytes of each field; of a variable-length integer its value in 8 bytes."""
    at, end = 0, len(content)
    while at < end:
        key, at = _integer(content, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _integer(content, at)
            yield key >> 3, kind, number.to_bytes(8, "little")
            continue
        if kind == _BYTES:
            size, at = _integer(content, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _Malformed("the record is no event")
        if at + size > end:
            raise _Malformed("the record is no event")
        yield key >> 3, kind, content[at : at + size]
        at += size


def _integer(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
    raise _Malformed("the record is no event")
