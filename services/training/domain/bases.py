"""What a run starts from: the shape of a base model version, and what a spec may still say beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from libs.common.domain import DomainError
from services.training.domain.adapter import RANK, Adapter
from services.training.domain.spec import Architecture, TrainingSpec, invalid

CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"

# Families name the same number differently; the first name that a config.json has counts.
_NAMES = {
    "vocabulary_size": ("vocab_size", "padded_vocab_size"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "sequence_length": ("max_position_embeddings", "n_positions", "seq_length", "model_max_length"),
}
_FEED_FORWARD = ("intermediate_size", "ffn_hidden_size", "n_inner")
_KEY_VALUE = ("num_key_value_heads", "multi_query_group_num")
# A context of 100,000 tokens would make rows that no step has the memory for; whoever has asks for more.
_USUAL_SEQUENCE_LENGTH = 2048
# Settings of PEFT that make more of a LoRA than two matrices beside each target.
_MORE_THAN_LORA = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "exclude_modules",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
)


@dataclass(frozen=True)
class Base:
    """A model version to start from.

    Attributes:
        name: of the complete version.
        architecture: its shape; the sequence length is its context.
        parameter_count: of the complete version.
        adapter: that the run goes on with; None: it starts from the complete version alone.
    """

    name: str
    architecture: Architecture
    parameter_count: int
    adapter: Adapter | None = None


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The shape that a config.json tells.

    Raises:
        DomainError: CONTENT_INVALID, it does not tell one.
    """
    found = {name: _number(config, keys) for name, keys in _NAMES.items()}
    missing = [_NAMES[name][0] for name, value in found.items() if not value]
    if missing:
        raise _refused(CONFIG, f"has no {missing[0]}")
    feed_forward = _number(config, _FEED_FORWARD) or 4 * found["hidden_size"]
    key_value = _number(config, _KEY_VALUE) or found["heads"]
    return Architecture(**found, intermediate_size=feed_forward, key_value_heads=key_value)


def layers_of(config: Mapping[str, Any]) -> int:
    """How many layers a config.json tells of; 0: it does not say."""
    return _number(config, _NAMES["layers"])


def adapter_of(config: Mapping[str, Any]) -> Adapter:
    """The adapter that an adapter_config.json of PEFT describes.

    Raises:
        DomainError: CONTENT_INVALID, it is not a LoRA of two matrices beside each target.
    """
    if config.get("peft_type") != "LORA":
        raise _refused(ADAPTER_CONFIG, f"is of type {str(config.get('peft_type'))[:60]}, not LORA")
    more = [name for name in _MORE_THAN_LORA if config.get(name)]
    if more or config.get("bias", "none") != "none":
        raise _refused(ADAPTER_CONFIG, f"sets {(more or ['bias'])[0]}, which is not known here")
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1 or not alpha > 0:
        raise _refused(ADAPTER_CONFIG, "has no r and lora_alpha above 0")
    names = cast("list[Any]", targets) if isinstance(targets, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise _refused(ADAPTER_CONFIG, "has no list of target_modules")
    return Adapter(rank=rank, alpha=float(alpha), target_modules=tuple(sorted(names)))


def fitted(spec: TrainingSpec, base: Base, given: Mapping[str, int]) -> TrainingSpec:
    """The spec with the shape of its base, and an adapter with all numbers written out.

    Args:
        given: numbers of the architecture that the caller wrote.

    Raises:
        DomainError: INVALID_FIELD, a number that is not the base's.
    """
    own = base.architecture
    for name, value in given.items():
        if name != "sequence_length" and value != getattr(own, name):
            message = f"is that of the base model version, {getattr(own, name)}; leave it out"
            raise invalid(f"spec.architecture.{name}", message)
    length = given.get("sequence_length") or min(own.sequence_length, _USUAL_SEQUENCE_LENGTH)
    if length > own.sequence_length:
        message = f"must be at most the context of the base model version, {own.sequence_length}"
        raise invalid("spec.architecture.sequence_length", message)
    adapter = None if spec.adapter is None else _completed(spec.adapter, base.adapter)
    return replace(spec, architecture=replace(own, sequence_length=length), adapter=adapter)


def _completed(adapter: Adapter, earlier: Adapter | None) -> Adapter:
    if earlier is None:
        rank = adapter.rank or RANK
        return replace(adapter, rank=rank, alpha=adapter.alpha or 2.0 * rank)
    targets = tuple(sorted(adapter.target_modules))
    wanted = {"rank": adapter.rank, "alpha": adapter.alpha, "target_modules": targets}
    for name, value in wanted.items():
        have = getattr(earlier, name)
        if value and value != have:
            shown = ", ".join(have) if isinstance(have, tuple) else f"{have:g}"
            raise invalid(f"spec.adapter.{name}", f"is that of the adapter that the run goes on with, {shown}")
    return replace(adapter, rank=earlier.rank, alpha=earlier.alpha, target_modules=earlier.target_modules)


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    values = [config.get(name) for name in names]
    return next((value for value in values if type(value) is int and value > 0), 0)


def _refused(path: str, why: str) -> DomainError:
    message = f"The base model's {path} {why}."
    return DomainError("CONTENT_INVALID", message, detail=path)
