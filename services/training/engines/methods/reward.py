"""A reward model from preferences (Ouyang et al., 2022, equation 1; the model of Bradley and Terry, 1952)."""

from __future__ import annotations

from torch import Tensor

from services.training.engines.heldout import measured
from services.training.engines.methods.language import decoder
from services.training.engines.methods.method import Start, Work
from services.training.engines.methods.pairs import pair_figures, pair_loss
from services.training.engines.model import MethodObjective
from services.training.engines.scorer import Scorer, new_scorer


class RewardObjective(MethodObjective[Scorer]):
    """How likely the preferences are when the score is what an answer is worth."""

    def forward(self, inputs: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of pairs.

        Args:
            inputs, ends: better and worse answers in turn, as in `Scorer.forward`.

        Returns:
            Summed loss in nats, and by how much the better answer of each pair scores more, float32[pairs].
        """
        scores = self.model(inputs, ends).view(-1, 2)
        margins = scores[:, 0] - scores[:, 1]
        return pair_loss(margins), margins.detach()

    def figures(self, seen: Tensor) -> dict[str, float]:
        return pair_figures(seen)


def begin(start: Start) -> Work:
    """Puts a score head in the place of the output embedding, where an earlier attempt has not."""
    scorer = start.model if isinstance(start.model, Scorer) else new_scorer(decoder(start), start.seed)
    objective = RewardObjective(scorer.to(start.group.device))

    def measure() -> dict[str, float]:
        assert start.heldout is not None
        return measured(objective, start.heldout, start.group)

    return Work(objective, start.train, start.heldout, measure)
