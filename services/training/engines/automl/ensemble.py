"""The mean of several models, and how much better it is than something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from services.training.domain.search_space import Point
from services.training.engines.automl.families import Family

Array = np.ndarray

# Models one after the other go into the mean, some of them several times.
_ROUNDS = 25
# Of the best ones only: among very many, one fits the rows that it is chosen by through luck.
_CANDIDATES = 20
_RESAMPLES = 1_000
_LEAST_PROBABILITY = 1e-7
# Of a normal distribution, for 95 %.
_DEVIATIONS = 1.96


@dataclass(frozen=True)
class Member:
    """A model of the mean.

    Attributes:
        trial: its number.
        weight: its share of the mean.
    """

    trial: int
    family: Family
    parameters: Point
    weight: float


def losses(told: Array, right: Array) -> Array:
    """(n,) what each row costs: the negative logarithm of the probability of its class, or a squared error.

    Args:
        told: (n, classes) probabilities or (n,) numbers.
        right: (n,) class numbers, -1 for one that was not learned; or numbers.
    """
    if told.ndim == 1:
        return np.square(told - right)
    of_right = np.where(right >= 0, told[np.arange(len(right)), right], 0.0)
    return -np.log(of_right.clip(_LEAST_PROBABILITY))


def score(costs: Array, numbers: bool) -> float:
    """Log loss, or the root of the mean squared error; small is good."""
    return float(np.sqrt(costs.mean()) if numbers else costs.mean())


def interval(costs: Array, numbers: bool) -> tuple[float, float]:
    """Where `score` would be on other rows, by 95 %, were the rows independent (central limit)."""
    half = _DEVIATIONS * float(costs.std()) / len(costs) ** 0.5
    low, high = max(0.0, float(costs.mean()) - half), float(costs.mean()) + half
    return (low**0.5, high**0.5) if numbers else (low, high)


def mix(answers: Mapping[int, Array], right: Array, seconds: Mapping[int, float], left: float) -> dict[int, float]:
    """Weights of the models whose mean foretells best: greedy selection with replacement (Caruana et al., 2004) among
    those that there is time for.

    Args:
        answers: by trial what each row was foretold by a model that had not learned it, the best trial first.
        right: as for `losses`.
        seconds: by trial what it takes to fit and write it.
        left: seconds for all together.

    Returns:
        Trial to weight, together 1, largest first. Where there is time for none, the quickest one.
    """
    candidates = list(answers)[:_CANDIDATES]
    quickest = min(candidates, key=lambda each: seconds[each])
    chosen = [next((each for each in candidates if seconds[each] <= left), quickest)]
    total = answers[chosen[0]].astype(np.float64)
    costs = [float(losses(total, right).mean())]
    while len(chosen) < _ROUNDS:
        spent = sum(seconds[each] for each in set(chosen))
        affordable = [each for each in candidates if each in chosen or spent + seconds[each] <= left]
        tried = [float(losses((total + answers[each]) / (len(chosen) + 1), right).mean()) for each in affordable]
        best = affordable[int(np.argmin(tried))]
        chosen.append(best)
        total = total + answers[best]
        costs.append(min(tried))
    # The mean may grow worse for a while before it gets better: the best of all beginnings counts.
    counted = Counter(chosen[: int(np.argmin(costs)) + 1])
    return {trial: count / counted.total() for trial, count in counted.most_common()}


def resampled(figure: Callable[[Array], float], rows: int, seed: int) -> tuple[float, float]:
    """Where a figure lies in 95 % of samples of the same rows, drawn with replacement (Efron, 1979).

    Args:
        figure: of places of rows.
    """
    chance = np.random.default_rng(seed)
    values = [figure(chance.integers(rows, size=rows)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
