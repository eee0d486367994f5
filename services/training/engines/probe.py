"""Does pre-training help the task? A small experiment beside each run instead of an assumption.

The first fine-tuning steps are taken twice, on the same rows with the same learning rates: by a copy of the pre-trained
model, and by a model with fresh weights. Both are then asked the same held-out rows. What it shows is the head start
after those few steps. It does not show whether a longer fine-tuning would catch up, and the fresh model was given no
steps in place of the pre-training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from services.training.domain.spec import Phase
from services.training.engines.group import Group
from services.training.engines.heldout import evaluate
from services.training.engines.loop import PhaseLoop
from services.training.engines.methods.method import Work
from services.training.engines.model import Objective, new_model

# Enough to see a head start; forty steps of both copies of the smallest model take about seven seconds on two cores.
PROBE_SHARE = 0.1
PROBE_STEPS = 40


def pretraining_effect(
    work: Work,
    phase: Phase,
    number: int,
    seed: int,
    group: Group,
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    """Held-out figures after the same few fine-tuning steps with and without the pre-training.

    Args:
        work: the fine-tuning, with the pre-trained model.

    Returns:
        `probe.steps`, `probe.loss_pretrained`, `probe.loss_fresh`, `probe.exact_match_pretrained`,
        `probe.exact_match_fresh`; nothing without held-out rows.
    """
    pretrained = work.objective.model
    if work.heldout is None:
        return {}
    steps = min(phase.steps, max(10, min(PROBE_STEPS, round(phase.steps * PROBE_SHARE))))
    figures = {"probe.steps": float(steps)}
    arms = {
        "pretrained": copy.deepcopy(pretrained),
        "fresh": new_model(pretrained.config, seed),
    }
    for name, model in arms.items():
        arm = Objective(model).to(group.device)
        for _ in PhaseLoop(arm, phase, number, work.train, seed, group).run(0, steps, should_stop):
            pass
        found = evaluate(arm, work.heldout, group)
        figures[f"probe.loss_{name}"] = found.loss
        figures[f"probe.exact_match_{name}"] = found.exact_match or 0.0
    return figures
