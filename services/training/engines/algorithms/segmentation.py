"""Chinese word segmentation: where the words of a text without spaces end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.training.domain.algorithm_parameters import SEGMENTATION
from services.training.engines.algorithms.files import config_of, files_of, table_of, with_weights
from services.training.engines.algorithms.interface import Algorithm, Json, Table, Trained, Watch
from services.training.engines.algorithms.reading import held_out, invalid, rows_of
from services.training.engines.algorithms.steps import fit, parameter_count, seeded
from services.training.engines.algorithms.word_tags import TAGS, best_tags, f1, longest_match, tags_of, words_of

_NAME = "chinese-word-segmentation"
# Characters of a part that is tagged at once; a longer text is cut, in training behind a word.
_LONGEST = 256
# Numbers of what is behind a text, and of characters that were seen once or never: the rare teach the unknown.
_NOTHING, _UNKNOWN = 0, 1
_NO_TAG = -100
_BATCH = 64

Words = list[str]


class Network(nn.Module):
    """Scores of the four tags of each character, from the characters and their pairs around it.

    Args:
        characters: how many there are, the two special ones included.
        channels: of a character.
    """

    def __init__(self, characters: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, channels, padding_idx=_NOTHING)
        # Two, four and two characters to either side: eight, more than two words.
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation) for dilation in (1, 2, 1)
        )
        self.tags = nn.Linear(channels, TAGS)

    def forward(self, characters: Tensor) -> Tensor:
        """Log-probabilities, float[n, length, 4], of int64[n, length]."""
        inside = (characters != _NOTHING)[:, None]
        found = self.embedding(characters).transpose(1, 2)
        for convolution in self.convolutions:
            found = (found + functional.relu(convolution(found))) * inside
        return self.tags(found.transpose(1, 2)).log_softmax(-1)


def train(rows: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    learned, kept = held_out(lambda table: _read(table, parameters, watch), rows, heldout, seed)
    numbers = _numbers(learned)
    parts = [part for words in learned for part in _parts(words)]
    watch.log(f"{len(learned)} texts with {len(numbers)} different characters, {len(kept)} held out")
    texts = [_numbered("".join(words), numbers) for words in parts]
    tags = [np.array(tags_of(words)) for words in parts]
    with seeded(seed) as device:
        model = Network(len(numbers) + 2, parameters["channels"]).to(device)

        def loss_of(batch: np.ndarray) -> Tensor:
            found = model(_padded([texts[index] for index in batch], _NOTHING).to(device))
            wanted = _padded([tags[index] for index in batch], _NO_TAG).to(device)
            return functional.nll_loss(found.flatten(0, 1), wanted.flatten(), ignore_index=_NO_TAG)

        fit(model, loss_of, len(parts), parameters, seed, watch)
        found = Segmenter(model, numbers).segment(["".join(words) for words in kept])
    words = frozenset(word for words in learned for word in words)
    longest = max(map(len, words))
    matched = [longest_match("".join(right), words, longest) for right in kept]
    results = {
        "f1": f1(zip(found, kept, strict=True)),
        "baseline.f1": f1(zip(matched, kept, strict=True)),
        "baseline.single_characters.f1": f1((list("".join(right)), right) for right in kept),
        "unknown_words": float(np.mean([word not in words for right in kept for word in right])),
        "train_rows": float(len(learned)),
        "heldout_rows": float(len(kept)),
    }
    config = {"channels": parameters["channels"]}
    files = files_of(_NAME, config, model, characters=list(numbers))
    return Trained(files, results, parameter_count(model))


class Segmenter:
    """A trained segmenter.

    Args:
        numbers: of the characters that it knows.
    """

    def __init__(self, model: Network, numbers: dict[str, int]) -> None:
        self._model, self._numbers = model, numbers

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Texts to lists of their words. White space ends a word and is in none.

        Raises:
            EngineError: CONTENT_INVALID, one is not a text.
        """
        for number, text in enumerate(inputs, 1):
            if not isinstance(text, str):
                raise invalid(number, "input", "not a text")
        pieces = [text.split() for text in inputs]
        found = iter(self.segment([piece for text in pieces for piece in text]))
        return [[word for _ in text for word in next(found)] for text in pieces]

    @torch.no_grad()
    def segment(self, texts: Sequence[str]) -> list[Words]:
        """The words of texts without white space."""
        device = next(self._model.parameters()).device
        parts = [text[start : start + _LONGEST] for text in texts for start in range(0, len(text), _LONGEST)]
        tags: list[list[int]] = []
        for start in range(0, len(parts), _BATCH):
            some = parts[start : start + _BATCH]
            numbered = _padded([_numbered(part, self._numbers) for part in some], _NOTHING)
            scores = self._model(numbered.to(device)).cpu().numpy()
            tags += [best_tags(score[: len(part)]) for part, score in zip(some, scores, strict=True)]
        rest = iter(tags)
        return [words_of(text, [tag for _ in range(0, len(text), _LONGEST) for tag in next(rest)]) for text in texts]


def load(files: dict[str, bytes]) -> Segmenter:
    config, characters = config_of(files, _NAME), table_of(files, "characters.json")
    numbers = {character: number for number, character in enumerate(characters, _UNKNOWN + 1)}
    return Segmenter(with_weights(Network(len(numbers) + 2, config["channels"]), files), numbers)


def _read(table: Table, parameters: Json, watch: Watch) -> list[Words]:
    """The words of each row, which are a list, or a text with spaces between them."""
    name = parameters["words_column"]
    texts = []
    for row, (given,) in rows_of(table, (name,), watch):
        words = given.split() if isinstance(given, str) else given or []
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise invalid(row, name, "neither a text nor a list of words")
        if not words or not all(word.strip() for word in words):
            raise invalid(row, name, "empty, or with an empty word")
        texts.append([word.strip() for word in words])
    return texts


def _numbers(texts: Sequence[Words]) -> dict[str, int]:
    """Numbers of the characters that come more than once."""
    counts = Counter(character for words in texts for word in words for character in word)
    known = sorted(character for character, count in counts.items() if count > 1)
    return {character: number for number, character in enumerate(known, _UNKNOWN + 1)}


def _parts(words: Words) -> list[Words]:
    """Words in parts of at most `_LONGEST` characters, or one longer word."""
    parts: list[Words] = [[]]
    size = 0
    for word in words:
        if size and size + len(word) > _LONGEST:
            parts.append([])
            size = 0
        parts[-1].append(word)
        size += len(word)
    return parts


def _numbered(text: str, numbers: dict[str, int]) -> np.ndarray:
    return np.array([numbers.get(character, _UNKNOWN) for character in text])


def _padded(rows: Sequence[np.ndarray], behind: int) -> Tensor:
    """Rows of numbers as int64[n, longest]."""
    padded = np.full((len(rows), max(map(len, rows))), behind, np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


ALGORITHM = Algorithm(
    name=_NAME,
    task="word-segmentation",
    framework="pytorch",
    parameters=SEGMENTATION,
    train=train,
    load=load,
    columns=("words_column",),
)
