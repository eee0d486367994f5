"""Operators that change an image at random, and with it the boxes of what is on it. Runs only in the limited child."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from services.dataset.engines.decoding import MAX_PIXELS, BadMedia

# Left, top, width, height in pixels.
Box = tuple[float, float, float, float]
Parameters = Mapping[str, Any]
Random = np.random.Generator
Changed = tuple[Image.Image, list[Box]]

_MODES = ("L", "RGB", "RGBA")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def plain(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel. Raises BadMedia for deeper ones, which would lose what they are made for."""
    if image.mode in _DEEP:
        raise BadMedia("images with more than 8 bits a channel are not augmented")
    if image.mode in _MODES:
        return image
    return image.convert("RGBA" if "transparency" in image.info or image.mode in ("LA", "PA") else "RGB")


def factor(max_change: float, random: Random) -> float:
    """Between 1 / (1 + max_change) and 1 + max_change, a factor as often as its inverse."""
    return math.exp(random.uniform(-1, 1) * math.log1p(max_change))


def _rotate(image: Image.Image, boxes: list[Box], parameters: Parameters, random: Random) -> Changed:
    degrees = random.uniform(-1, 1) * parameters["max_degrees"]
    turned = image.rotate(degrees, Image.Resampling.BICUBIC)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle_x, middle_y = image.width / 2, image.height / 2

    def moved(x: float, y: float) -> tuple[float, float]:
        x, y = x - middle_x, y - middle_y
        # The y axis points down, so a turn against the clock is this one.
        return middle_x + x * cosine + y * sine, middle_y - x * sine + y * cosine

    return turned, [_around([moved(x, y) for x, y in _corners(box)]) for box in boxes]


def _flip(image: Image.Image, boxes: list[Box], parameters: Parameters, _random: Random) -> Changed:
    if parameters["direction"] == "vertical":
        return ImageOps.flip(image), [(x, image.height - y - height, width, height) for x, y, width, height in boxes]
    return ImageOps.mirror(image), [(image.width - x - width, y, width, height) for x, y, width, height in boxes]


def _scale(image: Image.Image, boxes: list[Box], parameters: Parameters, random: Random) -> Changed:
    by = factor(parameters["max_change"], random)
    size = max(1, round(image.width * by)), max(1, round(image.height * by))
    if size[0] * size[1] > MAX_PIXELS:
        return image, boxes
    across, down = size[0] / image.width, size[1] / image.height
    scaled = image.resize(size, Image.Resampling.BICUBIC)
    return scaled, [(x * across, y * down, width * across, height * down) for x, y, width, height in boxes]


def _crop(image: Image.Image, boxes: list[Box], parameters: Parameters, random: Random) -> Changed:
    width = max(1, round(image.width * random.uniform(parameters["min_share"], 1)))
    height = max(1, round(image.height * random.uniform(parameters["min_share"], 1)))
    left = int(random.integers(0, image.width - width + 1))
    top = int(random.integers(0, image.height - height + 1))
    cut = image.crop((left, top, left + width, top + height))
    return cut, [(x - left, y - top, *size) for x, y, *size in boxes]  # type: ignore[misc]


def _noise(image: Image.Image, boxes: list[Box], parameters: Parameters, random: Random) -> Changed:
    return _colours(image, lambda values: with_noise(values, parameters["max_deviation"], random)), boxes


def with_noise(values: np.ndarray, max_deviation: float, random: Random) -> np.ndarray:
    """(..., channels) uint8 with Gaussian noise."""
    deviation = random.uniform(0, max_deviation) * 255
    noisy = values + random.standard_normal(values.shape, np.float32) * np.float32(deviation)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _blur(image: Image.Image, boxes: list[Box], parameters: Parameters, random: Random) -> Changed:
    # Beyond half of the image nothing is left to blur.
    radius = min(random.uniform(0, parameters["max_radius"]), min(image.size) / 2)
    return image.filter(ImageFilter.GaussianBlur(radius)), boxes


def _brightness(image: Image.Image, boxes: list[Box], parameters: Parameters, random: Random) -> Changed:
    return ImageEnhance.Brightness(image).enhance(factor(parameters["max_change"], random)), boxes


def _contrast(image: Image.Image, boxes: list[Box], parameters: Parameters, random: Random) -> Changed:
    return ImageEnhance.Contrast(image).enhance(factor(parameters["max_change"], random)), boxes


def _colours(image: Image.Image, change: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Changes the colours and leaves transparency as it is."""
    values = np.array(image)
    if image.mode == "RGBA":
        values[..., :3] = change(values[..., :3])
    else:
        values = change(values)
    return Image.fromarray(values, image.mode)


def _corners(box: Box) -> list[tuple[float, float]]:
    x, y, width, height = box
    return [(x, y), (x + width, y), (x, y + height), (x + width, y + height)]


def _around(points: list[tuple[float, float]]) -> Box:
    left, top = min(x for x, _ in points), min(y for _, y in points)
    return left, top, max(x for x, _ in points) - left, max(y for _, y in points) - top


def clipped(box: Box, width: int, height: int) -> Box | None:
    """What of a box lies in an image, in thousandths of a pixel; None when less than a pixel of either side does."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    across, down = min(width, box[0] + box[2]) - left, min(height, box[1] + box[3]) - top
    return None if across < 1 or down < 1 else (round(left, 3), round(top, 3), round(across, 3), round(down, 3))


IMAGE_OPERATIONS: dict[str, Callable[[Image.Image, list[Box], Parameters, Random], Changed]] = {
    "rotate": _rotate,
    "flip": _flip,
    "scale": _scale,
    "crop": _crop,
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
}
