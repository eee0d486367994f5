"""Intervals and tests for shares of right answers. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

CONFIDENCE = 0.95
# Efron and Tibshirani (1993), 14.3: a thousand or more for percentile intervals.
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Share:
    """A share with the bounds of its 95 % interval."""

    value: float
    lower: float
    upper: float
    correct: int
    total: int


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two systems on the same rows: first minus second."""

    difference: float
    lower: float
    upper: float
    p_value: float


def wilson(correct: int, total: int, confidence: float = CONFIDENCE) -> Share:
    """The share of right answers with its score interval.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212. Unlike the
    normal approximation it stays inside 0 to 1 and is sound for few rows and for shares near the ends.

    Args:
        correct: right answers, 0 to `total`.
        total: rows, at least 1.
        confidence: of the interval, two-sided.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / total
    divisor = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / divisor
    half = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / divisor
    lower = centre - half if correct else 0.0
    upper = centre + half if correct < total else 1.0
    return Share(share, lower, upper, correct, total)


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided p-value that two systems are right equally often, from the rows on which only one of them is.

    The exact (binomial) form of McNemar (1947), Psychometrika 12, 153-157.
    """
    n = first_only + second_only
    if n == 0:
        return 1.0
    if (
        n > 2000
    ):  # the normal approximation with continuity correction is exact to four digits here, and binomials are huge
        z = max(abs(first_only - second_only) - 1, 0) / sqrt(n)
        return 2 * (1 - NormalDist().cdf(z))
    tail = sum(comb(n, k) for k in range(min(first_only, second_only) + 1))
    return min(1.0, 2 * tail / 2**n)


def compare(first: Sequence[bool], second: Sequence[bool], seed: int) -> PairedComparison:
    """Compares two systems row by row: difference with its 95 % percentile bootstrap interval, and McNemar's p-value.

    Args:
        first, second: whether each was right, row by row, of equal length.
        seed: of the resampling; the same seed gives the same interval.

    A resample only needs how often each of the four outcomes is drawn, so that its cost does not grow with the rows.
    """
    if len(first) != len(second) or not first:
        raise ValueError("compare needs two equally long, non-empty sequences")
    total = len(first)
    first_only = sum(a and not b for a, b in zip(first, second, strict=True))
    second_only = sum(b and not a for a, b in zip(first, second, strict=True))
    generator = random.Random(seed)  # noqa: S311 (resampling, not secrecy)
    share_first = first_only / total
    share_other = second_only / (total - first_only) if total > first_only else 0.0
    differences: list[float] = []
    for _ in range(_RESAMPLES):
        # The multinomial draw as two binomials, one conditioned on the other.
        drawn_first = _binomial(generator, total, share_first)
        drawn_second = _binomial(generator, total - drawn_first, share_other)
        differences.append((drawn_first - drawn_second) / total)
    differences.sort()
    tail = (1 - CONFIDENCE) / 2
    lower = differences[int(tail * _RESAMPLES)]
    upper = differences[int((1 - tail) * _RESAMPLES) - 1]
    return PairedComparison((first_only - second_only) / total, lower, upper, mcnemar(first_only, second_only))


def _binomial(generator: random.Random, n: int, p: float) -> int:
    """A binomial draw; from a variance of 100 on by the normal limit, whose error is then far below a row."""
    if n == 0 or p <= 0:
        return 0
    if p >= 1:
        return n
    if n * p * (1 - p) > 100:
        return min(n, max(0, round(generator.gauss(n * p, sqrt(n * p * (1 - p))))))
    return sum(generator.random() < p for _ in range(n))
