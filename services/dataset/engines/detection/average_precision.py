"""Average precision of boxes at an IoU of 0.5, as COCO computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.dataset.domain.consensus import SAME_BOX
from services.dataset.engines.boxes import iou

# COCO interpolates precision at 101 levels of recall (Lin et al. 2014, and cocoeval.py).
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Found:
    """Boxes in one image for one prompt.

    Attributes:
        boxes: (n, 4) left, top, right, bottom.
        scores: (n,)
    """

    boxes: np.ndarray
    scores: np.ndarray


def hits(found: Found, truth: np.ndarray) -> np.ndarray:
    """(n,) whether each box is on an object. Each takes the free object that it overlaps most; an object is hit once.

    Args:
        found: in order of falling score.
        truth: (objects, 4)
    """
    result, free = np.zeros(len(found.boxes), bool), np.ones(len(truth), bool)
    for number, box in enumerate(found.boxes if len(truth) else ()):
        overlaps = np.where(free, iou(np.broadcast_to(box, truth.shape), truth), -1.0)
        if overlaps.max() >= SAME_BOX:
            result[number] = True
            free[overlaps.argmax()] = False
    return result


def average_precision(found: Sequence[Found], truths: Sequence[np.ndarray]) -> float:
    """AP50 of one prompt over images; NaN if no image has such an object.

    Args:
        found: image by image, each in order of falling score.
        truths: image by image, (objects, 4).
    """
    objects = sum(len(truth) for truth in truths)
    if not objects:
        return float("nan")
    scores = np.concatenate([one.scores for one in found])
    right = np.concatenate([hits(one, truth) for one, truth in zip(found, truths, strict=True)])
    right = right[np.argsort(-scores, kind="stable")]
    correct = np.cumsum(right)
    recall, precision = correct / objects, correct / np.arange(1, len(right) + 1)
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, _RECALLS)
    return float(np.append(precision, 0.0)[places].mean())
