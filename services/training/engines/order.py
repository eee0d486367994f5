"""Which rows a phase reads and a step sees: a pure function of seed, phase and step, so that a run resumes exactly
where it stopped."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Array = np.ndarray

# Held-out rows: enough for a standard error of two points of exact match, few enough to cost a second.
PACKED_ROWS = 128
ANSWER_ROWS = 512
# Batches whose rows are sorted by length together: enough for little padding, few enough for batches to stay random.
_GROUP = 50


def row_order(rows: int, seed: int, number: int, heldout: bool) -> Array:
    """All rows of a version in the order in which a phase wants them.

    Args:
        number: of the phase.
    """
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, number, int(heldout)]).permutation(rows)


class Order:
    """Batches of row numbers, without end: one random permutation of all rows after the other.

    Args:
        rows: how many there are.
        batch_size: rows a step over all workers.
        seed: of the run.
        phase: number of the phase; each has an order of its own.
        lengths: tokens of each row, int[rows]. Rows of like length then share a batch, for less padding; None: fully
            random.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, phase: int, lengths: Array | None = None) -> None:
        if rows < 1:
            raise ValueError("no rows")
        self._rows = rows
        self._batch_size = batch_size
        self._entropy = (seed & 0xFFFFFFFFFFFFFFFF, phase)
        self._lengths = lengths
        # Fewer rows than a batch: each comes several times in it.
        self._copies = -(-batch_size // rows)
        self._epoch_batches = rows * self._copies // batch_size
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int) -> Array:
        """Row numbers of a step, int64[batch_size]."""
        epoch, index = divmod(step, self._epoch_batches)
        return self._epoch(epoch)[index]

    def _make_epoch(self, epoch: int) -> Array:
        random = np.random.default_rng([*self._entropy, epoch])
        rows = np.concatenate([random.permutation(self._rows) for _ in range(self._copies)])
        batches = rows[: self._epoch_batches * self._batch_size].reshape(self._epoch_batches, self._batch_size)
        if self._lengths is None:
            return batches
        groups = [batches[start : start + _GROUP] for start in range(0, len(batches), _GROUP)]
        return random.permutation(np.concatenate([self._by_length(group) for group in groups]))

    def _by_length(self, group: Array) -> Array:
        assert self._lengths is not None
        flat = group.reshape(-1)
        return flat[np.argsort(self._lengths[flat], kind="stable")].reshape(group.shape)
