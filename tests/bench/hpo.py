"""How many trials our search needs for what grid search finds: three tasks, real models, several seeds.

    python -m tests.bench.hpo            # writes build/bench/hpo.json

Grid search tries every point of a grid. Ours tries points that our own code proposes, in the space between the ends of
the same grid, beginning with the library's default values, as a search of a training begins with the training's own. A
search has arrived when it is at least as good as the default and within the tolerance of the grid's best. Seeds that
never arrive count as all trials of the grid. Random search beside it shows what the estimator adds.
"""

from __future__ import annotations

import os

# One core: folds of small data are not worth a second thread.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import datetime
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from services.training.domain.search_space import Dimension, Kind, Point, Space
from services.training.domain.searches import Objective, SearchMethod, SearchPlan, Trial, TrialState
from services.training.engines.proposals import propose
from tests.bench.report import save

SEEDS = range(8)
# Share of the way from the default to the grid's best that may be missing: nobody would search on for the rest.
TOLERANCE = 0.01
TARGET = 0.5


@dataclass
class Task:
    """A model, its space and its data.

    Attributes:
        data: rows and answers.
        model: makes it from values by name.
        defaults: of the library, or its rule where the default is a rule.
        dimensions: with the points that the grid has of each.
        scoring: of scikit-learn; higher is better.
    """

    name: str
    data: Any
    model: Callable[..., Any]
    defaults: dict[str, Any]
    dimensions: tuple[Dimension, ...]
    scoring: str
    classes: bool = True
    _known: dict[str, float] = field(default_factory=dict)

    def score(self, point: Point) -> float:
        """Mean over five folds; a point that was asked before is not computed again, but counts as a trial."""
        key = repr(sorted(point.items()))
        if key not in self._known:
            folds = (StratifiedKFold if self.classes else KFold)(5, shuffle=True, random_state=0)
            rows, answers = self.data
            scores: Any = cross_val_score(self.model(**point), rows, answers, cv=folds, scoring=self.scoring)
            self._known[key] = float(scores.mean())
        return self._known[key]


def tasks() -> list[Task]:
    """Two of classification, one of regression, on data that scikit-learn ships."""
    return [
        Task(
            "digits, support vectors",
            _first(load_digits(return_X_y=True), 600),
            lambda **values: make_pipeline(StandardScaler(), SVC(**values)),
            # `gamma="scale"` of standardised columns is one over their number.
            {"C": 1.0, "gamma": 1 / 64},
            (
                Dimension("C", Kind.LOG_UNIFORM, 0.01, 100.0, points=5),
                Dimension("gamma", Kind.LOG_UNIFORM, 1e-4, 1.0, points=5),
            ),
            "accuracy",
        ),
        Task(
            "breast cancer, linear model",
            load_breast_cancer(return_X_y=True),
            lambda **values: make_pipeline(
                StandardScaler(), SGDClassifier(loss="log_loss", penalty="elasticnet", random_state=0, **values)
            ),
            {"alpha": 1e-4, "l1_ratio": 0.15, "average": False},
            (
                Dimension("alpha", Kind.LOG_UNIFORM, 1e-5, 1.0, points=6),
                Dimension("l1_ratio", Kind.UNIFORM, 0.0, 1.0, points=4),
                Dimension("average", Kind.CATEGORICAL, choices=(False, True)),
            ),
            "neg_log_loss",
        ),
        Task(
            "diabetes, support vectors",
            load_diabetes(return_X_y=True),
            lambda **values: make_pipeline(StandardScaler(), SVR(**values)),
            {"C": 1.0, "gamma": 1 / 10, "epsilon": 0.1},
            (
                Dimension("C", Kind.LOG_UNIFORM, 0.1, 1000.0, points=4),
                Dimension("gamma", Kind.LOG_UNIFORM, 1e-4, 1.0, points=4),
                Dimension("epsilon", Kind.LOG_UNIFORM, 0.1, 50.0, points=3),
            ),
            "r2",
            classes=False,
        ),
    ]


def _first(data: Any, rows: int) -> Any:
    """Fewer rows, so that a trial takes a tenth of a second."""
    return data[0][:rows], data[1][:rows]


