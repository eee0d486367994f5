"""Trains the built-in detector on drawn scenes in which some colours and shapes never come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.dataset.engines.detection.network import STRIDE, Network, corners
from services.dataset.engines.detection.scenes import SIDE, Scene, draw, held_out

_BATCH = 32
_LEARNING_RATE = 4e-3
# Of the side of an object, the standard deviation of its hill on the map of centres.
_HILL = 0.12
# Cells whose hill is so high learn the box and the words of the object.
_NEAR = 0.5
_ABSENT = torch.from_numpy(held_out())
_BOX_WEIGHT, _WORD_WEIGHT = 2.0, 1.0


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained.

    Attributes:
        scenes: drawn once, seen again turned and mirrored.
        steps: of 32 scenes.
        seed: of scenes, weights and order.
    """

    scenes: int = 3000
    steps: int = 1100
    seed: int = 1


@dataclass(frozen=True)
class _Truth:
    """What the network should say of a batch.

    Attributes:
        hills: (n, rows, columns) 1 at the middle of an object, falling to 0 at its sides.
        cells: (positives, 3) image, row, column of the cells that learn a box.
        boxes: (positives, 4) in pixels.
        colours, shapes: (positives,) numbers of words.
    """

    hills: Tensor
    cells: Tensor
    boxes: Tensor
    colours: Tensor
    shapes: Tensor


def train(recipe: Recipe, progress: Callable[[int, float], None] | None = None) -> Network:
    """A trained network; the same recipe and number of threads gives the same weights.

    Args:
        recipe: what to do.
        progress: is told the step and its loss.
    """
    rng = np.random.default_rng(recipe.seed)
    scenes = [draw(rng, ~held_out()) for _ in range(recipe.scenes)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = Network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=recipe.steps)
    network.train()
    for step in range(recipe.steps):
        picked = rng.choice(len(scenes), min(_BATCH, len(scenes)), replace=False)
        batch = [_turned(scenes[number], int(rng.integers(4)), bool(rng.integers(2))) for number in picked]
        loss = _loss(network, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step, loss.item())
    return network.eval()


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Images of one size (height, width, 3) uint8 as the network takes them."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def _turned(scene: Scene, quarters: int, mirrored: bool) -> Scene:
    """The scene counter-clockwise by so many quarters of a turn, and mirrored at the vertical axis before that."""
    image, (left, top, right, bottom) = scene.image, scene.boxes.T
    if mirrored:
        image, left, right = image[:, ::-1], SIDE - right, SIDE - left
    for _ in range(quarters):
        left, top, right, bottom = top, SIDE - right, bottom, SIDE - left
    boxes = np.stack([left, top, right, bottom], axis=1)
    return Scene(np.rot90(image, quarters), boxes, scene.colours, scene.shapes)


def _loss(network: Network, scenes: Sequence[Scene]) -> Tensor:
    truth = _truth(scenes)
    centres, sides, colours, shapes = network(to_tensor([scene.image for scene in scenes]))
    at = truth.cells.unbind(1)
    objects = sum(len(scene.boxes) for scene in scenes)
    words = _word_loss(colours[at], truth.colours, _ABSENT[:, truth.shapes].T)
    words = words + _word_loss(shapes[at], truth.shapes, _ABSENT[truth.colours])
    box = (1 - _generous_overlap(corners(sides)[at], truth.boxes)).mean()
    return _focal(centres, truth.hills) / objects + _BOX_WEIGHT * box + _WORD_WEIGHT * words


def _word_loss(logits: Tensor, words: Tensor, absent: Tensor) -> Tensor:
    """Cross-entropy against the words that come with the object's other word in training.

    That nothing drawn is a blue star must not teach that what is blue is no star: the shape would be read off the
    colour, and pairs that were not seen would not be found.

    Args:
        logits: (n, words)
        words: (n,) what is right.
        absent: (n, words) which words never come with the other word of the object.
    """
    return functional.cross_entropy(logits.masked_fill(absent, -torch.inf), words)


def _truth(scenes: Sequence[Scene]) -> _Truth:
    cells = SIDE // STRIDE
    middles = STRIDE * (np.arange(cells) + 0.5)
    hills = np.zeros((len(scenes), cells, cells), np.float32)
    owners = np.zeros((len(scenes), cells, cells), np.int64)
    for number, scene in enumerate(scenes):
        for owner, box in enumerate(scene.boxes):
            hill = _hill(middles, box)
            # Who is drawn later lies above: where hills meet, the higher one owns the cell.
            owners[number][hill > hills[number]] = owner
            hills[number] = np.maximum(hills[number], hill)
    at = np.argwhere(hills >= _NEAR)
    owner = owners[tuple(at.T)]
    starts = np.cumsum([0, *(len(scene.boxes) for scene in scenes)])[at[:, 0]] + owner
    boxes, colours, shapes = (
        np.concatenate(column)[starts]
        for column in ([s.boxes for s in scenes], [s.colours for s in scenes], [s.shapes for s in scenes])
    )
    return _Truth(*(torch.from_numpy(part) for part in (hills, at, boxes, colours, shapes)))


def _hill(middles: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A Gaussian over the box, 1 in the cell that has its middle."""
    left, top, right, bottom = box
    across = np.exp(-0.5 * ((middles - (left + right) / 2) / (_HILL * (right - left) + 1)) ** 2)
    down = np.exp(-0.5 * ((middles - (top + bottom) / 2) / (_HILL * (bottom - top) + 1)) ** 2)
    hill = down[:, None] * across[None, :]
    return (hill / hill.max()).astype(np.float32)


def _focal(logits: Tensor, hills: Tensor) -> Tensor:
    """The sum of the focal loss of CenterNet, equation 1, with its alpha of 2 and beta of 4."""
    share = torch.sigmoid(logits)
    peak = functional.logsigmoid(logits) * (1 - share) ** 2
    other = functional.logsigmoid(-logits) * share**2 * (1 - hills) ** 4
    return -torch.where(hills >= 1, peak, other).sum()


def _generous_overlap(found: Tensor, truth: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019), (n,), of boxes (n, 4)."""
    area = (found[:, 2:] - found[:, :2]).prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1)
    low, high = torch.minimum(found[:, 2:], truth[:, 2:]), torch.maximum(found[:, :2], truth[:, :2])
    shared = (low - high).clamp(min=0).prod(1)
    hull = torch.maximum(found[:, 2:], truth[:, 2:]) - torch.minimum(found[:, :2], truth[:, :2])
    union, hull = area - shared, hull.prod(1)
    return shared / union - (hull - union) / hull
