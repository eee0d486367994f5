"""TensorBoard's event files: the frame, what is broken, and what is no scalar."""

from __future__ import annotations

import math
import random
import struct

import pytest
from argosy import event_files
from argosy.event_files import Scalar, crc32c, opening, read_part, record, scalar

TIME = 1_790_000_000_123_456


def file_of(count: int) -> bytes:
    return opening(TIME) + b"".join(scalar("loss", step, TIME + step, step / 2) for step in range(count))


def test_the_checksum_is_that_of_the_rfc() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_what_is_written_is_read() -> None:
    values = [0.5, -1.0, math.inf, -math.inf, 1e300]
    data = opening(TIME) + b"".join(scalar("a/b", 1 << step, TIME, value) for step, value in enumerate(values))
    part = read_part(data, 0, last=True)
    assert part.next_offset == len(data)
    assert (part.faults, part.skipped) == ([], 0)
    assert [one.value for one in part.scalars] == [0.5, -1.0, math.inf, -math.inf, math.inf]
    assert [one.step for one in part.scalars] == [1, 2, 4, 8, 16]
    # Doubles hold microseconds of our time to a quarter.
    assert part.scalars[0] == Scalar("a/b", 1, TIME, 0.5)


def test_parts_are_cut_anywhere() -> None:
    data, at, found = file_of(20), 0, []
    while at < len(data):
        part = read_part(data[at : at + 97], at, last=at + 97 >= len(data))
        found += part.scalars
        assert part.next_offset > at
        at = part.next_offset
    assert found == read_part(data, 0, last=True).scalars
    assert len(found) == 20


@pytest.mark.parametrize("seed", range(30))
def test_one_damaged_byte_costs_one_record(seed: int) -> None:
    data = bytearray(file_of(20))
    place = random.Random(seed).randrange(len(data))
    data[place] ^= 0x55
    part = read_part(bytes(data), 1000, last=True)
    assert part.next_offset == 1000 + len(data)
    assert len(part.faults) == 1
    assert part.faults[0].offset <= 1000 + place
    assert len(part.scalars) >= 19


def test_a_file_that_breaks_off_is_said() -> None:
    data = file_of(3)
    assert read_part(data[:-5], 0, last=False).faults == []
    part = read_part(data[:-5], 0, last=True)
    assert [fault.reason for fault in part.faults] == ["the file ends within the record"]
    assert len(part.scalars) == 2


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_set_apart(seed: int) -> None:
    chance = random.Random(seed)
    part = read_part(chance.randbytes(5000), 0, last=True)
    assert part.scalars == []
    assert part.faults
    # Framed well, and no event.
    framed = record(chance.randbytes(50)) + scalar("loss", 1, TIME, 1.0)
    assert len(read_part(framed, 0, last=True).scalars) == 1
    assert len(read_part(b"\0" * 5000, 0, last=True).faults) > 0


def test_other_values_are_skipped() -> None:
    def sized(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def event(value: bytes) -> bytes:
        return record(b"\x09" + struct.pack("<d", 1.0) + b"\x10\x07" + sized(5, sized(1, value)))

    tag = sized(1, b"loss")
    of_float = event(tag + sized(8, b"\x08\x01" + sized(4, struct.pack("<f", 1.5))))
    of_double = event(tag + sized(8, b"\x08\x02" + sized(6, struct.pack("<d", 2.5))))
    histogram = event(tag + sized(8, b"\x08\x02" + sized(2, b"\x12\x02\x08\x03") + sized(4, bytes(24))))
    picture = event(tag + sized(4, b"png"))
    large = event_files._head(event_files.LARGEST_RECORD + 1)
    part = read_part(of_float + of_double + histogram + picture + large, 0, last=False)
    assert [one.value for one in part.scalars] == [1.5, 2.5]
    assert part.skipped == 3
    # The caller goes on behind the large record.
    assert part.next_offset > event_files.LARGEST_RECORD
