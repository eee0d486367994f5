"""The model that a run starts with, and the files that it ends with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from safetensors.torch import save
from transformers import PreTrainedConfig, PreTrainedModel

from libs.common.blobs import BlobStore
from services.training.domain.adapter import Adapter
from services.training.domain.spec import TrainingSpec
from services.training.engines.adapters import adapter_files, add_adapter, load_adapter, merged, quantisation
from services.training.engines.base import ADAPTER_FOLDER, WEIGHTS, read_adapter
from services.training.engines.model import load_base, load_weights, new_model, trained_weights, write_weights
from services.training.engines.scorer import Scorer

Model = PreTrainedModel | PeftModel | Scorer


def starting_model(spec: TrainingSpec, config: PreTrainedConfig, base: Path | None) -> PreTrainedModel | PeftModel:
    """Fresh weights or those of the base, with an adapter if the spec wants one.

    Args:
        base: folder with a base model; None: from nothing.

    Raises:
        EngineError: CONTENT_INVALID, the base is not in order; PREFLIGHT_FAILED, it cannot be quantised here.
    """
    if base is None:
        return new_model(config, spec.seed)
    earlier, adapter = base / ADAPTER_FOLDER, spec.adapter
    if adapter is None:
        model = load_base(base, torch.float32)
        if earlier.exists():
            model = merged(_adapted(model, read_adapter(earlier), earlier, spec.seed))
        # Merging leaves the base frozen, as it was under the adapter.
        return model.requires_grad_(True)
    model = load_base(base, _frozen_dtype(config), quantisation(adapter.quantize_base_bits))
    return _adapted(model, adapter, earlier, spec.seed)


def bare(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, with the matrices of an adapter in it if it has one."""
    return cast("PreTrainedModel", model.get_base_model()) if isinstance(model, PeftModel) else model


def finished_files(
    store: BlobStore, model: Model, spec: TrainingSpec, config: PreTrainedConfig, base: Path | None, base_name: str
) -> tuple[dict[str, str], int]:
    """Writes what was trained: an adapter, or a complete model in the precision that its config.json names.

    Args:
        base_name: resource name of the complete version that an adapter belongs on.

    Returns:
        Path to SHA-256 of each file, and the number of parameters in them.
    """
    if isinstance(model, PeftModel):
        if spec.adapter is None or not spec.adapter.merge:
            files = adapter_files(model, base_name)
            count = sum(tensor.numel() for tensor in trained_weights(bare(model)).values())
            return {path: store.put_sync(content).sha256 for path, content in files.items()}, count
        model = merged(_unquantised(model, spec.adapter, spec.seed, base))
    count = sum(parameter.numel() for parameter in model.parameters())
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if isinstance(model, Scorer):
        tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in trained_weights(model).items()}
        return {WEIGHTS: store.put_sync(save(tensors, metadata={"format": "pt"})).sha256}, count
    return write_weights(store, model, dtype), count


def _adapted(model: PreTrainedModel, adapter: Adapter, earlier: Path, seed: int) -> PeftModel:
    wrapped = add_adapter(model, adapter, seed)
    if earlier.exists():
        load_adapter(wrapped, earlier)
    return wrapped


def _frozen_dtype(config: PreTrainedConfig) -> torch.dtype:
    """Frozen weights stay in half the memory where their precision has the range for it."""
    return torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32


def _unquantised(model: PeftModel, adapter: Adapter, seed: int, base: Path | None) -> PeftModel:
    """The same matrices beside the base's own weights: what is added to quantised ones would be rounded with them."""
    if not adapter.quantize_base_bits or base is None:
        return model
    tensors = {name: tensor.cpu() for name, tensor in trained_weights(bare(model)).items()}
    whole = add_adapter(load_base(base, torch.float32), replace(adapter, quantize_base_bits=0), seed)
    load_weights(bare(whole), tensors)
    return whole
