"""Models one after the other: which is tried next, how it does on rows that it did not learn, when it is given up."""

from __future__ import annotations

import hashlib
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import create_trial

from services.training.domain.halving import goes_on, rung_shares, rung_step
from services.training.domain.search_space import Point, Space
from services.training.domain.searches import TrialState
from services.training.engines.algorithms.interface import Watch
from services.training.engines.automl.ensemble import interval, losses, score
from services.training.engines.automl.families import Family, ask, fit, size_of
from services.training.engines.automl.task import Answers
from services.training.engines.study import distributions

Array = np.ndarray
Json = dict[str, Any]

_REDUCTION = 3
# Of the work; the rest is fitting the best models to all rows and asking them.
_SEARCH_SHARE = 0.85
_FAMILY = "family"
# Draws of a point that was not tried yet.
_DRAWS = 20


class Problem(Protocol):
    """Rows to learn from, as inputs of models."""

    families: tuple[Family, ...]
    answers: Answers

    def fold(self, family: Family, parameters: Point, number: int, learned: Array, asked: Array) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Tried:
    """A model that was tried.

    Attributes:
        number: from 0.
        costs: mean cost of a row in each part that it was asked; see `losses`.
        score, low, high: over all rows, with its interval; 0 unless it finished.
        seconds: to fit it once.
        size: bytes of its numbers.
        message: why it did not finish.
        answers: digest of what every row was foretold; empty unless it finished.
    """

    number: int
    family: str
    parameters: Point
    state: TrialState
    costs: list[float] = field(default_factory=list[float])
    score: float = 0.0
    low: float = 0.0
    high: float = 0.0
    seconds: float = 0.0
    size: int = 0
    message: str = ""
    answers: str = ""

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Tried:
        values: Json = {**data, "state": TrialState(data["state"])}
        return cls(**values)


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
        trials: models at most.
        seconds: after which no further one is begun, and the one that is tried is given up behind its part.
    """

    trials: int
    seconds: float


class Trials:
    """The trials of one run, in this attempt and those before it. Which are made, and how they end, depends on the seed
    and the rows alone, as long as the seconds do not end.

    Args:
        parts: (n,) the part of each row.
        before: trials that ended in earlier attempts.
        seconds: that those attempts worked.
        keep: takes all trials after each that has ended.
    """

    def __init__(
        self,
        problem: Problem,
        parts: Array,
        budget: Budget,
        seed: int,
        watch: Watch,
        before: Sequence[Tried],
        seconds: float,
        keep: Callable[[list[Tried], float], None],
    ) -> None:
        self._problem = problem
        self._parts = parts
        self._answers = problem.answers.values
        self._classes = len(problem.answers.classes)
        self._budget = budget
        self._seed = seed
        self._watch = watch
        self._tried = list(before)
        self._began = time.perf_counter() - seconds
        self._keep = keep

    def run(self) -> list[Tried]:
        """All trials, those of earlier attempts too."""
        while len(self._tried) < self._budget.trials and not self._out_of_time():
            number = len(self._tried)
            self._tell(0.0)
            family, parameters = propose(self._problem.families, self._tried, self._seed)
            tried = self._try(Tried(number, family.name, parameters, TrialState.RUNNING), family)
            self._tried.append(tried)
            told = f" with {tried.score:.4g}" if tried.state is TrialState.FINISHED else f": {tried.message}"
            self._watch.log(f"model {number} ({family.name}) {tried.state.lower()}{told}")
            if tried.state is TrialState.FINISHED:
                best = min(each.score for each in self._tried if each.state is TrialState.FINISHED)
                self._watch.metrics(number + 1, {"score": tried.score, "best": best})
            self._keep(self._tried, self._seconds())
        return self._tried

    def _try(self, tried: Tried, family: Family) -> Tried:
        count = int(self._parts.max()) + 1
        told = np.zeros((len(self._answers), self._classes) if self._classes else len(self._answers), np.float32)
        began = time.perf_counter()
        for number in range(count):
            self._watch.stop_if_cancelled()
            asked = self._parts == number
            try:
                told[asked], size = self._fold(tried.parameters, family, number, asked)
            except (ValueError, ArithmeticError, MemoryError) as error:
                # What scikit-learn raises for values that do not go together.
                return replace(tried, state=TrialState.FAILED, message=f"{type(error).__name__}: {error}"[:500])
            tried.costs.append(float(losses(told[asked], self._answers[asked]).mean()))
            seconds = round((time.perf_counter() - began) / (number + 1), 3)
            tried = replace(tried, seconds=seconds, size=size)
            self._tell((number + 1) / count)
            end = self._end(tried, count)
            if end is not None:
                return replace(tried, state=end[0], message=end[1])
        costs = losses(told, self._answers)
        low, high = interval(costs, not self._classes)
        kept = self._watch.put(told.tobytes())
        value = score(costs, not self._classes)
        return replace(tried, state=TrialState.FINISHED, score=value, low=low, high=high, answers=kept)

    def _fold(self, parameters: Point, family: Family, number: int, asked: Array) -> tuple[Array, int]:
        """What the rows of a part are foretold by a model that learned the others, and its size."""
        learned, places = np.flatnonzero(~asked), np.flatnonzero(asked)
        inputs, questions = self._problem.fold(family, parameters, number, learned, places)
        model = fit(family, parameters, inputs, self._answers[learned], self._classes, self._seed)
        told = ask(model, questions, self._classes)
        if not np.isfinite(told).all():
            raise ArithmeticError("its answers are not finite")
        return told, size_of(model)

    def _end(self, tried: Tried, count: int) -> tuple[TrialState, str] | None:
        """Why a model is not asked the other parts: others did better in the same ones (successive halving, with parts
        of the rows for steps), or the time is over. The first one of each family is asked all of them: a mean of unlike
        models is what is wanted in the end.
        """
        done = len(tried.costs)
        if done < count and self._out_of_time():
            return TrialState.STOPPED, f"the {self._budget.seconds:g} seconds were over"
        rungs = [rung_step(share, count) for share in rung_shares(1 / count, _REDUCTION)]
        if tried.number < len(self._problem.families) or done not in rungs:
            return None
        value = float(np.mean(tried.costs))
        others = [float(np.mean(each.costs[:done])) for each in self._tried if len(each.costs) >= done]
        if goes_on(value, others, _REDUCTION, maximize=False):
            return None
        best = max(1, (len(others) + 1) // _REDUCTION)
        return TrialState.PRUNED, f"after {done} parts it was not among the best {best} of {len(others) + 1}"

    def _tell(self, share: float) -> None:
        """Progress: of whichever limit is nearer."""
        done = len(self._tried)
        fraction = max((done + share) / self._budget.trials, self._seconds() / self._budget.seconds)
        self._watch.progress(_SEARCH_SHARE * min(1.0, fraction), f"{done} of {self._budget.trials} models")

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def _out_of_time(self) -> bool:
        """Never before there is a model at all."""
        finished = any(each.state is TrialState.FINISHED for each in self._tried)
        return finished and self._seconds() >= self._budget.seconds


def propose(families: Sequence[Family], tried: Sequence[Tried], seed: int) -> tuple[Family, Point]:
    """What is tried next: each family as it is used without thinking, then points like the best ones so far (TPE;
    Bergstra et al., 2011) over family and parameters together.

    Args:
        tried: all trials so far, by number.
    """
    number = len(tried)
    if number < len(families):
        return families[number], families[number].defaults
    digest = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])
    family, point = _by_tpe(families, tried, digest)
    chance = random.Random(digest)  # noqa: S311 - chance, no secret
    known = [(each.family, each.parameters) for each in tried]
    for _ in range(_DRAWS):
        if (family.name, point) not in known:
            break
        family = chance.choice(families)
        point = Space(family.space).random(chance)
    return family, point


def _by_tpe(families: Sequence[Family], tried: Sequence[Tried], seed: int) -> tuple[Family, Point]:
    """Optuna's sampler, made anew for each trial, so that nothing but the trials has to be kept."""
    names = CategoricalDistribution([family.name for family in families])
    spaces = {family.name: _distributions(family) for family in families}
    with warnings.catch_warnings():
        # Groups of parameters that come together, here those of a family, are new in Optuna and therefore announced.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = TPESampler(n_startup_trials=1, multivariate=True, group=True, seed=seed)
    study = optuna.create_study(sampler=sampler)
    for each in tried:
        if each.state is not TrialState.STOPPED:
            study.add_trial(_frozen(each, names, spaces[each.family]))
    asked = study.ask()
    chosen = asked.suggest_categorical(_FAMILY, names.choices)
    family = next(family for family in families if family.name == chosen)
    for path, distribution in spaces[family.name].items():
        asked._suggest(path, distribution)
    return family, {dimension.path: asked.params[f"{family.name}.{dimension.path}"] for dimension in family.space}


def _distributions(family: Family) -> dict[str, BaseDistribution]:
    return {f"{family.name}.{path}": each for path, each in distributions(Space(family.space)).items()}


def _frozen(tried: Tried, names: CategoricalDistribution, space: dict[str, BaseDistribution]) -> Any:
    """A trial in Optuna's words; one that failed is worse than all others."""
    parameters = {f"{tried.family}.{name}": value for name, value in tried.parameters.items()} | {_FAMILY: tried.family}
    given: Json = {"params": parameters, "distributions": space | {_FAMILY: names}}
    if tried.state is TrialState.FINISHED:
        return create_trial(**given, value=tried.score)
    pruned = optuna.trial.TrialState.PRUNED
    rungs = {len(tried.costs): float(np.mean(tried.costs))} if tried.state is TrialState.PRUNED else {}
    return create_trial(**given, state=pruned, intermediate_values=rungs)
