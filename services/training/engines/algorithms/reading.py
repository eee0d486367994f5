"""Rows of a table, checked, and which of them are held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from libs.compute.context import EngineError
from libs.compute.versions import JSON, KIND
from services.training.engines.algorithms.interface import Table, Watch

# Share of the rows that are held out where no table of such rows is given, and how many there must be for that.
_HELD_OUT, _FEWEST = 0.1, 10

T = TypeVar("T")


def invalid(row: int, column: str, what: str) -> EngineError:
    """The error of one value.

    Args:
        row: counted from 1.
        what: is wrong with it, as the end of a sentence.
    """
    return EngineError("CONTENT_INVALID", f"Row {row}, column {column!r}: {what}.", line=str(row), detail=column)


def rows_of(table: Table, names: Sequence[str], watch: Watch) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The number of each row, counted from 1, and its values in some columns.

    Raises:
        EngineError: CONTENT_INVALID, there is no such column.
        EngineCancelled: Somebody cancelled.
    """
    for name in names:
        if name not in table.columns:
            have = ", ".join(table.columns)
            raise EngineError("CONTENT_INVALID", f"The data have no column {name!r}; they have {have}.", detail=name)
    number = 0
    for batch in table.batches():
        for values in zip(*(_values(batch, name) for name in names), strict=True):
            watch.stop_if_cancelled()
            number += 1
            yield number, values


def text_of(row: int, column: str, value: Any) -> str:
    """A value as text without spaces around it; EngineError where there is none."""
    text = "" if value is None else str(value).strip()
    if not text:
        raise invalid(row, column, "empty")
    return text


def held_out(
    read: Callable[[Table], list[T]], train: Table, heldout: Table | None, seed: int
) -> tuple[list[T], list[T]]:
    """What is learned from and what is held out: another table, or else a seeded tenth of the rows.

    Raises:
        EngineError: CONTENT_INVALID, there are no rows, or too few for a tenth.
    """
    rows = _some(read(train), "The data have no rows.")
    if heldout is not None:
        return rows, _some(read(heldout), "The held-out data have no rows.")
    if len(rows) < _FEWEST:
        raise EngineError(
            "CONTENT_INVALID", f"{len(rows)} rows are too few to hold some out; {_FEWEST} are enough.", detail="rows"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    count = round(len(rows) * _HELD_OUT)
    return [rows[index] for index in sorted(order[count:])], [rows[index] for index in sorted(order[:count])]


def labels_of(values: Iterable[str], column: str) -> list[str]:
    """The classes in order of their names.

    Raises:
        EngineError: CONTENT_INVALID, there is one only, so that there is nothing to tell apart.
    """
    labels = sorted(set(values))
    if len(labels) < 2:
        raise EngineError(
            "CONTENT_INVALID", f"Column {column!r} has the one label {labels[0]!r}; two are needed.", detail=column
        )
    return labels


def most_common(values: Iterable[T]) -> T:
    """The value that comes most often, of several the first."""
    return Counter(values).most_common(1)[0][0]


def _some(rows: list[T], otherwise: str) -> list[T]:
    if not rows:
        raise EngineError("CONTENT_INVALID", otherwise, detail="no rows")
    return rows


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    values = batch.column(name).to_pylist()
    if (batch.schema.field(name).metadata or {}).get(KIND) != JSON.encode():
        return values
    return [None if value is None else json.loads(value) for value in values]
