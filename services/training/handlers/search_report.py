"""What a search has found so far, as data for charts."""

from __future__ import annotations

from collections import Counter

from argosy.training.v1 import search_pb2 as pb

from services.training.domain.search_space import Dimension, Kind
from services.training.domain.searches import HyperparameterSearch, Trial


def report(search: HyperparameterSearch, trials: list[Trial]) -> pb.SearchReport:
    """History of the best, parallel coordinates, importances.

    Args:
        trials: all of the search, by number.
    """
    dimensions = search.plan.space.dimensions
    finished = [(trial, trial.value) for trial in trials if trial.value is not None]
    return pb.SearchReport(
        name=search.name,
        history=_history(search, finished),
        axes=[_axis(dimension) for dimension in dimensions],
        lines=[
            pb.SearchLine(
                number=trial.number,
                value=value,
                positions=[dimension.position(trial.parameters[dimension.path]) for dimension in dimensions],
            )
            for trial, value in finished
        ],
        importances=search.importances,
        states=Counter(str(trial.state) for trial in trials),
    )


def _history(search: HyperparameterSearch, finished: list[tuple[Trial, float]]) -> list[pb.SearchHistoryPoint]:
    points: list[pb.SearchHistoryPoint] = []
    best: float | None = None
    for trial, value in sorted(finished, key=lambda each: (each[0].end_seconds, each[0].number)):
        if best is None or search.plan.objective.better(value, best):
            best = value
        points.append(pb.SearchHistoryPoint(number=trial.number, seconds=trial.end_seconds, value=value, best=best))
    return points


def _axis(dimension: Dimension) -> pb.SearchAxis:
    if dimension.kind is Kind.CATEGORICAL:
        return pb.SearchAxis(path=dimension.path, choices=[str(choice) for choice in dimension.choices])
    logarithmic = dimension.kind is Kind.LOG_UNIFORM
    return pb.SearchAxis(path=dimension.path, logarithmic=logarithmic, low=dimension.low, high=dimension.high)
