"""Trials as an Optuna study, and the samplers that propose the next one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial

from services.training.domain.search_space import Dimension, Kind, Point, Space
from services.training.domain.searches import SearchPlan, Trial, TrialState

# Fewer say nothing about which of several values matters.
_FEWEST_FINISHED = 4


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's words for the dimensions, by path."""
    return {dimension.path: _distribution(dimension) for dimension in space.dimensions}


def frozen(
    parameters: Mapping[str, Any],
    spaces: Mapping[str, BaseDistribution],
    state: TrialState,
    value: float | None = None,
    rungs: Mapping[int, float] | None = None,
) -> FrozenTrial:
    """A trial in Optuna's words. One that failed counts as worse than all others: where numbers run away nobody should
    look again.

    Args:
        value: the objective of a finished one.
        rungs: step to objective, of one that was given up.
    """
    given: dict[str, Any] = {"params": dict(parameters), "distributions": dict(spaces)}
    match state:
        case TrialState.FINISHED:
            return create_trial(**given, value=value)
        case TrialState.RUNNING:
            return create_trial(**given, state=optuna.trial.TrialState.RUNNING)
        case _:
            given["intermediate_values"] = dict(rungs or {}) if state is TrialState.PRUNED else {}
            return create_trial(**given, state=optuna.trial.TrialState.PRUNED)


def study_of(
    plan: SearchPlan, trials: Sequence[Trial], sampler: BaseSampler | None = None, running: Sequence[Point] = ()
) -> optuna.Study:
    """A study in memory with these trials.

    Args:
        trials: that have ended. One that was stopped says nothing.
        running: points of which nothing is known yet.
    """
    study = optuna.create_study(direction="maximize" if plan.objective.maximize else "minimize", sampler=sampler)
    spaces = distributions(plan.space)
    for trial in trials:
        if trial.state is not TrialState.STOPPED:
            rungs = {rung + 1: value for rung, value in enumerate(trial.rungs)}
            study.add_trial(frozen(trial.parameters, spaces, trial.state, trial.value, rungs))
    study.add_trials([frozen(point, spaces, TrialState.RUNNING) for point in running])
    return study


def chance_of(seed: int, number: int) -> int:
    """The seed of a trial, 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])


def tpe_sampler(seed: int, number: int, *, grouped: bool = False) -> TPESampler:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), made anew for each trial, so that nothing but
    the trials has to be kept. Running trials are kept away from, as if they were bad ones.

    Args:
        number: of the trial.
        grouped: for trials of which each has some of the parameters: those that come together are looked at together.
    """
    with warnings.catch_warnings():
        # Groups are new in Optuna and therefore announced.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            n_startup_trials=1, multivariate=True, group=grouped, constant_liar=True, seed=chance_of(seed, number)
        )


def importances(plan: SearchPlan, trials: Sequence[Trial]) -> dict[str, float]:
    """The share of each path in what makes a trial one of the better ones, by PED-ANOVA (Watanabe et al., 2023).

    Returns:
        Path to share, together 1; nothing with fewer than four finished trials or where all of them are alike.
    """
    finished = [trial for trial in trials if trial.state is TrialState.FINISHED]
    if len(finished) < _FEWEST_FINISHED or len({trial.value for trial in finished}) == 1:
        return {}
    found = get_param_importances(study_of(plan, finished), evaluator=PedAnovaImportanceEvaluator())
    return dict(found) if sum(found.values()) > 0 else {}


def _distribution(dimension: Dimension) -> BaseDistribution:
    match dimension.kind:
        case Kind.UNIFORM | Kind.LOG_UNIFORM:
            return FloatDistribution(dimension.low, dimension.high, log=dimension.kind is Kind.LOG_UNIFORM)
        case Kind.INTEGER:
            low, high = dimension.ends
            return IntDistribution(int(low), int(high), step=dimension.step)
        case Kind.CATEGORICAL:
            return CategoricalDistribution(dimension.choices)


# Every trial is proposed in a study of its own; what Optuna says about each is no news.
optuna.logging.set_verbosity(optuna.logging.WARNING)
