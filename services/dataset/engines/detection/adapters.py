"""Detectors behind one interface: the built-in one, YOLO-World as ONNX, Grounding DINO. Weights are local files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from services.dataset.domain.detectors import DetectorKind
from services.dataset.engines.detection.average_precision import Found
from services.dataset.engines.detection.builtin import load_detector
from services.dataset.engines.detection.grounding_dino import GroundingDino
from services.dataset.engines.detection.unusable import unusable
from services.dataset.engines.detection.yolo_world import YoloWorld


class Detector(Protocol):
    """What finds boxes for words."""

    def detect(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Found]]:
        """Boxes with scores.

        Args:
            images: (height, width, 3) uint8, RGB, of any sizes.
            prompts: what is to be found, a phrase each.

        Returns:
            Image by image, prompt by prompt, by falling score, in pixels of the image.

        Raises:
            DomainError: INVALID_FIELD, the detector has no answer to a prompt.
        """
        ...


_OPENED: dict[DetectorKind, Callable[[Path], Detector]] = {
    DetectorKind.BUILT_IN: load_detector,
    DetectorKind.YOLO_WORLD: YoloWorld,
    DetectorKind.GROUNDING_DINO: GroundingDino,
}
# What the service does not need otherwise, and an image of it does not have.
_PACKAGES = {DetectorKind.YOLO_WORLD: "onnxruntime", DetectorKind.GROUNDING_DINO: "transformers"}


def open_detector(kind: DetectorKind, folder: Path) -> Detector:
    """A detector with the weights of a folder.

    Args:
        kind: how it works.
        folder: on this machine; nothing is looked up elsewhere.

    Raises:
        DomainError: PREFLIGHT_FAILED, a package or the weights are missing, or the weights are not what they should be.
    """
    if (package := _PACKAGES.get(kind)) and importlib.util.find_spec(package) is None:
        raise unusable(f"{kind.name} needs the package {package}, which is not installed")
    return _OPENED[kind](folder)
