"""Asynchronous successive halving: which trials go on from a rung (Li et al., 2020, algorithm 2).

A trial that may not go on ends, as in Optuna and Ray Tune; the paper would keep it for a later promotion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def rung_shares(first: float, reduction_factor: int) -> list[float]:
    """Where the rungs are: shares of a trial's steps, the last one below 1."""
    shares: list[float] = []
    share = first
    # A rung one rounding error before the end would judge a trial that is over.
    while share < 1 - 1e-9:
        shares.append(share)
        share *= reduction_factor
    return shares


def rung_step(share: float, steps: int) -> int:
    """The step after which a trial is at a rung."""
    return max(1, math.ceil(share * steps - 1e-9))


def goes_on(value: float, others: Sequence[float], reduction_factor: int, maximize: bool) -> bool:
    """Whether a trial is among the best of those that came to a rung.

    Args:
        value: its objective there.
        others: the objectives of the others there.
        reduction_factor: one of so many goes on, and always the best.
    """
    better = sum(other > value if maximize else other < value for other in others)
    return better < max(1, (len(others) + 1) // reduction_factor)
