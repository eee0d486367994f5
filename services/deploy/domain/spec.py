"""What a deployment asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from libs.common.domain import DomainError

VLLM = "vllm"
DEFAULT_CONCURRENCY = 32
# A small model's cache on a CPU; see FEASIBILITY, 1: it is allocated at the start, so a larger default would cost
# memory for nothing.
DEFAULT_CPU_KV_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Resources and runtime of each replica, and how many there are.

    Attributes:
        runtime: inference engine.
        replicas: how many.
        cpus, gpus: of one replica.
        memory_bytes: of one replica; 0: not limited.
        region: where; empty: anywhere.
        max_model_length: tokens of prompt and answer; 0: the model's.
        max_concurrency: calls that one replica serves at a time.
        kv_cache_bytes: key-value cache; 0: the engine's choice (on a GPU).
    """

    runtime: str = VLLM
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    region: str = ""
    max_model_length: int = 0
    max_concurrency: int = DEFAULT_CONCURRENCY
    kv_cache_bytes: int = 0

    def completed(self) -> Spec:
        """The same with the defaults in place of what was left open.

        Raises:
            DomainError: INVALID_FIELD, a number that is not one.
        """
        for name in ("cpus", "gpus"):
            if not math.isfinite(getattr(self, name)):
                raise DomainError("INVALID_FIELD", f"spec.{name}: must be a number", field=f"spec.{name}")
        return replace(
            self,
            runtime=self.runtime or VLLM,
            replicas=self.replicas or 1,
            cpus=self.cpus or 1.0,
            max_concurrency=self.max_concurrency or DEFAULT_CONCURRENCY,
            kv_cache_bytes=self.kv_cache_bytes or (0 if self.gpus else DEFAULT_CPU_KV_CACHE_BYTES),
        )

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Spec:
        """From the JSON of a column; fields that a newer service wrote are passed over."""
        return cls(**{name: value for name, value in row.items() if name in cls.__dataclass_fields__})
