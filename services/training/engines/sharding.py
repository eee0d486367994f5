"""Fully sharded data parallelism: each worker holds its share of weights, gradients and optimiser (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from services.training.domain.distribution import Distribution, Sharding
from services.training.engines.group import Group
from services.training.engines.model import trained_weights


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a decoder, as its family names what is not to be taken apart."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def place(model: nn.Module, decoder: PreTrainedModel, distribution: Distribution, group: Group) -> None:
    """Puts what learns on the worker's device, whole or its share of it, as the run is to compute.

    Args:
        model: the decoder, or what was put around its layers.
    """
    if distribution.activation_checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    if distribution.compile:
        for layer in layers(decoder):
            layer.compile()
    if distribution.shards and distributed.is_initialized():
        # Layer by layer: the device never holds the whole model.
        shard(decoder, distribution.sharding, group)
    else:
        model.to(group.device)


def shard(model: PreTrainedModel, sharding: Sharding, group: Group) -> None:
    """Divides the weights among the workers, layer by layer; all of them must call it with equal weights.

    A layer is put together on every worker while it computes, and taken apart again: also what lies outside of the
    layers, so that between two steps each worker has its share alone.
    """
    device = group.device.type
    options: dict[str, Any] = {"mesh": init_device_mesh(device, (group.world,)), "reshard_after_forward": True}
    if group.precision is not torch.float32:
        # Gradients are summed in single precision.
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=group.precision, reduce_dtype=torch.float32)
    if sharding is Sharding.FULL_OFFLOAD:
        options["offload_policy"] = CPUOffloadPolicy()
    for layer in layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Gloo has no mean of its own.
            module.set_force_sum_reduction_for_comms(device == "cpu")


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are divided among the workers."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor, group: Group) -> Tensor:
    """A tensor in one piece; of a divided one all workers must ask, in the same order."""
    if not isinstance(tensor, DTensor):
        return tensor
    there: Any = tensor.to(group.device)
    return there.full_tensor()


def whole_weights(model: nn.Module, group: Group) -> dict[str, Tensor]:
    """The trained weights of a divided model on the leading worker; all workers must ask, the others get nothing."""
    found: dict[str, Tensor] = {}
    for name, tensor in trained_weights(model).items():
        full = whole(tensor, group)
        if group.leads:
            found[name] = full.cpu()
    return found


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, the same on every worker, divided as the parameter is, or whole where that is whole."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
