"""Rows of a table as numbers: gaps filled, numbers standardised, categories one-hot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from libs.compute.versions import JSON, KIND
from services.training.engines.algorithms.interface import Json, Table

Array = np.ndarray
Columns = Mapping[str, Sequence[Any]]

# Standardised numbers are rounded to this many decimals and cut off at this many deviations. Trees are learned in
# double precision and asked in single: with steps of 1e-4 no number can change its side of a threshold. It is far finer
# than the 255 bins of the trees.
_DECIMALS = 4
_MOST_DEVIATIONS = 64.0


def read_columns(table: Table, names: Sequence[str]) -> dict[str, list[Any]]:
    """Whole columns; a number that is none is a gap."""
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for batch in table.batches():
        for name in names:
            columns[name].extend(batch.column(name).to_pylist())
    return columns


def feature_names(table: Table, target: str) -> list[str]:
    """The columns that can be features: all but the target and what is JSON."""
    first = next(table.batches(), None)
    if first is None:
        return []
    return [name for name in table.columns if name != target and _is_plain(first.schema.field(name))]


def _is_plain(described: pa.Field) -> bool:
    return (described.metadata or {}).get(KIND) != JSON.encode() and not pa.types.is_nested(described.type)


@dataclass(frozen=True)
class Feature:
    """How one column becomes inputs.

    Attributes:
        categories: a text column: its values that have an input each; others are all zeros. None: numbers.
        median: fills gaps, in units of the column.
        mean, scale: of the column.
        gaps: whether a gap has an input of its own, because the column had gaps in training.
    """

    name: str
    categories: list[str] | None = None
    median: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    gaps: bool = False

    @classmethod
    def fit(cls, name: str, values: Sequence[Any], max_categories: int) -> Feature | None:
        """Learns from a column; None for one without a value."""
        known = [value for value in values if not is_gap(value)]
        if not known:
            return None
        gaps = len(known) < len(values)
        if any(isinstance(value, str) for value in known):
            counted = Counter(str(value) for value in known)
            kept = sorted(counted, key=lambda value: (-counted[value], value))[:max_categories]
            return cls(name, sorted(kept), gaps=gaps)
        numbers = np.array(known, np.float64)
        return cls(name, None, float(np.median(numbers)), float(numbers.mean()), float(numbers.std()) or 1.0, gaps)

    def encode(self, values: Sequence[Any]) -> Array:
        """(n, inputs) for values of the column."""
        missing = np.array([is_gap(value) for value in values], bool)
        inputs = self._categories(values) if self.categories is not None else self._numbers(values, missing)
        return np.concatenate([inputs, missing[:, None]], axis=1) if self.gaps else inputs

    def _numbers(self, values: Sequence[Any], missing: Array) -> Array:
        numbers = np.array([self.median if gap else float(value) for value, gap in zip(values, missing, strict=True)])
        standard = np.round((numbers - self.mean) / self.scale, _DECIMALS)
        return np.clip(standard, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)[:, None]

    def _categories(self, values: Sequence[Any]) -> Array:
        assert self.categories is not None
        place = {value: number for number, value in enumerate(self.categories)}
        inputs = np.zeros((len(values), len(place)))
        for row, value in enumerate(values):
            at = None if value is None else place.get(str(value))
            if at is not None:
                inputs[row, at] = 1
        return inputs


@dataclass(frozen=True)
class Features:
    """How rows become inputs."""

    columns: list[Feature] = field(default_factory=list[Feature])

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @classmethod
    def fit(cls, columns: Columns, max_categories: int) -> Features:
        """Learns from the rows to train on."""
        fitted = [Feature.fit(name, values, max_categories) for name, values in columns.items()]
        return cls([feature for feature in fitted if feature is not None])

    def encode(self, columns: Columns) -> Array:
        """(n, inputs) in single precision."""
        parts = [feature.encode(columns[feature.name]) for feature in self.columns]
        return np.concatenate(parts, axis=1).astype(np.float32) if parts else np.zeros((0, 0), np.float32)

    def to_json(self) -> list[Json]:
        return [asdict(feature) for feature in self.columns]

    @classmethod
    def from_json(cls, data: list[Json]) -> Features:
        return cls([Feature(**feature) for feature in data])


def is_gap(value: Any) -> bool:
    """Whether nothing is known: null, an empty text, a number that is none."""
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))
