"""Trials as an Optuna study."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, create_trial

from services.training.domain.search_space import Dimension, Kind, Space
from services.training.domain.searches import SearchPlan, Trial, TrialState

# Fewer say nothing about which of several values matters.
_FEWEST_FINISHED = 4


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's words for the dimensions, by path."""
    return {dimension.path: _distribution(dimension) for dimension in space.dimensions}


def study_of(plan: SearchPlan, trials: Sequence[Trial], sampler: BaseSampler | None = None) -> optuna.Study:
    """A study in memory with these trials.

    A trial that failed counts as worse than all others: where numbers run away nobody should look again. One that was
    stopped says nothing.
    """
    study = optuna.create_study(direction="maximize" if plan.objective.maximize else "minimize", sampler=sampler)
    spaces = distributions(plan.space)
    study.add_trials([_frozen(trial, spaces) for trial in trials if trial.state is not TrialState.STOPPED])
    return study


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


def _frozen(trial: Trial, spaces: dict[str, BaseDistribution]) -> FrozenTrial:
    if trial.state is TrialState.FINISHED:
        return create_trial(params=trial.parameters, distributions=spaces, value=trial.value)
    rungs = {rung + 1: value for rung, value in enumerate(trial.rungs)} if trial.state is TrialState.PRUNED else {}
    return create_trial(
        params=trial.parameters,
        distributions=spaces,
        state=optuna.trial.TrialState.PRUNED,
        intermediate_values=rungs,
    )


# Every trial is proposed in a study of its own; what Optuna says about each is no news.
optuna.logging.set_verbosity(optuna.logging.WARNING)
