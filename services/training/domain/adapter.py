"""Adapters: small trained matrices beside the frozen weights of a base (LoRA: Hu et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RANK = 16


@dataclass(frozen=True)
class Adapter:
    """Beside each target W, the product B·A of a [out, rank] and a [rank, in] matrix, added alpha / rank times.

    Attributes:
        rank: of the matrices.
        alpha: weight of the product, times the rank.
        dropout: share of the inputs of A that a step leaves out.
        target_modules: last parts of the names of layers; empty: all linear layers of attention and feed-forward.
        quantize_base_bits: 4 or 8: the frozen weights are quantised while training (QLoRA: Dettmers et al., 2023);
            0: they keep their precision.
        merge: whether the product is added to the weights of the base in the end.
    """

    rank: int = RANK
    alpha: float = 2.0 * RANK
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    quantize_base_bits: int = 0
    merge: bool = False

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Adapter:
        """What `TrainingSpec.to_json` wrote."""
        values: dict[str, Any] = {**data, "target_modules": tuple(data["target_modules"])}
        return cls(**values)
