"""Recipes as people write them: what is read, and what is said about mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from services.dataset.clients.expressions import check_recipe
from services.dataset.domain.functions import check_function
from services.dataset.domain.operators import OPERATORS
from services.dataset.domain.recipes import BUILT_IN, read_recipe
from services.dataset.engines.quality import LANGUAGES
from services.dataset.engines.recipe import OPERATIONS, Recipe
from services.dataset.handlers.cleaning import parse_recipe, write_recipe

WRITTEN = """
description: Answers of the help desk
language: zh
steps:
  - html
  - length: {min_chars: 5, max_chars: null}
  - banned_words:
      words: [foo, 坏词]
  - near_duplicates: {threshold: 0.7}
"""

_ON_ROWS = ("expression", "compute", "python", "drop_missing", "impute", "standardise")


def refused(text: str) -> tuple[str, str]:
    """The field and the message with which a recipe is refused."""
    with pytest.raises((DomainError, ArgosyError)) as caught:
        check_recipe(parse_recipe(text), {"text": "string", "n": "int64"})
    assert caught.value.reason == "INVALID_FIELD"
    return caught.value.metadata["field"], caught.value.message


def test_a_recipe_is_read_with_its_defaults() -> None:
    assert parse_recipe(WRITTEN).to_json() == {
        "language": "zh",
        "steps": [
            {"operator": "html"},
            {"operator": "length", "min_chars": 5, "max_chars": None},
            {"operator": "banned_words", "words": ["foo", "坏词"]},
            {"operator": "near_duplicates", "threshold": 0.7},
        ],
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipes_are_their_own_yaml(name: str) -> None:
    assert parse_recipe(name) == BUILT_IN[name]
    assert parse_recipe(write_recipe(BUILT_IN[name])) == BUILT_IN[name]
    assert Recipe.compile(BUILT_IN[name].to_json()).apply(["a text"]).faults


def test_every_operator_has_an_implementation() -> None:
    assert {name for name, operator in OPERATORS.items() if not operator.pairs} == set(OPERATIONS)
    assert set(LANGUAGES) == {"en", "zh"}


def test_every_operator_takes_any_text() -> None:
    texts = ["", " ", "\n\n", "a", "é" * 50, "字" * 50, "\x00", "a b " * 3000, "x" * 3000, "- a\n" * 99, "\ud800"]
    for name in OPERATIONS:
        needed: dict[str, dict[str, object]] = {
            "banned_words": {"words": ["a"]},
            "languages": {"keep": ["en"]},
            "expression": {"keep": "length(text) > 3"},
            "compute": {"column": "size", "value": "length(text)"},
            "python": {"function": "def row(row):\n    return row"},
            "drop_missing": {"columns": ["text"]},
            "impute": {"columns": ["text"], "method": "constant", "value": "a"},
            "standardise": {"columns": ["text"]},
        }
        given_step = {name: needed[name]} if name in needed else name
        # Rows come from Arrow, which has no half characters.
        given_texts = texts[:-1] if name in _ON_ROWS else texts
        done = Recipe.compile(read_recipe({"steps": [given_step]}).to_json()).apply(given_texts)
        assert len(done.texts) == len(given_texts)


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("web-fr", "recipe", "there are general, web-en, web-zh"),
        ("- html", "recipe", "a mapping with `steps`"),
        ("steps: [html", "recipe", "line 1, column 13"),
        ("steps: []", "recipe.steps", "1 to 64"),
        ("steps: html", "recipe.steps", "1 to 64"),
        ("steps: [html]\nlang: en", "recipe.lang", "is unknown"),
        ("steps: [html]\nlanguage: fr", "recipe.language", "en, zh"),
        ("steps: [htlm]", "recipe.steps[0]", "there is no operator 'htlm' (is it html?)"),
        ("steps: [html, {length: {min: 3}}]", "recipe.steps[1].length.min", "it has min_chars, max_chars"),
        ("steps: [{length: {min_chars: -1}}]", "recipe.steps[0].length.min_chars", "0 or more"),
        ("steps: [{length: {min_chars: 1.5}}]", "recipe.steps[0].length.min_chars", "whole"),
        ("steps: [{length: {min_chars: '3'}}]", "recipe.steps[0].length.min_chars", "number"),
        ("steps: [{length: {min_chars: true}}]", "recipe.steps[0].length.min_chars", "number"),
        ("steps: [{length: {min_chars: .inf}}]", "recipe.steps[0].length.min_chars", "number"),
        ("steps: [{length: {min_chars: .nan}}]", "recipe.steps[0].length.min_chars", "number"),
        (f"steps: [{{length: {{min_chars: {'9' * 400}}}}}]", "recipe.steps[0].length.min_chars", "number"),
        (f"steps: [{{length: {{min_chars: {'9' * 5000}}}}}]", "recipe", "no YAML that can be read"),
        (
            "steps: [{length: {min_chars: 9, max_chars: 8}}]",
            "recipe.steps[0].length.max_chars",
            "less than min_chars, which is 9",
        ),
        ("steps: [{letters: {min_share: 1.1}}]", "recipe.steps[0].letters.min_share", "between 0 and 1"),
        ("steps: [{normalise: {form: NFD}}]", "recipe.steps[0].normalise.form", "NFC, NFKC"),
        ("steps: [banned_words]", "recipe.steps[0].banned_words.words", "is missing"),
        ("steps: [{banned_words: {words: []}}]", "recipe.steps[0].banned_words.words", "list of texts"),
        ("steps: [{html: 3}]", "recipe.steps[0].html", "mapping"),
        ("steps: [{html: , length: }]", "recipe.steps[0]", "one name"),
        ("steps: [[html]]", "recipe.steps[0]", "one name"),
        ("steps: [3]", "recipe.steps[0]", "one name"),
        ("steps: [expression]", "recipe.steps[0].expression.keep", "is missing"),
        ("steps: [{expression: {keep: n >}}]", "recipe.steps[0].expression.keep", "unable to parse"),
        ("steps: [{expression: {keep: n}}]", "recipe.steps[0].expression.keep", "gives int64"),
        ("steps: [{expression: {keep: m > 3}}]", "recipe.steps[0].expression.keep", "there is no column 'm'"),
        ("steps: [{expression: {keep: text > 3}}]", "recipe.steps[0].expression.keep", "cannot compare string"),
        ("steps: [{expression: {keep: n > 3, name: html}}]", "recipe.steps[0].expression.name", "another rule"),
        ("steps: [{compute: {column: row_id, value: n}}]", "recipe.steps[0].compute.column", "where a row comes from"),
        (
            "steps: [{compute: {column: a, value: n + 1}}, {expression: {keep: b = a}}]",
            "recipe.steps[1].expression.keep",
            "there is no column 'b'; there are text, n, a",
        ),
        ("steps: [{drop_missing: {columns: [n, n]}}]", "recipe.steps[0].drop_missing.columns[1]", "twice"),
        ("steps: [{drop_missing: {columns: [m]}}]", "recipe.steps[0].drop_missing.columns[0]", "no column 'm'"),
        ("steps: [{impute: {columns: [text]}}]", "recipe.steps[0].impute.columns[0]", "there is no median"),
        ("steps: [{impute: {columns: [n], method: constant}}]", "recipe.steps[0].impute.value", "only then"),
        ("steps: [{impute: {columns: [n], value: 3}}]", "recipe.steps[0].impute.value", "only then"),
        (
            "steps: [{impute: {columns: [n], method: constant, value: 0.5}}]",
            "recipe.steps[0].impute.columns[0]",
            "has the type int64, which 0.5 is not",
        ),
        (
            "steps: [{compute: {column: n, value: n + 1}}, {standardise: {columns: [n]}}]",
            "recipe.steps[1].standardise.columns[0]",
            "set by an earlier step",
        ),
        ("steps: [{python: {function: 'def f(row): pass'}}]", "recipe.steps[0].python.function", "no `def row(row)`"),
        ("steps: [{python: {function: 'def row(a, b): pass'}}]", "recipe.steps[0].python.function", "no `def row"),
        ("steps: [{python: {function: 'def row(row)'}}]", "recipe.steps[0].python.function", "line 1"),
        (
            'steps: [{python: {function: "import socket\\ndef row(row): pass"}}]',
            "recipe.steps[0].python.function",
            "line 1 imports socket",
        ),
        (
            "steps: [{python: {function: 'def row(row): pass', max_memory_mb: 9999}}]",
            "recipe.steps[0].python.max_memory_mb",
            "up to 4096",
        ),
        ("steps: [near_duplicates, html]", "recipe.steps[0]", "only operators that compare rows may follow"),
        ("steps: [exact_duplicates, exact_duplicates]", "recipe.steps[1]", "twice"),
        ("steps: &a [html]\nlanguage: *a", "recipe", "aliases"),
        ("steps: !!python/object/apply:os.system [ls]", "recipe", "line 1"),
        ("[" * 100_000, "recipe", "YAML"),
        ("steps: [{? [a] : 1}]", "recipe", ""),
        ("\x00", "recipe", "YAML"),
    ],
)
def test_mistakes_are_named(text: str, field: str, says: str) -> None:
    named, message = refused(text)
    assert named.startswith(field)
    assert says in message


@given(st.text(max_size=60) | st.text(alphabet="steps: []{}-html&*!,\n", max_size=60))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        parse_recipe(text)
    except (DomainError, ArgosyError) as error:
        assert error.reason == "INVALID_FIELD"


@pytest.mark.parametrize(
    "source",
    [
        "(" * 9999,
        "-" * 19_999,
        "x" + ".y" * 9999,
        "lambda: " * 2000,
        "[" * 199 + "]" * 199,
        "not " * 4000,
        "\x00",
        "é" * 9,
    ],
)
def test_functions_that_are_hard_to_read_are_refused(source: str) -> None:
    with pytest.raises(DomainError):
        check_function(source, "function")
