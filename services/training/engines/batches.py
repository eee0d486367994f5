"""Token arrays to the tensors of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from services.training.engines.encode import Array, Examples
from services.training.engines.tokenizer import PAD_ID


@dataclass(frozen=True)
class Batch:
    """What `Objective.forward` takes, and how many tokens were read for it (padding does not count)."""

    inputs: Tensor
    places: Tensor
    targets: Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        return Batch(self.inputs.to(device), self.places.to(device), self.targets.to(device), self.tokens)


class Rows(Protocol):
    """Training data of one phase."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Array | None:
        """Tokens of each row; None where all are equal."""

    def target_count(self, rows: Array) -> int:
        """Positions with a loss in these rows."""
        ...

    def batch(self, rows: Array) -> Batch:
        """The tensors of these rows."""
        ...


class PackedRows:
    """Pre-training: every next token counts.

    Args:
        sequences: int32[n, length].
    """

    lengths = None

    def __init__(self, sequences: Array) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def target_count(self, rows: Array) -> int:
        return len(rows) * (self._sequences.shape[1] - 1)

    def batch(self, rows: Array) -> Batch:
        tokens = torch.from_numpy(self._sequences[rows].astype(np.int64))
        count, length = tokens.shape
        places = torch.arange(count * length).view(count, length)[:, :-1]
        return Batch(tokens, places.flatten(), tokens[:, 1:].flatten(), count * length)


class AnswerRows:
    """Fine-tuning: only the tokens of the answer and its end count."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.lengths: Array | None = examples.lengths

    def __len__(self) -> int:
        return len(self._examples)

    def target_count(self, rows: Array) -> int:
        return int((self._examples.lengths[rows] - self._examples.answers[rows]).sum())

    def batch(self, rows: Array) -> Batch:
        examples = self._examples
        lengths = examples.lengths[rows]
        width = int(lengths.max()) - 1
        inputs = np.full((len(rows), width), PAD_ID, dtype=np.int64)
        places: list[Array] = []
        targets: list[Array] = []
        for index, row in enumerate(rows):
            tokens = examples.tokens[examples.starts[row] : examples.starts[row + 1]]
            answer = int(examples.answers[row])
            inputs[index, : len(tokens) - 1] = tokens[:-1]
            places.append(np.arange(answer - 1, len(tokens) - 1) + index * width)
            targets.append(tokens[answer:].astype(np.int64))
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(np.concatenate(places)),
            torch.from_numpy(np.concatenate(targets)),
            int(lengths.sum()),
        )
