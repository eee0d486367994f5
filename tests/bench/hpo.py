"""How many trials our search needs for what grid search finds: four tasks, real models, several seeds.

    python -m tests.bench.hpo            # writes build/bench/hpo.json

Grid search tries every point of a grid. Ours tries points that our own code proposes, in the space between the ends of
the same grid, beginning with the library's default values, as a search of a training begins with the training's own. A
search has arrived when it is at least as good as the default and within the tolerance of the grid's best; to be as good
as the default alone would take one trial. The share of a task is the mean over all seeds, and seeds that never arrive
count as all trials of the grid. `ours` is the Gaussian process on the worst task; the Parzen estimator and random
search stand beside it.
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
from sklearn.ensemble import GradientBoostingRegressor
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
METHODS = (SearchMethod.GP, SearchMethod.TPE, SearchMethod.RANDOM)


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
    """Two of classification, two of regression, on data that scikit-learn ships."""
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
            "diabetes, boosted trees",
            load_diabetes(return_X_y=True),
            lambda **values: GradientBoostingRegressor(n_estimators=40, random_state=0, **values),
            {"learning_rate": 0.1, "max_depth": 3, "subsample": 1.0},
            (
                Dimension("learning_rate", Kind.LOG_UNIFORM, 0.005, 0.5, points=4),
                Dimension("max_depth", Kind.INTEGER, 1, 4),
                Dimension("subsample", Kind.UNIFORM, 0.4, 1.0, points=3),
            ),
            "r2",
            classes=False,
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


def search(task: Task, method: SearchMethod, seed: int, trials: int, wanted: float) -> list[float]:
    """The scores of its trials in order: half of all, and as many more as it takes to be good enough."""
    plan = SearchPlan(Space(task.dimensions), method, Objective("score", maximize=True), trials, seed=seed)
    done: list[Trial] = []
    scores: list[float] = []
    for number in range(trials):
        point = propose(plan, task.defaults, number, done, [trial.parameters for trial in done])
        if point is None:
            break
        scores.append(task.score(point))
        done.append(Trial(number, point, TrialState.FINISHED, value=scores[-1]))
        if number + 1 >= trials // 2 and max(scores) >= wanted:
            break
    return scores


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
        for method in METHODS:
            scores = search(task, method, seed, len(grid), wanted)
            needed = arrived(scores, wanted)
            half = max(scores[: len(grid) // 2])
            row |= {f"{method}_trials": needed, f"{method}_share": round((needed or len(grid)) / len(grid), 4)}
            row |= {f"{method}_best_at_half": round(half, 5)}
        rows.append(row)
    found: dict[str, Any] = {
        "task": task.name,
        "grid_trials": len(grid),
        "grid_arrived": arrived(grid, wanted),
        "default": round(default, 5),
        "grid_best": round(best, 5),
        "wanted": round(wanted, 5),
        "default_reached_at_half": sum(row["gp_best_at_half"] >= default for row in rows),
        "rounds": rows,
    }
    for method in METHODS:
        shares = [row[f"{method}_share"] for row in rows]
        lost = sum(row[f"{method}_trials"] is None or row[f"{method}_share"] > TARGET for row in rows)
        found |= {f"{method}_share": round(statistics.fmean(shares), 4), f"{method}_lost_seeds": lost}
        found |= {f"{method}_median_share": round(statistics.median(shares), 4)}
    told = ", ".join(
        f"{method} {found[f'{method}_share']:.2f} (median {found[f'{method}_median_share']:.2f},"
        f" {found[f'{method}_lost_seeds']} of {len(rows)} seeds above {TARGET})"
        for method in METHODS
    )
    print(
        f"{task.name}: default {default:.4f}, grid's best of {len(grid)} {best:.4f}; share of trials: {told}",
        flush=True,
    )
    return found


def measure() -> dict[str, Any]:
    """The whole benchmark."""
    began = time.perf_counter()
    found = [measure_task(task) for task in tasks()]
    worst = {method: max(task[f"{method}_share"] for task in found) for method in METHODS}
    ours = worst[SearchMethod.GP]
    return {
        "name": "hpo",
        "unit": "share of grid search's trials",
        "ours": ours,
        "peer": 1.0,
        "ratio": ours,
        "peer_name": "grid search",
        "rounds": [row for task in found for row in task.pop("rounds")],
        "figures": {
            "trials_share_of_grid": ours,
            "mean_share_of_grid": round(statistics.fmean(task["gp_share"] for task in found), 4),
            "tpe_share_of_grid": worst[SearchMethod.TPE],
            "random_share_of_grid": worst[SearchMethod.RANDOM],
            "lost_seeds": sum(task["gp_lost_seeds"] for task in found),
            "seeds": len(SEEDS) * len(found),
            "default_reached_at_half": sum(task["default_reached_at_half"] for task in found),
            "tolerance": TOLERANCE,
            "seconds": round(time.perf_counter() - began, 1),
            "load_average": round(os.getloadavg()[0], 2),
        }
        | {f"share of {task['task']}": task["gp_share"] for task in found},
        "tasks": found,
        "switched_on": {
            "ours": "engines/proposals.py: own values first, Latin hypercube, then the estimator; one trial at a time",
            "grid search": "every point, in the order of the grid; ends of the ranges are points of it",
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in ("optuna", "scikit-learn", "numpy", "torch")},
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
