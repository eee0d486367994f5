"""What several people say together: how much they agree, and the answer that most of them gave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from services.dataset.domain.forms import Answer, Field, FieldKind, Form

# Two boxes are the same thing from here on: the threshold of PASCAL VOC
# (Everingham et al. 2010, IJCV 88, 303-338, 4.2).
SAME_BOX = 0.5

Box = Sequence[float]


def agreement(form: Form, answers: Sequence[Answer]) -> float:
    """Mean agreement over all pairs of answers and all questions, from 0 to 1; 1 for a single answer."""
    pairs = list(combinations(answers, 2))
    if not pairs:
        return 1.0
    scores = [
        likeness(asked, one.get(asked.name), other.get(asked.name)) for one, other in pairs for asked in form.fields
    ]
    return sum(scores) / len(scores)


def likeness(asked: Field, one: Any, other: Any) -> float:
    """How much two answers to a question are the same, from 0 to 1; two that leave it out are.

    Choices, ratings and texts are the same or not (texts without regard to case and white space); several choices by
    Jaccard's index; boxes by the F1 of matching those of one label at an IoU of at least `SAME_BOX`.
    """
    if one is None or other is None:
        return float(one is other)
    match asked.kind:
        case FieldKind.CHOICES:
            both, either = set(one) & set(other), set(one) | set(other)
            return len(both) / len(either) if either else 1.0
        case FieldKind.BOXES:
            count = len(one) + len(other)
            return 2 * len(matches(one, other)) / count if count else 1.0
        case FieldKind.TEXT:
            return float(_normal(one) == _normal(other))
        case _:
            return 1.0 if one == other else 0.0


def is_right(form: Form, answer: Answer, gold: Answer) -> bool:
    """Whether an answer is the known one, in every question that the known one answers."""
    asked = (field for field in form.fields if field.name in gold)
    return all(likeness(field, answer.get(field.name), gold[field.name]) >= _right(field) for field in asked)


def _right(asked: Field) -> float:
    # Nobody draws twenty boxes exactly like somebody else.
    return 0.8 if asked.kind is FieldKind.BOXES else 1.0


def consensus(form: Form, answers: Sequence[Answer]) -> Answer:
    """The answer that most gave, question by question; of equally many the one that came first.

    Choices of a set stand when more than half named them. Of boxes that stand for one thing, more than half must have
    drawn it; its sides are the means of theirs.
    """
    result: Answer = {}
    for asked in form.fields:
        given = [answer[asked.name] for answer in answers if answer.get(asked.name) is not None]
        if not given:
            continue
        if asked.kind is FieldKind.CHOICES:
            counts = Counter(choice for choices in given for choice in choices)
            result[asked.name] = [choice for choice in asked.choices if 2 * counts[choice] > len(given)]
        elif asked.kind is FieldKind.BOXES:
            result[asked.name] = _common_boxes(given)
        else:
            keys = [_normal(value) if isinstance(value, str) else json.dumps(value) for value in given]
            most = max(Counter(keys).values())
            result[asked.name] = next(v for v, key in zip(given, keys, strict=True) if keys.count(key) == most)
    return result


def _common_boxes(given: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    groups: list[list[dict[str, Any]]] = []
    for boxes in given:
        # Matched against the first of each group, so that a group cannot wander off.
        for place, found in _matched([group[0] for group in groups], boxes).items():
            groups[place].append(found)
        known = {id(found) for group in groups for found in group}
        groups.extend([found] for found in boxes if id(found) not in known)
    kept = [group for group in groups if 2 * len(group) > len(given)]
    return [{**group[0], "box": _mean([found["box"] for found in group])} for group in kept]


def _matched(left: Sequence[dict[str, Any]], right: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {one: right[other] for one, other in matches(left, right)}


def _mean(boxes: Sequence[Box]) -> list[float]:
    return [round(sum(sides) / len(boxes), 3) for sides in zip(*boxes, strict=True)]


def matches(left: Sequence[dict[str, Any]], right: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pairs of boxes of one label that stand for the same thing, best first; each box is in one pair at most."""
    candidates = [
        (overlap, i, j)
        for i, one in enumerate(left)
        for j, other in enumerate(right)
        if one["label"] == other["label"] and (overlap := iou(one["box"], other["box"])) >= SAME_BOX
    ]
    found: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for _, i, j in sorted(candidates, key=lambda candidate: (-candidate[0], candidate[1], candidate[2])):
        if i not in used[0] and j not in used[1]:
            found.append((i, j))
            used[0].add(i)
            used[1].add(j)
    return found


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes `[x, y, width, height]`."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
