"""Archives of files, read as a stream: what zip and tar have in common.

Nothing is ever written under a name that an archive gives, and names are never changed. An entry that a careless reader
could be harmed or misled by is set apart with a reason; the others are read on. Memory: a hash of each name, and of a
zip the places of its entries.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from libs.archives.errors import BrokenOff

# Read or unpacked at once.
CHUNK = 256 * 1024


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


def add_size(total: int, size: int, limits: Limits) -> int:
    """The sum. Raises `BrokenOff` beyond what all files may have."""
    if total + size > limits.total_bytes:
        raise BrokenOff(f"the archive unpacks to more than {limits.total_bytes:,} bytes")
    return total + size


# Characters that make a name look like another one: bidirectional embeddings, overrides and isolates.
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_DRIVE = re.compile("[A-Za-z]:")
# What file systems take for one part of a path.
_PART_BYTES = 255
_ARCHIVES = (".zip", ".jar", ".tar", ".tgz", ".tzst", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
# First bytes of zip, gzip, zstd, 7z, RAR, xz, bzip2.
_MAGIC = (b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\xfd7zXZ\x00", b"BZh")
_NESTED = "an archive inside the archive"


class Names:
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


def checked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, unless they begin like an archive."""
    for number, chunk in enumerate(chunks):
        if number == 0 and (chunk.startswith(_MAGIC) or chunk[257:262] == b"ustar"):
            raise BadEntry(_NESTED)
        yield chunk
