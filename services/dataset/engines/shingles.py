"""Word 5-shingles of many texts at once, as 64-bit hashes.

The bottleneck of near-duplicate search is shingling, not MinHash; so all words of a batch of texts are hashed in a
few numpy passes over its bytes, without a Python object a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from services.dataset.engines.rules import is_east_asian, words

# Five words: random texts then share next to nothing, and one changed word costs five shingles.
SHINGLE_WORDS = 5
# Bytes of text hashed in one pass; the working arrays stay in the cache of a core.
_PASS_BYTES = 256 * 1024
# An odd multiplier of good spectral quality (Knuth, MMIX).
_BASE = np.uint64(6364136223846793005)

_IS_WORD = np.zeros(256, bool)
_IS_WORD[[*b"abcdefghijklmnopqrstuvwxyz0123456789_"]] = True
_IS_WORD[128:] = True
_NOT_WORD = re.compile(r"\W+")


def shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the distinct word 5-shingles of each text, case-folded, punctuation ignored.

    A text of one to four words is one shingle of all of them; a text without a word has none.

    Returns:
        hashes: (total,) uint64, ascending within a text.
        offsets: (len(texts) + 1,) int64; text i has hashes[offsets[i]:offsets[i + 1]].
    """
    pieces: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    batch: list[bytes] = []
    size = 0
    for text in texts:
        prepared = _prepare(text)
        if batch and size + len(prepared) > _PASS_BYTES:
            _shingle(batch, pieces, counts)
            batch, size = [], 0
        batch.append(prepared)
        size += len(prepared) + 1
    _shingle(batch, pieces, counts)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.concatenate(counts), out=offsets[1:])
    return np.concatenate(pieces), offsets


def _prepare(text: str) -> bytes:
    """Lower case, with every separator an ASCII byte, so that `_IS_WORD` finds the words."""
    if text.isascii():
        return text.lower().encode()
    folded = text.casefold()
    if is_east_asian(folded):
        return " ".join(words(folded)).encode(errors="replace")
    return _NOT_WORD.sub(" ", folded).encode(errors="replace")


def _shingle(batch: list[bytes], pieces: list[np.ndarray], counts: list[np.ndarray]) -> None:
    """Appends the distinct shingle hashes of a batch and their number per text."""
    data = np.frombuffer(b"\n".join(batch) + b"\n", np.uint8)
    lengths = np.array([len(text) + 1 for text in batch], np.int64)
    hashes, word_text = _words(data, lengths)
    word_counts = np.bincount(word_text, minlength=len(batch))
    shingles, owner = _windows(hashes, word_counts)
    order = np.lexsort((shingles, owner))
    shingles, owner = shingles[order], owner[order]
    distinct = np.ones(len(shingles), bool)
    distinct[1:] = (shingles[1:] != shingles[:-1]) | (owner[1:] != owner[:-1])
    pieces.append(shingles[distinct])
    counts.append(np.bincount(owner[distinct], minlength=len(batch)))


def _words(data: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every word of the batch in order, and the text that it stands in."""
    inside = _IS_WORD[data]
    edges = np.flatnonzero(np.diff(inside, prepend=False))
    starts, ends = edges[0::2], edges[1::2]
    if not len(starts):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    # sum(byte[i] * B^(i - start)) + length, by sums over B^i that are then divided by B^start (B is odd, so it has an
    # inverse).
    powers = _powers(len(data))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[0])])
    hashes = (sums[ends] - sums[starts]) * powers[1][starts] + (ends - starts).astype(np.uint64)
    text = np.searchsorted(np.cumsum(lengths), starts, side="right")
    return mix(hashes), text


def _windows(words_: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every run of five words inside a text (of all its words where it has fewer), and the text."""
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)[:-1]])
    per_text = np.where(counts >= SHINGLE_WORDS, counts - SHINGLE_WORDS + 1, (counts > 0).astype(np.int64))
    owner = np.repeat(np.arange(len(counts)), per_text)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(per_text) - per_text, per_text)
    start = first[owner] + within
    length = np.minimum(SHINGLE_WORDS, counts[owner])
    hashes = np.zeros(len(owner), np.uint64)
    for step in range(SHINGLE_WORDS):
        has = step < length
        word = words_[np.where(has, start + step, 0)] if len(words_) else hashes
        hashes = np.where(has, hashes * _BASE + word, hashes)
    return mix(hashes), owner


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
        size = max(length, 2 * _PASS_BYTES)
        inverse = np.uint64(pow(int(_BASE), -1, 2**64))
        _POWERS[:] = [(_geometric(_BASE, size), _geometric(inverse, size))]
    up, down = _POWERS[0]
    return up[:length], down[:length]


def _geometric(base: np.uint64, size: int) -> np.ndarray:
    values = np.full(size, base, np.uint64)
    values[0] = 1
    return np.cumprod(values, dtype=np.uint64)
