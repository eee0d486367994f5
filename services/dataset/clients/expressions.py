"""Recipes against the columns of a version: what the domain can say, and what only the engine of expressions knows."""

from __future__ import annotations

from collections.abc import Mapping

from libs.common.domain import invalid
from services.dataset.domain.recipes import Recipe, check_columns

_HAS_EXPRESSION = ("expression", "compute")


def check_recipe(recipe: Recipe, columns: Mapping[str, str]) -> None:
    """Raises INVALID_FIELD, naming the place, for a step that cannot work on these columns.

    Args:
        recipe: As it was read.
        columns: Name to type, as `argosy.dataset.v1.Column` names types.
    """
    check_columns(recipe, columns)
    if not any(step.operator in _HAS_EXPRESSION for step in recipe.steps):
        return
    # The engine takes a second to import and tens of megabytes: only for recipes that use it.
    from services.dataset.engines.expressions import check_steps

    fault = check_steps(recipe.to_json()["steps"], columns)
    if fault is not None:
        number, parameter, problem = fault
        raise invalid(f"recipe.steps[{number}].{recipe.steps[number].operator}.{parameter}", problem)
