"""Words and parts of words as numbers."""

from __future__ import annotations

import zlib

import numpy as np

# Bojanowski et al., 2017 (fastText), take parts of three to six letters; a Chinese word has one or two characters.
_SHORTEST, _LONGEST = 1, 4


def grams_of(text: str) -> list[str]:
    """The words of a text in lower case and between brackets, and their parts of one to four characters."""
    grams: list[str] = []
    for word in text.lower().split():
        marked = f"<{word}>"
        grams.append(marked)
        for size in range(_SHORTEST, _LONGEST + 1):
            grams += [marked[start : start + size] for start in range(len(marked) - size + 1)]
    return grams


def hashed(text: str, buckets: int) -> np.ndarray:
    """A number below `buckets` for each of `grams_of`, int64[grams]; different ones may share a number."""
    return np.array([zlib.crc32(gram.encode()) % buckets for gram in grams_of(text)], np.int64)


def bag(text: str, buckets: int) -> np.ndarray:
    """How often each number comes, as a vector of length 1, float32[buckets]: the baseline of the embedding."""
    counts = np.bincount(hashed(text, buckets), minlength=buckets).astype(np.float32)
    return counts / max(1.0, float(np.linalg.norm(counts)))
