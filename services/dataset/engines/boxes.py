"""Boxes: which of two or more answers are of one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.dataset.domain.consensus import SAME_BOX
from services.dataset.domain.forms import MAX_CLASSES
from services.dataset.engines.answers import BoxList
from services.dataset.engines.pairs import Pairs

# Pairs of boxes whose overlap is computed at once, at most: about 300 MB.
_BLOCK = 1_000_000
# Boxes of another answer that a box can match, those that overlap it most. Only where the same box was drawn again and
# again are there more, and a few such answers would fill the memory with their pairs.
_MOST_PARTNERS = 16


@dataclass(frozen=True, slots=True)
class Matches:
    """What pairs of answers, and all answers to an item, have in common.

    Attributes:
        labelled: (pairs,) boxes of one answer that match a box of the other in place and label.
        placed: (pairs,) those that match in place, whatever their labels.
        overlap: (pairs,) sum of the intersections over union of the latter.
        counts: (pairs,) boxes of both answers together.
        units: (items with pairs, 1 + labels + 1) for `coefficients.nominal_alpha_of`: a unit is an object, and who did
            not draw it gives it the class "unmatched", the last column.
    """

    labelled: np.ndarray
    placed: np.ndarray
    overlap: np.ndarray
    counts: np.ndarray
    units: np.ndarray


@dataclass(frozen=True, slots=True)
class _Flat:
    """All boxes of all answers one after another.

    Attributes:
        starts, counts: (answers,) number of the first box, and of how many.
        owners, corners, labels: (boxes,) or (boxes, 4) of each.
        lefts: (boxes,) left sides, ascending.
        places: (boxes,) ascending, since boxes are in order of their answer and in it of their left side: the number of
            the answer, times one more than there are boxes, and the place of the left side among `lefts`.
    """

    starts: np.ndarray
    counts: np.ndarray
    owners: np.ndarray
    corners: np.ndarray
    labels: np.ndarray
    lefts: np.ndarray
    places: np.ndarray


def match(answers: Sequence[BoxList], items: np.ndarray, pairs: Pairs) -> Matches:
    """Matches the boxes of answers to the same item.

    Boxes are matched greedily, the pair with the largest overlap first, each with at most one box of another answer.
    The optimal assignment differs only where a box overlaps two of the other answer by a half or more.

    Args:
        answers: In the order of `items`.
        items: (answers,) ascending.
        pairs: Of answers.
    """
    flat = _flatten(answers)
    pair, first, second, overlap = _candidates(flat, pairs)
    alike = np.flatnonzero(flat.labels[first] == flat.labels[second])
    labelled = alike[_greedy(first[alike], second[alike], flat)]
    placed = _greedy(first, second, flat)
    return Matches(
        labelled=np.bincount(pair[labelled], minlength=len(pairs)),
        placed=np.bincount(pair[placed], minlength=len(pairs)),
        overlap=np.bincount(pair[placed], overlap[placed], minlength=len(pairs)),
        counts=flat.counts[pairs.left] + flat.counts[pairs.right],
        units=_units(flat, _objects(first, second, flat.owners), items, np.unique(items[pairs.left])),
    )


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes, row by row; 0 where the union has no area.

    Args:
        one, other: (n, 4) left, top, right, bottom.
    """
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.prod(np.clip(sides, 0, None), axis=1)
    union = np.prod(one[:, 2:] - one[:, :2], axis=1) + np.prod(other[:, 2:] - other[:, :2], axis=1) - shared
    return np.divide(shared, union, out=np.zeros(len(one)), where=union > 0)


def _flatten(answers: Sequence[BoxList]) -> _Flat:
    counts = np.array([len(answer.labels) for answer in answers], np.int64)
    names = [label for answer in answers for label in answer.labels]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    owners = np.repeat(np.arange(len(answers)), counts)
    corners = np.concatenate([np.zeros((0, 4)), *(answer.corners for answer in answers)])
    lefts = np.sort(corners[:, 0])
    return _Flat(
        starts=np.cumsum(counts) - counts,
        counts=counts,
        owners=owners,
        corners=corners,
        labels=np.array([numbers[name] for name in names], np.int64),
        lefts=lefts,
        places=owners * (len(owners) + 1) + np.searchsorted(lefts, corners[:, 0]),
    )


