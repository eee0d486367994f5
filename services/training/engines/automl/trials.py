"""Models one after the other: which is tried next, how it does on rows that it did not learn, when it is given up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from services.training.domain.halving import goes_on, rung_shares, rung_step
from services.training.domain.search_space import Point, Space
from services.training.domain.searches import TrialState
from services.training.engines.algorithms.interface import Watch
from services.training.engines.automl.budget import Budget
from services.training.engines.automl.ensemble import interval, losses, score
from services.training.engines.automl.families import Family, ask, fit, size_of
from services.training.engines.automl.task import Answers
from services.training.engines.study import chance_of, distributions, frozen, tpe_sampler

Array = np.ndarray
Json = dict[str, Any]

_REDUCTION = 3
# Of the work and of the seconds; the rest is fitting the best models to all rows and asking them.
SEARCH_SHARE = 0.7
_FAMILY = "family"
# Draws of a point that was not tried yet.
_DRAWS = 20


class Problem(Protocol):
    """Rows to learn from, as inputs of models."""

    families: tuple[Family, ...]
    answers: Answers

    def fold(self, family: Family, parameters: Point, number: int, learned: Array, asked: Array) -> tuple[Any, Any]: ...

    def encoding_seconds(self, family: Family, parameters: Point) -> float: ...


@dataclass(frozen=True)
class Tried:
    """A model that was tried.

    Attributes:
        number: from 0.
        costs: mean cost of a row in each part that it was asked; see `losses`.
        score, low, high: over all rows, with its interval; 0 unless it finished.
        seconds: to fit it and to ask it one part.
        encoding_seconds: to make its inputs of all rows, which other models may share.
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
    encoding_seconds: float = 0.0
    size: int = 0
    message: str = ""
    answers: str = ""

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Tried:
        values: Json = {**data, "state": TrialState(data["state"])}
        return cls(**values)


class Trials:
    """The trials of one run, in this attempt and those before it. Which are made, and how they end, depends on the seed
    and the rows alone, as long as the seconds do not end.

    Args:
        parts: (n,) the part of each row.
        before: trials that ended in earlier attempts.
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
        keep: Callable[[list[Tried]], None],
    ) -> None:
        self._problem = problem
        self._parts = parts
        self._answers = problem.answers.values
        self._classes = len(problem.answers.classes)
        self._budget = budget
        self._seed = seed
        self._watch = watch
        self._tried = list(before)
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
            self._keep(self._tried)
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
            encoding = round(self._problem.encoding_seconds(family, tried.parameters), 3)
            tried = replace(tried, seconds=seconds, encoding_seconds=encoding, size=size)
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
        if done < count and self._out_of_time(tried.seconds):
            return TrialState.STOPPED, f"the {self._budget.seconds:g} seconds were nearly over"
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
        spent = self._budget.spent / (SEARCH_SHARE * self._budget.seconds)
        fraction = min(1.0, max((done + share) / self._budget.trials, spent))
        self._watch.progress(SEARCH_SHARE * fraction, f"{done} of {self._budget.trials} models")

    def _out_of_time(self, needed: float = 0.0) -> bool:
        """Whether there is no time for another `needed` seconds. Never before there is a model at all."""
        finished = any(each.state is TrialState.FINISHED for each in self._tried)
        return finished and self._budget.left(SEARCH_SHARE) <= needed


def propose(families: Sequence[Family], tried: Sequence[Tried], seed: int) -> tuple[Family, Point]:
    """What is tried next: each family as it is used without thinking, then points like the best ones so far (TPE;
    Bergstra et al., 2011) over family and parameters together.

    Args:
        tried: all trials so far, by number.
    """
    number = len(tried)
    if number < len(families):
        return families[number], families[number].defaults
    family, point = _by_tpe(families, tried, seed)
    chance = random.Random(chance_of(seed, number))  # noqa: S311 - chance, no secret
    known = [(each.family, each.parameters) for each in tried]
    for _ in range(_DRAWS):
        if (family.name, point) not in known:
            break
        family = chance.choice(families)
        point = Space(family.space).random(chance)
    return family, point


def _by_tpe(families: Sequence[Family], tried: Sequence[Tried], seed: int) -> tuple[Family, Point]:
    names = CategoricalDistribution([family.name for family in families])
    spaces = {family.name: _distributions(family) for family in families}
    study = optuna.create_study(sampler=tpe_sampler(seed, len(tried), grouped=True))
    for each in tried:
        if each.state is not TrialState.STOPPED:
            parameters = {f"{each.family}.{name}": value for name, value in each.parameters.items()}
            study.add_trial(
                frozen(
                    parameters | {_FAMILY: each.family},
                    spaces[each.family] | {_FAMILY: names},
                    each.state,
                    each.score,
                    {len(each.costs): float(np.mean(each.costs))} if each.costs else {},
                )
            )
    asked = study.ask()
    chosen = asked.suggest_categorical(_FAMILY, names.choices)
    family = next(family for family in families if family.name == chosen)
    for path, distribution in spaces[family.name].items():
        asked._suggest(path, distribution)
    return family, {dimension.path: asked.params[f"{family.name}.{dimension.path}"] for dimension in family.space}


def _distributions(family: Family) -> dict[str, BaseDistribution]:
    return {f"{family.name}.{path}": each for path, each in distributions(Space(family.space)).items()}
