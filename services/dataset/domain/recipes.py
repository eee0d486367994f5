"""Cleaning recipes: which operators, in which order, with which parameters."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.common.domain import invalid
from services.dataset.domain.expressions import expression_columns
from services.dataset.domain.fields import as_list, as_mapping
from services.dataset.domain.operators import OPERATORS, Operator

# Stop words, terminal marks and phrases depend on it.
LANGUAGES = ("en", "zh")
_MOST_STEPS = 64
# Operators that need figures of whole columns.
FITTED = ("impute", "standardise")
_NUMBERS = ("int64", "double")
# Type of a column to what may be filled in.
_CONSTANTS: dict[str, type | tuple[type, ...]] = {"string": str, "bool": bool, "int64": int, "double": (int, float)}


@dataclass(frozen=True)
class Step:
    """One operator with all its parameters."""

    operator: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """An order of steps.

    Attributes:
        steps: those that look at one row first.
        language: one of `LANGUAGES`.
        description: one sentence.
    """

    steps: tuple[Step, ...]
    language: str = "en"
    description: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the task's input and the engine."""
        steps = [{"operator": step.operator, **step.parameters} for step in self.steps]
        return {"language": self.language, "steps": steps}


def read_recipe(given: object) -> Recipe:
    """A recipe from what YAML gives: the name of a built-in one, or a mapping with `steps`, `language`, `description`.

    A step is the name of an operator, or a mapping of that name to its parameters.

    Raises:
        DomainError: INVALID_FIELD, naming the place, such as `recipe.steps[2].length.min_chars`.
    """
    if isinstance(given, str):
        if given not in BUILT_IN:
            raise invalid("recipe", f"there is no recipe {given[:64]!r}; there are {', '.join(BUILT_IN)}")
        return BUILT_IN[given]
    recipe = as_mapping(given)
    if recipe is None:
        raise invalid("recipe", f"is the name of a recipe ({', '.join(BUILT_IN)}) or a mapping with `steps`")
    for name in recipe:
        if name not in ("steps", "language", "description"):
            raise invalid(f"recipe.{str(name)[:64]}", "is unknown; a recipe has description, language and steps")
    language = recipe.get("language", "en")
    if not isinstance(language, str) or language not in LANGUAGES:
        raise invalid("recipe.language", f"is one of {', '.join(LANGUAGES)}")
    read = read_steps(recipe.get("steps"), OPERATORS, "DescribeCleaning")
    _check_order(read)
    return Recipe(tuple(read), language, str(recipe.get("description", ""))[:1000])


def read_steps(given: object, operators: Mapping[str, Operator], catalogue: str) -> list[Step]:
    """The steps of a recipe.

    Args:
        given: `steps`, as YAML gives it.
        operators: those that there are, by name.
        catalogue: RPC that describes them.

    Raises:
        DomainError: INVALID_FIELD, naming the place.
    """
    steps = as_list(given)
    if steps is None or not 1 <= len(steps) <= _MOST_STEPS:
        raise invalid("recipe.steps", f"is a list of 1 to {_MOST_STEPS} operators")
    return [_read_step(step, f"recipe.steps[{number}]", operators, catalogue) for number, step in enumerate(steps)]


def _read_step(given: object, field: str, operators: Mapping[str, Operator], catalogue: str) -> Step:
    step = {given: None} if isinstance(given, str) else as_mapping(given)
    if step is None or len(step) != 1:
        raise invalid(field, "is the name of an operator, or one name with its parameters")
    name, value = next(iter(step.items()))
    operator = operators.get(name) if isinstance(name, str) else None
    if operator is None:
        meant = _meant(str(name), operators)
        raise invalid(field, f"there is no operator {str(name)[:64]!r}{meant}; see {catalogue}")
    parameters = as_mapping({} if value is None else value)
    if parameters is None:
        raise invalid(f"{field}.{name}", "parameters are a mapping of names to values")
    step = Step(operator.name, operator.read(parameters, f"{field}.{name}"))
    if name == "impute" and (step.parameters["method"] == "constant") == (step.parameters["value"] is None):
        raise invalid(f"{field}.impute.value", "is given with the method constant, and only then")
    return step


