"""LoRA beside the layers of a base: PEFT puts the matrices in, and only they are trained (Hu et al., 2021)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file, save
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from libs.compute.context import EngineError
from services.training.domain.adapter import Adapter
from services.training.domain.bases import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from services.training.engines.base import refused
from services.training.engines.model import seeded, trained_weights

# What PEFT calls the adapter inside a model, and puts before its names in a file.
_INSIDE = ".default."
_PREFIX = "base_model.model."


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the linear layers of attention and feed-forward: all but the output embedding."""
    head = model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return sorted(names)


def check_targets(model: PreTrainedModel, adapter: Adapter) -> None:
    """Raises INVALID_FIELD that names the targets which the model does not have, and those that it has."""
    have = linear_layers(model)
    unknown = [name for name in adapter.target_modules if name not in have]
    if unknown or not have:
        field = "spec.adapter.target_modules"
        message = f"{field}: the model has no linear layer {', '.join(unknown)}; it has {', '.join(have) or 'none'}."
        raise EngineError("INVALID_FIELD", message, field=field)


def add_adapter(model: PreTrainedModel, adapter: Adapter, seed: int) -> PeftModel:
    """Freezes the model and puts new matrices beside its targets: B is zero, so that nothing changes yet.

    Args:
        seed: of A; equal on every worker.
    """
    check_targets(model, adapter)
    if adapter.quantize_base_bits:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        # PEFT divides it by the rank, whole number or not.
        lora_alpha=cast("int", adapter.alpha),
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.target_modules) or linear_layers(model),
    )
    with seeded(seed):
        return cast("PeftModel", get_peft_model(model, config))


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Puts the matrices of an adapter version in place of the new ones.

    Raises:
        EngineError: CONTENT_INVALID, names or shapes are not those of this adapter on this model.
    """
    own = trained_weights(model.get_base_model())
    given = {_inside(name): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    odd = sorted(own.keys() ^ given.keys())
    if odd:
        raise refused(ADAPTER_WEIGHTS, f"does not fit: {odd[0]} is {'missing' if odd[0] in own else 'not known'}")
    for name, parameter in own.items():
        if parameter.shape != given[name].shape:
            shapes = f"{list(given[name].shape)}, not {list(parameter.shape)}"
            raise refused(ADAPTER_WEIGHTS, f"does not fit: {name} is {shapes}")
        parameter.copy_(given[name])


def adapter_files(model: PeftModel, base_name: str) -> dict[str, bytes]:
    """`adapter_config.json` and `adapter_model.safetensors` as `PeftModel.from_pretrained` reads them.

    Args:
        base_name: resource name of the complete model version that it belongs on.
    """
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    tensors = {_outside(name): tensor.cpu() for name, tensor in trained_weights(model.get_base_model()).items()}
    return {
        ADAPTER_CONFIG: json.dumps(config, indent=2, sort_keys=True, default=str).encode() + b"\n",
        ADAPTER_WEIGHTS: save(tensors, metadata={"format": "pt"}),
    }


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with the products of the matrices added to its weights.

    Raises:
        EngineError: TRAINING_DIVERGED, they are not finite.
    """
    try:
        return cast("PreTrainedModel", model.merge_and_unload(safe_merge=True))
    except ValueError as error:
        raise EngineError("TRAINING_DIVERGED", "The adapter has numbers that are not finite.") from error


def quantisation(bits: int) -> BitsAndBytesConfig | None:
    """How the frozen base is quantised: NF4 with quantised scales (Dettmers et al., 2023, section 3), or 8 bits.

    Raises:
        EngineError: PREFLIGHT_FAILED, there is no GPU or no bitsandbytes here.
    """
    if not bits:
        return None
    require_quantisation(torch.cuda.device_count())
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def require_quantisation(gpus: float) -> None:
    """Raises PREFLIGHT_FAILED unless there are GPUs and bitsandbytes."""
    lacking = [] if gpus else ["a GPU"]
    if importlib.util.find_spec("bitsandbytes") is None:
        lacking.append("the package bitsandbytes")
    if lacking:
        message = f"spec.adapter.quantize_base_bits needs {' and '.join(lacking)}, which is not here; 0 does without."
        raise EngineError("PREFLIGHT_FAILED", message, check="quantize_base_bits", detail=message)


def _outside(name: str) -> str:
    return _PREFIX + name.replace(_INSIDE, ".")


def _inside(name: str) -> str:
    head, _, kind = name.removeprefix(_PREFIX).rpartition(".lora_")
    return f"{head}.lora_{kind.replace('.', _INSIDE, 1)}"
