"""What the columns of a table are, and which of them can tell the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from libs.compute.context import EngineError
from services.training.engines.algorithms.features import (
    PERIODS,
    WORD_BUCKETS,
    Feature,
    Features,
    is_gap,
    number_of,
    seconds_of,
)
from services.training.engines.algorithms.ngrams import words_of

Array = np.ndarray
Columns = Mapping[str, Sequence[Any]]

# Each column is looked at in full and may have hundreds of inputs.
MOST_COLUMNS = 1_000
# Values of a column of categories that get an input of their own, as in `tabular-classification`.
MOST_CATEGORIES = 50
# A category is a word or two; `domain/choice.py` takes the same length for a sentence.
_SENTENCE_CHARACTERS = 12.0
_SENTENCE_WORDS = 3
# Where more than half of the values are different, a text is written by somebody and not chosen from a list.
_WRITTEN_SHARE = 0.5
# With fewer rows, different values everywhere are no wonder.
_FEWEST_IDS = 20
# So many of the texts must be times, or numbers, for the column to hold them.
_MOST_OF_THEM = 0.95
# A day that ISO 8601 does not write so: which of its numbers is the month, only people know.
_OTHER_DAY = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\b")
# A single column that foretells this well is the answer in other words more often than not.
_SUSPICIOUS = 0.99
_LOOKED_AT = 2_000


class Kind(StrEnum):
    """What a column is."""

    NUMBER = "number"
    CATEGORY = "category"
    TIME = "time"
    TEXT = "text"


@dataclass(frozen=True)
class Column:
    """What is known of a column.

    Attributes:
        missing: share of the rows without a value, 0 to 1.
        distinct: different values.
        dropped: why it is not used; empty: it is.
        notes: what somebody should know of it.
        written: its numbers are written as texts.
    """

    name: str
    kind: Kind
    missing: float
    distinct: int
    dropped: str = ""
    notes: list[str] = field(default_factory=list[str])
    written: bool = False

    @property
    def inputs(self) -> int:
        """How many inputs it becomes at most."""
        gap = int(self.missing > 0 or self.written)
        match self.kind:
            case Kind.NUMBER:
                return 1 + gap
            case Kind.CATEGORY:
                return min(self.distinct, MOST_CATEGORIES) + gap
            case Kind.TIME:
                return 1 + 2 * len(PERIODS) + gap
            case Kind.TEXT:
                return WORD_BUCKETS


def profile(columns: Columns) -> list[Column]:
    """Looks at every column but the answer."""
    return [_column(name, values) for name, values in columns.items()]


def require_some(columns: Sequence[Column], target: str) -> list[Column]:
    """The columns that are used.

    Raises:
        EngineError: PREFLIGHT_FAILED, there is none; says why for each.
    """
    used = [column for column in columns if not column.dropped]
    if used:
        return used
    why = "; ".join(f"{column.name!r} {column.dropped}" for column in columns[:10]) or "there is no other"
    message = f"No column is left to tell {target!r} from: {why}. Add a column that has to do with it."
    raise EngineError("PREFLIGHT_FAILED", message, check="columns", detail=message)


def fit_features(used: Sequence[Column], columns: Columns) -> Features:
    """How rows become inputs, learned from these rows alone."""
    fitted = [_feature(column, columns[column.name]) for column in used]
    return Features([feature for feature in fitted if feature is not None])


def some_rows(columns: Columns, rows: Array) -> Columns:
    """The same columns of these rows."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def tells_alone(used: Sequence[Column], columns: Columns, answers: Array, classes: int, seed: int) -> list[str]:
    """The columns that foretell the answer all by themselves: a small tree learns each on half of the rows and is asked
    the other half.

    Args:
        answers: (n,) class numbers or numbers.
        classes: how many; 0: numbers.
    """
    rows = np.random.default_rng(seed).permutation(len(answers))[:_LOOKED_AT]
    learned, asked = rows[::2], rows[1::2]
    if len(np.unique(answers[asked])) < 2:
        return []
    # Room for every class to have a few places on the line.
    leaves = max(16, 4 * classes)
    found: list[str] = []
    for column in used:
        values = {column.name: [columns[column.name][row] for row in rows]}
        inputs = fit_features([column], values).encode(values)
        if not inputs.shape[1]:
            continue
        if classes:
            tree: Any = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0)
            told = tree.fit(inputs[::2], answers[learned]).predict(inputs[1::2])
            score = balanced_accuracy_score(answers[asked], told)
        else:
            tree = DecisionTreeRegressor(min_samples_leaf=3, random_state=0)
            told = tree.fit(inputs[::2], answers[learned]).predict(inputs[1::2])
            score = r2_score(answers[asked], told)
        if score >= _SUSPICIOUS:
            found.append(column.name)
    return found


