"""Spoken digits. Their sound is made: harmonics of a pitch through the formants of vowels and nasals, noise in bands
for fricatives, bursts for stops. Speakers differ in pitch, length of the throat and speed, with noise behind them."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from services.training.engines.algorithms.interface import Table, Trained
from services.training.engines.algorithms.speech import ALGORITHM
from tests.integration.training.algorithms import (
    Recorder,
    parameters,
    refusal,
    require_cancel,
    require_damage_is_seen,
    require_reports,
    require_reproducible,
    table,
)

_QUICK = parameters(ALGORITHM, channels=8, seconds=0.5, epochs=1, batch_size=8)
_RATE = 8000
# Peterson & Barney, 1952, table II (men), to the nearest ten hertz; the nasal and the liquid by ear.
_VOICED = {
    "i": (270, 2290, 3010), "e": (530, 1840, 2480), "a": (730, 1090, 2440), "o": (570, 840, 2410),
    "u": (300, 870, 2240), "n": (250, 1500, 2300), "r": (490, 1350, 1690),
}  # fmt: skip
# Lowest and highest hertz of the noise, and its strength.
_NOISE = {
    "s": (2800, 4000, 0.5),
    "z": (2400, 4000, 0.3),
    "f": (1000, 4000, 0.12),
    "th": (1600, 3600, 0.15),
    "v": (300, 2500, 0.1),
}
_DIGITS = {
    "zero": "z i r o", "one": "u a n", "two": "- t u", "three": "th r i", "four": "f o r", "five": "f a i v",
    "six": "s i - k s", "seven": "s e v e n", "eight": "e i - t", "nine": "n a i n",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Speaker:
    """Pitch in hertz, factor of the formants, factor of the length of each sound."""

    pitch: float
    throat: float
    slow: float


def spoken(word: str, speaker: Speaker, random: np.random.Generator) -> np.ndarray:
    """Samples of a word."""
    parts = [phone(name, speaker, random) for name in _DIGITS[word].split()]
    quiet = [np.zeros(int(random.integers(100, 800))) for _ in range(2)]
    clean = np.concatenate([quiet[0], *parts, quiet[1]])
    noise = random.normal(0, 1, len(clean)) * 10 ** random.uniform(-2.2, -1.5)
    return 0.3 * random.uniform(0.5, 1) * clean / np.abs(clean).max() + 0.3 * noise


def phone(name: str, speaker: Speaker, random: np.random.Generator) -> np.ndarray:
    count = int(_RATE * random.uniform(0.06, 0.10) * speaker.slow)
    time = np.arange(count) / _RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    if name == "-":
        return np.zeros(count // 2)
    if name in ("t", "k"):
        burst = band(count // 3, *((2500, 4000) if name == "t" else (1200, 2200)), random)
        return 0.6 * burst * np.exp(-np.arange(count // 3) / 60)
    if name in _NOISE:
        low, high, strength = _NOISE[name]
        return strength * band(count, low, high, random) * fade
    harmonics = np.arange(1, int(3800 / speaker.pitch)) * speaker.pitch
    formants = np.array(_VOICED[name]) * speaker.throat * random.uniform(0.95, 1.05, 3)
    # Resonances of 80, 100 and 140 Hz, each weaker than the one below.
    gain = (np.array([1, 0.6, 0.3]) / (1 + ((harmonics[:, None] - formants) / [80, 100, 140]) ** 2)).sum(axis=1)
    return (gain[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time)).sum(axis=0) * fade / 3


def band(count: int, low: float, high: float, random: np.random.Generator) -> np.ndarray:
    """Noise between two frequencies."""
    spectrum = np.fft.rfft(random.normal(0, 1, count))
    hertz = np.fft.rfftfreq(count, 1 / _RATE)
    return np.fft.irfft(spectrum * ((hertz >= low) & (hertz <= high)), count)


def wav(samples: np.ndarray, rate: int = _RATE) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()


def words(speakers: int, seed: int) -> Table:
    """Each speaker says each digit once."""
    random = np.random.default_rng(seed)
    rows, media = [], {}
    for _ in range(speakers):
        speaker = Speaker(random.uniform(90, 240), random.uniform(0.92, 1.18), random.uniform(0.8, 1.25))
        for word in _DIGITS:
            name = f"{len(rows)}.wav"
            rows.append({"file_name": name, "label": word})
            media[name] = wav(spoken(word, speaker, random))
    return table(rows, media)


@pytest.fixture(scope="module")
def trained() -> tuple[Trained, Recorder]:
    watch = Recorder()
    given = parameters(ALGORITHM, channels=32, seconds=0.6, epochs=12, batch_size=16)
    return ALGORITHM.train(words(20, 1), words(12, 2), given, 5, watch), watch


def test_it_understands_speakers_that_it_never_heard(trained: tuple[Trained, Recorder]) -> None:
    results = trained[0].results
    assert results["baseline.accuracy"] == pytest.approx(0.1)
    # 1.00 with two seeds.
    assert results["accuracy"] > results["baseline.accuracy"] + 0.6
    require_reports(trained[1])


def test_files_give_the_listener_back(trained: tuple[Trained, Recorder]) -> None:
    listener = ALGORITHM.load(trained[0].files)
    random = np.random.default_rng(7)
    sounds = [wav(spoken(word, Speaker(140, 1.0, 1.0), random)) for word in _DIGITS]
    said = listener.predict(sounds)
    assert sum(one["label"] == word for one, word in zip(said, _DIGITS, strict=True)) >= 7
    assert all(0.1 < one["score"] <= 1 for one in said)
    assert listener.predict([]) == []
    require_damage_is_seen(ALGORITHM, trained[0].files)


def test_rate_and_loudness_do_not_matter(trained: tuple[Trained, Recorder]) -> None:
    listener = ALGORITHM.load(trained[0].files)
    samples = spoken("nine", Speaker(120, 1.0, 1.0), np.random.default_rng(3))
    twice = np.interp(np.arange(2 * len(samples)) / 2, np.arange(len(samples)), samples)
    silence = np.zeros(_RATE)
    one, quiet, finer, long = listener.predict(
        [wav(samples), wav(samples / 4), wav(twice, 2 * _RATE), wav(np.concatenate([silence, samples, silence]))]
    )
    assert {one["label"], quiet["label"], finer["label"], long["label"]} == {"nine"}


def test_one_seed_one_model() -> None:
    require_reproducible(ALGORITHM, words(2, 4), _QUICK)


def test_it_can_be_cancelled() -> None:
    require_cancel(ALGORITHM, words(3, 4), _QUICK)


def test_bad_rows_are_named() -> None:
    media = {"a.wav": wav(np.ones(4000)), "bad.wav": b"RIFF....WAVE", "none.wav": wav(np.zeros(0))}
    rows = [{"file_name": "a.wav", "label": label} for label in ("yes", "no") * 5]

    def said(row: dict[str, str | None]) -> str:
        return refusal(ALGORITHM, table([*rows, row], media), _QUICK)

    assert "Row 11, column 'label': empty" in said({"file_name": "a.wav", "label": None})
    assert "Row 11, column 'file_name': not a sound" in said({"file_name": "bad.wav", "label": "yes"})
    assert "Row 11, column 'file_name': a sound without samples" in said({"file_name": "none.wav", "label": "yes"})
    assert "one label 'yes'; two are needed" in refusal(ALGORITHM, table(rows[::2] * 3, media), _QUICK)
    assert "no column 'label'" in refusal(ALGORITHM, table([{"file_name": "a.wav"}], media), _QUICK)
