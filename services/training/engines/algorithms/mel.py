"""Log-mel spectra of sounds."""

from __future__ import annotations

import numpy as np

# Davis & Mermelstein, 1980, and every recogniser since: a window of about 25 ms each 10 ms.
_WINDOW_SECONDS, _HOP_SECONDS = 0.025, 0.010
# Some steps of 16-bit sound: what is below is silence, and its logarithm is finite.
_FLOOR = 1e-6


def to_mel(hertz: np.ndarray) -> np.ndarray:
    """The mel scale, 2595 log10(1 + f / 700) (O'Shaughnessy, 1987)."""
    return 2595 * np.log10(1 + hertz / 700)


def to_hertz(mel: np.ndarray) -> np.ndarray:
    """The inverse of `to_mel`."""
    return 700 * (10 ** (mel / 2595) - 1)


def filters(bands: int, bins: int, rate: int) -> np.ndarray:
    """Triangles whose corners are evenly spaced in mel from 0 to half the rate, float32[bands, bins].

    Each rises from 0 at the peak of the one before to 1 at its own and falls to 0 at the next (Davis & Mermelstein,
    1980).

    Args:
        bins: of the power spectrum, evenly spaced from 0 to half the rate.
        rate: samples a second.
    """
    corners = to_hertz(np.linspace(0, to_mel(np.array(rate / 2)), bands + 2))
    hertz = np.linspace(0, rate / 2, bins)
    rising = (hertz - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - hertz) / np.diff(corners)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


def log_mel(samples: np.ndarray, bands: int, rate: int) -> np.ndarray:
    """Natural logarithm of the power in each band, float32[frames, bands].

    Args:
        samples: float32[n], at least a window (`rate` / 40).
    """
    window, hop = int(rate * _WINDOW_SECONDS), int(rate * _HOP_SECONDS)
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    size = 1 << (window - 1).bit_length()
    power = np.abs(np.fft.rfft(frames * np.hanning(window), size)) ** 2
    return np.log(power @ filters(bands, size // 2 + 1, rate).T + _FLOOR).astype(np.float32)
