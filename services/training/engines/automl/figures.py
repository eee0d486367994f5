"""What the mean of the models is worth on held-out rows, beside the best single model and the trivial baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from services.training.engines.algorithms.figures import classification, regression
from services.training.engines.automl.ensemble import losses, resampled, score
from services.training.engines.automl.task import Answers

Array = np.ndarray
Json = dict[str, Any]

_SINGLE = "best_single."
# Of the held-out rows, for importances: each column is shuffled so often.
_SHUFFLES = 3
_SHUFFLED_ROWS = 500


class Questions(Protocol):
    """Rows that a model is asked, of columns with names."""

    @property
    def names(self) -> Sequence[str]: ...

    def answers(self, rows: Array | None = None, shuffled: str = "", order: Array | None = None) -> Array: ...


def heldout_figures(
    told: Array, single: Array, right: Array, answers: Answers, seed: int
) -> tuple[dict[str, float], list[Json]]:
    """Figures by name for the run, and the same with intervals for the report.

    Args:
        told, single: (n, classes) probabilities, or (n,) standardised numbers, of the mean and of its best model.
        right: (n,) what they should have been; see `Answers.read`.
    """
    numbers = not answers.classes
    if numbers:
        results = regression(_units(told, answers), _units(right, answers), answers.mean)
        alone = regression(_units(single, answers), _units(right, answers), answers.mean)
        trivial = np.zeros(len(right))
    else:
        results = classification(told, right, answers.values)
        alone = classification(single, right, answers.values)
        shares = np.bincount(answers.values, minlength=len(answers.classes)) / len(answers.values)
        trivial = np.broadcast_to(shares, told.shape)
    results |= {f"{_SINGLE}{name}": value for name, value in alone.items() if not name.startswith("baseline.")}
    scale = answers.scale if numbers else 1.0
    costs = {name: losses(each, right) for name, each in (("", told), ("best_single", single), ("baseline", trivial))}
    main = "rmse" if numbers else "log_loss"

    def of(name: str, rows: Array) -> float:
        return scale * score(costs[name][rows], numbers)

    low, high = resampled(lambda rows: of("", rows), len(right), seed)
    results |= {f"{main}_low": low, f"{main}_high": high}
    figure: Json = {"name": main, "value": results[main], "low": low, "high": high}
    for other in ("baseline", "best_single"):
        low, high = resampled(lambda rows, other=other: of(other, rows) - of("", rows), len(right), seed)
        results |= {f"gain_over_{other}_low": low, f"gain_over_{other}_high": high}
        figure[other] = {"value": results[f"{other}.{main}"], "gain_low": low, "gain_high": high}
    return results, [figure, *_others(results, main)]


def importances(
    questions: Questions, right: Array, answers: Answers, seed: int, left: Callable[[], float]
) -> dict[str, float]:
    """How much worse the score gets when the values of a column are shuffled among the rows (Breiman, 2001), a mean of
    three shufflings; of columns that say the same as another one, neither seems to matter.

    Args:
        right: (n,) as for `heldout_figures`.
        left: seconds that it may still take; columns that there is no time for are left out.
    """
    chance = np.random.default_rng(seed)
    rows = np.sort(chance.permutation(len(right))[:_SHUFFLED_ROWS])
    numbers = not answers.classes
    scale = answers.scale if numbers else 1.0
    before = score(losses(questions.answers(rows), right[rows]), numbers)
    found: dict[str, float] = {}
    for name in questions.names:
        if not left():
            break
        after = [
            score(losses(questions.answers(rows, name, chance.permutation(len(rows))), right[rows]), numbers)
            for _ in range(_SHUFFLES)
        ]
        found[name] = scale * (float(np.mean(after)) - before)
    return found


def _units(standardised: Array, answers: Answers) -> Array:
    return standardised * answers.scale + answers.mean


def _others(results: dict[str, float], main: str) -> list[Json]:
    """The figures beside the main one, without intervals."""
    names = [name for name in results if f"baseline.{name}" in results and name != main]
    return [
        {
            "name": name,
            "value": results[name],
            "baseline": {"value": results[f"baseline.{name}"]},
            "best_single": {"value": results[f"{_SINGLE}{name}"]},
        }
        for name in names
    ]
