"""The words of many texts at once, as 64-bit hashes: a few numpy passes over their bytes, no Python object a word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.dataset.engines.chinese import fold_script
from services.dataset.engines.rules import is_east_asian, words

# Bytes of text hashed in one pass; the working arrays stay in the cache of a core.
PASS_BYTES = 256 * 1024
# An odd multiplier of good spectral quality (Knuth, MMIX).
BASE = np.uint64(6364136223846793005)

_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_IS_WORD = np.zeros(256, bool)
_IS_WORD[[*_LETTERS, *b"0123456789_"]] = True
_IS_WORD[128:] = True
_IS_LETTER = np.zeros(256, bool)
_IS_LETTER[[*_LETTERS]] = True
_IS_LETTER[128:] = True
_NOT_WORD = re.compile(r"\W+")


@dataclass(frozen=True, slots=True)
class WordTable:
    """The n words of some texts, text after text.

    Attributes:
        hashes: (n,) uint64, of the words as they are written.
        chars: (n,) int64, length in characters.
        letters: (n,) bool, whether the word has a letter.
        first: (texts + 1,) int64; text i has the words first[i] to first[i + 1].
    """

    hashes: np.ndarray
    chars: np.ndarray
    letters: np.ndarray
    first: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(texts,) int64: words of each text."""
        return np.diff(self.first)

    @property
    def text_of(self) -> np.ndarray:
        """(n,) int64: the text of each word."""
        return np.repeat(np.arange(len(self.first) - 1), self.counts)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(texts,) int64: sum of one value a word over each text."""
        sums = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=sums[1:])
        return sums[self.first[1:]] - sums[self.first[:-1]]


def word_table(texts: Sequence[str]) -> WordTable:
    """The words of texts: runs of letters, digits and underscores; each East Asian character is one."""
    prepared = [prepare(text) for text in texts]
    data = np.frombuffer(b"\n".join(prepared) + b"\n", np.uint8)
    starts, ends = word_bounds(data)
    characters = np.zeros(len(data) + 1, np.int64)
    # All but the continuation bytes of UTF-8.
    np.cumsum((data & 0xC0) != 0x80, out=characters[1:])
    letters = np.zeros(len(data) + 1, np.int64)
    np.cumsum(_IS_LETTER[data], out=letters[1:])
    return WordTable(
        word_hashes(data, starts, ends),
        characters[ends] - characters[starts],
        letters[ends] > letters[starts],
        first_words(prepared, starts),
    )


def hash_of(word: str) -> np.uint64:
    """The hash of a word in a table."""
    return word_table([word]).hashes[0]


def prepare(text: str, *, fold: bool = False) -> bytes:
    """The text in UTF-8, every separator an ASCII byte, so that `word_bounds` finds the words.

    `fold`: in lower case, Chinese in one script.
    """
    if text.isascii():
        return (text.lower() if fold else text).encode()
    if fold:
        text = text.casefold()
    if is_east_asian(text):
        return " ".join(words(fold_script(text) if fold else text)).encode(errors="replace")
    return _NOT_WORD.sub(" ", text).encode(errors="replace")


def first_words(prepared: Sequence[bytes], starts: np.ndarray) -> np.ndarray:
    """(texts + 1,) int64: number of the first word of each text, and of all words."""
    first = np.zeros(len(prepared) + 1, np.int64)
    first[1:] = np.searchsorted(starts, np.cumsum([len(text) + 1 for text in prepared]))
    return first


def word_bounds(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First byte of every word, and the byte after it. Every text ends with a separator."""
    inside = _IS_WORD[data]
    # So words start and end in turns.
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if inside[0]:
        edges = np.concatenate([np.zeros(1, np.int64), edges])
    return edges[0::2], edges[1::2]


def word_hashes(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(n,) uint64: hash of the bytes [starts[i], ends[i])."""
    # sum(byte[i] * B^(i - start)) + length, by sums over B^i that are then divided by B^start (B is odd, so it has an
    # inverse).
    up, down = _powers(len(data))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data + np.uint64(1)) * up, out=sums[1:])
    return mix((sums[ends] - sums[starts]) * down[starts] + (ends - starts).astype(np.uint64))


def mix(values: np.ndarray) -> np.ndarray:
    """Finaliser of MurmurHash3: every bit of the input changes half of the output's."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


_POWERS: list[tuple[np.ndarray, np.ndarray]] = []


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """B^i and B^-i modulo 2^64 for i < length."""
    if not _POWERS or len(_POWERS[0][0]) < length:
        size = max(length, 2 * PASS_BYTES)
        inverse = np.uint64(pow(int(BASE), -1, 2**64))
        _POWERS[:] = [(_geometric(BASE, size), _geometric(inverse, size))]
    up, down = _POWERS[0]
    return up[:length], down[:length]


def _geometric(base: np.uint64, size: int) -> np.ndarray:
    values = np.full(size, base, np.uint64)
    values[0] = 1
    return np.cumprod(values, dtype=np.uint64)
