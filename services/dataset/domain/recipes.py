"""Cleaning recipes: which operators, in which order, with which parameters."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.dataset.domain.operators import OPERATORS, Operator, as_list, as_mapping, invalid

# Stop words, terminal marks and phrases depend on it.
LANGUAGES = ("en", "zh")
_MOST_STEPS = 64


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
    return Step(operator.name, operator.read(parameters, f"{field}.{name}"))


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
