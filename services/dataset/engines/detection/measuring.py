"""What the built-in detector finds in scenes that it never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.dataset.engines.detection.adapters import Detector
from services.dataset.engines.detection.average_precision import Found, average_precision
from services.dataset.engines.detection.scenes import COLOUR_NAMES, SHAPE_NAMES, Scene, draw, held_out

# Every pair of a colour and a shape, row by row.
PROMPTS = tuple(f"{colour} {shape}" for colour in COLOUR_NAMES for shape in SHAPE_NAMES)


def unseen_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with all pairs, those that training never shows too; for another seed than that of the training."""
    rng = np.random.default_rng(seed)
    return [draw(rng, np.ones_like(held_out())) for _ in range(count)]


def ap50(found: Sequence[Sequence[Found]], scenes: Sequence[Scene]) -> np.ndarray:
    """(colours, shapes) AP50 of every pair; NaN for one that no scene has.

    Args:
        found: scene by scene, the answers to `PROMPTS`.
        scenes: with the truth.
    """
    result = np.full((len(COLOUR_NAMES), len(SHAPE_NAMES)), np.nan)
    for prompt, (colour, shape) in enumerate(np.ndindex(result.shape)):
        truths = [scene.boxes[(scene.colours == colour) & (scene.shapes == shape)] for scene in scenes]
        result[colour, shape] = average_precision([image[prompt] for image in found], truths)
    return result


def measure(detector: Detector, scenes: Sequence[Scene]) -> dict[str, float]:
    """`ap50_unseen` over the pairs that training never shows, and `ap50_seen` over the others."""
    precision = ap50(detector.detect([scene.image for scene in scenes], PROMPTS), scenes)
    unseen = held_out()
    means = {"ap50_unseen": np.nanmean(precision[unseen]), "ap50_seen": np.nanmean(precision[~unseen])}
    return {name: round(float(mean), 4) for name, mean in means.items()}
