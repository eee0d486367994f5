"""Annotators one by one: against known answers, against each other, by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np

from services.dataset.engines.answers import Answers, Field
from services.dataset.engines.intervals import wilson
from services.dataset.engines.reliability import Reliability

# Iglewicz and Hoaglin (1993), "How to Detect and Handle Outliers": modified z-scores beyond this are outliers. 1.4826
# medians of absolute deviations are a standard deviation of a normal distribution.
_OUTLIER, _DEVIATIONS = 3.5, 1.4826
# The median deviation of fewer workers than these says nothing.
_LEAST_WORKERS = 5
# Nobody answers faster, and zero has no logarithm.
_LEAST_SECONDS = 0.1
# Thirty years: what is longer, endless or not a number is no time.
_MOST_SECONDS = 1e9

Json = dict[str, Any]


def summarise_workers(fields: Sequence[Field], answers: Answers, fits: Mapping[str, Reliability]) -> list[Json]:
    """One entry a worker, by name.

    Args:
        fields: Of the form.
        answers: Of everyone.
        fits: By name of the field, where there is one.
    """
    given = answers.of_workers()
    medians = {worker: _median_seconds(of) for worker, of in given.items()}
    outliers = seconds_outliers(medians)
    reliability = _reliability(fields, answers.workers, fits)
    return [
        {
            "worker": worker,
            "answers": len(of),
            "gold": _gold(of),
            "reliability": reliability[worker],
            "median_seconds": medians[worker],
            "seconds_outlier": worker in outliers,
        }
        for worker, of in given.items()
    ]


def seconds_outliers(medians: Mapping[str, float | None]) -> set[str]:
    """Workers whose time is out of line with that of most: the logarithms' distance from their median, by the median of
    these distances. Times are skewed, their logarithms much less.

    Args:
        medians: Seconds an answer by worker; None where unknown.
    """
    logs = {worker: log(max(median, _LEAST_SECONDS)) for worker, median in medians.items() if median is not None}
    if len(logs) < _LEAST_WORKERS:
        return set()
    middle = float(np.median(list(logs.values())))
    deviation = float(np.median([abs(value - middle) for value in logs.values()]))
    # With more than half of the workers equal there is no scale.
    limit = _OUTLIER * _DEVIATIONS * deviation
    return {worker for worker, value in logs.items() if limit > 0 and abs(value - middle) > limit}


def _median_seconds(answers: Sequence[Json]) -> float | None:
    given = [answer.get("seconds") for answer in answers]
    seconds = [time for time in given if isinstance(time, (int, float)) and 0 <= time < _MOST_SECONDS]
    return float(np.median(seconds)) if seconds else None


def _gold(answers: Sequence[Json]) -> Json | None:
    """Answers to items whose right answer is known."""
    verdicts = [verdict for answer in answers if isinstance(verdict := answer.get("right"), bool)]
    if not verdicts:
        return None
    low, high = wilson(sum(verdicts), len(verdicts))
    return {
        "answers": len(verdicts),
        "correct": sum(verdicts),
        "accuracy": sum(verdicts) / len(verdicts),
        "low": low,
        "high": high,
    }


def _reliability(
    fields: Sequence[Field], workers: Sequence[str], fits: Mapping[str, Reliability]
) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {worker: [] for worker in workers}
    for field in fields:
        if (fit := fits.get(field.name)) is None:
            continue
        low, high = fit.bounds
        for at, accuracy in enumerate(fit.accuracy()):
            found[workers[int(fit.workers[at])]].append(
                {
                    "field": field.name,
                    "accuracy": float(accuracy),
                    "low": float(low[at]),
                    "high": float(high[at]),
                    "confusion_rows": [{"shares": row} for row in fit.confusion[at].tolist()],
                    "choices": [field.choices[number] for number in fit.classes],
                }
            )
    return found
