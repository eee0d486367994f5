"""Which point a search tries next: a function of the plan, the number of the trial and the trials that it may know."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from optuna.samplers import TPESampler

from services.training.domain.search_space import Point, Space
from services.training.domain.searches import SearchMethod, SearchPlan, Trial
from services.training.domain.spec_paths import Json
from services.training.engines.study import distributions, study_of

# Points of a Latin hypercube before the estimator has something to estimate from: ten as in Optuna, but at most one
# in four of a small search.
_MOST_STARTUP = 10
_STARTUP_SHARE = 4
# Draws of a point that was not tried yet before the first such point is taken in order.
_DRAWS = 100


def propose(
    plan: SearchPlan, document: Json, number: int, known: Sequence[Trial], earlier: Sequence[Point]
) -> Point | None:
    """The point of a trial.

    Args:
        document: JSON of the training's specification. RANDOM and TPE begin with its own values.
        number: of the trial, from 0.
        known: the trials that it may learn from, all ended.
        earlier: the points of all trials before it.

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
    point = own or _drawn(plan, number, known, chance)
    return point if plan.space.size is None else _untried(plan.space, point, earlier, chance)


def startup_trials(plan: SearchPlan) -> int:
    """How many trials TPE draws before it estimates."""
    return max(1, min(_MOST_STARTUP, plan.max_trials // _STARTUP_SHARE))


def _drawn(plan: SearchPlan, number: int, known: Sequence[Trial], chance: random.Random) -> Point:
    if plan.method is SearchMethod.RANDOM:
        return plan.space.random(chance)
    startup = startup_trials(plan)
    if number < startup:
        return plan.space.stratified(plan.seed, number, startup)
    return _by_tpe(plan, number, known)


def _by_tpe(plan: SearchPlan, number: int, known: Sequence[Trial]) -> Point:
    """Optuna's sampler, made anew for each trial, so that nothing but the trials has to be kept."""
    seed = int.from_bytes(hashlib.sha256(f"{plan.seed}/{number}".encode()).digest()[:4])
    sampler = TPESampler(n_startup_trials=1, multivariate=True, constant_liar=False, seed=seed)
    study = study_of(plan, known, sampler)
    return dict(study.ask(distributions(plan.space)).params)


def _untried(space: Space, point: Point, earlier: Sequence[Point], chance: random.Random) -> Point:
    """The point, or another one if it was tried: a space that can be counted is not tried twice anywhere."""
    for _ in range(_DRAWS):
        if point not in earlier:
            return point
        point = space.random(chance)
    return next(point for point in space.grid() if point not in earlier)
