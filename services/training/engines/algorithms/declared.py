"""Engines beside what the catalogue says of them."""

from __future__ import annotations

from collections.abc import Callable

from services.training.domain.algorithms import SYSTEM
from services.training.domain.built_in import built_in
from services.training.engines.algorithms.interface import Algorithm, Predictor, Trained


def declare(id: str, train: Callable[..., Trained], load: Callable[[dict[str, bytes]], Predictor]) -> Algorithm:
    """The engine of the built-in algorithm `id`."""
    entry = built_in(f"{SYSTEM}/algorithms/{id}/versions/1")
    return Algorithm(id, entry.task, entry.framework, entry.parameters, train, load, tuple(entry.columns))
