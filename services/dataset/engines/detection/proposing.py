"""From phrases to boxes that people correct."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from services.dataset.domain.consensus import SAME_BOX
from services.dataset.engines.annotations.pictures import Object
from services.dataset.engines.boxes import iou
from services.dataset.engines.detection.adapters import Detector
from services.dataset.engines.detection.average_precision import Found

# From here on an object is rather than not what was to be left out.
_LEFT_OUT = 0.5
# More would only say which processor computed them.
_PIXEL_DECIMALS, _SCORE_DECIMALS = 2, 4


def propose(
    detector: Detector,
    images: Sequence[np.ndarray],
    targets: Sequence[str],
    excluded: Sequence[str],
    least_score: float,
) -> list[list[Object]]:
    """Boxes for targets, without those that are rather what is left out.

    Args:
        detector: what looks at the images.
        images: (height, width, 3) uint8, RGB.
        targets: phrases; an object that fits two of them is proposed for each.
        excluded: phrases.
        least_score: of a proposal, 0 to 1.

    Returns:
        Image by image, objects with `label`, `box` (left, top, width, height in pixels) and `score`.

    Raises:
        DomainError: INVALID_FIELD, the detector has no answer to a target.
    """
    found = detector.detect(images, [*targets, *excluded])
    return [list(_objects(targets, answers, least_score)) for answers in found]


def _objects(labels: Sequence[str], answers: Sequence[Found], least_score: float) -> Iterator[Object]:
    """Objects of an image; the answers after those to the labels are to what is left out."""
    left_out = [answer.boxes[answer.scores >= _LEFT_OUT] for answer in answers[len(labels) :]]
    excluded = np.concatenate([np.zeros((0, 4)), *left_out])
    for label, answer in zip(labels, answers, strict=False):
        for box, score in zip(answer.boxes, answer.scores, strict=True):
            if score >= least_score and not (iou(np.broadcast_to(box, excluded.shape), excluded) >= SAME_BOX).any():
                left, top, right, bottom = (float(side) for side in box)
                sides = [round(side, _PIXEL_DECIMALS) for side in (left, top, right - left, bottom - top)]
                yield {"label": label, "box": sides, "score": round(float(score), _SCORE_DECIMALS)}
