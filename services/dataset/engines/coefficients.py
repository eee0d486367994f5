"""Coefficients of agreement beyond chance, as formulas over kinds of items (`intervals.Formula`)."""

from __future__ import annotations

import numpy as np

from services.dataset.engines.intervals import Formula, divide


def raw_agreement(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over items of the share of pairs of answers that are equal.

    Args:
        rows: (kinds, classes) answers of each class; two or more in a row.
        weights: (resamples, kinds).
    """
    return weights @ _equal_pairs(rows) / weights.sum(axis=1)


def fleiss_kappa(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fleiss (1971), "Measuring nominal scale agreement among many raters", Psychological Bulletin 76, 378-382.

    Args are those of `raw_agreement`; every row has the same number of answers. Undefined where one class is all.
    """
    classes = weights @ rows
    shares = classes / classes.sum(axis=1, keepdims=True)
    chance = (shares**2).sum(axis=1)
    return _beyond_chance(raw_agreement(rows, weights), chance)


def cohen_kappa(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen (1960), "A coefficient of agreement for nominal scales", Educ. and Psychological Measurement 20, 37-46.

    Args:
        rows: (kinds, 2) the class that either annotator chose.
        weights: (resamples, kinds).
    """
    count = weights.sum(axis=1)
    classes = np.unique(rows)
    one, other = (weights @ (rows[:, [side]] == classes) / count[:, None] for side in (0, 1))
    return _beyond_chance(weights @ (rows[:, 0] == rows[:, 1]) / count, (one * other).sum(axis=1))


def quadratic_weighted_kappa(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen (1968), "Weighted kappa", Psychological Bulletin 70, 213-220, with squared differences as weights.

    The expected square of the difference of two independent ratings needs only their first two moments.

    Args:
        rows: (kinds, 2) the rating of either annotator.
        weights: (resamples, kinds).
    """
    count = weights.sum(axis=1)
    one, other = (weights @ rows / count[:, None]).T
    observed = weights @ (rows[:, 0] - rows[:, 1]) ** 2 / count
    expected = weights @ (rows**2).sum(axis=1) / count - 2 * one * other
    return 1 - divide(observed, expected)


def nominal_alpha(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha of classes without an order.

    Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability". A unit is an item, its coincidences count
    1 / (answers - 1), so that items with any number of answers from two on come together.

    Args:
        rows: (kinds, classes) answers of each class; two or more in a row.
        weights: (resamples, kinds).
    """
    answers = rows.sum(axis=1)
    differing = (answers**2 - (rows**2).sum(axis=1)) / (answers - 1)
    return nominal_alpha_of(np.column_stack([differing, rows]), weights)


def nominal_alpha_of(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`nominal_alpha` from sums, for items of several units.

    Args:
        rows: (kinds, 1 + classes) coincidences of different classes, and answers of each class.
        weights: (resamples, kinds).
    """
    sums = weights @ rows
    classes = sums[:, 1:]
    count = classes.sum(axis=1)
    return 1 - divide((count - 1) * sums[:, 0], count**2 - (classes**2).sum(axis=1))


def interval_alpha(levels: np.ndarray) -> Formula:
    """Krippendorff's alpha of numbers whose differences mean something.

    Args:
        levels: (classes,) the number of each class.
    """

    def alpha(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return _ranged_alpha(rows, weights, np.broadcast_to(levels.astype(np.float64), (len(weights), len(levels))))

    return alpha


def ordinal_alpha(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha of classes with an order, ascending by column.

    His ordinal difference of two classes is the number of answers between their middles. So it is the interval
    difference of the mean ranks, which every resample has its own of.
    """
    counts = weights @ rows
    return _ranged_alpha(rows, weights, np.cumsum(counts, axis=1) - counts / 2)


def _ranged_alpha(rows: np.ndarray, weights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Alpha with the squared distance of two classes' places, (resamples, classes), as their difference."""
    answers = rows.sum(axis=1)
    counts = weights @ rows
    count = counts.sum(axis=1)
    # From the mean, so that squares of large places do not swamp their differences.
    places = places - ((counts * places).sum(axis=1) / count)[:, None]
    squares = places**2
    # The squared differences of all pairs of n numbers, either way round, are 2 (n sum(x^2) - sum(x)^2).
    differing = 2 * (squares @ rows.T * answers - (places @ rows.T) ** 2) / (answers - 1)
    return 1 - divide((count - 1) * (weights * differing).sum(axis=1), 2 * count * (counts * squares).sum(axis=1))


def _equal_pairs(rows: np.ndarray) -> np.ndarray:
    answers = rows.sum(axis=1)
    return (rows * (rows - 1)).sum(axis=1) / (answers * (answers - 1))


def _beyond_chance(observed: np.ndarray, chance: np.ndarray) -> np.ndarray:
    return divide(observed - chance, 1 - chance)
