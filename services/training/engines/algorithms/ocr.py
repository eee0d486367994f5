"""OCR: the text of a picture of one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from services.training.domain.algorithm_parameters import OCR
from services.training.engines.algorithms.decoding import Undecodable, media_of, picture
from services.training.engines.algorithms.edit_distance import character_error_rate
from services.training.engines.algorithms.files import config_of, files_of, table_of, with_weights
from services.training.engines.algorithms.interface import Algorithm, Json, Table, Trained, Watch
from services.training.engines.algorithms.ocr_network import BLANK, STRIDE, Network, best_path, places_needed
from services.training.engines.algorithms.reading import held_out, invalid, most_common, rows_of, text_of
from services.training.engines.algorithms.steps import fit, parameter_count, seeded

_NAME = "ocr"
# A line is at most this many times as wide as it is high: about 200 characters.
_LONGEST = 100
_BATCH = 64


@dataclass(frozen=True)
class _Line:
    """A row: ink of 0 to 255, uint8[height, width], and its text."""

    ink: np.ndarray
    text: str


def train(rows: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    height, channels = parameters["height"], parameters["channels"]
    learned, kept = held_out(lambda table: _read(table, parameters, watch), rows, heldout, seed)
    characters = sorted({character for line in learned for character in line.text})
    watch.log(f"{len(learned)} lines with {len(characters)} different characters, {len(kept)} held out")
    numbers = {character: number for number, character in enumerate(characters, BLANK + 1)}
    wanted = [torch.tensor([numbers[character] for character in line.text]) for line in learned]
    with seeded(seed) as device:
        model = Network(len(characters), height, channels).to(device)

        def loss_of(batch: np.ndarray) -> torch.Tensor:
            lines, places = _batch([learned[index].ink for index in batch])
            texts = [wanted[index] for index in batch]
            lengths = torch.tensor([len(text) for text in texts])
            spoken = model(lines.to(device), places).transpose(0, 1)
            # Graves et al., 2006; the mean is over characters, so that long lines do not count more than short ones.
            return functional.ctc_loss(spoken, torch.cat(texts).to(device), places, lengths, blank=BLANK)

        fit(model, loss_of, len(learned), parameters, seed, watch)
        read = Reader(model, characters, height).read([line.ink for line in kept])
    right = [line.text for line in kept]
    usual = most_common(line.text for line in learned)
    results = {
        "cer": character_error_rate(zip(read, right, strict=True)),
        "exact_match": float(np.mean([one == other for one, other in zip(read, right, strict=True)])),
        # Saying nothing has an error rate of 1; the most common text may have less, or more.
        "baseline.cer": min(1.0, character_error_rate((usual, text) for text in right)),
        "baseline.exact_match": float(np.mean([usual == text for text in right])),
        "train_rows": float(len(learned)),
        "heldout_rows": float(len(kept)),
    }
    config = {"height": height, "channels": channels}
    return Trained(files_of(_NAME, config, model, characters=characters), results, parameter_count(model))


class Reader:
    """A trained line recogniser.

    Args:
        characters: in order of their numbers, the blank left out.
        height: that lines are scaled to, pixels.
    """

    def __init__(self, model: Network, characters: list[str], height: int) -> None:
        self._model, self._characters, self._height = model, characters, height

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Files of pictures to texts.

        Raises:
            EngineError: CONTENT_INVALID, one cannot be decoded.
        """
        lines = []
        for number, content in enumerate(inputs, 1):
            try:
                lines.append(_ink(content, self._height))
            except Undecodable as error:
                raise invalid(number, "input", str(error)) from error
        return self.read(lines)

    @torch.no_grad()
    def read(self, lines: Sequence[np.ndarray]) -> list[str]:
        """Texts of lines, each uint8[height, width]."""
        device = next(self._model.parameters()).device
        texts: list[str] = []
        for start in range(0, len(lines), _BATCH):
            padded, places = _batch(lines[start : start + _BATCH])
            choices = self._model(padded.to(device), places).argmax(-1).cpu()
            for choice, count in zip(choices, places.tolist(), strict=True):
                path = best_path(choice[:count].tolist())
                texts.append("".join(self._characters[number - 1] for number in path))
        return texts


def load(files: dict[str, bytes]) -> Reader:
    config, characters = config_of(files, _NAME), table_of(files, "characters.json")
    model = with_weights(Network(len(characters), config["height"], config["channels"]), files)
    return Reader(model, characters, config["height"])


def _read(table: Table, parameters: Json, watch: Watch) -> list[_Line]:
    image, text, height = parameters["image_column"], parameters["text_column"], parameters["height"]
    lines = []
    for row, (name, given) in rows_of(table, (image, text), watch):
        ink = media_of(table, row, image, name, lambda content: _ink(content, height))
        line = _Line(ink, text_of(row, text, given))
        needed, places = places_needed(line.text), ink.shape[1] // STRIDE
        if needed > places:
            raise invalid(row, text, f"the text needs {needed} places, and the picture of its line has {places}")
        lines.append(line)
    return lines


def _ink(content: bytes, height: int) -> np.ndarray:
    """The picture of a line, scaled to a height; dark on light or light on dark gives 0 for ground and 255 for ink."""
    image = picture(content, "L")
    width = max(2 * STRIDE, round(image.width * height / image.height / STRIDE) * STRIDE)
    if width > _LONGEST * height:
        raise Undecodable(f"a line that is more than {_LONGEST} times as wide as it is high")
    grey = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    # There is more ground than ink, so the median is ground.
    away = np.abs(grey - np.median(grey))
    return (255 * away / max(1.0, float(away.max()))).astype(np.uint8)


def _batch(lines: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines side by side with nothing behind the shorter ones, float[n, height, widest], and places of each."""
    widest = max(line.shape[1] for line in lines)
    padded = np.zeros((len(lines), lines[0].shape[0], widest), np.float32)
    for number, line in enumerate(lines):
        padded[number, :, : line.shape[1]] = line / 255
    return torch.from_numpy(padded), torch.tensor([line.shape[1] // STRIDE for line in lines])


ALGORITHM = Algorithm(
    name=_NAME,
    task="ocr",
    framework="pytorch",
    parameters=OCR,
    train=train,
    load=load,
    columns=("image_column", "text_column"),
)