def check_columns(recipe: Recipe, columns: Mapping[str, str]) -> None:
    """Raises INVALID_FIELD, naming the place, where a step names a column that is not there or cannot be used so.

    Args:
        columns: Name to type, as `argosy.dataset.v1.Column` names types.
    """
    computed: set[str] = set()
    for number, step in enumerate(recipe.steps):
        field = f"recipe.steps[{number}].{step.operator}"
        for place, name in _named_columns(step, field):
            if name not in columns and name not in computed:
                have = ", ".join([*columns, *sorted(computed - set(columns))][:20])
                raise invalid(place, f"there is no column {name[:64]!r}; there are {have}")
            if step.operator in FITTED and name in computed:
                problem = f"{name[:64]} is set by an earlier step, and figures are those of the version as it comes in"
                raise invalid(place, f"{problem}; clean twice")
            if step.operator in FITTED:
                _check_type(step, name, columns[name], place)
        if step.operator == "compute":
            computed.add(step.parameters["column"])
        elif step.operator == "standardise":
            computed |= set(step.parameters["columns"])


def _named_columns(step: Step, field: str) -> list[tuple[str, str]]:
    """Place and name of every column that a step reads."""
    found: list[tuple[str, str]] = []
    for parameter in OPERATORS[step.operator].parameters:
        value, place = step.parameters[parameter.name], f"{field}.{parameter.name}"
        if parameter.kind == "columns":
            found += [(f"{place}[{at}]", name) for at, name in enumerate(value)]
        elif parameter.kind == "expression":
            found += [(place, name) for name in expression_columns(value)]
    return found


def _check_type(step: Step, column: str, kind: str, place: str) -> None:
    """A step that uses figures of a column, or fills it, needs one of a fitting type."""
    method, value = step.parameters["method"], step.parameters.get("value")
    if kind == "json" or (kind not in _NUMBERS and method not in ("mode", "constant")):
        raise invalid(place, f"{column[:64]} has the type {kind}, for which there is no {method}")
    fits = isinstance(value, _CONSTANTS[kind]) and (kind == "bool" or not isinstance(value, bool))
    if method == "constant" and not fits:
        raise invalid(place, f"{column[:64]} has the type {kind}, which {value!r} is not")


def _meant(name: str, operators: Mapping[str, Operator]) -> str:
    close = difflib.get_close_matches(name[:64], operators, n=1)
    return f" (is it {close[0]}?)" if close else ""


def _check_order(steps: list[Step]) -> None:
    pairs = [OPERATORS[step.operator].pairs for step in steps]
    for number, step in enumerate(steps):
        if pairs[number] and not all(pairs[number:]):
            problem = f"{step.operator} compares rows, so only operators that compare rows may follow it"
            raise invalid(f"recipe.steps[{number}]", problem)
        if pairs[number] and step.operator in [earlier.operator for earlier in steps[:number]]:
            raise invalid(f"recipe.steps[{number}]", f"{step.operator} is there twice")


def _built_in(description: str, language: str, *steps: str | dict[str, dict[str, Any]]) -> Recipe:
    return read_recipe({"description": description, "language": language, "steps": list(steps)})


BUILT_IN: dict[str, Recipe] = {
    # For text of any kind, so looser than Gopher's rules, which are for whole web pages: documentation, questions and
    # messages are shorter than 50 words.
    "general": _built_in(
        "Text of any kind: documentation, questions, messages.",
        "en",
        "html",
        "normalise",
        "length",
        "words",
        "letters",
        "repeated_line",
        "symbols",
        "exact_duplicates",
        "near_duplicates",
    ),
    "web-en": _built_in(
        "English web pages for pre-training: the filters of Gopher, C4 and FineWeb with their published thresholds.",
        "en",
        "html",
        "normalise",
        "gopher_repetition",
        "gopher_quality",
        "c4_quality",
        "fineweb_quality",
        "personal_data",
        "exact_duplicates",
        "near_duplicates",
    ),
    # A character of Chinese is counted as a word. It says less than an English word, so texts must have more of them;
    # the length of a word means nothing; a sentence is shorter in characters.
    "web-zh": _built_in(
        "Chinese web pages for pre-training: the same filters, counted in characters, with Chinese marks.",
        "zh",
        "html",
        {"normalise": {"form": "NFKC"}},
        "gopher_repetition",
        {
            "gopher_quality": {
                "min_words": 100,
                "max_words": 200_000,
                "min_mean_word": None,
                "max_mean_word": None,
            }
        },
        {"c4_quality": {"min_sentences": 3, "min_words_per_line": 5}},
        {"fineweb_quality": {"short_line_chars": 15}},
        "personal_data",
        "exact_duplicates",
        "near_duplicates",
    ),
}
DEFAULT_RECIPE = BUILT_IN["general"]
