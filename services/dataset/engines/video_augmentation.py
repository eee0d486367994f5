"""Operators that change a film at random: its frames, their order, and its sound. Runs only in the limited child.

OpenCV reads and writes the frames; it knows no sound, which is for `film_sound`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from services.dataset.engines.audio_augmentation import AUDIO_OPERATIONS
from services.dataset.engines.decoding import BadMedia, open_video
from services.dataset.engines.film_sound import Sound, add_sound, read_sound
from services.dataset.engines.image_augmentation import factor, with_noise

Parameters = Mapping[str, Any]
Random = np.random.Generator
# (height, width, 3) uint8 each.
Frames = list[np.ndarray]

# Frames are in memory together, because they may be played backwards.
_MOST_BYTES = 1024**3


class Film(NamedTuple):
    """A film in memory.

    Attributes:
        frames: taken to be evenly spaced.
        fps: their number a second.
        sound: as long as they are; None for a film without a sound.
    """

    frames: Frames
    fps: float
    sound: Sound | None


def read_film(path: Path) -> Film:
    """All frames, and the sound. Raises BadMedia."""
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
    fps = film.get(cv2.CAP_PROP_FPS)
    return Film(frames, fps, read_sound(path, len(frames) / fps))


def write_film(path: Path, film: Film) -> None:
    """Writes a film: AVI as Motion JPEG, MP4 as MPEG-4 part 2. Raises BadMedia for a film that these cannot hold."""
    if film.sound is None:
        _write_frames(path, film.frames, film.fps)
        return
    silent = path.with_name(f"silent-{path.name}")
    try:
        _write_frames(silent, film.frames, film.fps)
        add_sound(silent, path, film.sound)
    finally:
        silent.unlink(missing_ok=True)


def _write_frames(path: Path, frames: Frames, fps: float) -> None:
    code = "MJPG" if path.suffix == ".avi" else "mp4v"
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), fps, (width, height))
    if not writer.isOpened():
        raise BadMedia(f"a film of {width} by {height} pixels with {fps:g} frames a second cannot be written")
    for frame in frames:
        writer.write(frame)
    writer.release()


def _brightness(film: Film, parameters: Parameters, random: Random) -> Film:
    by = factor(parameters["max_change"], random)
    return film._replace(frames=[cv2.convertScaleAbs(frame, alpha=by) for frame in film.frames])


def _noise(film: Film, parameters: Parameters, random: Random) -> Film:
    return film._replace(frames=[with_noise(frame, parameters["max_deviation"], random) for frame in film.frames])


def _drop(film: Film, parameters: Parameters, random: Random) -> Film:
    kept = [number for number in range(len(film.frames)) if random.random() >= parameters["share"]]
    return _taken(film, kept or [0])


def _repeat(film: Film, parameters: Parameters, random: Random) -> Film:
    times = [2 if random.random() < parameters["share"] else 1 for _ in film.frames]
    return _taken(film, [number for number, count in enumerate(times) for _ in range(count)])


def _taken(film: Film, numbers: Sequence[int]) -> Film:
    """The frames of these numbers, each with its sound."""
    frames = [film.frames[number] for number in numbers]
    if film.sound is None:
        return film._replace(frames=frames)
    samples, rate = film.sound
    bounds = np.rint(np.arange(len(film.frames) + 1) * (rate / film.fps)).astype(int)
    heard = np.concatenate([samples[bounds[number] : bounds[number + 1]] for number in numbers])
    return film._replace(frames=frames, sound=Sound(heard, rate))


def _reverse(film: Film, _parameters: Parameters, _random: Random) -> Film:
    sound = film.sound and film.sound._replace(samples=film.sound.samples[::-1])
    return film._replace(frames=film.frames[::-1], sound=sound)


def _mute(samples: np.ndarray, _parameters: Parameters, _random: Random) -> np.ndarray:
    return np.zeros_like(samples)


def _on_sound(change: Callable[[np.ndarray, Parameters, Random], np.ndarray]) -> Callable[..., Film]:
    """Of an operator for samples, which leaves their number, one for films that have a sound."""

    def changed(film: Film, parameters: Parameters, random: Random) -> Film:
        assert film.sound is not None
        return film._replace(sound=film.sound._replace(samples=change(film.sound.samples, parameters, random)))

    return changed


# Of films with a sound.
SOUND_OPERATIONS: dict[str, Callable[..., Film]] = {
    "sound_pitch": _on_sound(AUDIO_OPERATIONS["pitch"]),
    "sound_noise": _on_sound(AUDIO_OPERATIONS["noise"]),
    "sound_mute": _on_sound(_mute),
}
VIDEO_OPERATIONS: dict[str, Callable[..., Film]] = {
    "brightness": _brightness,
    "noise": _noise,
    "drop_frames": _drop,
    "repeat_frames": _repeat,
    "reverse": _reverse,
    **SOUND_OPERATIONS,
}