def _column(name: str, values: Sequence[Any]) -> Column:
    known = [value for value in values if not is_gap(value)]
    notes: list[str] = []
    numbers = _written(known)
    if numbers is not None:
        strange = [value for value in known if number_of(value) is None]
        others = f"; {len(strange):,} others count as gaps, {strange[0][:50]!r} among them" if strange else ""
        notes.append(f"its texts are read as numbers{others}")
        known = numbers
    missing = 1 - len(known) / len(values)
    distinct = len(set(known))
    kind = Kind.NUMBER if numbers is not None else _kind(known, distinct)
    if kind is Kind.CATEGORY and distinct > MOST_CATEGORIES:
        notes.append(f"only its {MOST_CATEGORIES} most frequent values of {distinct:,} are told apart")
    if kind is Kind.CATEGORY and _share(known, lambda text: _OTHER_DAY.match(text)) >= _MOST_OF_THEM:
        notes.append(f"its days would be read as times if {str(known[0])[:50]!r} were written like 2026-01-31")
    dropped = _dropped(kind, known, distinct, missing)
    return Column(name, kind, round(missing, 6), distinct, dropped, notes, numbers is not None)


def _written(known: Sequence[Any]) -> list[int | float] | None:
    """The numbers of a column of texts that are numbers, nearly all of them; None: it is none."""
    if not any(isinstance(value, str) for value in known):
        return None
    found = [number for number in map(number_of, known) if number is not None]
    numbers = [int(number) if number.is_integer() else number for number in found]
    return numbers if len(numbers) >= _MOST_OF_THEM * len(known) else None


def _share(known: Sequence[Any], holds: Callable[[str], Any]) -> float:
    """Share of the values that are texts of which something holds."""
    return sum(isinstance(value, str) and bool(holds(value)) for value in known) / max(1, len(known))


def _kind(known: Sequence[Any], distinct: int) -> Kind:
    texts = [value for value in known if isinstance(value, str)]
    if not texts:
        return Kind.NUMBER
    # A bare number is no time, though ISO 8601 would read 20240131 so.
    if _share(known, lambda text: "-" in text and seconds_of(text) is not None) >= _MOST_OF_THEM:
        return Kind.TIME
    length = sum(map(len, texts)) / len(texts)
    if length < _SENTENCE_CHARACTERS or distinct <= _WRITTEN_SHARE * len(known):
        return Kind.CATEGORY
    words = sum(len(words_of(text)) for text in texts) / len(texts)
    return Kind.TEXT if words >= _SENTENCE_WORDS else Kind.CATEGORY


def _dropped(kind: Kind, known: Sequence[Any], distinct: int, missing: float) -> str:
    """Why a column is not used; empty: it is."""
    if not known:
        return "has no value"
    # A gap can say something, too.
    if distinct == 1 and not missing:
        return f"has the same value in every row, {str(known[0])[:50]!r}"
    if distinct < len(known) or len(known) < _FEWEST_IDS:
        return ""
    if kind is Kind.CATEGORY:
        return "has another value in every row, like a name or a number of an order"
    whole = all(isinstance(value, int) for value in known)
    if kind is Kind.NUMBER and whole and max(known) - min(known) == len(known) - 1:
        return "counts the rows"
    return ""


def _feature(column: Column, values: Sequence[Any]) -> Feature | None:
    match column.kind:
        case Kind.TIME:
            return Feature.fit_times(column.name, values)
        case Kind.TEXT:
            return Feature.fit_words(column.name, values)
        case Kind.NUMBER if column.written:
            return Feature.fit_written(column.name, values)
        case Kind.NUMBER | Kind.CATEGORY:
            return Feature.fit(column.name, values, MOST_CATEGORIES)
