"""Training of the built-in detector, a few steps of it; how good it becomes is for `make bench-annotate`."""

from __future__ import annotations

import torch

from services.dataset.engines.detection.training import Recipe, train


def test_training_lowers_the_loss_and_repeats_itself() -> None:
    torch.set_num_threads(1)
    losses: list[float] = []
    recipe = Recipe(scenes=32, steps=8)
    first = train(recipe, lambda _, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    again = train(recipe).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
