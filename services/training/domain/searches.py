"""Searches for hyper-parameters and their trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from libs.common.domain import Needs, Resource
from services.training.domain.algorithms import Entry
from services.training.domain.costs import needs_of
from services.training.domain.schemas import violations
from services.training.domain.search_space import MOST_TRIALS, Point, Space
from services.training.domain.spec import TrainingSpec, invalid
from services.training.domain.spec_paths import Json, with_values

# Rights to read and write end a day after the beginning of an attempt. No trial begins in the last hours of it.
ATTEMPT_SECONDS = 20 * 3600.0
_LONGEST_DAYS = 30
# Paths into the parameters of an algorithm begin so.
PARAMETERS = "parameters."


class SearchMethod(StrEnum):
    """How points are proposed."""

    GRID = "grid"
    RANDOM = "random"
    TPE = "tpe"
    GP = "gp"


class TrialState(StrEnum):
    """A trial runs, then it is one of the others for good."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    PRUNED = "PRUNED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


@dataclass(frozen=True)
class EarlyStopping:
    """Successive halving.

    Attributes:
        reduction_factor: one of so many trials goes on from a rung.
        first_rung: share of the steps after which it is.
    """

    reduction_factor: int = 3
    first_rung: float = 1 / 9


@dataclass(frozen=True)
class Objective:
    """What a good trial is: a result of a run by name, small or large."""

    result: str
    maximize: bool = False

    @property
    def phase(self) -> str:
        """The phase that it is a figure of."""
        return self.result.partition(".")[0]

    @property
    def metric(self) -> str | None:
        """The metric of the phase's curve that it is the last value of; None: there is none while a trial runs."""
        figure = self.result.partition(".")[2]
        if figure.startswith("heldout_") and figure.endswith("_after"):
            return figure.removesuffix("_after")
        return figure.removeprefix("last_") if figure.startswith("last_") else None

    def better(self, one: float, other: float) -> bool:
        """Whether the first value is better."""
        return one > other if self.maximize else one < other


@dataclass(frozen=True)
class SearchPlan:
    """Everything that decides which trials a search makes.

    Attributes:
        early_stopping: None: every trial takes all its steps.
        max_trials: at most so many.
        max_parallel: trials at a time. A trial is proposed, and judged at its rungs, from those that are at least so
            many before it, so that the same seed gives the same search however fast each trial is.
        max_seconds, max_tokens: 0: no limit.
    """

    space: Space
    method: SearchMethod
    objective: Objective
    max_trials: int
    max_parallel: int = 1
    max_seconds: float = 0.0
    max_tokens: int = 0
    early_stopping: EarlyStopping | None = None
    seed: int = 0

    def check(self, spec: TrainingSpec, heldout: bool, based: bool) -> None:
        """Raises INVALID_FIELD where it does not fit the training.

        Args:
            heldout: whether the training has a validation version.
            based: whether it begins with a model.
        """
        self._check_size()
        self.space.check(spec.to_json())
        for index, dimension in enumerate(self.space.dimensions):
            if dimension.path.endswith(_ASKED_VERSIONS):
                raise invalid(f"search.space[{index}].path", f"names {dimension.path}, which is the same in all trials")
            if dimension.path in _SET_BY_SEARCH:
                raise invalid(f"search.space[{index}].path", f"names {dimension.path}, which the search sets itself")
            if based and dimension.path.startswith("architecture."):
                message = f"names {dimension.path}, which comes from the base model"
                raise invalid(f"search.space[{index}].path", message)
        figures = objectives(spec, heldout)
        if self.objective.result not in figures:
            message = f"must be a figure of the training, not {self.objective.result!r}: {', '.join(figures)}"
            raise invalid("search.objective.result", message)
        if self.early_stopping is not None and self.objective.metric is None:
            message = f"needs an objective that is known while a trial runs, which {self.objective.result} is not"
            raise invalid("search.early_stopping", message)

    def check_algorithm(self, entry: Entry, base: Entry, parameters: Json) -> None:
        """Raises INVALID_FIELD where it does not fit a training of an algorithm. Which figures a run has is known when
        the first trial has ended.

        Args:
            parameters: all of the training's.
        """
        self._check_size()
        if self.early_stopping is not None:
            raise invalid("search.early_stopping", f"must be none: trials of {entry.id} take all their steps")
        self.space.check({"parameters": parameters})
        for index, dimension in enumerate(self.space.dimensions):
            name = dimension.path.removeprefix(PARAMETERS)
            field_name = f"search.space[{index}]"
            if name in entry.columns:
                raise invalid(
                    f"{field_name}.path", f"names {dimension.path}, a column, which is the same in all trials"
                )
            for value in dimension.ends:
                faults = violations(entry.parameters, {name: value}, "parameters")
                faults += violations(base.parameters, {name: value}, "parameters")
                if faults:
                    raise invalid(field_name, f"cannot set {dimension.path} to {value!r}, which {faults[0][1]}")

    def _check_size(self) -> None:
        points = self.space.grid_size
        if self.method is SearchMethod.GRID and points > MOST_TRIALS:
            raise invalid("search.space", f"has a grid of {points:,} points; at most {MOST_TRIALS} can be tried")
        if self.method is SearchMethod.GRID and self.max_trials < points:
            raise invalid("search.budget.max_trials", f"must be 0 or at least the {points:,} points of the grid")
        if not self.max_trials:
            raise invalid("search.budget.max_trials", "must be set for this method")

    def largest(self, spec: TrainingSpec) -> TrainingSpec:
        """The specification of a trial with every number as large as it may be: none needs more memory."""
        largest = {
            dimension.path: max(dimension.ends)
            for dimension in self.space.dimensions
            if not any(isinstance(value, str | bool) for value in dimension.ends)
        }
        return replace(TrainingSpec.from_json(with_values(spec.to_json(), largest)), workers=1)

    def needs(self, spec: TrainingSpec, estimate: Mapping[str, float]) -> Needs:
        """What a search holds of quotas: all trials that may run beside each other, and the best model.

        Args:
            estimate: of the largest trial, as `needs_of` takes it.
        """
        one, parallel = needs_of(replace(spec, workers=1), estimate), self.max_parallel
        return replace(
            one,
            cpus=one.cpus * parallel,
            gpus=one.gpus * parallel,
            memory_bytes=one.memory_bytes * parallel,
            seconds=self.max_seconds,
        )

    @property
    def days(self) -> int:
        """How many it may last: each takes another attempt, because rights to read end. Without a limit, a month."""
        return math.ceil(self.max_seconds / ATTEMPT_SECONDS) if self.max_seconds else _LONGEST_DAYS

    def to_json(self) -> Json:
        """For rows and engines; `from_json` reads it back."""
        return {**asdict(self), "space": self.space.to_json()}

    @classmethod
    def from_json(cls, data: Json) -> SearchPlan:
        """What `to_json` wrote."""
        stopping = data["early_stopping"]
        values: dict[str, Any] = {
            **data,
            "space": Space.from_json(data["space"]),
            "method": SearchMethod(data["method"]),
            "objective": Objective(**data["objective"]),
            "early_stopping": EarlyStopping(**stopping) if stopping else None,
        }
        return cls(**values)


