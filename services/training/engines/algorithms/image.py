"""Classes of images: a small convolutional network, trained from nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from libs.compute.context import EngineError
from services.training.engines.algorithms.declared import declare
from services.training.engines.algorithms.decoding import Undecodable, picture
from services.training.engines.algorithms.figures import class_numbers, classes_of, classification
from services.training.engines.algorithms.interface import Json, Table, Trained, Watch

Array = np.ndarray

_ASKED_ROWS = 64


def decode(content: bytes, size: int, color: bool) -> Array:
    """(channels, size, size) uint8.

    Raises:
        ValueError: It is no image, or a huge one.
    """
    try:
        decoded = picture(content, "RGB" if color else "L")
    except Undecodable as error:
        raise ValueError(f"it cannot be decoded: {error}") from None
    small = decoded.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.uint8).reshape(size, size, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class ImageClassifier(nn.Module):
    """Three convolutions, each with batch normalisation and pooling to half, their mean, and a linear layer."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(4 * width, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(rows, classes) for (rows, channels, size, size) uint8."""
        return self.output(self.layers(pixels.float() / 127.5 - 1).mean(dim=(2, 3)))


def train_classification(train: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    """Learns the class of an image. See `Algorithm.train`."""
    pixels, labels = _read(train, parameters, watch)
    classes = classes_of(labels)
    known = class_numbers(classes, labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ImageClassifier(pixels.shape[1], parameters["width"], len(classes))
        _fit(model, pixels, known, parameters, seed, watch)
    config = {"kind": "convolutional", "classes": classes, **{name: parameters[name] for name in _SHAPE}}
    files = {
        "config.json": json.dumps(config, ensure_ascii=False).encode(),
        "labels.json": json.dumps(classes, ensure_ascii=False).encode(),
        "model.safetensors": save(model.state_dict()),
    }
    results = {}
    if heldout is not None:
        held, right = _read(heldout, parameters, watch)
        results = classification(_probabilities(model, held), class_numbers(classes, right), known)
    return Trained(files, results, sum(each.numel() for each in model.parameters()))


_SHAPE = ("size", "color", "width")


class ImagePredictor:
    """A model of images. Inputs are the bytes of image files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._config: Json = json.loads(files["config.json"])
        channels = 3 if self._config["color"] else 1
        self._model = ImageClassifier(channels, self._config["width"], len(self._config["classes"]))
        self._model.load_state_dict(load(files["model.safetensors"]))
        self._model.eval()

    def predict(self, inputs: list[Any]) -> list[Any]:
        """`{"label": ..., "scores": [...]}` with a score for each class of `labels.json`, for each image.

        Raises:
            ValueError: One is no image.
        """
        if not inputs:
            return []
        size, color, classes = self._config["size"], self._config["color"], self._config["classes"]
        scores = _probabilities(self._model, np.stack([decode(content, size, color) for content in inputs]))
        return [{"label": classes[int(row.argmax())], "scores": row.tolist()} for row in scores]


def _read(table: Table, parameters: Json, watch: Watch) -> tuple[Array, list[Any]]:
    """(n, channels, size, size) uint8 and the labels."""
    names = _rows(table, parameters["image_column"], parameters["label_column"])
    labels, pixels = list[Any](), list[Array]()
    for name, label in names:
        watch.stop_if_cancelled()
        pixels.append(_decoded(table.media, name, parameters))
        labels.append(label)
    return np.stack(pixels), labels


def _rows(table: Table, image: str, label: str) -> Iterator[tuple[str, Any]]:
    for batch in table.batches():
        yield from zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True)


def _decoded(media: Callable[[str], bytes], name: str, parameters: Json) -> Array:
    try:
        return decode(media(name), parameters["size"], parameters["color"])
    except ValueError as error:
        raise EngineError("CONTENT_INVALID", f"Image {name!r} cannot be used: {error}.", detail=str(name)) from None


def _fit(model: ImageClassifier, pixels: Array, known: Array, parameters: Json, seed: int, watch: Watch) -> None:
    """AdamW with a learning rate that rises and falls once (Smith and Topin, 2018)."""
    epochs, size = parameters["epochs"], parameters["batch_size"]
    choose = np.random.default_rng(seed)
    starts = range(0, len(pixels), size)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, float(parameters["learning_rate"]), total_steps=epochs * len(starts) + 1
    )
    model.train()
    for epoch in range(epochs):
        order, summed = choose.permutation(len(pixels)), 0.0
        for start in starts:
            watch.stop_if_cancelled()
            rows = order[start : start + size]
            logits = model(torch.from_numpy(pixels[rows]))
            loss = functional.cross_entropy(logits, torch.from_numpy(known[rows]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
            summed += loss.item() * len(rows)
        watch.metrics((epoch + 1) * len(starts), {"loss": summed / len(pixels)})
        watch.progress(0.9 * (epoch + 1) / epochs, f"epoch {epoch + 1} of {epochs}")
    model.eval()


def _probabilities(model: ImageClassifier, pixels: Array) -> Array:
    """(n, classes)."""
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(pixels[start : start + _ASKED_ROWS])).softmax(dim=1).numpy()
            for start in range(0, len(pixels), _ASKED_ROWS)
        ]
    return np.concatenate(parts)


CLASSIFICATION = declare("image-classification", train_classification, ImagePredictor)
