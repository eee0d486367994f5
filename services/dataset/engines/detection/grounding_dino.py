"""Grounding DINO (Liu et al. 2023) by transformers, from a local folder in the layout of the model hub."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.dataset.engines.detection.average_precision import Found
from services.dataset.engines.detection.unusable import require_files, unusable

_LEAST_SCORE = 0.01


class GroundingDino:
    """A model and its processor. Only safetensors are read, and nothing is looked up on a hub.

    Raises:
        DomainError: PREFLIGHT_FAILED, a file is missing or of another model.
    """

    def __init__(self, folder: Path) -> None:
        require_files(folder, "config.json", "model.safetensors")
        transformers: Any = importlib.import_module("transformers")
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            self._model = transformers.GroundingDinoForObjectDetection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            ).eval()
        # What transformers raises for a folder that is not of this model depends on what is wrong with it.
        except Exception as error:
            raise unusable(f"the folder {folder.name} is not of a Grounding DINO that transformers can read") from error

    def detect(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Found]]:
        """See `adapters.Detector`. A pass for each prompt: the words of prompts in one text blur into each other."""
        with torch.inference_mode():
            return [[self._detect(image, prompt) for prompt in prompts] for image in images]

    def _detect(self, image: np.ndarray, prompt: str) -> Found:
        inputs = self._processor(images=image, text=[[prompt]], return_tensors="pt")
        (found,) = self._processor.post_process_grounded_object_detection(
            self._model(**inputs),
            inputs["input_ids"],
            threshold=_LEAST_SCORE,
            text_threshold=_LEAST_SCORE,
            target_sizes=[image.shape[:2]],
        )
        scores, boxes = found["scores"].numpy(), found["boxes"].numpy()
        order = np.argsort(-scores, kind="stable")
        return Found(boxes[order], scores[order])
