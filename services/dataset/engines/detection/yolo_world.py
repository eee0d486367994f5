"""YOLO-World as ONNX: the text encoder has run at export, so a file answers the prompts that it was exported with.

The form is that of the exporter of Ultralytics (`model.set_classes([...]); model.export(format="onnx")`): one input
(1, 3, side, side) of 0 to 1, one output (1, 4 + prompts, candidates) with middle, width and height in pixels of the
input and a score a prompt; the metadata entry `names` says what the prompts are.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from libs.common.domain import invalid
from services.dataset.engines.detection.average_precision import Found
from services.dataset.engines.detection.repeats import without_repeats
from services.dataset.engines.detection.unusable import require_files, unusable

WEIGHTS = "model.onnx"
_LEAST_SCORE = 0.01
# Candidates of one prompt that are looked at for repeats; the exporter's own limit of boxes is 300.
_MOST_CANDIDATES = 300
_SAME_OBJECT = 0.7
# The grey that YOLO models are trained to see beside an image.
_BORDER = 114 / 255


class YoloWorld:
    """An exported model.

    Raises:
        DomainError: PREFLIGHT_FAILED, the file is missing or not of this form.
    """

    def __init__(self, folder: Path) -> None:
        require_files(folder, WEIGHTS)
        runtime: Any = importlib.import_module("onnxruntime")
        try:
            self._session = runtime.InferenceSession(str(folder / WEIGHTS), providers=["CPUExecutionProvider"])
        # The classes of errors that the runtime raises are not part of its interface.
        except Exception as error:
            raise unusable(f"{WEIGHTS} is not a model that ONNX Runtime can read") from error
        self._names = _names(self._session.get_modelmeta().custom_metadata_map)
        self._input = self._session.get_inputs()[0]
        side = self._input.shape[-1]
        if not isinstance(side, int):
            raise unusable(f"{WEIGHTS} was exported with an input of any size; export it with a fixed one")
        self._side = side

    def detect(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Found]]:
        """See `adapters.Detector`. Raises INVALID_FIELD for a prompt that the file was not exported with."""
        for prompt in prompts:
            if prompt not in self._names:
                raise invalid("prompts", f"{prompt!r}: {WEIGHTS} was exported with {', '.join(self._names)}")
        wanted = [self._names.index(prompt) for prompt in prompts]
        return [self._detect(image, wanted) for image in images]

    def _detect(self, image: np.ndarray, wanted: Sequence[int]) -> list[Found]:
        fitted, scale = fit(image, self._side)
        (answer,) = self._session.run(None, {self._input.name: fitted})
        return [decode(answer[0], number, scale, image.shape[:2]) for number in wanted]


def _names(metadata: dict[str, str]) -> list[str]:
    """The prompts in their order; the exporter writes a dictionary in Python's notation."""
    try:
        names = ast.literal_eval(metadata["names"])
        return [str(names[number]) for number in range(len(names))]
    except (KeyError, ValueError, SyntaxError, TypeError) as error:
        raise unusable(f"{WEIGHTS} does not say in `names` which prompts it was exported with") from error


def fit(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The image in the upper left corner of a grey square, (1, 3, side, side) float32 of 0 to 1, and by how much it was
    enlarged."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    resized = functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    result = torch.full((1, 3, side, side), _BORDER)
    result[:, :, :height, :width] = resized
    return result.numpy(), scale


def decode(answer: np.ndarray, number: int, scale: float, size: tuple[int, ...]) -> Found:
    """Boxes of one prompt.

    Args:
        answer: (4 + prompts, candidates) as the model gives it.
        number: of the prompt.
        scale: by which the image was enlarged.
        size: height and width of the image, pixels.
    """
    scores = answer[4 + number]
    best = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    best = best[scores[best] >= _LEAST_SCORE]
    middle, half = answer[:2, best].T, answer[2:4, best].T / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1) / scale
    boxes = np.clip(boxes, 0, [size[1], size[0], size[1], size[0]])
    kept = without_repeats(boxes, _SAME_OBJECT)
    return Found(boxes[kept], scores[best][kept])