def _candidates(flat: _Flat, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of boxes that overlap enough: their pair of answers, the two boxes, the overlap; the largest first."""
    sizes = flat.counts[pairs.left] * flat.counts[pairs.right]
    ends = np.cumsum(sizes)
    bounds = np.searchsorted(ends, np.arange(_BLOCK, ends[-1] if len(ends) else 0, _BLOCK), side="right")
    found = [
        (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)),
        *(_overlapping(flat, pairs, numbers) for numbers in np.split(np.arange(len(pairs)), np.unique(bounds))),
    ]
    pair, first, second, overlap = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((second, first, -overlap))
    return pair[order], first[order], second[order], overlap[order]


def _overlapping(
    flat: _Flat, pairs: Pairs, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`_candidates` of some pairs of answers, unsorted."""
    boxes = flat.counts[pairs.left[numbers]]
    pair = np.repeat(numbers, boxes)
    first = _ranges(flat.starts[pairs.left[numbers]], boxes)
    start, end = _near(flat, first, pairs.right[pair])
    pair, first, second = np.repeat(pair, end - start), np.repeat(first, end - start), _ranges(start, end - start)
    overlap = iou(flat.corners[first], flat.corners[second])
    kept = np.flatnonzero(overlap >= SAME_BOX)
    kept = kept[np.lexsort((second[kept], -overlap[kept], first[kept], pair[kept]))]
    kept = kept[_rank(pair[kept] * len(flat.owners) + first[kept]) < _MOST_PARTNERS]
    return pair[kept], first[kept], second[kept], overlap[kept]


def _rank(keys: np.ndarray) -> np.ndarray:
    """The number of each among its equals; equal keys stand together."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))


def _near(flat: _Flat, boxes: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes of an answer, from and to before, can overlap a box by a half, as far as their left sides say.

    Two boxes with `SAME_BOX` share at least half of the width of either. So neither is wider than twice the other, and
    the other begins between one width before and half a width behind the one (a bit more, for rounding).
    """
    left, width = flat.corners[boxes, 0], flat.corners[boxes, 2] - flat.corners[boxes, 0]
    first = answers * (len(flat.lefts) + 1) + np.searchsorted(flat.lefts, left - 1.01 * width)
    last = answers * (len(flat.lefts) + 1) + np.searchsorted(flat.lefts, left + 0.51 * width, side="right")
    return np.searchsorted(flat.places, first), np.searchsorted(flat.places, last)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """So many numbers from each start, one after another."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def _greedy(first: np.ndarray, second: np.ndarray, flat: _Flat) -> np.ndarray:
    """Numbers of the pairs of boxes that stay when every box has at most one partner in each other answer."""
    answers = len(flat.counts)
    wants = zip(
        (first * answers + flat.owners[second]).tolist(), (second * answers + flat.owners[first]).tolist(), strict=True
    )
    taken: set[int] = set()
    kept: list[int] = []
    for number, (one, other) in enumerate(wants):
        if one not in taken and other not in taken:
            taken.update((one, other))
            kept.append(number)
    return np.array(kept, np.int64)


def _objects(first: np.ndarray, second: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The object of each box: boxes are joined, the largest overlap first, unless an answer would have two of them."""
    owner = owners.tolist()
    object_of = list(range(len(owner)))
    members = [[box] for box in object_of]
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        into, gone = object_of[one], object_of[other]
        if into == gone or not {owner[box] for box in members[into]}.isdisjoint(owner[box] for box in members[gone]):
            continue
        for box in members[gone]:
            object_of[box] = into
        members[into] += members[gone]
        members[gone] = []
    return np.array(object_of, np.int64)


def _units(flat: _Flat, objects: np.ndarray, items: np.ndarray, paired: np.ndarray) -> np.ndarray:
    """`Matches.units`. Labels beyond the most frequent ones count as one where chance is computed, no matter which."""
    answers = np.bincount(items)[paired] if len(paired) else np.zeros(0, np.int64)
    counted = np.isin(items[flat.owners], paired)
    labels, number = flat.labels[counted], np.unique(objects[counted], return_inverse=True)[1]
    item = np.searchsorted(paired, items[flat.owners[counted]])
    drawn = np.bincount(number)
    item_of, at = np.zeros(len(drawn), np.int64), np.arange(len(paired))
    item_of[number] = item
    everyone = answers[item_of]
    unmatched = everyone - drawn
    _, first, same = np.unique(number * (labels.max(initial=0) + 1) + labels, return_index=True, return_counts=True)
    squares = np.bincount(number[first], same**2, minlength=len(drawn))
    differing = (everyone**2 - squares - unmatched**2) / (everyone - 1)
    frequent = np.argsort(np.argsort(-np.bincount(labels), kind="stable"))
    column = np.minimum(frequent[labels], MAX_CLASSES - 1) if len(labels) else labels
    classes = np.zeros((len(paired), column.max(initial=0) + 1))
    np.add.at(classes, (item, column), 1)
    return np.column_stack(
        [
            np.bincount(item_of, differing, minlength=len(at)),
            classes,
            np.bincount(item_of, unmatched, minlength=len(at)),
        ]
    )
