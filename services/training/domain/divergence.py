"""When a loss has run away: it stands far above what it was, and stays there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from enum import StrEnum

# Reports that say what is usual, and how many are needed for a word.
HISTORY = 50
_LEAST_HISTORY = 20
# Reports in a row that must stand above the bound: one bad batch is no divergence.
_IN_A_ROW = 3
# Standard deviations. Outliers begin at 3.5 (Iglewicz and Hoaglin, 1993, modified z-scores); the losses of
# neighbouring steps are alike, so that a drift looks like several outliers in a row, and twice that is asked for.
_DEVIATIONS = 7.0
# Of a normal distribution, the standard deviation is so many median absolute deviations.
_NORMAL = 1.4826
# A loss that stands still has no deviation; a twentieth more is nothing to wake somebody for.
_LEAST_SHARE = 0.05


class OnDivergence(StrEnum):
    """What happens when the loss has run away."""

    ALERT = "alert"
    STOP = "stop"


def bound(history: Sequence[float]) -> float:
    """The greatest loss that is still usual: the median and seven robust standard deviations (1.4826 MAD).

    Median and MAD do not move until half of the history is wrong. While the loss falls the median lies above the
    newest losses, so that the bound is generous just when it changes most.
    """
    finite = [loss for loss in history if math.isfinite(loss)]
    if len(finite) < _LEAST_HISTORY:
        return math.inf
    middle = statistics.median(finite)
    deviation = _NORMAL * statistics.median(abs(loss - middle) for loss in finite)
    return middle + max(_DEVIATIONS * deviation, _LEAST_SHARE * abs(middle))


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last three losses are above the bound of those before them. NaN is above every bound.

    Args:
        losses: of one phase in order, at least `HISTORY` and three of them where there are so many.
    """
    latest, history = losses[-_IN_A_ROW:], losses[-_IN_A_ROW - HISTORY : -_IN_A_ROW]
    limit = bound(history)
    return len(latest) == _IN_A_ROW and all(_above(loss, limit) for loss in latest)


def begins_to_diverge(losses: Sequence[float]) -> bool:
    """Whether it has diverged with the last loss and had not before: once in an episode."""
    return has_diverged(losses) and not has_diverged(losses[:-1])


def _above(loss: float, limit: float) -> bool:
    return math.isnan(loss) or loss > limit
