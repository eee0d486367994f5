"""Operators that change a film at random, within its frames and between them. Runs only in the limited child.

OpenCV writes no sound: the augmented film is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from services.dataset.engines.decoding import BadMedia, open_video
from services.dataset.engines.image_augmentation import factor, with_noise

Parameters = Mapping[str, Any]
Random = np.random.Generator
# (height, width, 3) uint8 each.
Frames = list[np.ndarray]

# Frames are in memory together, because they may be played backwards.
_MOST_BYTES = 1024**3


def read_frames(path: Path) -> tuple[Frames, float]:
    """All frames and their number a second. Raises BadMedia."""
    film = open_video(path)
    frames: Frames = []
    taken = 0
    while True:
        there, frame = film.read()
        if not there:
            break
        taken += frame.nbytes
        if taken > _MOST_BYTES:
            raise BadMedia(f"its frames need more than {_MOST_BYTES // 1024**2:,} MiB of memory; cut the film first")
        frames.append(frame)
    if not frames:
        raise BadMedia("no frame can be decoded")
    return frames, film.get(cv2.CAP_PROP_FPS)


def write_frames(path: Path, frames: Frames, fps: float) -> None:
    """Writes a film: AVI as Motion JPEG, MP4 as MPEG-4 part 2. Raises BadMedia for frames that these cannot have."""
    code = "MJPG" if path.suffix == ".avi" else "mp4v"
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), fps, (width, height))
    if not writer.isOpened():
        raise BadMedia(f"a film of {width} by {height} pixels with {fps:g} frames a second cannot be written")
    for frame in frames:
        writer.write(frame)
    writer.release()


def _brightness(frames: Frames, parameters: Parameters, random: Random) -> Frames:
    by = factor(parameters["max_change"], random)
    return [cv2.convertScaleAbs(frame, alpha=by) for frame in frames]


def _noise(frames: Frames, parameters: Parameters, random: Random) -> Frames:
    return [with_noise(frame, parameters["max_deviation"], random) for frame in frames]


def _drop(frames: Frames, parameters: Parameters, random: Random) -> Frames:
    kept = [frame for frame in frames if random.random() >= parameters["share"]]
    return kept or frames[:1]


def _repeat(frames: Frames, parameters: Parameters, random: Random) -> Frames:
    times = [2 if random.random() < parameters["share"] else 1 for _ in frames]
    return [frame for frame, count in zip(frames, times, strict=True) for _ in range(count)]


def _reverse(frames: Frames, _parameters: Parameters, _random: Random) -> Frames:
    return frames[::-1]


VIDEO_OPERATIONS: dict[str, Callable[[Frames, Parameters, Random], Frames]] = {
    "brightness": _brightness,
    "noise": _noise,
    "drop_frames": _drop,
    "repeat_frames": _repeat,
    "reverse": _reverse,
}
