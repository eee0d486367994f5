"""Agreement beside scikit-learn and statsmodels, and reliability's intervals in simulations: slow for unit tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest

from services.dataset.engines.agreement import summarise
from services.dataset.engines.reliability import dawid_skene

Json = dict[str, Any]


def answers(table: np.ndarray, names: Sequence[Any]) -> list[Json]:
    """Of a table of numbers with a row an item and a column a worker."""
    return [
        {"item": f"{item:03}", "worker": f"w{worker}", "answer": {"f": names[number]}, "right": None, "seconds": None}
        for (item, worker), number in np.ndenumerate(table)
    ]


def noisy(rng: np.random.Generator, items: int, workers: int, classes: int) -> np.ndarray:
    truth = rng.integers(classes, size=(items, 1))
    wrong = rng.random((items, workers)) < rng.uniform(0.1, 0.7)
    return np.where(wrong, rng.integers(classes, size=(items, workers)), truth)


@pytest.mark.parametrize("seed", range(10))
def test_kappas_are_those_of_scikit_learn_and_statsmodels(seed: int) -> None:
    from sklearn.metrics import cohen_kappa_score
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    rng = np.random.default_rng(seed)
    table = noisy(rng, int(rng.integers(5, 80)), int(rng.integers(2, 6)), int(rng.integers(2, 6)))
    choice = {"name": "f", "kind": "choice", "choices": list("abcdef")}
    rating = {"name": "f", "kind": "rating", "min": 10, "max": 15}
    named = summarise([choice], answers(table, "abcdef"))["fields"][0]
    rated = summarise([rating], answers(table, range(10, 16)))["fields"][0]
    assert named["measures"][1]["measure"] == "fleiss_kappa"
    assert named["measures"][1]["value"] == pytest.approx(fleiss_kappa(aggregate_raters(table)[0]))
    assert len(named["pairs"]) == len(rated["pairs"]) == table.shape[1] * (table.shape[1] - 1) // 2
    weighed: list[tuple[Any, Literal["quadratic"] | None]]
    weighed = [*((pair, None) for pair in named["pairs"]), *((pair, "quadratic") for pair in rated["pairs"])]
    for pair, weights in weighed:
        one, other = (table[:, int(worker[1:])] for worker in pair["workers"])
        assert pair["value"] == pytest.approx(cohen_kappa_score(one, other, weights=weights))
        assert pair["low"] - 1e-9 <= pair["value"] <= pair["high"] + 1e-9


@pytest.mark.parametrize(
    ("items", "overlap", "classes", "least"), [(200, 3, 3, 0.88), (500, 3, 5, 0.85), (100, 5, 3, 0.9)]
)
def test_intervals_of_accuracy_hold_the_planted_ones(items: int, overlap: int, classes: int, least: float) -> None:
    accuracies = np.array([0.95, 0.85, 0.8, 0.75, 0.6])
    held: list[np.ndarray] = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.integers(classes, size=items).repeat(overlap)
        workers = np.concatenate([np.sort(rng.choice(5, overlap, replace=False)) for _ in range(items)])
        wrong = (truth + rng.integers(1, classes, size=len(truth))) % classes
        given = np.where(rng.random(len(truth)) < accuracies[workers], truth, wrong)
        fit = dawid_skene(np.arange(items).repeat(overlap), workers, given, seed)
        assert fit is not None
        held.append((fit.bounds[0] <= accuracies) & (accuracies <= fit.bounds[1]))
    assert np.mean(held) >= least
