"""Which point a search tries next: a function of the plan, the number of the trial and the trials that it may know."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from optuna.samplers import GPSampler

from services.training.domain.search_space import Point, Space
from services.training.domain.searches import SearchMethod, SearchPlan, Trial, TrialState
from services.training.domain.spec_paths import Json
from services.training.engines.study import chance_of, distributions, study_of, tpe_sampler

# Points of a Latin hypercube before an estimator has something to estimate from: ten as in Optuna, but at most one
# in four of a small search.
_MOST_STARTUP = 10
_STARTUP_SHARE = 4
# A Gaussian process says how little it knows, and needs few points to begin with.
_STARTUP_A_DIMENSION = 2
# Draws of a point that was not tried yet before the first such point is taken in order.
_DRAWS = 100


def propose(
    plan: SearchPlan, document: Json, number: int, known: Sequence[Trial], earlier: Sequence[Point]
) -> Point | None:
    """The point of a trial.

    Args:
        document: JSON of the training's specification. All methods but GRID begin with its own values.
        number: of the trial, from 0.
        known: the trials that it may learn from, all ended.
        earlier: the points of all trials before it, by number.

    Returns:
        A point; None when there is none that was not tried.
    """
    if plan.method is SearchMethod.GRID:
        grid = plan.space.grid()
        return grid[number] if number < len(grid) else None
    if plan.space.size is not None and number >= plan.space.size:
        return None
    chance = random.Random(f"{plan.seed}/{number}")  # noqa: S311 - chance, no secret
    own = plan.space.point_of(document) if number == 0 else None
    point = own or _drawn(plan, number, known, earlier, chance)
    return point if plan.space.size is None else _untried(plan.space, point, earlier, chance)


def startup_trials(plan: SearchPlan) -> int:
    """How many trials are drawn before anything is estimated."""
    most = min(_MOST_STARTUP, plan.max_trials // _STARTUP_SHARE)
    if plan.method is SearchMethod.GP:
        most = min(most, _STARTUP_A_DIMENSION * len(plan.space.dimensions))
    return max(1, most)


def _drawn(
    plan: SearchPlan, number: int, known: Sequence[Trial], earlier: Sequence[Point], chance: random.Random
) -> Point:
    if plan.method is SearchMethod.RANDOM:
        return plan.space.random(chance)
    startup = startup_trials(plan)
    if number < startup:
        return plan.space.stratified(plan.seed, number, startup)
    told = {trial.number for trial in known}
    running = [point for place, point in enumerate(earlier) if place not in told]
    if plan.method is SearchMethod.TPE:
        study = study_of(plan, known, tpe_sampler(plan.seed, number), running)
        return dict(study.ask(distributions(plan.space)).params)
    return _by_process(plan, number, known, running)


def _by_process(plan: SearchPlan, number: int, known: Sequence[Trial], running: Sequence[Point]) -> Point:
    """The largest expected improvement (Jones et al., 1998; in its logarithm, Ament et al., 2023) under Optuna's
    Gaussian process. Trials that were given up or failed count as the worst one that finished: left out, they would be
    proposed again."""
    values = [trial.value for trial in known if trial.value is not None]
    if values:
        worst = min(values) if plan.objective.maximize else max(values)
        ended = (TrialState.PRUNED, TrialState.FAILED)
        known = [
            replace(trial, state=TrialState.FINISHED, value=worst) if trial.state in ended else trial for trial in known
        ]
    sampler = GPSampler(seed=chance_of(plan.seed, number), n_startup_trials=1, warn_independent_sampling=False)
    study = study_of(plan, known, sampler, running)
    return dict(study.ask(distributions(plan.space)).params)


def _untried(space: Space, point: Point, earlier: Sequence[Point], chance: random.Random) -> Point:
    """The point, or another one if it was tried: a space that can be counted is not tried twice anywhere."""
    for _ in range(_DRAWS):
        if point not in earlier:
            return point
        point = space.random(chance)
    return next(point for point in space.grid() if point not in earlier)
