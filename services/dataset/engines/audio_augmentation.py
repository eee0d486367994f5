"""Operators that change a sound at random. Runs only in the limited child.

Samples are (n, channels) float32, from -1 to 1.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import signal

from services.dataset.engines.compressed_sound import open_sound, sound_blocks
from services.dataset.engines.decoding import open_wave, sound_format
from services.dataset.engines.image_augmentation import factor

Parameters = Mapping[str, Any]
Random = np.random.Generator

# A ratio of two small numbers is resampled by a short filter; the nearest one is less than 1 % off.
_DENOMINATOR = 64
_MOST_SEMITONES = 24
# Of the phase vocoder: 64 ms at 16 kHz, four windows over each sample.
_WINDOW, _HOP = 1024, 256

# Bytes a sample of a WAV file, by the subtypes of libsndfile: all others have nothing finer to keep than 16 bits.
_WIDTHS = {"PCM_S8": 1, "PCM_24": 3}


class Form(NamedTuple):
    """How samples are written.

    Attributes:
        rate: in hertz.
        width: bytes a sample.
    """

    rate: int
    width: int


def read_samples(path: Path) -> tuple[np.ndarray, Form]:
    """The samples of a sound, and the form of the WAV file that can hold them. Raises BadMedia."""
    if sound_format(path) == "wav":
        return _read_wave(path)
    with open_sound(path) as sound:
        samples = np.concatenate(list(sound_blocks(sound)))
        return samples, Form(sound.samplerate, _WIDTHS.get(sound.subtype, 2))


def _read_wave(path: Path) -> tuple[np.ndarray, Form]:
    with open_wave(path) as sound:
        parameters = sound.getparams()
        data = sound.readframes(parameters.nframes)
    width, channels = parameters.sampwidth, parameters.nchannels
    data = data[: len(data) - len(data) % (width * channels)]
    if width == 1:
        values = np.frombuffer(data, np.uint8).astype(np.float32) / 128 - 1
    elif width == 3:
        # 24 bits as the upper ones of 32.
        parts = np.zeros((len(data) // 3, 4), np.uint8)
        parts[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = parts.view("<i4").reshape(-1).astype(np.float32) / 2**31
    else:
        values = np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return values.reshape(-1, channels), Form(parameters.framerate, width)


def write_samples(path: Path, samples: np.ndarray, form: Form) -> None:
    """Writes samples as a WAV file; what is louder than possible is cut off."""
    width = form.width
    # The largest value of 32 bits is no float32.
    scaled = np.rint(samples.astype(np.float64) * 2 ** (8 * width - 1))
    whole = np.clip(scaled, -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1).astype("<i4")
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    elif width == 3:
        data = np.ascontiguousarray(np.ascontiguousarray(whole).view(np.uint8).reshape(-1, 4)[:, :3]).tobytes()
    else:
        data = whole.astype(f"<i{width}").tobytes()
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(samples.shape[1])
        sound.setsampwidth(width)
        sound.setframerate(form.rate)
        sound.writeframes(data)


def _speed(samples: np.ndarray, parameters: Parameters, random: Random) -> np.ndarray:
    return _resampled(samples, factor(parameters["max_change"], random))


def _pitch(samples: np.ndarray, parameters: Parameters, random: Random) -> np.ndarray:
    semitones = random.uniform(-1, 1) * min(parameters["max_semitones"], _MOST_SEMITONES)
    by = float(Fraction(2 ** (semitones / 12)).limit_denominator(_DENOMINATOR))
    # A short one is made as long as the window. Stretched and then played faster it is as long as before, and higher.
    whole = np.pad(samples, ((0, max(0, _WINDOW - len(samples))), (0, 0)))
    stretched = np.stack([_stretched(channel, by) for channel in whole.T], axis=1)
    higher = _resampled(stretched, by)[: len(samples)]
    return np.pad(higher, ((0, len(samples) - len(higher)), (0, 0)))


def _noise(samples: np.ndarray, parameters: Parameters, random: Random) -> np.ndarray:
    ratio = random.uniform(parameters["min_snr"], parameters["max_snr"])
    power = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    noise = random.standard_normal(samples.shape, np.float32)
    return samples + noise * np.float32(power / 10 ** (ratio / 20))


def _resampled(samples: np.ndarray, speed: float) -> np.ndarray:
    """Samples that played at the same rate take 1 / speed of the time."""
    ratio = Fraction(1 / speed).limit_denominator(_DENOMINATOR)
    return signal.resample_poly(samples, ratio.numerator, ratio.denominator, axis=0).astype(np.float32)


def _stretched(channel: np.ndarray, by: float) -> np.ndarray:
    """`by` times as long with the same pitch: a phase vocoder."""
    _, _, spectrum = signal.stft(channel, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
    places = np.arange(0, spectrum.shape[1] - 1, 1 / by)
    before = places.astype(int)
    share = (places - before).astype(np.float32)
    sizes = (1 - share) * np.abs(spectrum[:, before]) + share * np.abs(spectrum[:, before + 1])
    expected = 2 * np.pi * _HOP * np.arange(spectrum.shape[0]) / _WINDOW
    phases = np.angle(spectrum)
    turn = phases[:, before + 1] - phases[:, before] - expected[:, None]
    turn = expected[:, None] + turn - 2 * np.pi * np.rint(turn / (2 * np.pi))
    turned = phases[:, :1] + np.cumsum(np.pad(turn, ((0, 0), (1, 0)))[:, :-1], axis=1)
    _, stretched = signal.istft(sizes * np.exp(1j * turned), nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
    return stretched.astype(np.float32)


AUDIO_OPERATIONS: dict[str, Callable[[np.ndarray, Parameters, Random], np.ndarray]] = {
    "speed": _speed,
    "pitch": _pitch,
    "noise": _noise,
}
