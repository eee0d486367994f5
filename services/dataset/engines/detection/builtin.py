"""The built-in detector: what it finds for words, and how its weights are stored.

It knows the drawn shapes of `scenes.py` and nothing else of the world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from services.dataset.domain.targets import Target, read_target
from services.dataset.engines.detection.average_precision import Found
from services.dataset.engines.detection.network import MULTIPLE, Network, corners
from services.dataset.engines.detection.repeats import without_repeats
from services.dataset.engines.detection.scenes import COLOUR_NAMES, SHAPE_NAMES
from services.dataset.engines.detection.training import to_tensor
from services.dataset.engines.detection.unusable import require_files, unusable

WEIGHTS, CARD = "model.safetensors", "card.json"
# Regions of an image, at most: scenes have six objects, and what is beyond has hardly any score.
_MOST_REGIONS = 100
_LEAST_SCORE = 0.01
# Of two regions that overlap so much, the lesser is of the same object.
_SAME_OBJECT = 0.6


class BuiltIn:
    """A trained network that answers prompts of colours and shapes."""

    def __init__(self, network: Network) -> None:
        self._network = network.eval()

    def detect(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Found]]:
        """Regions are found once, whatever is asked for; a prompt then only scores them.

        The score is how much a region is an object, times how well each word of the prompt fits it.

        Args:
            images: (height, width, 3) uint8, RGB, of any sizes; shapes of 20 to 50 pixels are what was learnt.
            prompts: such as `red star`, `红色的五角星`, `star`.

        Returns:
            Image by image, prompt by prompt, by falling score.

        Raises:
            DomainError: INVALID_FIELD, a prompt is not one colour, one shape or both.
        """
        targets = [read_target(prompt, "prompts") for prompt in prompts]
        with torch.inference_mode():
            return [self._detect(image, targets) for image in images]

    def _detect(self, image: np.ndarray, targets: Sequence[Target]) -> list[Found]:
        height, width = image.shape[:2]
        pad = ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0))
        centres, sides, colours, shapes = self._network(to_tensor([np.pad(image, pad, mode="edge")]))
        boxes, scores, cells = _regions(centres[0], corners(sides)[0], height, width)
        colour = functional.softmax(colours[0][cells], dim=-1).numpy()
        shape = functional.softmax(shapes[0][cells], dim=-1).numpy()
        return [_scored(boxes, scores, colour, shape, target) for target in targets]


def _regions(
    centres: Tensor, boxes: Tensor, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, tuple[Tensor, Tensor]]:
    """Boxes (n, 4) within the image, how much each is an object (n,), and rows and columns of their cells."""
    share = torch.sigmoid(centres)
    peaks = functional.max_pool2d(share[None], 3, 1, 1)[0] == share
    rows, columns = torch.nonzero(peaks & (share >= _LEAST_SCORE), as_tuple=True)
    order = torch.argsort(share[rows, columns], descending=True, stable=True)[:_MOST_REGIONS]
    rows, columns = rows[order], columns[order]
    found = boxes[rows, columns].clamp(min=0).minimum(torch.tensor([width, height, width, height])).numpy()
    kept = torch.from_numpy(without_repeats(found, _SAME_OBJECT))
    return found[kept], share[rows, columns][kept].numpy(), (rows[kept], columns[kept])


def _scored(boxes: np.ndarray, scores: np.ndarray, colour: np.ndarray, shape: np.ndarray, target: Target) -> Found:
    if target.colour:
        scores = scores * colour[:, COLOUR_NAMES.index(target.colour)]
    if target.shape:
        scores = scores * shape[:, SHAPE_NAMES.index(target.shape)]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= _LEAST_SCORE]
    return Found(boxes[order], scores[order])


def save_detector(network: Network, folder: Path, card: Mapping[str, Any]) -> str:
    """Writes weights and card; returns the SHA-256 of the weights.

    Args:
        network: trained.
        folder: is made if it is not there.
        card: how it was trained and what it was measured to do; `sha256` and `words` are added.
    """
    content = save(
        {name: value.contiguous() for name, value in network.state_dict().items()}, metadata={"format": "pt"}
    )
    digest = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    full = {**card, "sha256": digest, "words": {"colours": COLOUR_NAMES, "shapes": SHAPE_NAMES}}
    (folder / CARD).write_text(json.dumps(full, indent=2) + "\n")
    return digest


def load_detector(folder: Path) -> BuiltIn:
    """The detector of a folder.

    Raises:
        DomainError: PREFLIGHT_FAILED, something is missing, was changed, or is of another network.
    """
    require_files(folder, WEIGHTS, CARD)
    content = (folder / WEIGHTS).read_bytes()
    try:
        card = json.loads((folder / CARD).read_text())
    except ValueError as error:
        raise unusable(f"{CARD} is not JSON") from error
    if not isinstance(card, dict) or hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise unusable(f"{WEIGHTS} is not what {CARD} says it is")
    network = Network()
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise unusable(f"{WEIGHTS} is of another network") from error
    return BuiltIn(network)