# A trial runs on one worker, does not stop on its way, and is not resumed in its middle.
_ASKED_VERSIONS = ("teacher_version", "reward_version")
_SET_BY_SEARCH = frozenset({"workers", "checkpoint_every", "probe"})


def objectives(spec: TrainingSpec, heldout: bool) -> list[str]:
    """The figures of a run that a search can be about."""
    found: list[str] = []
    for name, phase in zip(spec.phase_names, spec.phases, strict=True):
        found += [f"{name}.last_loss", f"{name}.tokens_per_second"]
        if heldout:
            found += [f"{name}.heldout_{figure}_after" for figure in phase.heldout_figures]
    return found


@dataclass(frozen=True)
class Trial:
    """One point of a search and what became of it.

    Attributes:
        number: from 0.
        value: the objective; None unless it finished.
        rungs: the objective at each rung that it reached.
        results: figures as of a run.
        reason, message: why it ended before its end.
        tokens: that it read.
        seconds: that it took.
        end_seconds: seconds of work from the beginning of the search to its end.
    """

    number: int
    parameters: Point
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    rungs: tuple[float, ...] = ()
    results: dict[str, float] = field(default_factory=dict[str, float])
    reason: str = ""
    message: str = ""
    tokens: int = 0
    seconds: float = 0.0
    end_seconds: float = 0.0

    def to_json(self) -> Json:
        """For rows and checkpoints; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Trial:
        """What `to_json` wrote."""
        values: dict[str, Any] = {**data, "state": TrialState(data["state"]), "rungs": tuple(data["rungs"])}
        return cls(**values)


def best_of(trials: Iterable[Trial], objective: Objective) -> Trial | None:
    """The finished trial with the best value, of equal ones the first; None: none has finished."""
    best: Trial | None = None
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.value is None:
            continue
        if best is None or best.value is None or objective.better(trial.value, best.value):
            best = trial
    return best


@dataclass(kw_only=True)
class HyperparameterSearch(Resource):
    """A search, with the training as it was when it began.

    Attributes:
        training: whose values are varied.
        plan: which trials it makes.
        task: carries it.
        spec, dataset_version, ...: of the training then, as a run keeps them.
        best_trial: number of the best finished trial; None: none has finished.
        training_run, model_version: what the best trial became; empty until the search has succeeded.
        importances: path to share of the differences between trials.
        algorithm_version, parameters: of the catalogue, with all parameters; empty: a language model.
        estimate: `memory_bytes` and `storage_bytes` that a trial needs at most; empty: not known.
    """

    display_name: str = ""
    training: str = ""
    plan: SearchPlan
    task: str = ""
    spec: TrainingSpec
    dataset_version: str = ""
    dataset_digest: str = ""
    validation_version: str = ""
    validation_digest: str = ""
    model_project: str = ""
    base_model_version: str = ""
    trial_count: int = 0
    best_trial: int | None = None
    best_value: float | None = None
    training_run: str = ""
    model_version: str = ""
    importances: dict[str, float] = field(default_factory=dict[str, float])
    algorithm_version: str = ""
    parameters: Json = field(default_factory=dict[str, Any])
    estimate: Json = field(default_factory=dict[str, Any])

    def saw(self, trials: Iterable[Trial]) -> None:
        """Keeps what the trials so far amount to."""
        known = list(trials)
        best = best_of(known, self.plan.objective)
        self.trial_count = len(known)
        self.best_trial, self.best_value = (best.number, best.value) if best else (None, None)


def trial_parameters(parameters: Json, point: Point) -> Json:
    """The parameters of an algorithm with the values of a trial."""
    changed: Json = with_values({"parameters": parameters}, point)["parameters"]
    return changed


def trial_spec(spec: TrainingSpec, parameters: Point, based: bool) -> TrainingSpec:
    """The training's specification with the values of a trial.

    Args:
        based: whether the training has a base model version.

    Raises:
        DomainError: INVALID_FIELD, the values do not fit each other.
    """
    changed = TrainingSpec.from_json(with_values(spec.to_json(), parameters))
    changed.check(based)
    return changed


def lasting(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that have ended, by number: what another attempt of the search does not do again."""
    return sorted((trial for trial in trials if trial.state is not TrialState.RUNNING), key=lambda trial: trial.number)
