"""Text embedding: vectors whose cosine says how much two texts mean the same, learned from pairs that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from libs.compute.context import EngineError
from services.training.domain.algorithm_parameters import EMBEDDING
from services.training.engines.algorithms.files import config_of, files_of, with_weights
from services.training.engines.algorithms.grams import bag, hashed
from services.training.engines.algorithms.interface import Algorithm, Json, Table, Trained, Watch
from services.training.engines.algorithms.ranking import mean_reciprocal_rank, ranks, recall_at_1
from services.training.engines.algorithms.reading import held_out, rows_of, text_of
from services.training.engines.algorithms.steps import fit, parameter_count, seeded

_NAME = "text-embedding"
# Held-out pairs that are measured, at most: their similarities are 64 MB.
_MEASURED = 4096
# Counts of parts of words of the baseline share a number seldom in so many.
_BASELINE_BUCKETS = 1 << 12
_BATCH = 256


@dataclass(frozen=True)
class _Pair:
    """A row; the negative is empty where there is none."""

    anchor: str
    positive: str
    negative: str


class Network(nn.Module):
    """Mean of the vectors of words and their parts, then one hidden layer beside the identity.

    The order of words counts only within what four characters span.

    Args:
        buckets: vectors that words and parts share by a hash (Bojanowski et al., 2017).
        width: of a vector.
    """

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(buckets, width, mode="mean")
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, grams: Tensor, starts: Tensor) -> Tensor:
        """Vectors of length 1, float[n, width].

        Args:
            grams: numbers of all texts, one after another, int64[total].
            starts: the first of each text, int64[n].
        """
        mean = self.grams(grams, starts)
        return functional.normalize(mean + self.hidden(mean), dim=1)


def info_nce(anchors: Tensor, candidates: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of finding the positive of each anchor among all candidates (Oord et al., 2018).

    Args:
        anchors: of length 1, float[n, width].
        candidates: the n positives in the order of the anchors, then further negatives, float[m, width].
        same: candidates that have the text of the anchor's positive without being it, bool[n, m]; they are left out.
        temperature: that cosines are divided by.
    """
    cosines = (anchors @ candidates.T).masked_fill(same, -torch.inf)
    return functional.cross_entropy(cosines / temperature, torch.arange(len(anchors), device=anchors.device))


def train(rows: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    learned, kept = held_out(lambda table: _read(table, parameters, watch), rows, heldout, seed)
    kept = kept[:_MEASURED]
    if len({pair.positive for pair in learned}) < 2:
        raise EngineError(
            "CONTENT_INVALID",
            "All rows have the same positive, so there is nothing to tell apart.",
            detail=parameters["positive_column"],
        )
    watch.log(f"{len(learned)} pairs, {len(kept)} held out")
    buckets, width, temperature = parameters["buckets"], parameters["width"], parameters["temperature"]
    texts = sorted({text for pair in learned for text in (pair.anchor, pair.positive, pair.negative) if text})
    grams = {text: hashed(text, buckets) for text in texts}
    with seeded(seed) as device:
        model = Network(buckets, width).to(device)

        def embedded(some: Sequence[str]) -> Tensor:
            return model(*_flat([grams[text] for text in some], device))

        def loss_of(batch: np.ndarray) -> Tensor:
            pairs = [learned[index] for index in batch]
            candidates = [pair.positive for pair in pairs] + [pair.negative for pair in pairs if pair.negative]
            same = _same(candidates, len(pairs)).to(device)
            return info_nce(embedded([pair.anchor for pair in pairs]), embedded(candidates), same, temperature)

        fit(model, loss_of, len(learned), parameters, seed, watch)
        embedder = Embedder(model, buckets)
        ours = _ranks(kept, embedder.embed)
    plain = _ranks(kept, lambda some: np.stack([bag(text, _BASELINE_BUCKETS) for text in some]))
    count = len({pair.positive for pair in kept})
    results = {
        "recall_at_1": recall_at_1(ours),
        "mrr": mean_reciprocal_rank(ours),
        "baseline.recall_at_1": recall_at_1(plain),
        "baseline.mrr": mean_reciprocal_rank(plain),
        # Of a random order of the candidates these are the expectations.
        "baseline.random.recall_at_1": 1 / count,
        "baseline.random.mrr": float((1 / np.arange(1, count + 1)).mean()),
        "train_rows": float(len(learned)),
        "heldout_rows": float(len(kept)),
    }
    config = {"buckets": buckets, "width": width}
    return Trained(files_of(_NAME, config, model), results, parameter_count(model))


class Embedder:
    """A trained embedding.

    Args:
        buckets: of its words and parts.
    """

    def __init__(self, model: Network, buckets: int) -> None:
        self._model, self._buckets = model, buckets

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Texts to vectors of length 1.

        Raises:
            EngineError: CONTENT_INVALID, one is empty.
        """
        return self.embed([text_of(number, "input", text) for number, text in enumerate(inputs, 1)]).tolist()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors, float32[texts, width]."""
        device = next(self._model.parameters()).device
        found = [np.zeros((0, self._model.grams.embedding_dim), np.float32)]
        for start in range(0, len(texts), _BATCH):
            grams = [hashed(text, self._buckets) for text in texts[start : start + _BATCH]]
            found.append(self._model(*_flat(grams, device)).cpu().numpy())
        return np.concatenate(found)


def load(files: dict[str, bytes]) -> Embedder:
    config = config_of(files, _NAME)
    return Embedder(with_weights(Network(config["buckets"], config["width"]), files), config["buckets"])


def _read(table: Table, parameters: Json, watch: Watch) -> list[_Pair]:
    anchor, positive, negative = (parameters[f"{name}_column"] for name in ("anchor", "positive", "negative"))
    names = (anchor, positive, negative) if negative else (anchor, positive)
    return [
        _Pair(
            text_of(row, anchor, values[0]),
            text_of(row, positive, values[1]),
            str(values[2] or "").strip() if negative else "",
        )
        for row, values in rows_of(table, names, watch)
    ]


def _flat(grams: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    ends = np.cumsum([len(one) for one in grams])
    starts = torch.from_numpy(np.concatenate([[0], ends[:-1]]))
    return torch.from_numpy(np.concatenate(grams)).to(device), starts.to(device)


def _same(candidates: Sequence[str], count: int) -> Tensor:
    """Which candidates have the same text as one of the first `count` without being it, bool[count, candidates]."""
    numbers: dict[str, int] = {}
    ids = torch.tensor([numbers.setdefault(text, len(numbers)) for text in candidates])
    return (ids[:count, None] == ids[None]) & ~torch.eye(count, len(candidates), dtype=torch.bool)


def _ranks(pairs: Sequence[_Pair], embed: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """Where each positive comes among the different positives of all pairs, by its cosine with the anchor."""
    candidates = sorted({pair.positive for pair in pairs})
    numbers = {text: number for number, text in enumerate(candidates)}
    right = np.array([numbers[pair.positive] for pair in pairs])
    return ranks(embed([pair.anchor for pair in pairs]) @ embed(candidates).T, right)


ALGORITHM = Algorithm(
    name=_NAME,
    task="embedding",
    framework="pytorch",
    parameters=EMBEDDING,
    train=train,
    load=load,
    columns=("anchor_column", "positive_column", "negative_column"),
)
