"""Greedy non-maximum suppression."""

from __future__ import annotations

import numpy as np

from services.dataset.engines.boxes import iou


def without_repeats(boxes: np.ndarray, most_overlap: float) -> np.ndarray:
    """Numbers of the boxes that no better one that is kept overlaps too much.

    Args:
        boxes: (n, 4) left, top, right, bottom; the best first.
        most_overlap: the IoU from which on the lesser of two is of the same object.
    """
    kept: list[int] = []
    for number, box in enumerate(boxes):
        if not kept or iou(np.broadcast_to(box, (len(kept), 4)), boxes[kept]).max() < most_overlap:
            kept.append(number)
    return np.array(kept, np.int64)
