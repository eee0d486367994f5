"""Drawn scenes: coloured shapes on a background, with exact boxes. The same seed gives the same scene."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.dataset.domain.targets import COLOURS, SHAPES

# Pixels of a side.
SIDE = 128
COLOUR_NAMES = tuple(words[0] for words in COLOURS)
SHAPE_NAMES = tuple(words[0] for words in SHAPES)

# Degrees of the colours in order; black has none.
_HUES = (0, 30, 57, 120, 183, 225, 285)
_HUE_JITTER = 6.0
# Standard deviation of the noise, grey levels.
_MOST_NOISE = 20.0
# Half of the longer side of an object, pixels.
_SIZES = (10.0, 25.0)
_MOST_OBJECTS = 6
# Of an object that others cover more than so much, no box could be expected.
_LEAST_VISIBLE = 0.7
# Length by width of what is longer than wide.
_LONG = 2.0


@dataclass(frozen=True)
class Scene:
    """An image and what is on it.

    Attributes:
        image: (SIDE, SIDE, 3) uint8, RGB.
        boxes: (objects, 4) float32: left, top, right, bottom in pixels, right and bottom exclusive; of the part within
            the image, what other objects cover included.
        colours, shapes: (objects,) int64, numbers in COLOUR_NAMES and SHAPE_NAMES.
    """

    image: np.ndarray
    boxes: np.ndarray
    colours: np.ndarray
    shapes: np.ndarray


def held_out() -> np.ndarray:
    """(colours, shapes) whether training never sees the pair: two of every colour, two of every shape."""
    pairs = np.zeros((len(COLOUR_NAMES), len(SHAPE_NAMES)), bool)
    numbers = np.arange(len(COLOUR_NAMES))
    pairs[numbers, numbers] = True
    pairs[numbers, (numbers + 3) % len(SHAPE_NAMES)] = True
    return pairs


def draw(rng: np.random.Generator, allowed: np.ndarray) -> Scene:
    """A scene.

    Args:
        rng: where all chance comes from.
        allowed: (colours, shapes) which pairs may come; all of them equally often.
    """
    image = _background(rng)
    pairs = np.argwhere(allowed)
    whole: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    kept: list[tuple[int, int]] = []
    for _ in range(rng.integers(2, _MOST_OBJECTS + 1)):
        colour, shape = (int(number) for number in pairs[rng.integers(len(pairs))])
        mask = _mask(rng, SHAPE_NAMES[shape])
        left = [other & ~mask for other in seen]
        if any(part.sum() < _LEAST_VISIBLE * all_.sum() for part, all_ in zip(left, whole, strict=True)):
            continue
        seen = [*left, mask]
        whole.append(mask)
        kept.append((colour, shape))
        image[mask] = _paint(rng, colour)
    image += rng.uniform(0, _MOST_NOISE) * rng.standard_normal(image.shape, np.float32)
    colours, shapes = np.array(kept).T
    return Scene(np.clip(image, 0, 255).astype(np.uint8), np.array([_box(mask) for mask in whole]), colours, shapes)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Grey of some tint that changes over the image, float."""
    coarse = rng.uniform(100, 215) + rng.uniform(-12, 12, 3) + rng.normal(0, 14, (4, 4, 1))
    at = np.linspace(0, 3, SIDE)[:, None]
    weights = np.clip(1 - np.abs(at - np.arange(4)), 0, 1)
    return np.einsum("yi,ijc,xj->yxc", weights, coarse, weights, optimize=True)


def _paint(rng: np.random.Generator, colour: int) -> np.ndarray:
    if colour == len(_HUES):
        return rng.uniform(0, 40) + rng.uniform(-6, 6, 3)
    hue = (_HUES[colour] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) / 360 % 1
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.7, 1)))


def _mask(rng: np.random.Generator, shape: str) -> np.ndarray:
    """(SIDE, SIDE) which pixels a shape of some size, place and rotation has."""
    size, angle = rng.uniform(*_SIZES), rng.uniform(0, 2 * np.pi)
    middle = rng.uniform(0.8 * size, SIDE - 0.8 * size, 2)
    # Only where the shape can reach: a tenth of the image.
    top, left = np.maximum(middle - 1.1 * size, 0).astype(int)
    bottom, right = (middle + 1.1 * size).astype(int) + 1
    near = np.s_[top : min(bottom, SIDE), left : min(right, SIDE)]
    y, x = np.mgrid[near] + 0.5
    y, x = (y - middle[0]) / size, (x - middle[1]) / size
    mask = np.zeros((SIDE, SIDE), bool)
    mask[near] = _SHAPES[shape](x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle))
    return mask


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Equal sides, corners at distance 1."""
    return np.max([x * np.cos(at) + y * np.sin(at) for at in np.pi * np.array([1, 3, 5]) / 3], axis=0) <= 0.5


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points at distance 1, the corners between them at 0.42: the edge between the two, mirrored ten times."""
    angle = np.abs((np.arctan2(y, x) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    corner_x, corner_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    # On the inner side of the line through (1, 0) and the corner.
    return (radius * np.cos(angle) - 1) * corner_y + radius * np.sin(angle) * (1 - corner_x) <= 0


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    longer, shorter = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return (longer <= 1) & (shorter <= 0.3)


def _box(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float32)


# Whether a point is inside, with the longest extent from the middle about 1.
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) <= 1,
    "ellipse": lambda x, y: np.hypot(x, _LONG * y) <= 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.75,
    "rectangle": lambda x, y: np.maximum(np.abs(x), _LONG * np.abs(y)) <= 1,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.775) <= 0.225,
}
