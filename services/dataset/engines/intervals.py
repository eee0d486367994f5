"""Intervals: of whatever is computed from items by resampling them, of a share by Wilson's formula."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt
from typing import Any

import numpy as np

# Efron and Tibshirani (1993), "An Introduction to the Bootstrap", 14.3: a thousand or more for percentile intervals.
RESAMPLES = 1_000
PERCENTILES = (2.5, 97.5)
# The normal quantile of a two-sided interval of 95 %.
_Z = 1.959964
# Numbers of one block of resamples: 16 MiB, where all at once would be 160 MB for 20,000 items.
_BLOCK = 2_000_000

Json = dict[str, Any]
Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes rows (kinds, columns) and how often each comes, (resamples, kinds); gives (resamples,), NaN for undefined."""


def estimate(rows: np.ndarray, formula: Formula, seed: int) -> Json:
    """A figure of items with its 95 % percentile bootstrap interval over items (Efron 1979).

    Items whose rows are equal are of one kind, and what is drawn is how many there are of each kind: that is a
    multinomial number, distributed just as if items had been drawn one by one, and mostly there are few kinds.

    Args:
        rows: (items, columns) what the formula needs to know of each item.
        formula: The figure by rows and numbers of each.
        seed: Of the resampling. The order of the rows does not matter.

    Returns:
        `value`, `low`, `high`, `items`. The value is None where the formula is undefined. The bounds are None of fewer
        than two items and where more than half of the resamples are undefined; the others are left out.
    """
    count = len(rows)
    if not count:
        return {"value": None, "low": None, "high": None, "items": 0}
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    value = _finite(formula(kinds, counts[None, :].astype(np.float64))[0])
    low, high = (None, None) if value is None or count < 2 else _bounds(kinds, counts, formula, seed)
    return {"value": value, "low": low, "high": high, "items": count}


def _bounds(kinds: np.ndarray, counts: np.ndarray, formula: Formula, seed: int) -> tuple[float | None, float | None]:
    rng = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, _BLOCK // len(kinds)))
    found: list[np.ndarray] = []
    for start in range(0, RESAMPLES, block):
        drawn = _drawn(rng, counts, min(block, RESAMPLES - start))
        found.append(formula(kinds, drawn.astype(np.float64)))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if 2 * len(values) < RESAMPLES:
        return None, None
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def _drawn(rng: np.random.Generator, counts: np.ndarray, resamples: int) -> np.ndarray:
    """How many items of each kind, (resamples, kinds)."""
    total, kinds = int(counts.sum()), len(counts)
    # A binomial number for each kind costs as much as twenty draws of an item.
    if 20 * kinds < total:
        return rng.multinomial(total, counts / total, size=resamples)
    kind_of = np.repeat(np.arange(kinds), counts)
    drawn = kind_of[rng.integers(total, size=(resamples, total))]
    drawn += np.arange(resamples)[:, None] * kinds
    return np.bincount(drawn.ravel(), minlength=resamples * kinds).reshape(resamples, kinds)


def mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of the only column."""
    return weights @ rows[:, 0] / weights.sum(axis=1)


def ratio(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum of the first column by that of the second; NaN where that is 0."""
    sums = weights @ rows
    return divide(sums[:, 0], sums[:, 1])


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The score interval of 95 % of a share.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212.

    Args:
        correct: 0 to `total`.
        total: At least 1.
    """
    share, z2 = correct / total, _Z * _Z
    divisor = 1 + z2 / total
    centre = (share + z2 / (2 * total)) / divisor
    half = _Z * sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / divisor
    return (centre - half if correct else 0.0), (centre + half if correct < total else 1.0)


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None