def search(task: Task, method: SearchMethod, seed: int, trials: int) -> list[float]:
    """The scores of a search in the order of its trials."""
    plan = SearchPlan(Space(task.dimensions), method, Objective("score", maximize=True), trials, seed=seed)
    done: list[Trial] = []
    for number in range(trials):
        point = propose(plan, task.defaults, number, done, [trial.parameters for trial in done])
        if point is None:
            break
        done.append(Trial(number, point, TrialState.FINISHED, value=task.score(point)))
    return [trial.value for trial in done if trial.value is not None]


def arrived(scores: list[float], wanted: float) -> int | None:
    """After how many trials a search was good enough; None: never."""
    return next((number + 1 for number, score in enumerate(scores) if score >= wanted), None)


def measure_task(task: Task) -> dict[str, Any]:
    """Grid search once, ours and random search with every seed."""
    space = Space(task.dimensions)
    default = task.score(task.defaults)
    grid = [task.score(point) for point in space.grid()]
    best = max(grid)
    wanted = max(default, best - TOLERANCE * abs(best - default))
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        row: dict[str, Any] = {"task": task.name, "seed": seed}
        for method in (SearchMethod.TPE, SearchMethod.RANDOM):
            scores = search(task, method, seed, len(grid))
            needed = arrived(scores, wanted)
            half = max(scores[: len(grid) // 2])
            row |= {f"{method}_trials": needed, f"{method}_share": round((needed or len(grid)) / len(grid), 4)}
            row |= {f"{method}_best_at_half": round(half, 5)}
        rows.append(row)
    shares = [row["tpe_share"] for row in rows]
    found = {
        "task": task.name,
        "grid_trials": len(grid),
        "grid_arrived": arrived(grid, wanted),
        "default": round(default, 5),
        "grid_best": round(best, 5),
        "wanted": round(wanted, 5),
        "share": round(statistics.fmean(shares), 4),
        "random_share": round(statistics.fmean(row["random_share"] for row in rows), 4),
        "lost_seeds": sum(row["tpe_trials"] is None or row["tpe_share"] > TARGET for row in rows),
        "default_reached_at_half": sum(row["tpe_best_at_half"] >= default for row in rows),
        "rounds": rows,
    }
    print(
        f"{task.name}: default {default:.4f}, grid's best of {len(grid)} {best:.4f}; ours needs {found['share']:.2f} of"
        f" its trials, random search {found['random_share']:.2f}; {found['lost_seeds']} of {len(rows)} seeds need more"
        f" than {TARGET}",
        flush=True,
    )
    return found


def measure() -> dict[str, Any]:
    """The whole benchmark."""
    began = time.perf_counter()
    found = [measure_task(task) for task in tasks()]
    worst = max(found, key=lambda task: task["share"])
    return {
        "name": "hpo",
        "unit": "share of grid search's trials",
        "ours": worst["share"],
        "peer": 1.0,
        "ratio": worst["share"],
        "peer_name": "grid search",
        "rounds": [row for task in found for row in task.pop("rounds")],
        "figures": {
            "trials_share_of_grid": worst["share"],
            "mean_share_of_grid": round(statistics.fmean(task["share"] for task in found), 4),
            "random_share_of_grid": max(task["random_share"] for task in found),
            "lost_seeds": sum(task["lost_seeds"] for task in found),
            "seeds": len(SEEDS) * len(found),
            "default_reached_at_half": sum(task["default_reached_at_half"] for task in found),
            "tolerance": TOLERANCE,
            "seconds": round(time.perf_counter() - began, 1),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "tasks": found,
        "switched_on": {
            "ours": "engines/proposals.py: own values first, Latin hypercube, then TPE; one trial at a time",
            "grid search": "every point, in the order of the grid; ends of the ranges are points of it",
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in ("optuna", "scikit-learn", "numpy")},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Runs the benchmark."""
    report = measure()
    path = save(report)
    figures = report["figures"]
    print(
        f"{figures['trials_share_of_grid']:.2f} of grid search's trials on the worst task, {figures['lost_seeds']} of"
        f" {figures['seeds']} seeds need more than {TARGET} -> {path}"
    )


if __name__ == "__main__":
    main()
