"""The sound of a film: read, and written beside its frames, by PyAV. Runs only in the limited child."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from services.dataset.engines.decoding import BadMedia, film_format, require_form

try:
    import av
    from av.container import InputContainer, OutputContainer
except ImportError as error:
    raise BadMedia("films are changed with the package av: install Argosy with its extra `film`") from error

# The containers that are written hold no other order of loudspeakers, by their number.
_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")
# Seconds. The clocks of some containers are a little off; what is further off is a gap.
_GAP = 0.04


class Sound(NamedTuple):
    """The sound of a film.

    Attributes:
        samples: (n, channels) float32, from -1 to 1.
        rate: in hertz.
    """

    samples: np.ndarray
    rate: int


def read_sound(path: Path, seconds: float) -> Sound | None:
    """The first sound of a film, from its first frame on.

    Args:
        seconds: how long its frames take: silence is added, or the end left out.

    Returns:
        None for a film without a sound.

    Raises:
        BadMedia: The sound is damaged, or too large.
    """
    options = {"protocol_whitelist": "file"}
    try:
        # Titles may be written in anything.
        with av.open(str(path), format=film_format(path), options=options, metadata_errors="replace") as film:
            return _decoded(film, seconds) if film.streams.audio else None
    except av.FFmpegError as error:
        raise BadMedia(f"its sound cannot be decoded: {error.strerror}") from error


def add_sound(silent: Path, out: Path, sound: Sound) -> None:
    """Writes the frames of a film with a sound: PCM of 16 bits in AVI, AAC in MP4. Raises BadMedia."""
    channels = sound.samples.shape[1]
    if channels > len(_LAYOUTS):
        raise BadMedia(f"its sound has {channels} channels; at most {len(_LAYOUTS)} can be written")
    try:
        with av.open(str(silent), format=film_format(silent)) as frames, av.open(str(out), "w") as film:
            _encode(frames, film, sound, "pcm_s16le" if out.suffix == ".avi" else "aac")
    except av.FFmpegError as error:
        raise BadMedia(f"its sound cannot be written: {error.strerror}") from error


def _decoded(film: InputContainer, seconds: float) -> Sound | None:
    picture = film.streams.video[0]
    begin = float((picture.start_time or 0) * (picture.time_base or 0))
    # Channels that take turns: to_ndarray reads beyond the end of a frame with a plane for each of eight.
    packed = av.AudioResampler("flt")
    sound: Sound | None = None
    at = 0
    for frame in film.decode(film.streams.audio[0]):
        rate, channels = frame.rate, frame.layout.nb_channels
        told = at if frame.time is None else round((frame.time - begin) * rate)
        if sound is None:
            require_form(channels, rate, frame.samples)
            sound, at = Sound(np.zeros((round(seconds * rate), channels), np.float32), rate), told
        if (rate, channels) != (sound.rate, sound.samples.shape[1]):
            raise BadMedia("its sound changes its rate or its channels on the way")
        if abs(told - at) > _GAP * rate:
            at = told
        for part in packed.resample(frame):
            at = _put(sound.samples, at, part.to_ndarray().reshape(-1, channels))
        if at >= len(sound.samples):
            break
    return sound


def _put(samples: np.ndarray, at: int, block: np.ndarray) -> int:
    """Puts a block at its place, as far as it lies among the samples. Gives where the next one begins."""
    first, last = max(at, 0), min(at + len(block), len(samples))
    if first < last:
        samples[first:last] = block[first - at : last - at]
    return at + len(block)


def _encode(frames: InputContainer, film: OutputContainer, sound: Sound, codec: str) -> None:
    source = frames.streams.video[0]
    picture = film.add_stream_from_template(source)
    # AAC has some rates only; the nearest one is taken.
    rates = av.Codec(codec, "w").audio_rates or [sound.rate]
    layout = _LAYOUTS[sound.samples.shape[1] - 1]
    track = film.add_stream(codec, min(rates, key=lambda rate: abs(rate - sound.rate)), layout=layout)
    assert isinstance(track, av.AudioStream)
    packets = [packet for packet in frames.demux(source) if packet.dts is not None]
    # Louder is not possible.
    samples = np.clip(sound.samples, -1, 1)
    at = 0
    for packet, block in zip(packets, np.array_split(samples, len(packets)), strict=True):
        packet.stream = picture
        film.mux(packet)
        if len(block):
            heard = av.AudioFrame.from_ndarray(block.reshape(1, -1), "flt", layout)
            heard.rate, heard.pts, heard.time_base = sound.rate, at, Fraction(1, sound.rate)
            film.mux(track.encode(heard))
        at += len(block)
    film.mux(track.encode(None))
