"""Word 5-shingles of many texts at once, as 64-bit hashes.

The bottleneck of near-duplicate search is shingling, not MinHash; so all words of a batch of texts are hashed in a
few numpy passes over its bytes, without a Python object a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from services.dataset.engines.word_table import BASE, PASS_BYTES, first_words, mix, prepare, word_bounds, word_hashes

# Five words: random texts then share next to nothing, and one changed word costs five shingles.
SHINGLE_WORDS = 5


def shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the word 5-shingles of each text in order, repeated ones too.

    Words are case-folded, Chinese is in one script, punctuation is ignored.

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
        prepared = prepare(text, fold=True)
        if batch and size + len(prepared) > PASS_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(prepared)
        size += len(prepared) + 1
    if batch:
        yield batch


def _shingle(batch: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Shingle hashes of a batch, text after text, and their number per text."""
    data = np.frombuffer(b"\n".join(batch) + b"\n", np.uint8)
    starts, ends = word_bounds(data)
    return _windows(word_hashes(data, starts, ends), first_words(batch, starts))


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
        runs[:whole] = runs[:whole] * BASE + words_[step : step + whole]
    # The last four words of a text begin no run of five.
    for step in range(1, SHINGLE_WORDS):
        within[first[1:][counts >= step] - step] = False
    for count in range(1, SHINGLE_WORDS):
        starts = first[:-1][counts == count]
        run = np.zeros(len(starts), np.uint64)
        for step in range(count):
            run = run * BASE + words_[starts + step]
        runs[starts] = run
        within[starts] = True
    per_text = np.where(counts >= SHINGLE_WORDS, counts - SHINGLE_WORDS + 1, (counts > 0).astype(np.int64))
    return mix(runs[within]), per_text
