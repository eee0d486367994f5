"""MinHash with banding: which texts may be alike, without comparing all with all.

Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman, Ullman, "Mining
of Massive Datasets", chapter 3. Candidates are verified by the exact Jaccard similarity, so bands are chosen for
recall alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.dataset.engines.shingles import mix

PERMUTATIONS = 128
# Share of pairs exactly at the threshold that must become candidates; pairs above it more often.
RECALL = 0.999


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
        hashes: (total,) uint64 distinct shingles, text after text.
        offsets: (n + 1,) int64.
        banding: From `choose_banding`.

    Returns:
        (bands, n) uint64. Texts without shingles get values that are equal to no other's by construction of the
        caller: it leaves them out.
    """
    count = len(offsets) - 1
    result = np.zeros((banding.bands, count), np.uint64)
    filled = np.flatnonzero(np.diff(offsets))
    if not len(filled):
        return result
    starts = offsets[:-1][filled]
    multipliers, additions = _permutations(banding.bands * banding.rows)
    for band in range(banding.bands):
        value = np.full(len(filled), band + 1, np.uint64)
        for row in range(band * banding.rows, (band + 1) * banding.rows):
            # Multiply-shift (Dietzfelbinger et al. 1997); the upper half of the product is what is well mixed.
            permuted = (hashes * multipliers[row] + additions[row]) >> np.uint64(32)
            value = mix(value ^ np.minimum.reduceat(permuted, starts))
        result[band, filled] = value
    return result


def set_hashes(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n,) uint64, equal for texts with the same set of shingles; 0 for texts without."""
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


def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd multipliers and additions, always the same ones, so that signatures of different runs compare."""
    generator = np.random.Generator(np.random.PCG64(20120607))
    multipliers = generator.integers(0, 2**64, count, np.uint64) | np.uint64(1)
    return multipliers, generator.integers(0, 2**64, count, np.uint64)
