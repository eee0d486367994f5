"""The header of a safetensors file, checked before anything else reads it.

Format: eight bytes with the length of the header (little endian), the header (JSON), the tensors without holes. The
rules are those of the specification at https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

# The specification's own limit.
MAX_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8
# Bits of one element. Types below a byte are packed; a tensor has whole bytes.
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_MOST_DIMENSIONS = 16
# More elements than any file has room for; keeps products small.
_MOST_ELEMENTS = 1 << 60


class BadWeights(Exception):
    """The file is not safetensors, or is damaged; the message says how."""


@dataclass(frozen=True)
class Header:
    """What a file holds: the shapes of its tensors by name, and their elements in sum."""

    shapes: dict[str, list[int]]
    elements: int


def header_length(start: bytes, size: int) -> int:
    """Bytes of the header.

    Args:
        start: the first eight bytes of the file.
        size: of the whole file.

    Raises:
        BadWeights: There is no such header in the file.
    """
    if len(start) < LENGTH_BYTES:
        raise BadWeights("it is shorter than the length of its header")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise BadWeights(f"it states a header of {length:,} bytes, at most {MAX_HEADER_BYTES:,} are read")
    if length > size - LENGTH_BYTES:
        raise BadWeights(f"it is cut off: a header of {length:,} bytes in a file of {size:,}")
    return length


def read_header(content: bytes, size: int) -> Header:
    """Checks a header against its file.

    Args:
        content: the header, JSON.
        size: of the whole file.

    Raises:
        BadWeights: Names are double, a type is unknown, an offset does not fit shape and type, tensors overlap or
            leave holes, or the file ends early or late.
    """
    entries = _entries(content)
    places: list[tuple[int, int, str]] = []
    elements = 0
    for name, entry in entries.items():
        begin, end, count = _tensor(name, entry)
        places.append((begin, end, name))
        elements += count
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            fault = "overlaps the one before it" if begin < at else "leaves a hole before it"
            raise BadWeights(f"tensor {_shown(name)} {fault}: it begins at {begin:,}, not at {at:,}")
        at = end
    held = size - LENGTH_BYTES - len(content)
    if at != held:
        raise BadWeights(f"{'it is cut off' if at > held else 'something stands behind its tensors'}: "
                         f"the tensors have {at:,} bytes, the file has {held:,} for them")  # fmt: skip
    if not places:
        raise BadWeights("it has no tensors")
    return Header({name: entry["shape"] for name, entry in sorted(entries.items())}, elements)


def _entries(content: bytes) -> dict[str, Any]:
    if not content.startswith(b"{"):
        raise BadWeights("its header does not begin with '{'")
    try:
        document: dict[str, Any] = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    except BadWeights:
        raise
    except (ValueError, RecursionError) as error:
        raise BadWeights("its header is not JSON") from error
    metadata = document.pop("__metadata__", {})
    texts = cast("dict[str, Any]", metadata).values() if isinstance(metadata, dict) else [None]
    if not all(isinstance(value, str) for value in texts):
        raise BadWeights("its __metadata__ is not a map of texts")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise BadWeights(f"its header names {_shown(double)} twice")
    return found


def _no_constant(text: str) -> float:
    raise BadWeights(f"its header has the number {text}")


def _tensor(name: str, entry: Any) -> tuple[int, int, int]:
    """First and last byte, and elements."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadWeights(f"tensor {_shown(name)} does not have just dtype, shape and data_offsets")
    entry = cast("dict[str, Any]", entry)
    bits = _BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise BadWeights(f"tensor {_shown(name)} has the unknown type {_shown(str(entry['dtype']))}")
    shape, offsets = _naturals(entry["shape"]), _naturals(entry["data_offsets"])
    if shape is None or len(shape) > _MOST_DIMENSIONS:
        raise BadWeights(f"tensor {_shown(name)} has no shape")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadWeights(f"tensor {_shown(name)} has no offsets")
    count = 1
    for length in shape:
        count *= length
        if count > _MOST_ELEMENTS:
            raise BadWeights(f"tensor {_shown(name)} is larger than any file")
    if count * bits != 8 * (offsets[1] - offsets[0]):
        raise BadWeights(f"tensor {_shown(name)} has {offsets[1] - offsets[0]:,} bytes, its shape and type need others")
    return offsets[0], offsets[1], count


def _naturals(value: Any) -> list[int] | None:
    """A list of natural numbers; None for anything else."""
    if not isinstance(value, list):
        return None
    numbers = cast("list[Any]", value)
    return numbers if all(type(each) is int and each >= 0 for each in numbers) else None


def _shown(text: str) -> str:
    return repr(text[:100])
