"""Parts of the rows, each of which is foretold once by models that learned from the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.training.engines.automl.columns import Columns

Array = np.ndarray

# Numbers are spread over the parts by tenths, as classes are.
_TENTHS = 10


def sample_rows(answers: Array, classes: int, count: int, seed: int) -> Array:
    """`count` rows, in order, with every class or tenth as frequent as in all of them, and each class at least once."""
    if len(answers) <= count:
        return np.arange(len(answers))
    shuffled = _by_stratum(np.random.default_rng(seed).permutation(len(answers)), _strata(answers, classes))
    taken = shuffled[np.linspace(0, len(answers) - 1, count).astype(np.int64)]
    if classes:
        present, first = np.unique(answers, return_index=True)
        taken = np.concatenate([taken, first[~np.isin(present, answers[taken])]])
    return np.sort(taken)


def folds_of(columns: Columns, answers: Array, classes: int, count: int, seed: int) -> Array:
    """(n,) the part of each row, from 0: every class, or tenth of the numbers, alike in all parts, and rows with the
    same values in all columns in the same one, so that none is foretold by itself.

    Args:
        classes: how many; 0: numbers.
        count: of parts; fewer where there are fewer different rows.
    """
    _, first, group = np.unique(_keys(columns, len(answers)), return_index=True, return_inverse=True)
    order = _by_stratum(np.random.default_rng(seed).permutation(len(first)), _strata(answers[first], classes))
    parts = np.empty(len(first), np.int64)
    parts[order] = np.arange(len(first)) % min(count, len(first))
    return parts[group]


def _strata(answers: Array, classes: int) -> Array:
    if classes:
        return answers
    ranks = np.argsort(np.argsort(answers, kind="stable"), kind="stable")
    return ranks * _TENTHS // len(answers)


def _by_stratum(order: Array, strata: Array) -> Array:
    """The same order, with the rows of a stratum one behind the other."""
    return order[np.argsort(strata[order], kind="stable")]


def _keys(columns: Columns, rows: int) -> Array:
    """(n,) equal for rows with the same values."""
    values: list[Sequence[Any]] = list(columns.values())
    keys = np.empty(rows, np.uint64)
    for row in range(rows):
        content = repr([column[row] for column in values]).encode()
        keys[row] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
    return keys
