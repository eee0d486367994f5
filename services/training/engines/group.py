"""The data-parallel group that a worker belongs to."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """Who I am among the workers.

    Attributes:
        rank: my number, from 0.
        world: how many there are.
        device: where my tensors are.
        precision: what matrices are multiplied in.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    precision: torch.dtype = torch.float32

    @property
    def leads(self) -> bool:
        """Whether this is the worker that reports and writes."""
        return self.rank == 0

    def computing(self) -> AbstractContextManager[object]:
        """Inside, matrices are multiplied in the group's precision (Micikevicius et al., 2018)."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the workers; all of them must call it."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def combine(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU, float[...], summed over the workers; all of them must call it."""
        if self.world == 1:
            return tensor
        summed = tensor.to(self.device)
        distributed.all_reduce(summed)
        return summed.cpu()
