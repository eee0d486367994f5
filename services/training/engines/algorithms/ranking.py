"""How near the top the right answer is."""

from __future__ import annotations

import numpy as np


def ranks(similarities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the right candidate of each query, from 1, int64[queries]. Ties count against it.

    Args:
        similarities: float[queries, candidates].
        right: number of the right candidate, int64[queries].
    """
    wanted = similarities[np.arange(len(right)), right]
    return (similarities >= wanted[:, None]).sum(axis=1)


def recall_at_1(rank: np.ndarray) -> float:
    """Share of the queries whose right candidate is the first."""
    return float((rank == 1).mean())


def mean_reciprocal_rank(rank: np.ndarray) -> float:
    """Mean of 1 / rank (Voorhees, 1999)."""
    return float((1 / rank).mean())
