"""Figures of a model on held-out rows, beside those of the trivial baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from libs.compute.context import EngineError

Array = np.ndarray

_LEAST_PROBABILITY = 1e-7


def classes_of(values: Sequence[Any]) -> list[Any]:
    """The classes among labels, in a fixed order.

    Raises:
        EngineError: CONTENT_INVALID, there is one only.
    """
    classes = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(classes) < 2:
        message = f"All rows to learn from have the same label, {str(classes[0])[:50]!r}; at least two are needed."
        raise EngineError("CONTENT_INVALID", message, detail="one class")
    return classes


def class_numbers(classes: Sequence[Any], values: Sequence[Any]) -> Array:
    """(n,) places in `classes`; -1 for a label that is none of them."""
    place = {value: number for number, value in enumerate(classes)}
    return np.array([place.get(value, -1) for value in values], np.int64)


def classification(probabilities: Array, right: Array, known: Array) -> dict[str, float]:
    """Accuracy, macro-averaged F1 and log loss. The baseline always answers the most frequent class, with the shares of
    the classes as probabilities.

    Args:
        probabilities: (n, classes).
        right: (n,) class numbers of held-out rows, -1 for a class that was not learned.
        known: class numbers of the rows that were learned from.
    """
    shares = np.bincount(known, minlength=probabilities.shape[1]) / len(known)
    trivial = np.broadcast_to(shares, probabilities.shape)
    figures = _class_figures(probabilities, right)
    return {**figures, **{f"baseline.{name}": value for name, value in _class_figures(trivial, right).items()}}


def _class_figures(probabilities: Array, right: Array) -> dict[str, float]:
    told = probabilities.argmax(axis=1)
    of_right = probabilities[np.arange(len(right)), right]
    of_right = np.where(right >= 0, of_right, 0.0).clip(_LEAST_PROBABILITY)
    return {
        "accuracy": float((told == right).mean()),
        "macro_f1": _macro_f1(told, right),
        "log_loss": float(-np.log(of_right).mean()),
    }


def _macro_f1(told: Array, right: Array) -> float:
    """Mean of the F1 of each class that is among the right ones or the told ones."""
    scores = []
    for number in np.union1d(told, right):
        hits = np.sum((told == number) & (right == number))
        scores.append(2 * hits / (np.sum(told == number) + np.sum(right == number)))
    return float(np.mean(scores))


def regression(told: Array, right: Array, mean: float) -> dict[str, float]:
    """Root of the mean squared error, mean absolute error, and R² on the held-out rows. The baseline always answers the
    mean of the rows that were learned from."""
    figures = _number_figures(told, right)
    trivial = _number_figures(np.full_like(right, mean), right)
    return {**figures, **{f"baseline.{name}": value for name, value in trivial.items()}}


def _number_figures(told: Array, right: Array) -> dict[str, float]:
    error = told - right
    spread = float(np.square(right - right.mean()).mean())
    squared = float(np.square(error).mean())
    figures = {"rmse": squared**0.5, "mae": float(np.abs(error).mean())}
    return {**figures, "r2": 1 - squared / spread} if spread else figures
