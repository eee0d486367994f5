"""The data-parallel group that a worker belongs to."""

from __future__ import annotations

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
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this is the worker that reports and writes."""
        return self.rank == 0

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
