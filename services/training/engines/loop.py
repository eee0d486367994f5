"""The steps of a run, as each worker takes them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from libs.compute.context import EngineCancelled, EngineError
from services.training.domain.spec import Phase
from services.training.engines.batches import Batch, Rows
from services.training.engines.group import Group
from services.training.engines.model import MethodObjective
from services.training.engines.optimise import CLIP_NORM, learning_rate, new_optimiser
from services.training.engines.order import Order
from services.training.engines.sharding import is_sharded, whole


@dataclass(frozen=True)
class Step:
    """What one optimiser step did, the same on every worker.

    Attributes:
        loss: mean over what counts (positions, pairs or answers), before the step.
        learning_rate: that it was taken with.
        tokens: read, all workers.
        seconds: from the last step to this one.
        cpu_seconds: all workers.
        gradient_norm: of the averaged gradients, before they are clipped.
        figures: what else the method saw, as means.
    """

    loss: float
    learning_rate: float
    tokens: int
    seconds: float
    cpu_seconds: float
    gradient_norm: float
    figures: dict[str, float] = field(default_factory=dict[str, float])


class PhaseLoop:
    """The optimiser steps of one phase.

    Args:
        objective: the model and what it minimises.
        phase: its hyper-parameters.
        number: of the phase in the run; gives it an order of rows of its own.
        rows: what to learn from.
        seed: of the run.
        group: the workers that take each step together.
    """

    def __init__(
        self, objective: MethodObjective, phase: Phase, number: int, rows: Rows, seed: int, group: Group
    ) -> None:
        self.objective = objective
        self.optimiser = new_optimiser(objective, phase.learning_rate, phase.weight_decay)
        self._phase = phase
        self._rows = rows
        self._order = Order(len(rows), phase.batch_size, seed, number, rows.lengths)
        self._entropy = (seed & 0xFFFFFFFFFFFFFFFF, number)
        self._group = group
        alone = group.world == 1 or is_sharded(objective.model)
        self._forward: nn.Module = objective if alone else DistributedDataParallel(objective)

    def run(self, first: int, last: int, should_stop: Callable[[], bool]) -> Iterator[Step]:
        """Takes the steps [first, last).

        Args:
            should_stop: asked after each step; when any worker says yes, all raise `EngineCancelled` at the same step.
        """
        clock, cpu = time.perf_counter(), time.process_time()
        for step in range(first, last):
            loss, rate, tokens, norm, figures = self._take(step)
            now, cpu_now = time.perf_counter(), time.process_time()
            loss, tokens, cpu_seconds, stop, *summed = self._group.sum(
                loss, tokens, cpu_now - cpu, float(should_stop()), *figures.values()
            )
            if stop:
                raise EngineCancelled()
            means = dict(zip(figures, summed, strict=True))
            yield Step(loss, rate, int(tokens), now - clock, cpu_seconds, norm, means)
            clock, cpu = now, cpu_now

    def _take(self, step: int) -> tuple[float, float, int, float, dict[str, float]]:
        phase, group = self._phase, self._group
        rate = learning_rate(step, phase.steps, phase.learning_rate, phase.warmup_fraction)
        for options in self.optimiser.param_groups:
            options["lr"] = rate
        # Dropout, where a model has it, is a function of the step like the rows, so that resuming stays exact.
        random = np.random.SeedSequence([*self._entropy, step, group.rank])
        torch.manual_seed(int(random.generate_state(1, np.uint64)[0]))
        all_rows = self._order.batch(step)
        own = np.arange(group.rank, len(all_rows), group.world)
        with group.computing():
            # Some rows are what a model answers now, and how likely it was. One that comes again in a step is answered
            # anew; what is drawn follows its place, and not the worker.
            batch = self._rows.batch(all_rows[own], step * len(all_rows) + own).to(group.device)
        count = self._rows.target_count(all_rows)
        loss, norm, figures = self._update(step, batch, count)
        for _ in range(1, phase.updates):
            _, norm, figures = self._update(step, batch, count)
        return loss, rate, batch.tokens, norm, figures

    def _update(self, step: int, batch: Batch, count: int) -> tuple[float, float, dict[str, float]]:
        """One update: this worker's part of the loss before it, norm of the gradients, its part of the figures."""
        with self._group.computing():
            summed, seen = self._forward(*batch.tensors)
        # Data parallelism averages gradients over workers; a worker with more answer tokens must weigh more.
        share = summed / count
        self.optimiser.zero_grad()
        (share * self._group.world).backward()
        norm = float(whole(nn.utils.clip_grad_norm_(self.objective.parameters(), CLIP_NORM), self._group))
        # The norm is of the averaged gradients, so every worker comes to the same verdict without a word.
        if not math.isfinite(norm):
            raise diverged(self._phase, step, "the gradients are not finite")
        self.optimiser.step()
        figures = batch.figures | self.objective.figures(seen)
        return share.item(), norm, {name: value / count for name, value in figures.items()}


def check_loss(loss: float, worst: float, phase: Phase, step: int) -> None:
    """Raises TRAINING_DIVERGED when the loss is above the worst that the method knows."""
    if not math.isfinite(loss) or loss > worst:
        raise diverged(phase, step, f"the loss is {loss:.3g}")


def diverged(phase: Phase, step: int, what: str) -> EngineError:
    """The error of a run whose numbers ran away."""
    return EngineError(
        "TRAINING_DIVERGED",
        f"The {phase.method} phase diverged at step {step + 1}: {what}. "
        f"Lower the learning rate ({phase.learning_rate:g}) or lengthen the warm-up.",
        phase=str(phase.method),
        step=str(step + 1),
    )


def seed_worker(seed: int, threads: int) -> None:
    """One seed for every worker, whose first weights are then equal; what else is random has a seed of its own."""
    torch.manual_seed(seed)
    torch.set_num_threads(max(1, threads))
