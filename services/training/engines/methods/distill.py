"""Distillation of a teacher into the model (Hinton et al., 2015)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.training.domain.spec import Phase
from services.training.engines.batches import Batch, Rows
from services.training.engines.encode import Array, Encoded
from services.training.engines.group import CPU
from services.training.engines.heldout import measured
from services.training.engines.methods import language
from services.training.engines.methods.method import Columns, Reading, RowBatch, Start, Work
from services.training.engines.model import MethodObjective, logits_at


def learns(phase: Phase, columns: Columns) -> list[bool]:
    """Whether a row has an input and, unless the teacher gives it, a wanted answer."""
    return language.asked(phase, columns) if phase.copies_answers else language.answered(phase, columns)


def encode(reading: Reading, batch: RowBatch) -> Encoded:
    """Prompts with the right answers, or with those that the teacher gives; what it does not answer is left out."""
    if reading.teacher is None:
        return language.encode_answered(reading, batch)
    phase = reading.phase
    texts = batch.wanted(phase.text_column)
    answers = reading.teacher(texts)
    taught = {phase.text_column: texts, phase.answer_column: answers}
    right = [place for place, fits in enumerate(language.answered(phase, taught)) if fits]
    encoded = language.encode_answered(reading, replace(batch, columns=taught, chosen=right))
    return replace(encoded, kept=np.asarray(right, dtype=np.int64)[encoded.kept])


class TaughtRows:
    """Answers, with what the teacher gives to each token of the vocabulary at their places."""

    def __init__(self, rows: Rows, teacher: PreTrainedModel, device: torch.device = CPU) -> None:
        self._rows = rows
        self._teacher = teacher.eval().requires_grad_(False)
        self._device = device
        self.lengths: Array | None = rows.lengths

    def __len__(self) -> int:
        return len(self._rows)

    def target_count(self, rows: Array) -> int:
        return self._rows.target_count(rows)

    @torch.no_grad()
    def batch(self, rows: Array, draws: Array | None = None) -> Batch:
        batch = self._rows.batch(rows).to(self._device)
        inputs, places, _ = batch.tensors
        return Batch((*batch.tensors, logits_at(self._teacher, inputs, places)), batch.tokens)


class DistillObjective(MethodObjective[PreTrainedModel]):
    """Teacher's distribution and right answer, weighted.

    Args:
        alpha: share of the teacher.
        temperature: of both distributions.
    """

    def __init__(self, model: PreTrainedModel, alpha: float, temperature: float) -> None:
        super().__init__(model)
        self._alpha = alpha
        self._temperature = temperature

    def forward(self, inputs: Tensor, places: Tensor, targets: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The loss at some places.

        Args:
            inputs, places, targets: as in `Objective.forward`.
            teacher: its logits there, float32[n, vocabulary].

        Returns:
            alpha T^2 KL(teacher || model), both at temperature T, plus (1 - alpha) cross-entropy, summed, in nats: T^2
            keeps the gradients of the first part as large as those of the second (section 2.1). And for each target the
            divergence at temperature 1, and whether it was the most likely token, float32[n, 2].
        """
        logits = logits_at(self.model, inputs, places)
        soft = _divergence(teacher, logits, self._temperature).sum() * self._temperature**2
        hard = nn.functional.cross_entropy(logits, targets, reduction="sum")
        plain, hits = _divergence(teacher, logits.detach(), 1.0), logits.detach().argmax(-1) == targets
        return self._alpha * soft + (1 - self._alpha) * hard, torch.stack([plain, hits.float()], 1)

    def figures(self, seen: Tensor) -> dict[str, float]:
        return {"kl": float(seen[:, 0].sum()), "token_accuracy": float(seen[:, 1].sum())}


def _divergence(teacher: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || model) in nats of each place, float32[n]."""
    ours = torch.log_softmax(logits / temperature, -1)
    theirs = torch.log_softmax(teacher / temperature, -1)
    return nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def begin(start: Start) -> Work:
    """Loads the teacher; one whose answers were copied is not needed any more."""
    if start.phase.copies_answers:
        return language.begin(start)
    device, given = start.group.device, start.phase.distillation
    teacher = start.frozen().to(device)
    assert isinstance(teacher, PreTrainedModel)
    objective = DistillObjective(language.decoder(start), given.alpha, given.temperature)
    heldout = None if start.heldout is None else TaughtRows(start.heldout, teacher, device)

    def measure() -> dict[str, float]:
        assert heldout is not None
        return measured(objective, heldout, start.group)

    return Work(objective, TaughtRows(start.train, teacher, device), heldout, measure)


def worst_loss(phase: Phase, vocabulary_size: int) -> float:
    """As for cross-entropy, with what the temperature makes of the teacher's part."""
    given = phase.distillation
    scale = 1.0 if phase.copies_answers else given.alpha * max(1.0, given.temperature**2) + 1 - given.alpha
    return scale * language.worst_loss(phase, vocabulary_size)
