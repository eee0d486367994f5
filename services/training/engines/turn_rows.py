"""Conversations to the tensors of a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from services.training.engines.batches import Batch
from services.training.engines.encode import Array
from services.training.engines.tokenizer import PAD_ID


class TurnRows:
    """Fine-tuning on conversations: the tokens of the answers that count, and their ends.

    Args:
        tokens, starts, counted: as in `turns.EncodedTurns`.
    """

    def __init__(self, tokens: Array, starts: Array, counted: Array) -> None:
        self._tokens, self._starts, self._counted = tokens, starts, counted
        self.lengths: Array | None = np.diff(starts)
        self._targets = np.add.reduceat(counted.astype(np.int64), starts[:-1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def target_count(self, rows: Array) -> int:
        return int(self._targets[rows].sum())

    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        begins, ends = self._starts[rows], self._starts[rows + 1]
        width = int((ends - begins).max()) - 1
        inputs = np.full((len(rows), width), PAD_ID, dtype=np.int64)
        places: list[Array] = []
        targets: list[Array] = []
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            tokens, counted = self._tokens[begin:end], self._counted[begin + 1 : end]
            inputs[index, : len(tokens) - 1] = tokens[:-1]
            places.append(np.flatnonzero(counted) + index * width)
            targets.append(tokens[1:][counted].astype(np.int64))
        return Batch(
            (
                torch.from_numpy(inputs),
                torch.from_numpy(np.concatenate(places)),
                torch.from_numpy(np.concatenate(targets)),
            ),
            int((ends - begins).sum()),
        )


def turn_rows(array: Callable[[str], Array]) -> TurnRows:
    """Rows of fine-tuning on conversations, from their arrays by name."""
    return TurnRows(array("tokens"), array("starts"), array("counted"))
