"""MinHash with banding: which texts may be alike, without comparing all with all.

Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman, Ullman, "Mining
of Massive Datasets", chapter 3. Candidates are verified by the exact Jaccard similarity, so bands are chosen for
recall alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rensa import RMinHash  # pyrefly: ignore[missing-module-attribute]

from services.dataset.engines.word_table import mix

PERMUTATIONS = 128
# Share of pairs exactly at the threshold that must become candidates; pairs above it more often.
RECALL = 0.999
# The same in every process, so that signatures of different shards compare.
_SEED = 20120607
_MULTIPLIERS = np.random.Generator(np.random.PCG64(_SEED)).integers(0, 2**64, PERMUTATIONS, np.uint64) | np.uint64(1)
# Texts signed at once: a signature comes as Python integers, half a megabyte of them.
_SIGNED = 128


@dataclass(frozen=True)
class Banding:
    """`bands` bands of `rows` MinHash values each."""

    bands: int
    rows: int

    def recall(self, similarity: float) -> float:
        """Probability that two sets of this Jaccard similarity share a band: the S-curve."""
        return 1.0 - (1.0 - similarity**self.rows) ** self.bands


def choose_banding(threshold: float) -> Banding:
    """The widest bands (so the fewest false candidates) that find pairs at the threshold with `RECALL`."""
    for rows in range(PERMUTATIONS, 1, -1):
        banding = Banding(PERMUTATIONS // rows, rows)
        if banding.recall(threshold) >= RECALL:
            return banding
    return Banding(PERMUTATIONS, 1)


def band_hashes(hashes: np.ndarray, offsets: np.ndarray, banding: Banding) -> np.ndarray:
    """One 64-bit value a band and text; equal values make two texts candidates.

    Args:
        hashes: (total,) uint64 shingles, text after text; repeated ones change nothing.
        offsets: (n + 1,) int64.
        banding: From `choose_banding`.

    Returns:
        (bands, n) uint64; 0 for texts without shingles, which are alike to nothing: the caller leaves them out.
    """
    filled = np.flatnonzero(np.diff(offsets))
    result = np.zeros((banding.bands, len(offsets) - 1), np.uint64)
    for start in range(0, len(filled), _SIGNED):
        texts = filled[start : start + _SIGNED]
        # Texts without shingles take no room in `hashes`, so those that are left lie side by side.
        bounds = offsets[np.append(texts, texts[-1] + 1)]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes[bounds[0] : bounds[-1]], (bounds - bounds[0]).astype(np.uint64), banding.bands * banding.rows, _SEED
        )
        values = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), banding.bands, banding.rows)
        folded = (values * _MULTIPLIERS[: banding.rows]).sum(axis=2, dtype=np.uint64)
        result[:, texts] = mix(folded + np.arange(1, banding.bands + 1, dtype=np.uint64)).T
    return result


def set_hashes(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n,) uint64, equal for texts with the same shingles the same number of times; 0 for texts without."""
    result = np.zeros(len(offsets) - 1, np.uint64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums = np.add.reduceat(mix(hashes ^ np.uint64(0x9E3779B97F4A7C15)), offsets[:-1][filled])
        result[filled] = np.maximum(sums, np.uint64(1))
    return result


def buckets(values: np.ndarray) -> list[np.ndarray]:
    """Groups of two or more positions with equal values, each ascending, in order of their first member."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(ranked) else np.zeros(0, np.int64)
    )
    ends = np.append(starts[1:], len(ranked))
    wide = np.flatnonzero(ends - starts > 1)
    groups = [order[starts[at] : ends[at]] for at in wide]
    return sorted(groups, key=lambda group: int(group[0]))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two ascending arrays of distinct values."""
    if not len(one) and not len(other):
        return 0.0
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
