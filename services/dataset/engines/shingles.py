"""Word 5-shingles of many texts at once, as 64-bit hashes.

The bottleneck of near-duplicate search is shingling, not MinHash; so all words of a batch of texts are hashed in a
few numpy passes over its bytes, without a Python object a word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

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
    """Hashes of the word 5-shingles of each text in order, repeated ones too; case-folded, punctuation ignored.

    A text of one to four words is one shingle of all of them; a text without a word has none.

    Returns:
        hashes: (total,) uint64.
        offsets: (len(texts) + 1,) int64; text i has hashes[offsets[i]:offsets[i + 1]].
    """
    pieces: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for batch in _batches(texts):
        hashes, per_text = _shingle(batch)
        pieces.append(hashes)
        counts.append(per_text)
    offsets = np.zeros(len(texts) + 1, np.int64)
    if texts:
        np.cumsum(np.concatenate(counts), out=offsets[1:])
    return np.concatenate(pieces) if texts else np.zeros(0, np.uint64), offsets


def shingle_sets(texts: Sequence[str]) -> list[np.ndarray]:
    """The distinct shingle hashes of each text, ascending: what Jaccard similarity compares."""
    hashes, offsets = shingle_hashes(texts)
    return [np.unique(hashes[start:stop]) for start, stop in itertools.pairwise(offsets)]


def _batches(texts: Sequence[str]) -> Iterator[list[bytes]]:
    """The texts, prepared, as many at a time as one pass takes."""
    batch: list[bytes] = []
    size = 0
    for text in texts:
        prepared = _prepare(text)
        if batch and size + len(prepared) > _PASS_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(prepared)
        size += len(prepared) + 1
    if batch:
        yield batch


def _prepare(text: str) -> bytes:
    """Lower case, with every separator an ASCII byte, so that `_IS_WORD` finds the words."""
    if text.isascii():
        return text.lower().encode()
    folded = text.casefold()
    if is_east_asian(folded):
        return " ".join(words(folded)).encode(errors="replace")
    return _NOT_WORD.sub(" ", folded).encode(errors="replace")


def _shingle(batch: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Shingle hashes of a batch, text after text, and their number per text."""
    data = np.frombuffer(b"\n".join(batch) + b"\n", np.uint8)
    words_, starts = _words(data)
    bounds = np.cumsum([len(text) + 1 for text in batch])
    first = np.zeros(len(batch) + 1, np.int64)
    first[1:] = np.searchsorted(starts, bounds)
    return _windows(words_, first)


def _words(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every word of the batch in order, and where it starts."""
    inside = _IS_WORD[data]
    # Every text ends with a separator, so words start and end in turns.
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if inside[0]:
        edges = np.concatenate([np.zeros(1, np.int64), edges])
    starts, ends = edges[0::2], edges[1::2]
    # sum(byte[i] * B^(i - start)) + length, by sums over B^i that are then divided by B^start (B is odd, so it has an
    # inverse).
    up, down = _powers(len(data))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data + np.uint64(1)) * up, out=sums[1:])
    return mix((sums[ends] - sums[starts]) * down[starts] + (ends - starts).astype(np.uint64)), starts


def _windows(words_: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every run of five words inside a text (of all its words where it has fewer), and their number per text.

    Args:
        words_: (n,) uint64.
        first: (texts + 1,) int64; text i has words_[first[i]:first[i + 1]].
    """
    counts = np.diff(first)
    runs = np.zeros(len(words_), np.uint64)
    within = np.ones(len(words_), bool)
    whole = max(0, len(words_) - SHINGLE_WORDS + 1)
    for step in range(SHINGLE_WORDS):
        runs[:whole] = runs[:whole] * _BASE + words_[step : step + whole]
    # The last four words of a text begin no run of five.
    for step in range(1, SHINGLE_WORDS):
        within[first[1:][counts >= step] - step] = False
    for count in range(1, SHINGLE_WORDS):
        starts = first[:-1][counts == count]
        run = np.zeros(len(starts), np.uint64)
        for step in range(count):
            run = run * _BASE + words_[starts + step]
        runs[starts] = run
        within[starts] = True
    per_text = np.where(counts >= SHINGLE_WORDS, counts - SHINGLE_WORDS + 1, (counts > 0).astype(np.int64))
    return mix(runs[within]), per_text


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
