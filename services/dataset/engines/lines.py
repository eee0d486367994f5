"""What every reader of files yields: a row or the reason why there is none, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from libs.archives.errors import UnreadableFile
from services.dataset.engines.rows import MAX_ROW_BYTES, Row

TOO_LONG = f"longer than {MAX_ROW_BYTES} bytes"

# Byte order mark, in UTF-8.
BOM = b"\xef\xbb\xbf"
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


def column_names(header: Sequence[str]) -> list[str]:
    """Names of the columns of a table. One without a name, such as the index that pandas writes, is called by its
    place: `column_1`.

    Raises:
        UnreadableFile: Two have the same name.
    """
    names = [name or f"column_{at}" for at, name in enumerate(header, 1)]
    if len(set(names)) != len(names):
        raise UnreadableFile("the header names a column twice")
    return names


class PhysicalLines:
    """Lines without their end, unless it is kept, counted from 1; None for one that is longer than a row may be.

    Args:
        file: Read from where it stands.
        begun: Whether it stands inside a longer file; the line that it stands in belongs to what is before.
        last: Says how many bytes from there on lines may start in; None: all.
        keep_ends: Leaves the end of each line; inside quotes of CSV it belongs to a text.
    """

    def __init__(
        self, file: BinaryIO, begun: bool = False, last: Callable[[], int] | None = None, *, keep_ends: bool = False
    ) -> None:
        self._file = file
        self._begun = begun
        self._last = last
        self._keep_ends = keep_ends
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        at = self._skip() if self._begun else 0
        while self._last is None or at <= self._last():
            line = self._file.readline(MAX_ROW_BYTES + 2)
            if not line:
                return
            at += len(line)
            self.count += 1
            if self.count == 1 and not self._begun:
                line = line.removeprefix(BOM)
            if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                at += self._skip()
                yield self.count, None
            else:
                yield self.count, line if self._keep_ends else line.rstrip(b"\r\n")

    def _skip(self) -> int:
        """Goes behind the end of the line; says how many bytes that were."""
        skipped = 0
        while rest := self._file.readline(_SKIP_BYTES):
            skipped += len(rest)
            if rest.endswith(b"\n"):
                break
        return skipped
