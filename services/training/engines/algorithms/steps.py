"""The optimiser steps that all of these algorithms take."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from libs.compute.context import EngineError
from services.training.engines.algorithms.interface import Json, Watch
from services.training.engines.optimise import CLIP_NORM, learning_rate, new_optimiser
from services.training.engines.order import Order

_WEIGHT_DECAY = 0.01
_WARMUP = 0.05
# Points of a loss curve: more than a screen is wide in pixels help nobody.
_POINTS = 500
# What the steps are of the whole, in the eyes of who looks at the progress; the rest is reading and measuring.
_BEFORE, _AFTER = 0.05, 0.95


@contextmanager
def seeded(seed: int) -> Generator[torch.device]:
    """Everything random in torch comes from the seed in here. Gives the device: a GPU where there is one."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # CTC on a GPU has no deterministic form: it warns there.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
        finally:
            torch.use_deterministic_algorithms(before)


def fit(
    model: nn.Module, loss_of: Callable[[np.ndarray], Tensor], rows: int, parameters: Json, seed: int, watch: Watch
) -> None:
    """Takes `epochs` passes over the rows in a seeded order, with AdamW, a warm-up and a cosine.

    Args:
        model: changed; left in evaluation mode.
        loss_of: mean loss of a batch from its row numbers, int64[batch_size].
        rows: how many there are.
        parameters: with `epochs`, `batch_size`, `learning_rate`.

    Raises:
        EngineError: TRAINING_DIVERGED, the loss or its gradients are not finite.
        EngineCancelled: Somebody cancelled.
    """
    size, peak = parameters["batch_size"], parameters["learning_rate"]
    order = Order(rows, size, seed, 0)
    steps = max(1, math.ceil(parameters["epochs"] * rows / size))
    optimiser = new_optimiser(model, peak, _WEIGHT_DECAY)
    every = math.ceil(steps / _POINTS)
    model.train()
    for step in range(steps):
        watch.stop_if_cancelled()
        rate = learning_rate(step, steps, peak, _WARMUP)
        loss = take_step(model, optimiser, loss_of(order.batch(step)), rate, step)
        if step % every == 0 or step == steps - 1:
            watch.metrics(step + 1, {"loss": loss, "learning_rate": rate})
            watch.progress(_BEFORE + (_AFTER - _BEFORE) * (step + 1) / steps, f"step {step + 1} of {steps}")
    model.eval()


def take_step(model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, rate: float, step: int) -> float:
    """One step down the gradient of the loss, clipped; the loss as a number.

    Raises:
        EngineError: TRAINING_DIVERGED, the loss or its gradients are not finite.
    """
    for options in optimiser.param_groups:
        options["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM))
    if not math.isfinite(norm) or not math.isfinite(loss.item()):
        raise EngineError(
            "TRAINING_DIVERGED",
            f"The training diverged at step {step + 1}. Lower the learning rate ({rate:g}).",
            phase="train",
            step=str(step + 1),
        )
    optimiser.step()
    return loss.item()


def parameter_count(model: nn.Module) -> int:
    """Numbers that were learned."""
    return sum(parameter.numel() for parameter in model.parameters())
