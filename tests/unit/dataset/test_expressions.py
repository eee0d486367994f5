"""SQL expressions of recipes: what is taken, what is refused, and what they do to rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.domain import DomainError
from services.dataset.domain.expressions import FUNCTIONS, check_expression, expression_columns
from services.dataset.engines import texts
from services.dataset.engines.expressions import ExpressionFault, check_steps, result_kind
from services.dataset.engines.recipe import Recipe
from services.dataset.engines.texts import Source, StoppedAt

KINDS = {"text": "string", "n": "int64", "x": "double", "ok": "bool", "more": "json", "my col": "string"}


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("n > 3 AND text LIKE 'a%'", "bool"),
        ("n IN (1, 2) OR n NOT IN (3) OR x BETWEEN 0.5 AND 1e3", "bool"),
        ("CASE WHEN ok THEN 'it''s' ELSE coalesce(text, '') END", "string"),
        ("if(n % 2 = 0, n, -n)", "int64"),
        ("round(x * 1.5, 2)", "double"),
        ("greatest(n, 1.5)", "double"),
        ("length(text)", "int64"),
        ("try_cast(text AS double)", "double"),
        ("\"my col\" || ' ' || text", "string"),
        ("regexp_like(text, '^[a-z]+\\d$')", "bool"),
        ("more IS NOT NULL", "bool"),
    ],
)
def test_what_is_taken(expression: str, kind: str) -> None:
    check_expression(expression, "keep")
    assert result_kind(expression, KINDS) == kind


@pytest.mark.parametrize(
    "expression",
    [
        "n IN (SELECT a FROM read_csv('FILE'))",
        "n IN (select\na from read_csv('FILE'))",
        "n = (SELECT count(*) FROM read_parquet('FILE'))",
        "n IN (SELECT/**/a/**/FROM/**/read_csv('FILE'))",
        "n = 1 OR EXISTS (SELECT 1)",
        "(SELECT -n)",
        'n IN ("SELECT" a)',
        "n IN (WITH t AS (VALUES (1)) TABLE t)",
        "sum(n) > 1",
        "row_number() OVER (ORDER BY n) > 1",
        "repeat(text, 1000000000)",
        "lpad(text, 1000000000, 'a')",
        "replace(text, 'a', 'aaaaaaaaaa')",
        "columns('.*') > 1",
        "struct.field",
        "n[1]",
        "n::int",
        "n -- comment",
        "n; SELECT 1",
        "@n",
        "$1",
        "`n`",
        "E'x' || text",
        "*",
        "1",
        "'a'",
        "text" + " || text" * 17,
        "concat(" + "text, " * 17 + "text)",
        "n" + " + n" * 1000,
        "cast(" * 60 + "n" + " as bigint)" * 60,
        "case when ok then " * 9 + "n" + " end" * 9,
        "cast(n + end + " * 60 + "n" + " as bigint)" * 60,
        "n) + (n",
        "(n",
        "(case when ok then n) end",
        "naïve > 1",
        "lower > 1",
        "text = '\x00'",
    ],
)
def test_what_is_refused(expression: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_expression(expression, "recipe.steps[0].expression.keep")
    assert caught.value.metadata["field"] == "recipe.steps[0].expression.keep"


def test_without_the_list_an_expression_reads_files(tmp_path: Path) -> None:
    """Why there is one: the first line of the file stands in the error."""
    file = tmp_path / "secret.csv"
    file.write_text("password\n")
    attack = f"text IN (SELECT a FROM read_csv('{file}'))"
    with pytest.raises(pl.exceptions.ColumnNotFoundError, match="password"):
        pl.sql_expr(attack)
    with pytest.raises(DomainError, match="is a word of SQL"):
        check_expression(attack, "keep")


def test_polars_reads_strings_as_the_list_does() -> None:
    """A backslash that ended no string for one and did for the other would hide words from the list."""
    assert pl.select(pl.sql_expr(r"'\' || 'a'")).item() == "\\a"


@pytest.mark.parametrize("end", ["n +", "n as", "", "not", "n is"])
@pytest.mark.parametrize("begin", ["cast(", "not (", "- (", "abs(", "n in ("])
def test_what_cannot_be_read_is_told_soon(begin: str, end: str) -> None:
    """The parser takes twice the time for each level more."""
    started = time.process_time()
    expression = "ok and " + begin * 8 + end + ")" * 8
    check_expression(expression, "keep")
    with pytest.raises(ExpressionFault):
        result_kind(expression, KINDS)
    assert time.process_time() - started < 1


_WORDS = ["n", "text", "'a'", "1", "(", ")", ",", "=", "-", "and", "in", "select", "from", "case", "end", '"x"', "cast"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from([*_WORDS, *sorted(FUNCTIONS)]), max_size=9).map(" ".join))
def test_whatever_is_written_is_taken_or_refused(expression: str) -> None:
    try:
        check_expression(expression, "keep")
        result_kind(expression, dict.fromkeys(expression_columns(expression), "string"))
    except (DomainError, ExpressionFault):
        return


def compiled(*steps: Mapping[str, object]) -> Recipe:
    return Recipe.compile({"language": "en", "steps": list(steps)})


def source(rows: list[dict[str, object]], **kinds: str) -> Source:
    return Source("text", {"text": "string", **kinds}, lambda some: [dict(rows[at]) for at in some])


def test_rows_are_kept_where_it_is_true() -> None:
    rows: list[dict[str, object]] = [{"n": 5}, {"n": 1}, {}, {"n": 9}]
    recipe = compiled({"operator": "expression", "keep": "n > 3", "name": "large"})
    done = recipe.apply(["a"] * 4, source(rows, n="int53"))
    assert {at: (fault.operator, fault.reason) for at, fault in done.faults.items()} == {
        1: ("large", "n > 3 is false"),
        2: ("large", "n > 3 is null"),
    }


def test_columns_are_computed_from_what_earlier_steps_made() -> None:
    rows: list[dict[str, object]] = [{"text": "<b>Word</b>", "x": 1}, {"text": "no"}]
    recipe = compiled(
        {"operator": "html"},
        {"operator": "compute", "column": "size", "value": "length(text)"},
        {"operator": "compute", "column": "size", "value": "size / x"},
        {"operator": "compute", "column": "text", "value": "lower(text)"},
        {"operator": "length", "min_chars": 3, "max_chars": None},
    )
    done = recipe.apply(["<b>Word</b>", "no"], source(rows, x="double"))
    assert done.texts == ["word", "no"]
    assert done.row(0) == {"text": "word", "x": 1, "size": 4.0}
    assert done.changes[0] == ["html", "compute", "compute 3"]  # size / 1 changes nothing
    assert done.faults[1].operator == "length"
    assert (done.examples["compute"][0].before, done.examples["compute"][0].after) == ('{"size":null}', '{"size":4}')


def test_what_is_not_finite_is_null() -> None:
    rows: list[dict[str, object]] = [{"x": 0.0}, {"x": 2.0}]
    recipe = compiled({"operator": "compute", "column": "y", "value": "1 / x"})
    done = recipe.apply(["", ""], source(rows, x="double"))
    assert [done.row(at).get("y") for at in range(2)] == [None, 0.5]


def test_the_row_is_named_for_which_it_fails() -> None:
    rows: list[dict[str, object]] = [{"s": "1"}, {"s": "2"}, {"s": "three"}]
    recipe = compiled({"operator": "compute", "column": "n", "value": "cast(s AS bigint)"})
    with pytest.raises(StoppedAt, match="conversion from") as caught:
        recipe.apply(["", "", ""], source(rows, s="string"))
    assert (caught.value.at, caught.value.operator) == (2, "compute")


def test_a_wrong_type_is_told_before_anything_runs() -> None:
    steps = [
        {"operator": "compute", "column": "size", "value": "length(text)"},
        {"operator": "standardise", "columns": ["n"], "method": "z_score"},
        {"operator": "expression", "keep": "lower(size) = 'x'"},
    ]
    fault = check_steps(steps, KINDS)
    assert fault is not None
    assert fault[:2] == (2, "keep")
    assert check_steps([*steps[:2], {"operator": "expression", "keep": "size > n"}], KINDS) is None


def test_rows_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_MOST_GROWTH", 100_000)
    doubling: dict[str, object] = {"operator": "compute", "column": "text", "value": "text || text"}
    recipe = compiled(*[doubling] * 64)
    with pytest.raises(StoppedAt, match="larger by 100,000 bytes") as caught:
        recipe.apply(["a" * 100] * 300, source([{"text": "a" * 100}] * 300))
    assert caught.value.operator == "compute 3"
