"""What people made of proposed boxes: precision by score, and from which score on boxes need no person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.dataset.domain.forms import is_number
from services.dataset.engines.annotations.pictures import Object
from services.dataset.engines.detection.average_precision import Found, hits
from services.dataset.engines.intervals import wilson

SCORES = tuple(round(0.05 * step, 2) for step in range(1, 20))

Json = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """Proposed boxes of some images, as people left them.

    Attributes:
        scores: (n,) of the proposals, 0 to 1.
        right: (n,) whether the object is among those that people left, with its label, at an IoU of 0.5 or more.
        objects: those that people left; what no proposal was on included.
    """

    scores: np.ndarray
    right: np.ndarray
    objects: int


def judge(proposed: Iterable[Sequence[Object]], corrected: Iterable[Sequence[Object]]) -> Judged:
    """Compares proposals with what people made of them.

    Args:
        proposed: image by image, objects with `label`, `box` (left, top, width, height) and `score`.
        corrected: of the same images, objects with `label` and `box`.
    """
    scores: list[np.ndarray] = [np.zeros(0)]
    right: list[np.ndarray] = [np.zeros(0, bool)]
    objects = 0
    for before, after in zip(proposed, corrected, strict=True):
        objects += len(after)
        for label in sorted({one["label"] for one in before}):
            ordered = sorted((one for one in before if one["label"] == label), key=lambda one: -one["score"])
            found = Found(_corners(ordered), np.array([one["score"] for one in ordered]))
            scores.append(found.scores)
            right.append(hits(found, _corners([one for one in after if one["label"] == label])))
    return Judged(np.concatenate(scores), np.concatenate(right), objects)


def report_proposals(field: str, proposed: Sequence[Json], wanted: float) -> Json:
    """What people made of proposed boxes, as fields of `argosy.dataset.v1.ProposalReport`.

    Args:
        field: the question.
        proposed: items that people answered, with their `proposal` and `answer`. Boxes without a score are left out.
        wanted: precision of what is to be accepted unseen.
    """
    before = [[one for one in item["proposal"].get(field, ()) if is_number(one.get("score"))] for item in proposed]
    after = [(item["answer"] or {}).get(field, ()) for item in proposed]
    return {"items": len(proposed), **report(judge(before, after), wanted)}


def report(judged: Judged, wanted: float) -> Json:
    """Precision and recall by score, each with its 95 % interval by Wilson.

    The score for accepting without a person is the lowest one for which the lower bound of precision, not precision
    itself, is as high as wanted: a few boxes that happen to be right do not reach it. It is chosen on the very boxes
    that it is stated for; look at new ones now and then.

    Args:
        judged: of images that people looked at as a whole, or recall means nothing.
        wanted: precision of what is accepted, above 0 and below 1.

    Returns:
        `rows` by rising `score`: `proposals`, and `precision` and `recall` with `value`, `low`, `high`, None where
        there is nothing to divide by. `auto_accept_score`, None if none will do. `wanted_precision`.
    """
    if not 0 < wanted < 1:
        raise ValueError("wanted is a share between 0 and 1")
    rows = [_row(judged, score) for score in SCORES]
    enough = (row["score"] for row in rows if (row["precision"]["low"] or 0.0) >= wanted)
    return {"rows": rows, "auto_accept_score": next(enough, None), "wanted_precision": wanted}


def _row(judged: Judged, score: float) -> Json:
    above = judged.scores >= score
    right, proposals = int(judged.right[above].sum()), int(above.sum())
    precision, recall = _share(right, proposals), _share(right, judged.objects)
    return {"score": score, "proposals": proposals, "precision": precision, "recall": recall}


def _share(right: int, total: int) -> Json:
    if not total:
        return {"value": None, "low": None, "high": None}
    low, high = wilson(right, total)
    return {"value": right / total, "low": low, "high": high}


def _corners(objects: Sequence[Object]) -> np.ndarray:
    boxes = np.array([one["box"] for one in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
