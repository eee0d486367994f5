"""Imputation and standardisation: figures of whole columns, taken once, and what they make of each row.

The figures are taken by the carrier of the task in the order of the rows, before any shard is started, and travel with
the recipe. So they do not depend on how many workers there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from libs.compute.context import EngineError
from libs.compute.versions import DOUBLE, VersionReader
from services.dataset.engines.texts import Texts

# Rows at a time.
_CHUNK = 65_536
# Different values beyond which there is no most frequent one worth the name.
_MOST_VALUES = 1_000_000


def fit(recipe: Mapping[str, Any], reader: VersionReader, after_chunk: Callable[[], None]) -> dict[str, Any]:
    """The recipe with the figures that its steps need.

    Args:
        recipe: As `services.dataset.domain.recipes.Recipe.to_json` writes it.
        reader: The version.
        after_chunk: Called after each chunk of rows; may raise.

    Raises:
        EngineError: CONTENT_INVALID for a column of which a figure does not exist.
    """
    wanted = [step for step in recipe["steps"] if _is_fitted(step)]
    means = {name for step in wanted if step["method"] != "mode" for name in step["columns"]}
    modes = {name for step in wanted if step["method"] == "mode" for name in step["columns"]}
    numbers: dict[str, list[np.ndarray]] = {name: [] for name in means}
    counts: dict[str, Counter[Any]] = {name: Counter() for name in modes}
    total = len(reader.index)
    for start in range(0, total if wanted else 0, _CHUNK):
        rows = np.arange(start, min(total, start + _CHUNK))
        for name in means:
            numbers[name].append(
                reader.column(name, rows).drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
            )
        for name in modes:
            counts[name].update(reader.column(name, rows).drop_null().to_pylist())
            if len(counts[name]) > _MOST_VALUES:
                raise _no_figure(name, f"has more than {_MOST_VALUES:,} different values; none of them is the mode")
        after_chunk()
    figures = {name: _figures(name, np.concatenate(found), total) for name, found in numbers.items()}
    fitted = {name: _mode(name, found, total) for name, found in counts.items()}
    steps = [
        {**step, "fitted": [(fitted if step["method"] == "mode" else figures)[name] for name in step["columns"]]}
        if _is_fitted(step)
        else step
        for step in recipe["steps"]
    ]
    return {**recipe, "steps": steps}


def impute(
    columns: Sequence[str], method: str, value: Any, fitted: Sequence[Mapping[str, Any]]
) -> Callable[[Texts], None]:
    """Fills missing values of columns.

    Args:
        columns: Each by itself.
        method: `mean`, `median`, `mode` or `constant`.
        value: The constant.
        fitted: Figures of the columns, in the same order.
    """
    by_column = {one["column"]: one for one in fitted}
    fills = {name: value if method == "constant" else _fill(by_column[name], method) for name in columns}

    def apply(texts: Texts) -> None:
        texts.kinds |= kinds_after("impute", columns, method)
        for at in texts.left:
            row = texts.row(at)
            lacking = {name: fill for name, fill in fills.items() if row.get(name) is None}
            if lacking:
                texts.replace_row(at, {**row, **lacking})

    return apply


def standardise(columns: Sequence[str], method: str, fitted: Sequence[Mapping[str, Any]]) -> Callable[[Texts], None]:
    """Brings numbers to one scale; a column of which all values are the same becomes 0.

    Args:
        columns: Each by itself.
        method: `z_score`, `min_max` or `robust`.
        fitted: Figures of the columns, in the same order.

    Raises:
        EngineError: CONTENT_INVALID when the middle half of a column has one value, so that `robust` has no scale.
    """
    scales = {one["column"]: _scale(one, method) for one in fitted}

    def apply(texts: Texts) -> None:
        texts.kinds |= kinds_after("standardise", columns, method)
        for at in texts.left:
            row = texts.row(at)
            scaled = {
                name: (row[name] - scales[name][0]) / scales[name][1] for name in columns if _is_number(row.get(name))
            }
            if scaled:
                texts.replace_row(at, {**row, **scaled})

    return apply


def kinds_after(operator: str, columns: Sequence[str], method: str) -> dict[str, str]:
    """Columns to which an imputation or a standardisation gives another type."""
    fractions = operator == "standardise" or method in ("mean", "median")
    return dict.fromkeys(columns, DOUBLE) if fractions else {}


def _is_fitted(step: Mapping[str, Any]) -> bool:
    return step["operator"] == "standardise" or (step["operator"] == "impute" and step["method"] != "constant")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figures(column: str, values: np.ndarray, total: int) -> dict[str, Any]:
    """Figures of a column of numbers; the deviation is that of the population, as scikit-learn takes it."""
    if not len(values):
        raise _no_figure(column, "has no value")
    first, median, third = np.percentile(values, (25, 50, 75))
    figures = {
        "mean": values.mean(),
        "median": median,
        "deviation": values.std(),
        "least": values.min(),
        "largest": values.max(),
        "first_quartile": first,
        "third_quartile": third,
    }
    if not np.isfinite(list(figures.values())).all():
        raise _no_figure(column, "has values too large to be added up")
    counts = {"values": len(values), "missing": total - len(values)}
    return {"column": column, **counts, "figures": {name: float(value) for name, value in figures.items()}}


def _mode(column: str, counts: Counter[Any], total: int) -> dict[str, Any]:
    """The most frequent value; of several, the first in their order."""
    if not counts:
        raise _no_figure(column, "has no value")
    most = max(counts.values())
    mode = min(value for value, count in counts.items() if count == most)
    present = counts.total()
    return {"column": column, "values": present, "missing": total - present, "mode": mode, "figures": {"count": most}}


def _fill(fitted: Mapping[str, Any], method: str) -> Any:
    return fitted["mode"] if method == "mode" else fitted["figures"][method]


def _scale(fitted: Mapping[str, Any], method: str) -> tuple[float, float]:
    """What is taken away, and what the rest is divided by."""
    figures = fitted["figures"]
    least, largest = figures["least"], figures["largest"]
    if least == largest:
        return least, 1.0
    if method == "z_score":
        return figures["mean"], figures["deviation"]
    if method == "min_max":
        return least, largest - least
    if figures["first_quartile"] == figures["third_quartile"]:
        raise _no_figure(
            fitted["column"], "has one value in its middle half; robust standardisation has no scale for it"
        )
    return figures["median"], figures["third_quartile"] - figures["first_quartile"]


def _no_figure(column: str, problem: str) -> EngineError:
    return EngineError("CONTENT_INVALID", f"column {column} {problem}", detail="no figure")
