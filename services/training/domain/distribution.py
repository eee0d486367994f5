"""How the workers of a training share its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.training.domain.methods import Method, invalid

_WHERE = "spec.distribution"
# Those that neither copy the model that learns nor put another head on it.
_SHARDED_METHODS = (Method.PRETRAIN, Method.SFT)


class Sharding(StrEnum):
    """What of the model a worker holds."""

    NONE = "none"
    FULL = "full"
    FULL_OFFLOAD = "full_offload"


class Precision(StrEnum):
    """What matrices are multiplied in; weights and optimiser are in single precision always."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Distribution:
    """How the workers share the work, and what they compute in.

    Attributes:
        sharding: whether each holds the whole model or its share (Rajbhandari et al., 2020, stage 3), on its device or
            in host memory.
        min_workers: fewest that a run goes on with; 0: exactly as many as the spec says.
        precision: of the products of matrices.
        activation_checkpointing: whether the backward pass computes the inside of each layer again (Chen et al., 2016).
        compile: whether each layer is compiled.
    """

    sharding: Sharding = Sharding.NONE
    min_workers: int = 0
    precision: Precision = Precision.FLOAT32
    activation_checkpointing: bool = False
    compile: bool = False

    @property
    def shards(self) -> bool:
        """Whether a worker holds less than the whole model."""
        return self.sharding is not Sharding.NONE

    def worker_range(self, workers: int) -> tuple[int, int] | int:
        """Fewest and most workers, or how many exactly.

        Args:
            workers: most.
        """
        return (self.min_workers, workers) if 0 < self.min_workers < workers else workers

    def check(self, workers: int, gpus_per_worker: int, methods: Sequence[Method], adapted: bool) -> None:
        """Raises INVALID_FIELD that names what does not go together.

        Args:
            workers: most.
            methods: of the phases.
            adapted: whether an adapter is trained.
        """
        if self.min_workers > workers:
            raise invalid(f"{_WHERE}.min_workers", f"must be at most spec.workers, {workers}")
        if not gpus_per_worker:
            self._check_without_gpus()
        if not self.shards:
            return
        if adapted:
            raise invalid(f"{_WHERE}.sharding", "does not go with spec.adapter: its frozen base is not divided")
        for index, method in enumerate(methods):
            if method not in _SHARDED_METHODS:
                able = " and ".join(str(each) for each in _SHARDED_METHODS)
                message = f"does not go with the {method} of spec.phases[{index}]; {able} can be divided"
                raise invalid(f"{_WHERE}.sharding", message)

    def _check_without_gpus(self) -> None:
        needs = "needs spec.gpus_per_worker of at least 1"
        if self.sharding is Sharding.FULL_OFFLOAD:
            message = f"{needs}: a worker without GPU has its share in host memory already; SHARDING_FULL divides it"
            raise invalid(f"{_WHERE}.sharding", message)
        if self.precision is Precision.BFLOAT16:
            raise invalid(f"{_WHERE}.precision", needs)
        if self.compile:
            raise invalid(f"{_WHERE}.compile", needs)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Distribution:
        """What `dataclasses.asdict` made of one."""
        rest = {**data}
        if "sharding" in rest:
            rest["sharding"] = Sharding(rest["sharding"])
        if "precision" in rest:
            rest["precision"] = Precision(rest["precision"])
        return cls(**rest)
