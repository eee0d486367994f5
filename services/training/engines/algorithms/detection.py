"""Object detection: which of the classes of the training rows are where in a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from libs.compute.context import EngineError
from services.training.domain.algorithm_parameters import DETECTION
from services.training.engines.algorithms.average_precision import Boxes, mean_average_precision, suppressed
from services.training.engines.algorithms.decoding import Scaled, Undecodable, media_of, scaled
from services.training.engines.algorithms.detection_network import Network, loss, middles, targets
from services.training.engines.algorithms.files import config_of, files_of, table_of, with_weights
from services.training.engines.algorithms.interface import Algorithm, Json, Table, Trained, Watch
from services.training.engines.algorithms.reading import held_out, invalid, most_common, rows_of, text_of
from services.training.engines.algorithms.steps import fit, parameter_count, seeded

_NAME = "object-detection"
# Boxes below this score are not said by `predict`; the average precision is of all above the second one.
_SAID, _RANKED = 0.3, 0.01
# Boxes of a picture at most, as COCO counts them (Lin et al., 2014).
_MOST_BOXES = 100
# A box that is rounded to pixels may stand over the edge by this much, in pixels.
_TOLERANCE = 1.0
_BATCH = 64


@dataclass(frozen=True)
class _Scene:
    """A row: a picture, and corners float[n, 4] in pixels of the original with their labels."""

    picture: Scaled
    corners: np.ndarray
    labels: tuple[str, ...]


def train(rows: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    side = parameters["image_size"]
    learned, kept = held_out(lambda table: _read(table, parameters, watch), rows, heldout, seed)
    labels = sorted({label for scene in learned for label in scene.labels})
    if not labels:
        raise EngineError("CONTENT_INVALID", "No row has an object to learn.", detail=parameters["objects_column"])
    watch.log(f"{len(learned)} pictures with {len(labels)} classes, {len(kept)} held out")
    with seeded(seed) as device:
        model = Network(len(labels), parameters["channels"]).to(device)
        pixels = torch.from_numpy(np.stack([scene.picture.pixels for scene in learned]))
        wanted = [_targets(scene, labels, side) for scene in learned]
        classes, sides = torch.stack([one[0] for one in wanted]), torch.stack([one[1] for one in wanted])

        def loss_of(batch: np.ndarray) -> torch.Tensor:
            chosen = torch.from_numpy(batch)
            scores, distances = model(pixels[chosen].to(device))
            return loss(scores, distances, classes[chosen].to(device), sides[chosen].to(device))

        fit(model, loss_of, len(learned), parameters, seed, watch)
        detector = Detector(model, labels, side)
        found = detector.boxes([scene.picture for scene in kept])
    right = [_numbered(scene, labels) for scene in kept]
    results = {
        "ap50": mean_average_precision(found, right),
        "baseline.ap50": mean_average_precision(_usual(learned, kept, labels), right),
        "train_rows": float(len(learned)),
        "heldout_rows": float(len(kept)),
    }
    config = {"image_size": side, "channels": parameters["channels"]}
    return Trained(files_of(_NAME, config, model, labels=labels), results, parameter_count(model))


class Detector:
    """A trained detector.

    Args:
        labels: of the classes, in order of their numbers.
        side: of the square that a picture is scaled to, pixels.
    """

    def __init__(self, model: Network, labels: list[str], side: int) -> None:
        self._model, self._labels, self._side = model, labels, side

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Files of pictures to lists of `{label, box: [x, y, width, height] in pixels, score}`, best first.

        Raises:
            EngineError: CONTENT_INVALID, one cannot be decoded.
        """
        return [self._said(boxes) for boxes in self.boxes(_pictures(inputs, self._side))]

    @torch.no_grad()
    def boxes(self, pictures: Sequence[Scaled]) -> list[Boxes]:
        """All boxes with more than the least score, in pixels of the original pictures."""
        device = next(self._model.parameters()).device
        found: list[Boxes] = []
        for start in range(0, len(pictures), _BATCH):
            some = pictures[start : start + _BATCH]
            pixels = torch.from_numpy(np.stack([one.pixels for one in some])).to(device)
            scores, sides = self._model(pixels)
            corners = _corners(sides.cpu(), self._side)
            found += map(_found, some, scores.sigmoid().cpu().numpy(), corners)
        return found

    def _said(self, boxes: Boxes) -> list[Json]:
        return [
            {"label": self._labels[label], "box": [left, top, right - left, bottom - top], "score": score}
            for (left, top, right, bottom), label, score in zip(
                boxes.corners.round(2).tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True
            )
            if score >= _SAID
        ]


def load(files: dict[str, bytes]) -> Detector:
    config, labels = config_of(files, _NAME), table_of(files, "labels.json")
    model = with_weights(Network(len(labels), config["channels"]), files)
    return Detector(model, labels, config["image_size"])


