"""Speech commands: which of a few words is spoken in a short sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.training.domain.algorithm_parameters import SPEECH
from services.training.engines.algorithms.decoding import Undecodable, media_of, sound
from services.training.engines.algorithms.files import config_of, files_of, table_of, with_weights
from services.training.engines.algorithms.interface import Algorithm, Json, Table, Trained, Watch
from services.training.engines.algorithms.mel import log_mel
from services.training.engines.algorithms.reading import held_out, invalid, labels_of, most_common, rows_of, text_of
from services.training.engines.algorithms.steps import fit, parameter_count, seeded

_NAME = "speech-commands"
# Telephone speech is understood: what is above 4 kHz tells few words apart, and costs twice.
_RATE = 8000
# Sainath & Parada, 2015, who began keyword spotting by convolutions, take forty bands.
_BANDS = 40
# What is learned from is moved by up to so many frames of 10 ms to either side, for a word begins anywhere.
_SHIFT = 8
_BATCH = 64

Array = np.ndarray


class Network(nn.Module):
    """Convolutions along time over the bands, then the mean and the maximum of each channel over time.

    Args:
        classes: how many.
        channels: of each convolution.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _stage(_BANDS, channels, 2), _stage(channels, channels, 2), _stage(channels, channels, 1)
        )
        self.classes = nn.Linear(2 * channels, classes)

    def forward(self, spectra: Tensor) -> Tensor:
        """Logits, float[n, classes], of spectra, float[n, frames, bands]."""
        found = self.convolutions(spectra.transpose(1, 2))
        return self.classes(torch.cat([found.mean(2), found.amax(2)], dim=1))


def train(rows: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    learned, kept = held_out(lambda table: _read(table, parameters, watch), rows, heldout, seed)
    labels = labels_of((label for _, label in learned), parameters["label_column"])
    watch.log(f"{len(learned)} sounds of {len(labels)} words, {len(kept)} held out")
    spectra = np.stack([one for one, _ in learned])
    wanted = torch.tensor([labels.index(label) for _, label in learned])
    config = {"channels": parameters["channels"], "seconds": parameters["seconds"]}
    with seeded(seed) as device:
        model = Network(len(labels), parameters["channels"]).to(device)
        random = np.random.default_rng(seed)

        def loss_of(batch: Array) -> Tensor:
            moved = [np.roll(spectra[index], random.integers(-_SHIFT, _SHIFT + 1), axis=0) for index in batch]
            logits = model(torch.from_numpy(np.stack(moved)).to(device))
            return functional.cross_entropy(logits, wanted[torch.from_numpy(batch)].to(device))

        fit(model, loss_of, len(learned), parameters, seed, watch)
        said = Listener(model, labels, parameters["seconds"]).listen([one for one, _ in kept])
    right = [label for _, label in kept]
    usual = most_common(label for _, label in learned)
    results = {
        "accuracy": float(np.mean([one["label"] == label for one, label in zip(said, right, strict=True)])),
        "baseline.accuracy": float(np.mean([usual == label for label in right])),
        "train_rows": float(len(learned)),
        "heldout_rows": float(len(kept)),
    }
    return Trained(files_of(_NAME, config, model, labels=labels), results, parameter_count(model))


class Listener:
    """A trained recogniser.

    Args:
        labels: words in order of their numbers.
        seconds: of a sound that are listened to.
    """

    def __init__(self, model: Network, labels: list[str], seconds: float) -> None:
        self._model, self._labels, self._seconds = model, labels, seconds

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Files of sounds to `{label, score}`, the score being the probability of the word among those known.

        Raises:
            EngineError: CONTENT_INVALID, one cannot be decoded.
        """
        spectra = []
        for number, content in enumerate(inputs, 1):
            try:
                spectra.append(_spectrum(content, self._seconds))
            except Undecodable as error:
                raise invalid(number, "input", str(error)) from error
        return self.listen(spectra)

    @torch.no_grad()
    def listen(self, spectra: Sequence[Array]) -> list[Json]:
        """The word in each spectrum, float32[frames, bands]."""
        device = next(self._model.parameters()).device
        said = []
        for start in range(0, len(spectra), _BATCH):
            logits = self._model(torch.from_numpy(np.stack(spectra[start : start + _BATCH])).to(device))
            scores, numbers = logits.softmax(1).max(1)
            said += [
                {"label": self._labels[number], "score": score}
                for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
            ]
        return said


def load(files: dict[str, bytes]) -> Listener:
    config, labels = config_of(files, _NAME), table_of(files, "labels.json")
    return Listener(with_weights(Network(len(labels), config["channels"]), files), labels, config["seconds"])


def _read(table: Table, parameters: Json, watch: Watch) -> list[tuple[Array, str]]:
    audio, label, seconds = parameters["audio_column"], parameters["label_column"], parameters["seconds"]
    return [
        (media_of(table, row, audio, name, lambda content: _spectrum(content, seconds)), text_of(row, label, given))
        for row, (name, given) in rows_of(table, (audio, label), watch)
    ]


def _spectrum(content: bytes, seconds: float) -> Array:
    """The log-mel spectrum of the loudest part of a sound that is `seconds` long; a shorter one has silence behind it.

    Each band has mean 0 and the whole a standard deviation of 1, so that neither loudness nor the microphone matters.
    """
    samples, length = sound(content, _RATE), int(seconds * _RATE)
    if len(samples) > length:
        energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
        start = int((energy[length:] - energy[:-length]).argmax())
        samples = samples[start : start + length]
    spectrum = log_mel(np.pad(samples, (0, length - len(samples))), _BANDS, _RATE)
    spectrum = spectrum - spectrum.mean(axis=0)
    return spectrum / max(1e-3, float(spectrum.std()))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inputs, outputs, 5, stride, 2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())


ALGORITHM = Algorithm(
    name=_NAME,
    task="speech-recognition",
    framework="pytorch",
    parameters=SPEECH,
    train=train,
    load=load,
    columns=("audio_column", "label_column"),
)
