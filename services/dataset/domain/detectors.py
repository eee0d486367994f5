"""Detectors: what finds boxes in images for words."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from libs.common.domain import Parent, Resource, invalid
from services.dataset.domain.targets import read_target

DEFAULT_STEPS = 1_100
# Boxes with less are hardly ever right.
LEAST_SCORE = 0.05


class DetectorKind(enum.IntEnum):
    """How a detector works; numbers as in annotation.proto."""

    UNSPECIFIED = 0
    BUILT_IN = 1
    YOLO_WORLD = 2
    GROUNDING_DINO = 3


@dataclass(kw_only=True)
class Detector(Resource):
    """Weights with what they are for. See `Detector` of annotation.proto for the attributes."""

    display_name: str = ""
    description: str = ""
    kind: int
    manifest_digest: str
    byte_count: int
    card: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str = ""

    def as_parent(self) -> Parent:
        """This detector in the lineage of what it annotated."""
        return Parent(self.name, self.manifest_digest, "annotated_by")

    def require_answers(self, prompts: Iterable[str], field_name: str) -> None:
        """Raises INVALID_FIELD for a prompt that this detector cannot answer, as far as that is known before it is
        opened."""
        prompts = list(prompts)
        for number, prompt in enumerate(prompts):
            if not prompt.strip():
                raise invalid(f"{field_name}[{number}]", "is blank")
            if self.kind == DetectorKind.BUILT_IN:
                read_target(prompt, f"{field_name}[{number}]")


def require_source(kind: int, upload: str, training_steps: int) -> None:
    """Raises INVALID_FIELD unless a detector of this kind can be made of what is given."""
    if kind == DetectorKind.BUILT_IN and upload:
        raise invalid("upload", "is not for a built-in detector, which is trained")
    if kind != DetectorKind.BUILT_IN and not upload:
        raise invalid("upload", "is missing: a zip with the weights")
    if kind != DetectorKind.BUILT_IN and training_steps:
        raise invalid("training_steps", "is for a built-in detector; the others come with their weights")
