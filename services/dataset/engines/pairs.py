"""Pairs of answers that two workers gave to one item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Pairs that are looked at, 32 MB of numbers; of more, those of a sample of the items.
MOST_PAIRS = 2_000_000


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs by the numbers of their answers, ascending.

    Attributes:
        left, right: (pairs,) numbers of answers, the left one of the worker that comes first by name.
    """

    left: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


def pairs_of(items: np.ndarray, seed: int) -> Pairs:
    """All pairs of answers to the same item.

    Args:
        items: (answers,) the item of each, ascending.
        seed: Of the sample of items where there are more than `MOST_PAIRS`.
    """
    _, starts, sizes = np.unique(items, return_index=True, return_counts=True)
    starts, sizes = _sampled(starts, sizes, seed)
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(sizes[sizes > 1]):
        one, other = np.triu_indices(int(size), 1)
        first = starts[sizes == size][:, None]
        lefts.append((first + one).ravel())
        rights.append((first + other).ravel())
    left, right = np.concatenate(lefts), np.concatenate(rights)
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order])


def _sampled(starts: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    counts = sizes * (sizes - 1) // 2
    if counts.sum() <= MOST_PAIRS:
        return starts, sizes
    order = np.random.default_rng(seed).permutation(len(starts))
    kept = order[np.cumsum(counts[order]) <= MOST_PAIRS]
    return starts[kept], sizes[kept]
