"""Direct preference optimisation (Rafailov et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from libs.compute.context import EngineCancelled
from services.training.engines.group import Group
from services.training.engines.heldout import measured, shares
from services.training.engines.methods.language import decoder
from services.training.engines.methods.method import Start, Work
from services.training.engines.methods.pairs import PairRows, pair_figures, pair_loss
from services.training.engines.model import MethodObjective, log_probs_at, resting


class DpoObjective(MethodObjective[PreTrainedModel]):
    """The loss of equation 7: how likely the preferences are when the log-ratio of the model to the reference, times
    beta, is what an answer is worth."""

    def __init__(self, model: PreTrainedModel, beta: float) -> None:
        super().__init__(model)
        self._beta = beta

    def forward(self, inputs: Tensor, places: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of pairs.

        Args:
            inputs, places, targets: better and worse answers in turn, as in `logits_at`.
            reference: summed log-probabilities of the reference in nats, float32[pairs, 2].

        Returns:
            Summed loss in nats; for each pair the margin of the implicit rewards, and by how much the better answer is
            more likely, in nats, float32[pairs, 2].
        """
        likely = answer_log_probs(self.model, inputs, places, targets)
        ratios = likely - reference
        margins = self._beta * (ratios[:, 0] - ratios[:, 1])
        return pair_loss(margins), torch.stack([margins, likely[:, 0] - likely[:, 1]], 1).detach()

    def figures(self, seen: Tensor) -> dict[str, float]:
        return {**pair_figures(seen[:, 0]), "ranking_accuracy": pair_figures(seen[:, 1])["accuracy"]}


def answer_log_probs(model: PreTrainedModel, inputs: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    """Summed log-probability in nats of each answer, float32[pairs, 2]."""
    tokens = log_probs_at(model, inputs, places, targets)
    summed = torch.zeros(len(inputs), device=tokens.device).index_add(0, places // inputs.shape[1], tokens)
    return summed.view(-1, 2)


def begin(start: Start) -> Work:
    """The reference is the model as it is now; what it says about each pair is computed once and kept."""
    model, group = decoder(start), start.group
    parts = {"train": start.train, "heldout": start.heldout}
    rows = {name: part for name, part in parts.items() if isinstance(part, PairRows)}
    kept = start.kept or {
        name: reference_log_probs(model, part, group, start.should_stop) for name, part in rows.items()
    }
    known = {name: part.with_reference(kept[name]) for name, part in rows.items()}
    objective, heldout = DpoObjective(model, start.phase.beta), known.get("heldout")

    def measure() -> dict[str, float]:
        assert heldout is not None
        return measured(objective, heldout, group)

    return Work(objective, known["train"], heldout, measure, kept)


@torch.no_grad()
def reference_log_probs(
    model: PreTrainedModel, rows: PairRows, group: Group, should_stop: Callable[[], bool]
) -> Tensor:
    """What the model says about all pairs now, float32[n, 2]; each worker computes its share.

    Raises:
        EngineCancelled: A worker was told to stop; all raise it after the same batch.
    """
    found = torch.zeros(len(rows), 2)
    for chosen in shares(rows, group):
        (stop,) = group.sum(float(should_stop()))
        if stop:
            raise EngineCancelled()
        if not len(chosen):
            continue
        batch = rows.batch(chosen).to(group.device)
        # In the precision of the steps: before the first one, policy and reference are the same model.
        with resting(model), group.computing():
            found[torch.from_numpy(chosen)] = answer_log_probs(model, *batch.tensors).cpu()
    return group.combine(found)
