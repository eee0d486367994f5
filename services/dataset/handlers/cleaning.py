"""What recipes are made of, and how they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml
from argosy.dataset.v1 import dataset_service_pb2 as pb
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from libs.common import plain_yaml
from libs.common.rpc.call import Call
from services.dataset.domain.operators import OPERATORS, Operator
from services.dataset.domain.recipes import BUILT_IN, Recipe, read_recipe

if TYPE_CHECKING:
    from services.dataset.app import App


async def describe_cleaning(request: pb.DescribeCleaningRequest, call: Call[App]) -> pb.CleaningCatalogue:
    """The operators and the built-in recipes."""
    del request, call
    recipes = [
        pb.CleaningRecipe(name=name, description=recipe.description, yaml=write_recipe(recipe))
        for name, recipe in BUILT_IN.items()
    ]
    return pb.CleaningCatalogue(recipes=recipes, operators=[operator_message(one) for one in OPERATORS.values()])


def parse_recipe(text: str) -> Recipe:
    """A recipe from YAML or from the name of a built-in one. Raises INVALID_FIELD, naming the place."""
    return read_recipe(parse_yaml(text))


def parse_yaml(text: str) -> object:
    """Plain values from the YAML of a recipe. Raises INVALID_FIELD, naming the place."""
    return plain_yaml.load(text, "recipe")


def write_recipe(recipe: Recipe) -> str:
    """YAML that `parse_recipe` reads as the same recipe."""
    steps = [{step.operator: dict(step.parameters)} if step.parameters else step.operator for step in recipe.steps]
    given = {"description": recipe.description, "language": recipe.language, "steps": steps}
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=120)


def operator_message(operator: Operator) -> pb.CleaningOperator:
    """An operator for people who write recipes."""
    parameters = [
        pb.CleaningParameter(
            name=parameter.name,
            description=parameter.description,
            kind=parameter.kind,
            default=ParseDict(parameter.default, Value()),
            choices=parameter.choices,
            optional=parameter.optional,
        )
        for parameter in operator.parameters
    ]
    return pb.CleaningOperator(
        name=operator.name,
        description=operator.description,
        source=operator.source,
        parameters=parameters,
        compares_rows=operator.pairs,
    )
