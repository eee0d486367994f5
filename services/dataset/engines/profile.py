"""Profile: what is in a version, in figures that can be drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from libs.compute.context import EngineContext
from libs.compute.versions import BOOL, JSON, STRING, to_json
from services.dataset.engines.access import open_version
from services.dataset.engines.languages import language_of
from services.dataset.engines.report import example_text
from services.dataset.engines.word_table import word_table

# Rows that are looked at: shares are then known to a third of a percent (95 %), and memory is bounded.
SAMPLED_ROWS = 100_000
_BATCH_ROWS = 2_048
# Texts of a column whose language is looked at; of fewer words it means nothing.
_LANGUAGE_TEXTS, _LANGUAGE_WORDS = 2_000, 5
# Values of a column that are counted one by one, and those that are shown.
_COUNTED, _SHOWN = 50_000, 20
_VALUE_CHARACTERS = 200
_BINS = 24
# Values that are a hundred times as large as others are drawn on a logarithmic axis.
_DECADES = 100
_QUANTILES = (5, 25, 50, 75, 95, 99)
_SEED = 0

Json = dict[str, Any]


def run(ctx: EngineContext) -> Json:
    """Profiles one version.

    The spec names `version` and `grant`. Gives `profile`, the fields of `argosy.dataset.v1.VersionProfile`.
    """
    spec = ctx.spec
    reader = open_version(ctx.blobs_read(spec["grant"]), spec["version"])
    index = reader.index
    rows = _sampled(len(index))
    columns = {name: ColumnTally(name, kind) for name, kind in index.columns.items()}
    for start in range(0, len(rows), _BATCH_ROWS):
        ctx.stop_if_cancelled()
        numbers = rows[start : start + _BATCH_ROWS]
        for name, tally in columns.items():
            tally.add(reader.column(name, numbers).to_pylist())
        done = start + len(numbers)
        ctx.progress(0.99 * done / len(rows), f"{done:,} of {len(rows):,} rows", rows=done)
    codes, counts = np.unique(index.source, return_counts=True)
    largest = np.argsort(-counts, kind="stable")[:_SHOWN]
    distinct = len(np.unique(np.ascontiguousarray(index.row_ids).view("V32")))
    return {
        "profile": {
            "row_count": len(index),
            "profiled_rows": len(rows),
            "byte_count": index.byte_count,
            "duplicate_rows": len(index) - distinct,
            "sources": _values((index.sources[codes[at]], int(counts[at])) for at in largest),
            "columns": [tally.figures() for tally in columns.values()],
        }
    }


def _sampled(count: int) -> np.ndarray:
    """Row numbers, ascending; always the same ones."""
    if count <= SAMPLED_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, SAMPLED_ROWS, replace=False))


class ColumnTally:
    """Counts the values of one column as they come.

    Args:
        name: of the column.
        kind: as the version types it.
    """

    def __init__(self, name: str, kind: str) -> None:
        self._name, self._kind = name, kind
        self._missing = 0
        self._values: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._measures: dict[str, list[np.ndarray]] = {}

    def add(self, values: Sequence[Any]) -> None:
        """Takes the next values; None, an empty text and not-a-number are missing."""
        there = [value for value in values if value is not None and value != "" and value == value]
        self._missing += len(values) - len(there)
        if len(self._values) <= _COUNTED:
            self._values.update(_text(value) for value in there)
        if self._kind == STRING:
            self._add_texts(there)
        elif self._kind not in (JSON, BOOL):
            self._measure("numbers", there)

    def _add_texts(self, texts: Sequence[str]) -> None:
        words = word_table(texts).counts
        self._measure("chars", [len(text) for text in texts])
        self._measure("words", words)
        left = _LANGUAGE_TEXTS - self._languages.total()
        prose = [text for text, count in zip(texts, words, strict=True) if count >= _LANGUAGE_WORDS]
        self._languages.update(language_of(text)[0] for text in prose[: max(0, left)])

    def _measure(self, name: str, values: Sequence[float] | np.ndarray) -> None:
        self._measures.setdefault(name, []).append(np.asarray(values, np.float64))

    def figures(self) -> Json:
        """Fields of `argosy.dataset.v1.ColumnProfile`."""
        found: Json = {
            "name": self._name,
            "kind": self._kind,
            "missing": self._missing,
            "distinct": len(self._values),
            "distinct_is_more": len(self._values) > _COUNTED,
            "languages": _values(self._languages.most_common(_SHOWN)),
        }
        # Values that never come again say nothing by their counts.
        common = self._values.most_common(_SHOWN)
        if common and common[0][1] > 1:
            found["top_values"] = _values(common)
        for name, pieces in self._measures.items():
            values = np.concatenate(pieces)
            if np.isfinite(values).any():
                found[name] = distribution(values)
        return found


def distribution(values: np.ndarray) -> Json:
    """Fields of `argosy.dataset.v1.Distribution`.

    Args:
        values: (n,) float64, some of them finite; the others are left out.
    """
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    logarithmic = low >= 0 and high >= _DECADES * max(1.0, float(np.percentile(finite, 5)))
    if logarithmic:
        edges = np.geomspace(max(1.0, low), high, _BINS + 1)
        edges[0], edges[-1] = low, high
    elif high > low:
        edges = np.linspace(low, high, _BINS + 1)
    else:
        edges = np.array([low, math.nextafter(high, math.inf)])
    counts, _ = np.histogram(finite, edges)
    return {
        "min": low,
        "max": high,
        "mean": float(finite.mean()),
        "quantiles": [{"percent": at, "value": float(np.percentile(finite, at))} for at in _QUANTILES],
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "logarithmic": logarithmic,
    }


def _text(value: object) -> str:
    return (value if isinstance(value, str) else to_json(value))[:_VALUE_CHARACTERS]


def _values(counted: Iterable[tuple[str, int]]) -> list[Json]:
    return [{"value": example_text(text), "count": count} for text, count in counted]