def _read(table: Table, parameters: Json, watch: Watch) -> list[_Scene]:
    image, objects, side = parameters["image_column"], parameters["objects_column"], parameters["image_size"]
    scenes = []
    for row, (name, given) in rows_of(table, (image, objects), watch):
        picture = media_of(table, row, image, name, lambda content: scaled(content, side))
        found = _objects(row, objects, given)
        corners = [_box(row, objects, number, one, picture) for number, one in enumerate(found)]
        labels = tuple(text_of(row, f"{objects}[{number}].label", one.get("label")) for number, one in enumerate(found))
        scenes.append(_Scene(picture, np.array(corners).reshape(-1, 4), labels))
    return scenes


def _objects(row: int, column: str, given: Any) -> list[Json]:
    """The objects of a row, which may be a list or its JSON."""
    if isinstance(given, str):
        try:
            given = json.loads(given or "[]")
        except ValueError as error:
            raise invalid(row, column, "not JSON") from error
    found = given or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise invalid(row, column, "not a list of objects with label and box")
    return found


def _box(row: int, column: str, number: int, one: Json, picture: Scaled) -> list[float]:
    """Left, top, right, bottom of an object's `[x, y, width, height]`."""
    box, name = one.get("box"), f"{column}[{number}].box"
    numbers = isinstance(box, list) and all(isinstance(side, int | float) and math.isfinite(side) for side in box)
    if not isinstance(box, list) or not numbers or len(box) != 4:
        raise invalid(row, name, "not four numbers: x, y, width, height in pixels")
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    if box[2] <= 0 or box[3] <= 0:
        raise invalid(row, name, "without area")
    if min(left, top) < -_TOLERANCE or right > picture.width + _TOLERANCE or bottom > picture.height + _TOLERANCE:
        raise invalid(row, name, f"{box} is outside the picture of {picture.width} x {picture.height} pixels")
    return [max(0, left), max(0, top), min(picture.width, right), min(picture.height, bottom)]


def _pictures(inputs: list[Any], side: int) -> list[Scaled]:
    pictures = []
    for number, content in enumerate(inputs, 1):
        try:
            pictures.append(scaled(content, side))
        except Undecodable as error:
            raise invalid(number, "input", str(error)) from error
    return pictures


def _numbered(scene: _Scene, labels: list[str]) -> Boxes:
    """Its boxes with numbers of classes; a class that was not learned gets a number that no class has."""
    numbers = {label: number for number, label in enumerate(labels)}
    known = [numbers.get(label, len(labels)) for label in scene.labels]
    return Boxes(scene.corners, np.array(known, np.int64), np.ones(len(known)))


def _targets(scene: _Scene, labels: list[str], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    boxes = _numbered(scene, labels)
    corners = torch.from_numpy(boxes.corners * scene.picture.scale).float()
    return targets(corners, torch.from_numpy(boxes.labels), side)


def _corners(sides: torch.Tensor, side: int) -> np.ndarray:
    places = middles(side)
    return torch.cat([places - sides[..., :2], places + sides[..., 2:]], dim=-1).numpy()


def _found(picture: Scaled, scores: np.ndarray, corners: np.ndarray) -> Boxes:
    """The best boxes of a picture, in its own pixels and cut at its edges."""
    best = np.argsort(-scores, axis=None, kind="stable")[: 4 * _MOST_BOXES]
    cells, labels = np.unravel_index(best[scores.flat[best] > _RANKED], scores.shape)
    size = [picture.width, picture.height] * 2
    boxes = suppressed(Boxes(np.clip(corners[cells] / picture.scale, 0, size), labels, scores[cells, labels]))
    return Boxes(boxes.corners[:_MOST_BOXES], boxes.labels[:_MOST_BOXES], boxes.scores[:_MOST_BOXES])


def _usual(learned: Sequence[_Scene], kept: Sequence[_Scene], labels: list[str]) -> list[Boxes]:
    """The trivial baseline: in every picture the mean box, as shares of its sides, with the most common class."""
    mean = np.concatenate([scene.corners / _size(scene) for scene in learned]).mean(axis=0)
    label = labels.index(most_common(label for scene in learned for label in scene.labels))
    return [Boxes(mean[None] * _size(scene), np.array([label]), np.ones(1)) for scene in kept]


def _size(scene: _Scene) -> np.ndarray:
    """Width, height, width, height in pixels."""
    return np.array([scene.picture.width, scene.picture.height] * 2, float)


ALGORITHM = Algorithm(
    name=_NAME,
    task="detection",
    framework="pytorch",
    parameters=DETECTION,
    train=train,
    load=load,
    columns=("image_column", "objects_column"),
)
