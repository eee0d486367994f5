"""The model and what a method minimises."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from services.training.domain.spec import Architecture
from services.training.engines.tokenizer import BEGIN_ID, END_ID, PAD_ID

Model = TypeVar("Model", bound=nn.Module)


def llama_config(architecture: Architecture, vocabulary_size: int) -> LlamaConfig:
    """The transformers configuration of a Llama-architecture decoder with tied embeddings."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.key_value_heads,
        max_position_embeddings=architecture.sequence_length,
        # At this size the embedding table is half of all parameters; Press & Wolf, 2017: tied, it also learns faster.
        tie_word_embeddings=True,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
    )


def architecture_of(config: LlamaConfig) -> Architecture:
    """What a configuration says of the shape of its model."""
    return Architecture(
        vocabulary_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads or config.num_attention_heads,
        sequence_length=config.max_position_embeddings,
    )


def new_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A model with fresh weights, the same for the same seed on every worker."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.set_rng_state(generator_state)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Its tensors on the CPU, each once: the output embedding of a decoder is its input embedding."""
    state: dict[str, Any] = model.state_dict()
    state.pop("lm_head.weight", None)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts `weights` back.

    Raises:
        RuntimeError: Names or shapes are not those of this model.
    """
    tied = {"lm_head.weight": tensors["model.embed_tokens.weight"]} if hasattr(model, "lm_head") else {}
    model.load_state_dict({**tensors, **tied}, strict=True)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is now, which learns nothing any more."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def logits_at(model: PreTrainedModel, inputs: Tensor, places: Tensor) -> Tensor:
    """Logits of the next token at some places, and nowhere else.

    Args:
        inputs: token ids, int64[rows, length], padded on the right; causal attention keeps padding from mattering.
        places: positions in the flattened inputs, int64[n].

    Returns:
        float32[n, vocabulary].
    """
    hidden, head = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state, model.get_output_embeddings()
    assert head is not None
    return head(hidden.flatten(0, 1)[places]).float()


def log_probs_at(
    model: PreTrainedModel, inputs: Tensor, places: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities in nats of these tokens at these places, float32[n]; see `logits_at`."""
    return -nn.functional.cross_entropy(logits_at(model, inputs, places) / temperature, targets, reduction="none")


class MethodObjective(nn.Module, Generic[Model]):
    """What a method minimises. One module, so that data parallelism can wrap it.

    `forward` takes the tensors of a batch and returns the summed loss and what else was seen, for `figures`.

    Args:
        model: that learns.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model: Model = model

    def figures(self, seen: Tensor) -> dict[str, float]:
        """Sums over the batch by name for the curves; divided by `Rows.target_count` they are means."""
        return {}


class Objective(MethodObjective[PreTrainedModel]):
    """Summed cross-entropy of the positions that count."""

    def forward(self, inputs: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the next token at some places.

        Logits are computed there only: with a loss on the answer alone, that saves almost half of a step.

        Args:
            inputs, places: as in `logits_at`.
            targets: right next tokens, int64[n].

        Returns:
            Summed cross-entropy in nats, and for each target whether it was the most likely token, bool[n].
        """
        logits = logits_at(self.model, inputs, places)
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
        return loss, logits.detach().argmax(-1) == targets
