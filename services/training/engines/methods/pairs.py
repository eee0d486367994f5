"""Pairs of a better and a worse answer to one prompt."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from services.training.domain.spec import Phase
from services.training.engines.batches import Batch, answer_batch
from services.training.engines.encode import Array, Encoded, Examples, answer_room, encode_answers
from services.training.engines.methods.language import read_examples
from services.training.engines.methods.method import Columns, Reading, RowBatch
from services.training.engines.scorer import scored_rows

# Rounding makes two equal margins differ in their seventh digit: such a pair is a tie.
_TIE = 1e-5


def compared(phase: Phase, columns: Columns) -> list[bool]:
    """Whether a row has an input and two different answers: equal ones say nothing."""
    texts, better, worse = (columns[name] for name in phase.columns)
    return [
        bool(text and one and other) and one != other for text, one, other in zip(texts, better, worse, strict=True)
    ]


def encode(reading: Reading, batch: RowBatch) -> Encoded:
    """Prompts, each with its better answer and then its worse one."""
    phase, text = reading.phase, reading.text
    texts, better, worse = (batch.wanted(name) for name in phase.columns)
    rows = list(zip(texts, zip(better, worse, strict=True), strict=True))
    limit = reading.length - answer_room(text.tokenizer, phase)
    return encode_answers(text.tokenizer, text.special, rows, phase.prompt_template, limit, reading.length)


class _Pairs:
    """Pairs by number.

    Args:
        examples: the better answer at 2 n, the worse one at 2 n + 1.
    """

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.lengths: Array | None = examples.lengths.reshape(-1, 2).sum(1)

    def __len__(self) -> int:
        return len(self._examples) // 2

    def target_count(self, rows: Array) -> int:
        return len(rows)

    def examples(self, rows: Array) -> list[tuple[Array, int]]:
        """Tokens and begin of the answer: better, worse, better, worse, ..."""
        return [self._examples[2 * row + worse] for row in rows for worse in (0, 1)]


class PairRows(_Pairs):
    """Both answers of a pair, with what the reference said about them.

    Args:
        reference: summed log-probabilities of the answers in nats, float32[n, 2]; None: not known yet.
    """

    def __init__(self, examples: Examples, reference: Tensor | None = None) -> None:
        super().__init__(examples)
        self._reference = reference

    def with_reference(self, reference: Tensor) -> PairRows:
        """The same rows."""
        return PairRows(self._examples, reference)

    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        batch = answer_batch(self.examples(rows))
        known = () if self._reference is None else (self._reference[torch.from_numpy(np.asarray(rows))],)
        return Batch((*batch.tensors, *known), batch.tokens)


class ScoredPairRows(_Pairs):
    """Both answers of a pair, as a scorer reads them."""

    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        sequences = [tokens for tokens, _ in self.examples(rows)]
        return Batch(scored_rows(sequences), sum(len(tokens) for tokens in sequences))


def pair_rows(array: Callable[[str], Array]) -> PairRows:
    """Rows of DPO."""
    return PairRows(read_examples(array))


def scored_pair_rows(array: Callable[[str], Array]) -> ScoredPairRows:
    """Rows of a reward model."""
    return ScoredPairRows(read_examples(array))


def pair_loss(margins: Tensor) -> Tensor:
    """Summed negative log-likelihood of the preferences under Bradley and Terry, in nats.

    Args:
        margins: by how much the better answer of each pair is worth more, float[n].
    """
    return -torch.nn.functional.logsigmoid(margins).sum()


def pair_figures(margins: Tensor) -> dict[str, float]:
    """Summed accuracy and margin: a tie counts half."""
    right = (margins > _TIE).double() + 0.5 * (margins.abs() <= _TIE).double()
    return {"accuracy": float(right.sum()), "margin": float(margins.sum())}


def worst_loss(phase: Phase, vocabulary_size: int) -> float:
    """Far above the loss of a guess, which is ln 2; a few pairs that are wrong by much are no divergence."""
    return 20 * math.log(2)
