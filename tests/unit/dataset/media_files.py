"""Images, sounds and films made for tests."""

from __future__ import annotations

import io
import tempfile
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def image(width: int = 32, height: int = 24, format: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture in which every place looks different."""
    shape = (height, width, 3)
    picture = Image.fromarray(np.random.default_rng(7).integers(0, 256, shape, np.uint8), "RGB").convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def sound(seconds: float = 0.1, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    """A tone of 440 Hz."""
    frames = int(seconds * rate)
    tone = np.sin(np.arange(frames) * 2 * np.pi * 440 / rate)
    samples = np.repeat((tone * 0.5 * 2 ** (8 * width - 1)).astype(f"<i{width}"), channels)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def compressed(format: str, subtype: str | None = None, frames: int = 4000, channels: int = 1) -> bytes:
    """A tone of 440 Hz as FLAC, OGG or MP3, 8,000 samples a second."""
    import soundfile

    tone = 0.5 * np.sin(np.arange(frames) * 2 * np.pi * 440 / 8000)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(tone[:, None], channels, axis=1), 8000, format=format, subtype=subtype)
    return buffer.getvalue()


def film(frames: int = 12, ending: str = "avi", code: str = "MJPG", size: tuple[int, int] = (64, 48)) -> bytes:
    """Frames that grow brighter, ten a second."""
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film.{ending}"
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), 10, size)
        for number in range(frames):
            writer.write(np.full((size[1], size[0], 3), 20 + 10 * number, np.uint8))
        writer.release()
        return path.read_bytes()


def film_with_beep(
    ending: str = "avi", beep: int = 7, parts: Sequence[tuple[int, int]] = ((0, 20),), rate: int = 16_000
) -> bytes:
    """Twenty frames of `film` with a sound: silence, and as long as one of them is shown a tone of 1,000 Hz.

    Args:
        beep: the number of that frame.
        parts: the sound is there from frames to frames only.
    """
    import av

    a_frame = rate // 10
    samples = np.zeros((1, 20 * a_frame), np.float32)
    samples[0, beep * a_frame : (beep + 1) * a_frame] = 0.5 * np.sin(np.arange(a_frame) * 2 * np.pi * 1000 / rate)
    with tempfile.TemporaryDirectory() as folder:
        silent, path = Path(folder) / f"silent.{ending}", Path(folder) / f"film.{ending}"
        silent.write_bytes(film(20, ending, "MJPG" if ending == "avi" else "mp4v"))
        with av.open(str(silent)) as source, av.open(str(path), "w") as target:
            picture = target.add_stream_from_template(source.streams.video[0])
            codec = {"avi": "pcm_s16le", "mp4": "aac", "mkv": "pcm_s16le"}[ending]
            track = target.add_stream(codec, rate, layout="mono")
            assert isinstance(track, av.AudioStream)
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = picture
                    target.mux(packet)
            for first, last in parts:
                heard = av.AudioFrame.from_ndarray(samples[:, first * a_frame : last * a_frame], "fltp", "mono")
                heard.rate, heard.pts, heard.time_base = rate, first * a_frame, Fraction(1, rate)
                target.mux(track.encode(heard))
            target.mux(track.encode(None))
        return path.read_bytes()
