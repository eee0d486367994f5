"""Token arrays to the tensors of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from services.training.engines.encode import Array, Examples
from services.training.engines.tokenizer import PAD_ID


@dataclass(frozen=True)
class Batch:
    """What an objective takes.

    Attributes:
        tensors: arguments of its `forward`.
        tokens: read for it; padding does not count.
        figures: sums over the batch by name that were known before the step; see `MethodObjective.figures`.
    """

    tensors: tuple[Tensor, ...]
    tokens: int
    figures: dict[str, float] = field(default_factory=dict[str, float])

    def to(self, device: torch.device) -> Batch:
        return Batch(tuple(tensor.to(device) for tensor in self.tensors), self.tokens, self.figures)


class Rows(Protocol):
    """Training data of one phase."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Array | None:
        """Tokens of each row; None where all are equal."""

    def target_count(self, rows: Array) -> int:
        """What the summed loss of these rows is divided by: positions with a loss, pairs or answers."""
        ...

    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        """The tensors of these rows.

        Args:
            draws: a number of each that no other place of any step has, for what is drawn anew each time.
        """
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

    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        tokens = torch.from_numpy(self._sequences[rows].astype(np.int64))
        count, length = tokens.shape
        places = torch.arange(count * length).view(count, length)[:, :-1]
        return Batch((tokens, places.flatten(), tokens[:, 1:].flatten()), count * length)


class AnswerRows:
    """Fine-tuning: only the tokens of the answer and its end count."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.lengths: Array | None = examples.lengths

    def __len__(self) -> int:
        return len(self.examples)

    def target_count(self, rows: Array) -> int:
        return int((self.examples.lengths[rows] - self.examples.answers[rows]).sum())

    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        return answer_batch([self.examples[row] for row in rows])


def answer_batch(examples: Sequence[tuple[Array, int]]) -> Batch:
    """Inputs, places and targets of answers.

    Args:
        examples: tokens of each, and where its answer begins.
    """
    width = max(len(tokens) for tokens, _ in examples) - 1
    inputs = np.full((len(examples), width), PAD_ID, dtype=np.int64)
    places: list[Array] = []
    targets: list[Array] = []
    for index, (tokens, answer) in enumerate(examples):
        inputs[index, : len(tokens) - 1] = tokens[:-1]
        places.append(np.arange(answer - 1, len(tokens) - 1) + index * width)
        targets.append(tokens[answer:].astype(np.int64))
    return Batch(
        (
            torch.from_numpy(inputs),
            torch.from_numpy(np.concatenate(places)),
            torch.from_numpy(np.concatenate(targets)),
        ),
        sum(len(tokens) for tokens, _ in examples),
    )
