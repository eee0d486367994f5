"""Pictures and sounds of rows, decoded under limits."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import soundfile
from PIL import Image
from scipy.signal import resample_poly

from services.training.engines.algorithms.interface import Table
from services.training.engines.algorithms.reading import invalid, text_of

# Bytes of a file: what is larger is no line of text and no spoken word, and a scene can be scaled down before.
_MAX_BYTES = 64 * 1024 * 1024
# Pixels of a picture: 120 MB in memory.
_MAX_PIXELS = 40_000_000
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_SOUND_FORMATS = ("WAV", "FLAC", "OGG")
_MAX_SECONDS, _MAX_RATE, _MAX_CHANNELS = 600, 192_000, 8
# Samples of all channels: 240 MB in memory.
_MAX_SAMPLES = 60_000_000

T = TypeVar("T")


class Undecodable(Exception):
    """A file that cannot be used; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Scaled:
    """A picture that fits a square.

    Attributes:
        pixels: uint8[side, side, 3]; grey beside the picture, which lies in the upper left corner.
        width, height: of the original, pixels.
        scale: pixels here for a pixel there.
    """

    pixels: np.ndarray
    width: int
    height: int
    scale: float


def media_of(table: Table, row: int, column: str, value: Any, decode: Callable[[bytes], T]) -> T:
    """The decoded file of a row; EngineError names the row where it cannot be decoded."""
    try:
        return decode(table.media(text_of(row, column, value)))
    except Undecodable as error:
        raise invalid(row, column, str(error)) from error


def picture(content: bytes, mode: str) -> Image.Image:
    """A decoded picture, what is transparent in white; `mode` is Pillow's, `RGB` or `L`. Raises Undecodable."""
    _require_size(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS)
            if image.width * image.height > _MAX_PIXELS:
                raise Undecodable(f"a picture of {image.width} x {image.height} pixels, at most {_MAX_PIXELS:,}")
            image.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Undecodable(f"a picture of more than {_MAX_PIXELS:,} pixels") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise Undecodable("not a picture that can be decoded (JPEG, PNG, WebP, BMP, GIF, TIFF)") from error
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert(mode)


def scaled(content: bytes, side: int) -> Scaled:
    """A picture whose longer side is `side` pixels. Raises Undecodable."""
    image = picture(content, "RGB")
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.full((side, side, 3), 127, np.uint8)
    pixels[: size[1], : size[0]] = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return Scaled(pixels, image.width, image.height, scale)


def sound(content: bytes, rate: int) -> np.ndarray:
    """Samples of a WAV, FLAC or OGG file at `rate` hertz, channels averaged, float32[n] within -1 and 1.

    Raises:
        Undecodable: It is none, is too long, or has no samples.
    """
    _require_size(content)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.format not in _SOUND_FORMATS:
                raise Undecodable(f"a sound of the format {file.format}; WAV, FLAC and OGG are read")
            if file.samplerate > _MAX_RATE or file.channels > _MAX_CHANNELS:
                raise Undecodable(f"{file.channels} channels at {file.samplerate} Hz")
            if file.frames > _MAX_SECONDS * file.samplerate:
                raise Undecodable(f"a sound of more than {_MAX_SECONDS} seconds")
            if file.frames * file.channels > _MAX_SAMPLES:
                raise Undecodable(f"a sound of more than {_MAX_SAMPLES:,} samples")
            samples, given = file.read(dtype="float32", always_2d=True).mean(axis=1), file.samplerate
    except soundfile.LibsndfileError as error:
        raise Undecodable("not a sound that can be decoded (WAV, FLAC, OGG)") from error
    if not len(samples) or not np.isfinite(samples).all():
        raise Undecodable("a sound without samples, or with samples that are no numbers")
    return samples if given == rate else resample_poly(samples, rate, given).astype(np.float32)


def _require_size(content: bytes) -> None:
    if len(content) > _MAX_BYTES:
        raise Undecodable(f"a file of {len(content):,} bytes, at most {_MAX_BYTES:,}")
