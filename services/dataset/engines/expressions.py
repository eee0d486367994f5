"""SQL expressions over the columns of rows, by polars. `services.dataset.domain.expressions` says which are taken.

polars is imported where it is used: it takes a second, and most recipes have no expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from libs.compute.versions import BOOL, DOUBLE, INT, JSON, LONG, STRING, to_json
from services.dataset.domain.expressions import expression_columns
from services.dataset.engines.fitting import kinds_after
from services.dataset.engines.rows import MAX_ROW_BYTES
from services.dataset.engines.texts import StoppedAt, Texts

if TYPE_CHECKING:
    import polars as pl

_LONGEST_REASON = 200
# Characters at a time; an expression makes at most seventeen times as many of them.
_SLICE_CHARS = 1_000_000


class ExpressionFault(Exception):
    """An expression cannot be; the message says why, for people."""


def result_kind(expression: str, kinds: Mapping[str, str]) -> str:
    """The type of what an expression gives for columns of these types: `string`, `bool`, `int64` or `double`.

    Raises:
        ExpressionFault: It is no SQL, does not fit the types, or gives something else.
    """
    import polars as pl

    names = expression_columns(expression)
    given = _evaluate(expression, {name: [] for name in names}, kinds).dtype
    if given == pl.String:
        return STRING
    if given == pl.Boolean:
        return BOOL
    if given.is_integer():
        return LONG
    if given.is_float() or given.is_decimal():
        return DOUBLE
    raise ExpressionFault(f"gives {given}; a column holds text, numbers, true and false")


def check_steps(steps: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> tuple[int, str, str] | None:
    """The first step whose expression cannot be: its number, the parameter, and why.

    Args:
        steps: `operator` and parameters of each.
        kinds: Columns of the version and their types.
    """
    known = dict(kinds)
    for number, step in enumerate(steps):
        name = {"expression": "keep", "compute": "value"}.get(step["operator"])
        if name is not None:
            try:
                given = result_kind(step[name], known)
            except ExpressionFault as fault:
                return number, name, str(fault)
            if name == "keep" and given != BOOL:
                return number, name, f"gives {given}; rows are kept where an expression is true"
            if name == "value":
                known[step["column"]] = given
        elif step["operator"] in ("impute", "standardise"):
            known |= kinds_after(step["operator"], step["columns"], step["method"])
    return None


def keep_where(expression: str) -> Callable[[Texts], None]:
    """Drops the texts for whose rows the expression is not true."""

    def apply(texts: Texts) -> None:
        left = texts.left
        for at, value in zip(left, _values(expression, texts, left), strict=True):
            if value is not True:
                texts.drop(at, f"{expression[:_LONGEST_REASON]} is {'null' if value is None else 'false'}")

    return apply


def compute(column: str, expression: str) -> Callable[[Texts], None]:
    """Sets a column to what the expression gives."""

    def apply(texts: Texts) -> None:
        left = texts.left
        if not left:
            return
        values = _values(expression, texts, left)
        texts.kinds[column] = result_kind(expression, texts.kinds)
        for at, value in zip(left, values, strict=True):
            if isinstance(value, str) and len(value) > MAX_ROW_BYTES:
                texts.drop(at, f"{column} would be longer than {MAX_ROW_BYTES} characters")
                continue
            row = texts.row(at)
            row.pop(column, None)
            if value is not None:
                row[column] = value
            texts.replace_row(at, row)

    return apply


def _values(expression: str, texts: Texts, numbers: Sequence[int]) -> list[Any]:
    """What the expression gives for each of these rows; where it fails, the first row that it fails for is named."""
    names = expression_columns(expression)
    values: list[Any] = []
    for some in _slices(texts, names, numbers):
        columns = {name: [texts.row(at).get(name) for at in some] for name in names}
        try:
            values += _plain(_evaluate(expression, columns, texts.kinds))
        except ExpressionFault as fault:
            at, reason = _first_fault(expression, texts, names, some) or (some[0], str(fault))
            raise StoppedAt(at, texts.operator, reason) from None
    return values


def _slices(texts: Texts, names: Sequence[str], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Rows with not too many characters, so that an expression that multiplies them stays small."""
    some: list[int] = []
    size = 0
    for at in numbers:
        row = texts.row(at)
        length = sum(len(row[name]) for name in names if isinstance(row.get(name), str))
        if some and size + length > _SLICE_CHARS:
            yield some
            some, size = [], 0
        some.append(at)
        size += length
    if some:
        yield some


def _first_fault(expression: str, texts: Texts, names: Sequence[str], numbers: Sequence[int]) -> tuple[int, str] | None:
    for at in numbers:
        row = texts.row(at)
        try:
            _evaluate(expression, {name: [row.get(name)] for name in names}, texts.kinds)
        except ExpressionFault as fault:
            return at, str(fault)
    return None


def _evaluate(expression: str, columns: Mapping[str, list[Any]], kinds: Mapping[str, str]) -> pl.Series:
    import polars as pl

    types = {STRING: pl.String, JSON: pl.String, BOOL: pl.Boolean, INT: pl.Int64, LONG: pl.Int64, DOUBLE: pl.Float64}
    try:
        given = {
            name: pl.Series(name, _typed(values, kinds[name]), types[kinds[name]]) for name, values in columns.items()
        }
        return pl.DataFrame(given).select(pl.sql_expr(expression).alias("value"))["value"]
    # At run time a panic is a BaseException, whatever the stubs of polars say.
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,  # pyrefly: ignore[unreachable-except-clause]
        TypeError,
        OverflowError,
    ) as error:
        reason = str(error).split("\n\n")[0].replace("\n", " ")
        raise ExpressionFault(reason[:_LONGEST_REASON] or "cannot be computed") from None


def _typed(values: list[Any], kind: str) -> list[Any]:
    if kind == JSON:
        return [None if value is None else to_json(value) for value in values]
    if kind == DOUBLE:
        return [None if value is None else float(value) for value in values]
    return values


def _plain(values: pl.Series) -> list[Any]:
    """As JSON has them: a decimal is a double; what is not finite is null."""
    plain = values.cast(float) if values.dtype.is_decimal() else values
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in plain.to_list()]
