"""The model and what a method minimises."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from libs.common.blobs import BlobStore
from libs.compute.scratch import scratch_folder
from services.training.domain.spec import Architecture, TrainingSpec
from services.training.engines.base import model_class, refused
from services.training.engines.tokenizer import BEGIN_ID, END_ID, PAD_ID

Model = TypeVar("Model", bound=nn.Module)

# A run says itself how far it is.
disable_progress_bar()


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


def sequence_length(spec: TrainingSpec, config: PreTrainedConfig) -> int:
    """Tokens of a row: as the spec says, at most what the model takes."""
    return min(spec.architecture.sequence_length, config.max_position_embeddings)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Random numbers from a seed inside; outside they go on as if nothing had been drawn."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def new_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model with fresh weights, the same for the same seed on every worker."""
    with seeded(seed):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_base(folder: Path, dtype: torch.dtype, quantised: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    """The model of a folder that `base.read_config` found in order: one that writes text, or a scorer's.

    Args:
        dtype: to compute in.
        quantised: how the weights are kept; None: in `dtype`.

    Raises:
        EngineError: CONTENT_INVALID, the weights are not those of the architecture.
    """
    placed = {} if quantised is None else {"quantization_config": quantised, "device_map": torch.cuda.current_device()}
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model, found = model_class(config).from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        dtype=dtype,
        **placed,
    )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in found[kind])
        if names:
            what = f"{kind.replace('_', ' ')} {', '.join(names[:3])}"
            raise refused("weights", f"are not those of its config.json: {what}")
    return model


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained of it, each tensor once: a tied output embedding is the input embedding."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts `trained_weights` back.

    Raises:
        KeyError: Names are not those of this model.
        RuntimeError: Shapes are not.
    """
    for name, parameter in trained_weights(model).items():
        parameter.copy_(tensors[name])


@contextmanager
def resting(model: nn.Module) -> Generator[None]:
    """Without dropout inside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def frozen_copy(model: PreTrainedModel, tensors: dict[str, Tensor] | None = None) -> PreTrainedModel:
    """The model as it is now, or with other `trained_weights`, which learns nothing any more."""
    made = copy.deepcopy(model)
    if tensors is not None:
        load_weights(made, tensors)
    return made.eval().requires_grad_(False)


def write_weights(store: BlobStore, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, str]:
    """Writes a complete model as its family lays it out, in several files where one would be too large.

    Args:
        dtype: of the files.

    Returns:
        Path to SHA-256 of each file.
    """
    # Saving would refuse settings of a foreign generation_config.json, which is kept as it came.
    model.generation_config = GenerationConfig()
    with scratch_folder("argosy-model-") as folder:
        nn.Module.to(model, dtype)
        model.save_pretrained(folder)
        paths = sorted(path for path in folder.iterdir() if path.name.startswith("model"))
        return {path.name: store.put_sync(path).sha256 for path in paths}


def logits_at(model: PreTrainedModel, inputs: Tensor, places: Tensor) -> Tensor:
    """Logits of the next token at some places. The output embedding sees those places only; what a family does to its
    logits afterwards (a scale, a cap) is done to them.

    Args:
        inputs: token ids, int64[rows, length], padded on the right; causal attention keeps padding from mattering.
        places: positions in the flattened inputs, int64[n].

    Returns:
        float32[n, vocabulary].
    """
    head: Any = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, 1)[places],))
    try:
        return model(input_ids=inputs, use_cache=False).logits.float()
    finally:
        hook.remove()


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
