"""A reward model: a decoder whose last hidden state gives one number, what the answer is worth."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from services.training.engines.encode import Array
from services.training.engines.tokenizer import PAD_ID

# Name of the layers in a scorer.
SCORED = "model"


class Scorer(nn.Module):
    """Backbone and score head. Its tensors are named as in the sequence classifiers of transformers.

    Args:
        backbone: the decoder without its output embedding.
    """

    def __init__(self, backbone: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.model = backbone
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, inputs: Tensor, ends: Tensor) -> Tensor:
        """What each row is worth.

        Args:
            inputs: token ids, int64[rows, length], padded on the right.
            ends: place of the last token of each row in the flattened inputs, int64[rows].

        Returns:
            float32[rows].
        """
        hidden = self.model(input_ids=inputs, use_cache=False).last_hidden_state
        return self.score(hidden.flatten(0, 1)[ends]).squeeze(-1).float()


def new_scorer(model: PreTrainedModel, seed: int) -> Scorer:
    """A scorer on the layers of a decoder, with a fresh head that is the same for the same seed on every worker."""
    size = model.config.hidden_size
    scorer = Scorer(model.base_model, size)
    # Stiennon et al., 2020, appendix B.1: a head of this deviation begins with scores of about one.
    head = np.random.default_rng(seed).normal(0.0, (size + 1) ** -0.5, (1, size))
    with torch.no_grad():
        scorer.score.weight.copy_(torch.from_numpy(head))
    return scorer


def read_scorer(model: PreTrainedModel) -> Scorer:
    """The scorer that a sequence classifier of transformers is."""
    scorer = Scorer(model.base_model, model.config.hidden_size)
    scorer.score = cast("nn.Linear", model.get_submodule("score"))
    return scorer


def scorer_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The transformers configuration of a scorer on a decoder of this configuration."""
    made = copy.deepcopy(config)
    made.architectures = [
        name.replace("ForCausalLM", "ForSequenceClassification") for name in config.architectures or ()
    ]
    made.num_labels = 1
    return made


def is_scorer(config: PreTrainedConfig) -> bool:
    """Whether a version with this configuration scores answers instead of writing them."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def scored_rows(sequences: list[Array]) -> tuple[Tensor, Tensor]:
    """Inputs and ends of `Scorer.forward`: tokens with the end token last."""
    width = max(len(tokens) for tokens in sequences)
    inputs = np.full((len(sequences), width), PAD_ID, dtype=np.int64)
    for index, tokens in enumerate(sequences):
        inputs[index, : len(tokens)] = tokens
    ends = np.asarray([index * width + len(tokens) - 1 for index, tokens in enumerate(sequences)], dtype=np.int64)
    return torch.from_numpy(inputs), torch.from_numpy(ends)
