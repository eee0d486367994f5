"""Rows of a table as numbers: gaps filled, numbers standardised, categories one-hot; times and texts where asked."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from libs.compute.versions import JSON, KIND
from services.training.engines.algorithms.interface import Json, Table
from services.training.engines.algorithms.ngrams import ngrams

Array = np.ndarray
Columns = Mapping[str, Sequence[Any]]

# Standardised numbers are rounded to this many decimals and cut off at this many deviations. Trees are learned in
# double precision and asked in single: with steps of 1e-4 no number can change its side of a threshold. It is far finer
# than the 255 bins of the trees.
_DECIMALS = 4
_MOST_DEVIATIONS = 64.0
# Inputs that the words of a text column share by a hash.
WORD_BUCKETS = 256
# A number as a person writes it, with commas between thousands or none; one that begins with a zero is a code.
_WRITTEN = re.compile(r"[+-]?(?=\.?\d)(0|[1-9]\d{0,2}(,\d{3})+|[1-9]\d*)?(\.\d*)?([eE][+-]?\d{1,3})?", re.ASCII)
# Seconds of a day, a week and a year (of 365.2425 days).
PERIODS = (86_400.0, 604_800.0, 31_556_952.0)


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
        times: the values are times in ISO 8601; `median`, `mean` and `scale` are in seconds.
        rarities: a column of texts: the inverse document frequency of each input that words share.
        written: the values are numbers written as texts; other texts are gaps.
    """

    name: str
    categories: list[str] | None = None
    median: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    gaps: bool = False
    times: bool = False
    rarities: list[float] | None = None
    written: bool = False

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
        return cls._fit_numbers(name, np.array(known, np.float64), gaps=gaps)

    @classmethod
    def fit_times(cls, name: str, values: Sequence[Any]) -> Feature | None:
        """Learns from a column of times; None for one without any."""
        seconds = [seconds_of(value) for value in values]
        known = [second for second in seconds if second is not None]
        if not known:
            return None
        return cls._fit_numbers(name, np.array(known), gaps=len(known) < len(values), times=True)

    @classmethod
    def fit_written(cls, name: str, values: Sequence[Any]) -> Feature | None:
        """Learns from a column of numbers written as texts; None for one without any."""
        numbers = [number_of(value) for value in values]
        known = [number for number in numbers if number is not None]
        if not known:
            return None
        return cls._fit_numbers(name, np.array(known), gaps=len(known) < len(values), written=True)

    @classmethod
    def fit_words(cls, name: str, values: Sequence[Any]) -> Feature:
        """Learns from a column of texts how rare words are (Spärck Jones, 1972; smoothed as scikit-learn does)."""
        found = np.zeros(WORD_BUCKETS)
        for value in values:
            found[list(set(ngrams(_text(value), 1, WORD_BUCKETS)))] += 1
        return cls(name, rarities=(np.log((1 + len(values)) / (1 + found)) + 1).tolist())

    @classmethod
    def _fit_numbers(
        cls, name: str, known: Array, *, gaps: bool, times: bool = False, written: bool = False
    ) -> Feature:
        middle, scale = float(np.median(known)), float(known.std()) or 1.0
        return cls(name, None, middle, float(known.mean()), scale, gaps, times, written=written)

    def encode(self, values: Sequence[Any]) -> Array:
        """(n, inputs) for values of the column."""
        if self.rarities is not None:
            return self._words(values, np.array(self.rarities))
        if self.times:
            return self._times([seconds_of(value) for value in values])
        if self.written:
            values = [number_of(value) for value in values]
        missing = np.array([is_gap(value) for value in values], bool)
        inputs = self._categories(values) if self.categories is not None else self._numbers(values, missing)
        return np.concatenate([inputs, missing[:, None]], axis=1) if self.gaps else inputs

    def _times(self, seconds: Sequence[float | None]) -> Array:
        """The time itself, and where it lies in its day, week and year: as points on circles, so that the last hour is
        near the first one."""
        missing = np.array([second is None for second in seconds], bool)
        inputs = [self._numbers(seconds, missing)]
        known = np.array([self.median if second is None else second for second in seconds])
        for period in PERIODS:
            angles = 2 * np.pi * (known % period) / period
            inputs += [np.round(np.stack([np.sin(angles), np.cos(angles)], axis=1), _DECIMALS)]
        return np.concatenate([*inputs, missing[:, None]] if self.gaps else inputs, axis=1)

    def _words(self, values: Sequence[Any], rarities: Array) -> Array:
        """Words by how often and how rare, each text as long as any other."""
        inputs = np.zeros((len(values), len(rarities)))
        for row, value in enumerate(values):
            grams = ngrams(_text(value), 1, len(rarities))
            if grams:
                inputs[row] = np.bincount(grams, minlength=len(rarities))
        inputs = np.log1p(inputs) * rarities
        lengths = np.linalg.norm(inputs, axis=1, keepdims=True)
        return np.round(inputs / np.where(lengths > 0, lengths, 1), _DECIMALS)

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
        parts = [feature.encode(columns[feature.name]).astype(np.float32) for feature in self.columns]
        return np.concatenate(parts, axis=1) if parts else np.zeros((0, 0), np.float32)

    def to_json(self) -> list[Json]:
        return [asdict(feature) for feature in self.columns]

    @classmethod
    def from_json(cls, data: list[Json]) -> Features:
        return cls([Feature(**feature) for feature in data])


def seconds_of(value: Any) -> float | None:
    """A time in ISO 8601 as seconds since 1970, in UTC where it names no zone; None: it is none."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def number_of(value: Any) -> float | None:
    """A number, or a text that is one; None: it is neither."""
    if isinstance(value, bool) or is_gap(value):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    text = str(value).strip()
    number = float(text.replace(",", "")) if _WRITTEN.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def is_gap(value: Any) -> bool:
    """Whether nothing is known: null, an empty text, a number that is none."""
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))
