"""Classes of texts: the mean of the vectors of hashed n-grams, and a linear layer (Joulin et al., 2017, "Bag of tricks
for efficient text classification")."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from services.training.engines.algorithms.declared import declare
from services.training.engines.algorithms.features import read_columns
from services.training.engines.algorithms.figures import class_numbers, classes_of, classification
from services.training.engines.algorithms.interface import Json, Table, Trained, Watch
from services.training.engines.algorithms.ngrams import ngrams

Array = np.ndarray

_ASKED_ROWS = 256


class Bags:
    """The n-grams of many texts, one behind the other."""

    def __init__(self, texts: Iterable[str], longest: int, buckets: int) -> None:
        found = [np.array(ngrams(text, longest, buckets), np.int32) for text in texts]
        self.starts = np.cumsum([0, *map(len, found)])
        self.grams = np.concatenate([*found, np.zeros(0, np.int32)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, rows: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """N-grams of these texts and where each text begins, as `EmbeddingBag` takes them."""
        parts = [self.grams[self.starts[row] : self.starts[row + 1]] for row in rows]
        offsets = np.cumsum([0, *map(len, parts)])[:-1]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)), torch.from_numpy(offsets.astype(np.int64))


class BagClassifier(nn.Module):
    """Logits from n-grams."""

    def __init__(self, buckets: int, dimension: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(buckets, dimension, mode="mean")
        self.output = nn.Linear(dimension, classes)
        # An n-gram that was never seen says nothing.
        nn.init.zeros_(self.embedding.weight)

    def forward(self, grams: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """(rows, classes)."""
        return self.output(self.embedding(grams, offsets))


def train_classification(train: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    """Learns the class of a text. See `Algorithm.train`."""
    bags, labels = _read(train, parameters)
    classes = classes_of(labels)
    known = class_numbers(classes, labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BagClassifier(parameters["buckets"], parameters["dimension"], len(classes))
        _fit(model, bags, known, parameters, seed, watch)
    config = {"kind": "bag-of-ngrams", "classes": classes, **_shape(parameters)}
    files = {
        "config.json": json.dumps(config, ensure_ascii=False).encode(),
        "labels.json": json.dumps(classes, ensure_ascii=False).encode(),
        "model.safetensors": save(model.state_dict()),
    }
    results = {}
    if heldout is not None:
        held, right = _read(heldout, parameters)
        results = classification(_probabilities(model, held), class_numbers(classes, right), known)
    return Trained(files, results, sum(each.numel() for each in model.parameters()))


class TextPredictor:
    """A model of texts. Inputs are texts."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._config: Json = json.loads(files["config.json"])
        self._model = BagClassifier(self._config["buckets"], self._config["dimension"], len(self._config["classes"]))
        self._model.load_state_dict(load(files["model.safetensors"]))

    def predict(self, inputs: list[Any]) -> list[Any]:
        """`{"label": ..., "scores": [...]}` with a score for each class of `labels.json`, for each text."""
        bags = Bags(inputs, self._config["ngrams"], self._config["buckets"])
        classes = self._config["classes"]
        return [
            {"label": classes[int(scores.argmax())], "scores": scores.tolist()}
            for scores in _probabilities(self._model, bags)
        ]


def _shape(parameters: Json) -> Json:
    return {name: parameters[name] for name in ("ngrams", "buckets", "dimension")}


def _read(table: Table, parameters: Json) -> tuple[Bags, Sequence[Any]]:
    text, label = parameters["text_column"], parameters["label_column"]
    columns = read_columns(table, [text, label])
    texts = ("" if value is None else str(value) for value in columns[text])
    return Bags(texts, parameters["ngrams"], parameters["buckets"]), columns[label]


def _fit(model: BagClassifier, bags: Bags, known: Array, parameters: Json, seed: int, watch: Watch) -> None:
    """Adam; the learning rate falls to nothing in a straight line, as in the paper."""
    epochs, size = parameters["epochs"], parameters["batch_size"]
    choose = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=float(parameters["learning_rate"]))
    steps = epochs * -(-len(bags) // size)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    step = 0
    for epoch in range(epochs):
        order, summed = choose.permutation(len(bags)), 0.0
        for start in range(0, len(bags), size):
            watch.stop_if_cancelled()
            rows = order[start : start + size]
            loss = functional.cross_entropy(model(*bags.batch(rows)), torch.from_numpy(known[rows]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
            summed += loss.item() * len(rows)
            step += 1
        watch.metrics(step, {"loss": summed / len(bags)})
        watch.progress(0.9 * (epoch + 1) / epochs, f"epoch {epoch + 1} of {epochs}")


def _probabilities(model: BagClassifier, bags: Bags) -> Array:
    """(n, classes)."""
    parts = [np.zeros((0, model.output.out_features), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(bags), _ASKED_ROWS):
            rows = np.arange(start, min(len(bags), start + _ASKED_ROWS))
            parts.append(model(*bags.batch(rows)).softmax(dim=1).numpy())
    return np.concatenate(parts)


CLASSIFICATION = declare("text-classification", train_classification, TextPredictor)
