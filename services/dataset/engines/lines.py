"""What every reader of files yields: a row or the reason why there is none, line by line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from services.dataset.engines.rows import MAX_ROW_BYTES, Row

TOO_LONG = f"longer than {MAX_ROW_BYTES} bytes"

_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line or row of a file.

    Attributes:
        number: counted from 1.
        row: None when it cannot be read.
        error: why it cannot be read.
    """

    number: int
    row: Row | None
    error: str = ""


class UnreadableFile(Exception):
    """The file as a whole is not of its format."""


class BrokenOff(Exception):
    """From here on the file cannot be read; the message says why, for people."""


def physical_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines without their end, counted from 1; None for one that is longer than a row may be."""
    for number in itertools.count(1):
        line = file.readline(MAX_ROW_BYTES + 2)
        if not line:
            return
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_SKIP_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        yield number, line.rstrip(b"\r\n")
