"""Average precision of boxes at an intersection over union of a half (AP50)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Everingham et al., 2010 (PASCAL VOC), section 4.2: a box is right from this overlap on.
SAME = 0.5


@dataclass(frozen=True)
class Boxes:
    """Boxes of one picture.

    Attributes:
        corners: left, top, right, bottom in pixels, float[n, 4].
        labels: numbers of their classes, int[n].
        scores: float[n]; of right ones nothing is read.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of [n, 4] with every box of [m, 4], float[n, m]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    union = _areas(one)[:, None] + _areas(other)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def mean_average_precision(found: Sequence[Boxes], right: Sequence[Boxes]) -> float:
    """Mean of `average_precision` over the classes that are in the pictures.

    Args:
        found: picture by picture.
        right: likewise.
    """
    classes = np.unique(np.concatenate([boxes.labels for boxes in right]))
    if not len(classes):
        return 0.0
    return float(np.mean([_of_class(found, right, label) for label in classes]))


def average_precision(scores: np.ndarray, hits: np.ndarray, objects: int) -> float:
    """Area under precision as a function of recall, each precision the best at its recall or above (VOC since 2010).

    Args:
        scores: of all boxes of a class, float[n].
        hits: whether each is on an object that no box with a higher score is on, bool[n].
        objects: how many there are.
    """
    ranked = hits[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[ranked].sum() / objects)


def suppressed(boxes: Boxes) -> Boxes:
    """The boxes without those that overlap one of their class with a higher score by more than a half, best first."""
    kept: list[int] = []
    for number in np.argsort(-boxes.scores, kind="stable"):
        rivals = [other for other in kept if boxes.labels[other] == boxes.labels[number]]
        if not rivals or overlaps(boxes.corners[[number]], boxes.corners[rivals]).max() <= SAME:
            kept.append(int(number))
    return Boxes(boxes.corners[kept], boxes.labels[kept], boxes.scores[kept])


def _of_class(found: Sequence[Boxes], right: Sequence[Boxes], label: int) -> float:
    scores, hits, objects = [np.zeros(0)], [np.zeros(0, bool)], 0
    for ours, theirs in zip(found, right, strict=True):
        mine = ours.labels == label
        truth = theirs.corners[theirs.labels == label]
        scores.append(ours.scores[mine])
        hits.append(_hits(ours.corners[mine], ours.scores[mine], truth))
        objects += len(truth)
    return average_precision(np.concatenate(scores), np.concatenate(hits), objects)


def _hits(corners: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Each object is hit by the box with the highest score that overlaps it most; further boxes on it are wrong."""
    hits, free = np.zeros(len(corners), bool), np.ones(len(truth), bool)
    shared = overlaps(corners, truth)
    for number in np.argsort(-scores, kind="stable"):
        if not len(truth):
            break
        best = int(shared[number].argmax())
        if shared[number, best] >= SAME and free[best]:
            hits[number], free[best] = True, False
    return hits


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
