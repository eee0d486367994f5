"""Adapters: a runtime that answers as an exported YOLO-World does, and refusals where something is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libs.common.domain import DomainError
from services.dataset.domain.detectors import DetectorKind
from services.dataset.engines.detection.adapters import open_detector

NAMES = "{0: 'red star', 1: 'blue circle'}"
IMAGE = np.full((40, 80, 3), 200, np.uint8)


def runtime(names: str = NAMES, side: int | str = 160, fault: Exception | None = None) -> ModuleType:
    """An onnxruntime whose model finds one star twice, and no circle."""

    class Session:
        def __init__(self, path: str, providers: list[str]) -> None:
            if fault:
                raise fault

        def get_modelmeta(self) -> Any:
            return SimpleNamespace(custom_metadata_map={"names": names})

        def get_inputs(self) -> Any:
            return [SimpleNamespace(name="images", shape=[1, 3, side, side])]

        def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            (given,) = inputs.values()
            assert given.shape == (1, 3, 160, 160)
            # The image lies in the upper half, the rest is grey.
            assert given[0, 0, 79, 159] == pytest.approx(200 / 255)
            assert given[0, 0, 80, 0] == pytest.approx(114 / 255)
            middle_and_size = [[40, 41, 150], [40, 40, 70], [20, 20, 40], [40, 40, 40]]
            return [np.array([[*middle_and_size, [0.9, 0.8, 0.3], [0, 0, 0]]], np.float32)]

    module = ModuleType("onnxruntime")
    module.InferenceSession = Session  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("onnxruntime", None)
    return module


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"")
    return tmp_path


def test_an_exported_model_gives_boxes_in_pixels_of_the_image(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime())
    stars, circles = open_detector(DetectorKind.YOLO_WORLD, weights).detect([IMAGE], ["red star", "blue circle"])[0]
    assert stars.boxes.tolist() == [[15, 10, 25, 30], [65, 25, 80, 40]]
    assert stars.scores.tolist() == pytest.approx([0.9, 0.3])
    assert len(circles.boxes) == 0


def test_a_model_refuses_prompts_that_it_was_not_exported_with(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime())
    with pytest.raises(DomainError, match=r"prompts: 'car': .* red star, blue circle") as refused:
        open_detector(DetectorKind.YOLO_WORLD, weights).detect([IMAGE], ["car"])
    assert refused.value.reason == "INVALID_FIELD"


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (runtime(names="__import__('os')"), "`names`"),
        (runtime(names="{1: 'red star'}"), "`names`"),
        (runtime(side="width"), "fixed"),
        (runtime(fault=RuntimeError("protobuf")), "can read"),
    ],
)
def test_models_of_another_form_are_refused(
    module: ModuleType, problem: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    with pytest.raises(DomainError, match=problem) as refused:
        open_detector(DetectorKind.YOLO_WORLD, weights)
    assert refused.value.reason == "PREFLIGHT_FAILED"


@pytest.mark.parametrize("kind", [kind for kind in DetectorKind if kind])
def test_an_empty_folder_is_refused(kind: DetectorKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime())
    with pytest.raises(DomainError, match="lacks") as refused:
        open_detector(kind, tmp_path)
    assert refused.value.reason == "PREFLIGHT_FAILED"


def test_a_missing_package_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DomainError, match="needs the package onnxruntime"):
        open_detector(DetectorKind.YOLO_WORLD, weights)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    """A folder with pickled weights only, as older repositories of models have them."""
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DomainError, match=r"lacks model\.safetensors"):
        open_detector(DetectorKind.GROUNDING_DINO, tmp_path)
