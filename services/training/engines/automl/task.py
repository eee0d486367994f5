"""What is learned: classes or numbers, from a table or from texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from libs.compute.context import EngineError
from services.training.engines.algorithms.features import number_of
from services.training.engines.algorithms.figures import class_numbers
from services.training.engines.automl.columns import Column, Kind

Array = np.ndarray

# Whole numbers of so few different values, each of them often, are classes more often than amounts.
_MOST_COUNTED = 20
_ROWS_A_VALUE = 5
_MOST_CLASSES = 100


class Task(StrEnum):
    """What is learned."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    TEXT_CLASSIFICATION = "text-classification"


@dataclass(frozen=True)
class Answers:
    """What is to be foretold, as numbers.

    Attributes:
        reason: why it is this task, in words.
        classes: in a fixed order; empty: numbers.
        values: (n,) class numbers, or numbers in standard deviations from their mean.
        mean, scale: of numbers.
    """

    task: Task
    reason: str
    classes: list[Any]
    values: Array
    mean: float = 0.0
    scale: float = 1.0

    def of(self, rows: Array) -> Answers:
        """Those of some rows."""
        return replace(self, values=self.values[rows])

    def read(self, target: str, values: Sequence[Any]) -> Array:
        """(n,) other values of the target as these are.

        Raises:
            EngineError: CONTENT_INVALID, one of them is no number and should be.
        """
        if self.classes:
            return class_numbers(self.classes, values)
        return (_numbers(target, values, "CONTENT_INVALID") - self.mean) / self.scale


def deduce(target: str, values: Sequence[Any], used: Sequence[Column], asked: str) -> Answers:
    """The task, and the answers as numbers.

    Args:
        values: of the target, one for each row to learn from, without gaps.
        used: the other columns.
        asked: a task, or `auto`.

    Raises:
        EngineError: PREFLIGHT_FAILED, the values are none for the task; names the column and what to do.
    """
    counted = Counter(values)
    if asked == "auto":
        task, reason = _task(target, counted, len(values))
        texts = [column.name for column in used if column.kind is Kind.TEXT]
        if task is Task.CLASSIFICATION and len(texts) == len(used):
            task = Task.TEXT_CLASSIFICATION
            reason += f", and {' and '.join(map(repr, texts))} is all there is to tell them from: texts"
    else:
        task, reason = Task(asked), "it was asked for"
    if task is Task.REGRESSION:
        given = _numbers(target, values, "PREFLIGHT_FAILED")
        if given.min() == given.max():
            raise _refused(
                f"All rows to learn from have {_shown(counted)} in {target!r}: there is nothing to foretell."
            )
        return Answers(task, reason, [], (given - given.mean()) / given.std(), float(given.mean()), float(given.std()))
    classes = _classes(target, counted)
    return Answers(task, reason, classes, class_numbers(classes, values))


def _numbers(target: str, values: Sequence[Any], reason: str) -> Array:
    """(n,) the values as numbers, those written as texts too."""
    numbers = [number_of(value) for value in values]
    if None in numbers:
        strange = str(values[numbers.index(None)])[:50]
        message = f"{target!r} holds {strange!r}, which is no number; classes are told by classification."
        raise EngineError(reason, message, check="labels", detail=message)
    return np.array(numbers, np.float64)


def _task(target: str, counted: Counter[Any], rows: int) -> tuple[Task, str]:
    different = len(counted)
    numbers = [number_of(value) for value in counted]
    if None in numbers:
        return Task.CLASSIFICATION, f"{target!r} has {different:,} different values that are no numbers"
    if any(number is not None and not number.is_integer() for number in numbers):
        return Task.REGRESSION, f"{target!r} has numbers with fractions"
    if different <= _MOST_COUNTED and different * _ROWS_A_VALUE <= rows:
        return Task.CLASSIFICATION, f"{target!r} has no more than {different} different whole numbers"
    return Task.REGRESSION, f"{target!r} has {different:,} different numbers"


def _classes(target: str, counted: Counter[Any]) -> list[Any]:
    if len(counted) == 1:
        raise _refused(f"All rows to learn from have {_shown(counted)} in {target!r}; at least two classes are needed.")
    if len(counted) > _MOST_CLASSES:
        raise _refused(
            f"{target!r} has {len(counted):,} different values, and classes may be {_MOST_CLASSES}: is it the right "
            "column? Numbers are foretold by regression."
        )
    rare = [value for value, count in counted.items() if count == 1]
    if rare:
        raise _refused(
            f"Only one row to learn from has {str(rare[0])[:50]!r} in {target!r}, and a class needs two: add such rows "
            "or leave this one out."
        )
    return sorted(counted, key=lambda value: (str(type(value)), value))


def _shown(counted: Counter[Any]) -> str:
    return repr(str(next(iter(counted)))[:50])


def _refused(message: str) -> EngineError:
    return EngineError("PREFLIGHT_FAILED", message, check="labels", detail=message)
