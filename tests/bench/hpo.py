"""How many trials our search needs for what grid search finds: four tasks, real models, several seeds.

    python -m tests.bench.hpo            # writes build/bench/hpo.json

Grid search tries every point of a grid. Ours tries points that our own code proposes, in the space between the ends of
the same grid. Two things are asked of it:

- Default: to be at least as good as the library's default values, without being told them: `trials_share_of_grid`.
- Best: to come within the tolerance of the grid's best point, where it begins with the default values, as a search of
  a training begins with the training's own: `best_share_of_grid`. It is harder, and harder than it looks where the
  grid's best point is a lucky one: the most of so many noisy scores is more than its neighbours have.

A share is the trials until then over those of the grid, the mean over all seeds; seeds that never come there count as
all trials of the grid. The figures are those of the Gaussian process on the worst task; the Parzen estimator and
random search stand beside it.
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


def search(task: Task, method: SearchMethod, seed: int, trials: int, wanted: float, told: bool) -> list[float]:
    """The scores of its trials in order: half of all, and as many more as it takes to be good enough.

    Args:
        told: whether it begins with the default values.
    """
    plan = SearchPlan(Space(task.dimensions), method, Objective("score", maximize=True), trials, seed=seed)
    done: list[Trial] = []
    scores: list[float] = []
    for number in range(trials):
        # Values that lie outside tell it nothing.
        own = task.defaults if told else dict.fromkeys(task.defaults, -1.0)
        point = propose(plan, own, number, done, [trial.parameters for trial in done])
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
    """Grid search once, ours and random search with every seed, for each of the two aims."""
    default = task.score(task.defaults)
    grid = [task.score(point) for point in Space(task.dimensions).grid()]
    best = max(grid)
    aims = {"default": (default, False), "best": (max(default, best - TOLERANCE * abs(best - default)), True)}
    found: dict[str, Any] = {"task": task.name, "grid_trials": len(grid), "default": default, "grid_best": best}
    rows: list[dict[str, Any]] = [{"task": task.name, "seed": seed} for seed in SEEDS]
    print(f"{task.name}: default {default:.4f}, grid's best of {len(grid)} {best:.4f}", flush=True)
    for aim, (wanted, told) in aims.items():
        found[f"{aim}_wanted"], found[f"{aim}_grid_arrived"] = wanted, arrived(grid, wanted)
        texts: list[str] = []
        for method in METHODS:
            shares: list[float] = []
            for row in rows:
                scores = search(task, method, row["seed"], len(grid), wanted, told)
                shares.append((arrived(scores, wanted) or len(grid)) / len(grid))
                row[f"{aim}_{method}_share"] = round(shares[-1], 4)
                row[f"{aim}_{method}_at_half"] = round(max(scores[: len(grid) // 2]), 5)
            mean, late = statistics.fmean(shares), sum(share > TARGET for share in shares)
            found[f"{aim}_{method}_share"], found[f"{aim}_{method}_late_seeds"] = round(mean, 4), late
            texts.append(f"{method} {mean:.2f} ({late} of {len(rows)} seeds above {TARGET})")
        print(f"  as good as its {aim}: share of trials {', '.join(texts)}", flush=True)
    return found | {"rounds": rows}


def measure() -> dict[str, Any]:
    """The whole benchmark."""
    began = time.perf_counter()
    found = [measure_task(task) for task in tasks()]

    def worst(aim: str, method: SearchMethod = SearchMethod.GP) -> float:
        return max(task[f"{aim}_{method}_share"] for task in found)

    return {
        "name": "hpo",
        "unit": "share of grid search's trials",
        "ours": worst("default"),
        "peer": 1.0,
        "ratio": worst("default"),
        "peer_name": "grid search",
        "rounds": [row for task in found for row in task.pop("rounds")],
        "figures": {
            "trials_share_of_grid": worst("default"),
            "best_share_of_grid": worst("best"),
            "late_seeds": sum(task["default_gp_late_seeds"] for task in found),
            "best_late_seeds": sum(task["best_gp_late_seeds"] for task in found),
            "seeds": len(SEEDS) * len(found),
            "tolerance": TOLERANCE,
            "seconds": round(time.perf_counter() - began, 1),
            "load_average": round(os.getloadavg()[0], 2),
        }
        | {f"{aim}_{method}": worst(aim, method) for aim in ("default", "best") for method in METHODS}
        | {f"best share of {task['task']}": task["best_gp_share"] for task in found},
        "tasks": found,
        "switched_on": {
            "ours": "engines/proposals.py: Latin hypercube, then the estimator; one trial at a time",
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
        f"On the worst task {figures['trials_share_of_grid']:.2f} of grid search's trials for the default's quality,"
        f" {figures['best_share_of_grid']:.2f} for that of its best point -> {path}"
    )


if __name__ == "__main__":
    main()
